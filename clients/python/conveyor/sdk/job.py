"""A job: one attempt of one step, as its driver's handler sees it."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from os import PathLike

from conveyor.sdk.errors import JobCancelled, JobFailed
from conveyor.sdk.log_buffer import AttemptKey, JobLog
from conveyor.sdk.process import Completed, run_process, start_process
from conveyor.sdk.values import from_struct, to_struct
from conveyor.v1.log_pb2 import LogStream
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.result_pb2 import DriverResult, Outcome
from conveyor.v1.run_pb2 import RunState, StepState
from conveyor.v1.worker_pb2 import Assignment

current_job: ContextVar["Job | None"] = ContextVar("conveyor_current_job", default=None)
"""The job that the running task or thread works on."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an earlier step of the run came to."""

    state: str
    """SUCCEEDED, FAILED or CANCELLED."""
    driver: str
    """The driver's name."""
    message: str
    """What the driver said."""
    data: dict[str, object]
    """What the driver returned."""


class Job:
    """One attempt of one step. Everything in it is as it was when the attempt was given out."""

    def __init__(self, assignment: Assignment, log: JobLog) -> None:
        self.assignment = assignment
        """The message that the server sent."""
        self.cancelled = False
        """Whether the job should stop. An async handler is cancelled besides; a thread looks here now and then."""
        self.cancel_message = ""
        """Why it was cancelled."""
        self.grace = 30.0
        """How long the server waits for the confirmation of a cancellation, in seconds."""
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._cancelled_event: threading.Event | None = None
        self._forgotten = False
        self._notices: list[str] = []

    def __repr__(self) -> str:
        return f"<Job {self.driver}: {self.step} of run {self.run}, attempt {self.attempt}>"

    @property
    def key(self) -> AttemptKey:
        """Run, step and attempt."""
        return self.assignment.run, self.assignment.step, self.assignment.attempt

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self.assignment.namespace

    @property
    def run(self) -> str:
        """The run's id."""
        return self.assignment.run

    @property
    def step(self) -> str:
        """The step's id."""
        return self.assignment.step

    @property
    def driver(self) -> str:
        """The driver's name."""
        return self.assignment.driver

    @property
    def pipeline(self) -> str:
        """The pipeline's name. Empty when the resource went to all drivers at once."""
        return self.assignment.pipeline

    @property
    def attempt(self) -> int:
        """The attempt's number, from 1."""
        return self.assignment.attempt

    @property
    def max_attempts(self) -> int:
        """The attempts that the step's retry policy allows."""
        return self.assignment.max_attempts

    @cached_property
    def deadline(self) -> datetime | None:
        """When the attempt times out, in UTC by the server's clock. None when it does not."""
        if not self.assignment.HasField("deadline"):
            return None
        return self.assignment.deadline.ToDatetime(tzinfo=UTC)

    @property
    def run_state(self) -> str:
        """The state that the run is heading for, e.g. SUCCEEDED or FAILED: for finally steps."""
        return RunState.Name(self.assignment.run_state).removeprefix("RUN_STATE_")

    @property
    def resource(self) -> Resource:
        """The resource as it was when the run was created."""
        return self.assignment.resource

    @cached_property
    def spec(self) -> dict[str, object]:
        """The resource's spec."""
        return from_struct(self.assignment.resource.spec)

    @cached_property
    def context(self) -> dict[str, object]:
        """The values that the pipeline shares among its drivers."""
        return from_struct(self.assignment.context)

    @cached_property
    def params(self) -> dict[str, object]:
        """This step's own parameters."""
        return from_struct(self.assignment.params)

    @cached_property
    def results(self) -> Mapping[str, StepOutcome]:
        """What earlier steps came to, by step id. Steps that were skipped are not in it."""
        return {
            step: StepOutcome(
                StepState.Name(result.state).removeprefix("STEP_STATE_"),
                result.driver,
                result.message,
                from_struct(result.data),
            )
            for step, result in self.assignment.results.items()
        }

    def log(self, message: str, *args: object) -> None:
        """Write a line into the run's log; `args` are put into `message` by `%`. From any thread."""
        self._log.write(message % args if args else str(message))

    @cached_property
    def logger(self) -> logging.Logger:
        """A logger whose records go into the run's log, and nowhere else."""
        # Not one of logging's own tree: it belongs to this job alone and goes with it.
        logger = logging.Logger(f"conveyor.job.{self.driver}", logging.DEBUG)  # noqa: LOG001
        logger.addHandler(_JobHandler(self))
        return logger

    def succeed(self, message: str = "", data: Mapping[str, object] | None = None) -> DriverResult:
        """A result to return: success with a message for people, and data for later steps."""
        return DriverResult(
            outcome=Outcome.OUTCOME_SUCCEEDED, message=message, data=None if data is None else to_struct(data)
        )

    def fail(
        self, message: str = "", data: Mapping[str, object] | None = None, retryable: bool | None = None
    ) -> JobFailed:
        """An exception to raise: failure with a message for people, and data.

        `retryable=False` ends the step now, whatever its retry policy; None leaves it to the policy.
        """
        return JobFailed(message, data, retryable)

    @property
    def cancelled_event(self) -> threading.Event:
        """Set when the job should stop; for threads that wait."""
        event = self._cancelled_event
        if event is None:
            event = self._cancelled_event = threading.Event()
            if self.cancelled:
                event.set()
        return event

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled when the job should stop; for handlers in threads."""
        if self.cancelled:
            raise JobCancelled(self.cancel_message)

    async def subprocess(
        self,
        *command: str | PathLike[str],
        cwd: str | PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        capture: bool = False,
    ) -> Completed:
        """Run a command in a process group of its own; its output becomes lines of the run's log.

        `env` is the whole environment (None: ours). With `check` an exit status other than 0 raises ProcessFailed.
        With `capture` the output is also returned. When the job is cancelled, the command and all that it started get
        SIGTERM, and SIGKILL before the grace is over. What outlives the command is ended, and the result says so.
        """
        return await start_process(self, command, cwd=cwd, env=env, check=check, capture=capture)

    def run_subprocess(
        self,
        *command: str | PathLike[str],
        cwd: str | PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        capture: bool = False,
    ) -> Completed:
        """The same as `subprocess` for handlers in threads. Raises JobCancelled when the job is cancelled."""
        return run_process(self, command, cwd=cwd, env=env, check=check, capture=capture)

    def notice(self, text: str) -> None:
        """Write a line into the run's log, and say it in the message of the result too."""
        self.log("[%s]", text)
        self._notices.append(text)

    def write_output(self, text: str, stream: LogStream.ValueType, *, partial: bool = False) -> None:
        """Write output of a subprocess into the run's log; `partial` when its last line goes on."""
        self._log.write(text, stream, partial=partial)

    def cancel(self, message: str = "", grace: float | None = None) -> None:
        """Ask the job to stop. On the event loop only."""
        if grace:
            self.grace = grace
        if self.cancelled:
            return
        self.cancel_message = message
        self.cancelled = True
        self._log.do_not_wait()
        if self._cancelled_event is not None:
            self._cancelled_event.set()
        if self._task is not None:
            self._task.cancel(message)


class _JobHandler(logging.Handler):
    """Sends records to the log of a given job, or of the job that the running task or thread works on."""

    def __init__(self, job: Job | None = None) -> None:
        super().__init__()
        self._job = job
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        job = self._job or current_job.get()
        if job is None:
            return
        try:
            job._log.write(self.format(record))
        except Exception:  # noqa: BLE001 (what every handler of logging does)
            self.handleError(record)


def capturing_handler() -> logging.Handler:
    """A handler that sends each record to the log of the job during which it was made; others it leaves alone."""
    return _JobHandler()
