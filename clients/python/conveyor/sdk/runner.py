"""Runs a driver's handler: one job per assignment, and of whatever it does exactly one result."""

import asyncio
import contextvars
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import cast

from google.protobuf.struct_pb2 import Struct

from conveyor.sdk.errors import JobCancelled, JobFailed, ValueNotRepresentable
from conveyor.sdk.job import Job, current_job
from conveyor.sdk.log_buffer import AttemptKey, LogBuffer
from conveyor.sdk.threads import Threads
from conveyor.sdk.values import to_struct
from conveyor.v1.result_pb2 import DriverResult, Outcome
from conveyor.v1.worker_pb2 import Assignment, Limits

Answer = Mapping[str, object] | DriverResult | str | None
Handler = Callable[[Job], Answer] | Callable[[Job], Awaitable[Answer]]
Report = Callable[[Job, DriverResult], None]

_log = logging.getLogger(__name__)

_AGAIN = "[this attempt was given out again: the driver that had it went away]"

# What a message needs besides the data of its result.
_HEADROOM = 256 * 1024


class Runner:
    """The jobs of a worker. For one event loop; each result is given to `report` there."""

    def __init__(self, handler: Handler, slots: int, logs: LogBuffer, report: Report) -> None:
        self.jobs: dict[AttemptKey, Job] = {}
        self.limits = Limits(
            message_bytes=4 * 1024 * 1024,
            result_data_bytes=64 * 1024,
            result_message_bytes=4 * 1024,
            log_line_bytes=256 * 1024,
        )
        self._handler = handler
        self._logs = logs
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._threads = None if _is_async(handler) else Threads(slots)

    def start(self, assignment: Assignment, *, again: bool = False) -> None:
        """Begin with an assignment. One that is held already, with the same token, is left alone.

        `again`: another worker had it, and may have left lines in its log.
        """
        key = (assignment.run, assignment.step, assignment.attempt)
        held = self.jobs.get(key)
        if held is not None:
            if held.assignment.token == assignment.token:
                return
            self.forget(key, "the attempt was given out again")
        job = Job(assignment, self._logs.open(key))
        if again:
            job._log.earlier = None
            job.log(_AGAIN)
        self.jobs[key] = job
        if self._threads is None:
            job._task = self._loop.create_task(self._run(job))
        else:
            self._threads.submit(partial(contextvars.copy_context().run, self._call, job), partial(self._finish, job))

    def cancel(self, key: AttemptKey, message: str, grace: float | None = None) -> None:
        """Tell a job to stop; one that has ended already does not hear it."""
        job = self.jobs.get(key)
        if job is not None:
            job.cancel(message, grace)

    def forget(self, key: AttemptKey, message: str) -> None:
        """Stop a job whose result nobody wants any more."""
        job = self.jobs.pop(key, None)
        if job is not None:
            job._forgotten = True
            job.cancel(message)

    def take_limits(self, limits: Limits) -> None:
        """Know what the server accepts. Values that it does not state stay as they are."""
        self.limits.MergeFrom(limits)
        self._logs.line_bytes = self.limits.log_line_bytes

    async def close(self, patience: float = 5.0) -> None:
        """Stop what still runs, wait a little for it, and report nothing of it."""
        left = list(self.jobs.values())
        for job in left:
            self.forget(job.key, "the worker stops")
        tasks = [job._task for job in left if job._task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        if self._threads is not None:
            self._threads.close()

    async def _run(self, job: Job) -> None:
        current_job.set(job)
        try:
            result = self._result(await cast(Awaitable[Answer], self._handler(job)))
        except asyncio.CancelledError:
            result = _cancelled(job)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a handler raises is its result)
            result = self._failure(job, error)
        self._finish(job, result)

    def _call(self, job: Job) -> DriverResult:
        current_job.set(job)
        try:
            job.raise_if_cancelled()
            return self._result(cast(Answer, self._handler(job)))
        except JobCancelled:
            return _cancelled(job)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a handler raises is its result)
            return self._failure(job, error)

    def _finish(self, job: Job, result: DriverResult) -> None:
        job._log.close()
        if job._forgotten:
            return
        del self.jobs[job.key]
        if job._notices:
            told = "; ".join(job._notices)
            result.message = _text(f"{result.message} ({told})" if result.message else told)
            result = self._within_limits(result)
        self._report(job, result)

    def _result(self, answer: Answer) -> DriverResult:
        if answer is None:
            return DriverResult(outcome=Outcome.OUTCOME_SUCCEEDED)
        if isinstance(answer, DriverResult):
            return self._within_limits(answer)
        if isinstance(answer, str):
            return self._within_limits(DriverResult(outcome=Outcome.OUTCOME_SUCCEEDED, message=answer))
        if not isinstance(answer, Mapping):
            raise TypeError(
                f"the handler returned {type(answer).__name__}; it may return a dict, a str, None or job.succeed(…)"
            )
        return self._within_limits(DriverResult(outcome=Outcome.OUTCOME_SUCCEEDED, data=to_struct(answer)))

    def _failure(self, job: Job, error: BaseException) -> DriverResult:
        if isinstance(error, JobCancelled):
            return _cancelled(job)
        result = DriverResult(outcome=Outcome.OUTCOME_FAILED)
        if isinstance(error, JobFailed):
            result.message = _text(error.message)
            if error.retryable is not None:
                result.retryable = error.retryable
            if error.data is not None:
                try:
                    result.data.CopyFrom(to_struct(error.data))
                except ValueNotRepresentable as bad:
                    result.message += f" (its data was left out: {bad.message})"
        elif isinstance(error, ValueNotRepresentable):
            result.message = _text(error.message)
            result.retryable = False
        else:
            result.message = _text(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            job.log("%s", "".join(traceback.format_exception(error)))
        _log.info("%r failed: %s", job, result.message)
        return self._within_limits(result)

    def _within_limits(self, result: DriverResult) -> DriverResult:
        """Cut what may be cut. Data above its limit is for the server to refuse, but a message must carry it there."""
        limit = self.limits.result_message_bytes
        if len(result.message) * 4 > limit:
            result.message = _cut(result.message, limit)
        size = result.ByteSize()
        room = self.limits.message_bytes - _HEADROOM
        if size > room:
            return DriverResult(
                outcome=Outcome.OUTCOME_FAILED,
                message=f"the result has {size} bytes of data; the limit is {self.limits.result_data_bytes}",
                data=Struct(),
                retryable=False,
            )
        return result


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _cancelled(job: Job) -> DriverResult:
    return DriverResult(outcome=Outcome.OUTCOME_CANCELLED, message=job.cancel_message)


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


def _cut(text: str, limit: int) -> str:
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode(errors="ignore") + "…"
