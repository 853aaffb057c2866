"""A pipeline's snapshot in the form that decisions need: indexes instead of names, all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from conveyor.core.selectors import ANY, Selector, compile_selector
from conveyor.v1 import pipeline_pb2

SECOND = 1_000_000
"""Microseconds; all times and durations of the core are in this unit."""

DEFAULT_STEP_TIMEOUT = 3600 * SECOND
DEFAULT_RUN_TIMEOUT = 24 * 3600 * SECOND
DEFAULT_FINALLY_TIMEOUT = 3600 * SECOND
DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_INITIAL_BACKOFF = 1 * SECOND
DEFAULT_MAX_BACKOFF = 60 * SECOND
DEFAULT_MULTIPLIER = 2.0
DEFAULT_JITTER = 0.1
DEFAULT_LOCK_LIMIT = 1


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """How often an attempt may fail, and the waits in between (microseconds)."""

    max_attempts: int = 1
    initial: int = DEFAULT_INITIAL_BACKOFF
    maximum: int = DEFAULT_MAX_BACKOFF
    multiplier: float = DEFAULT_MULTIPLIER
    jitter: float = DEFAULT_JITTER

    def backoff(self, failures: int, jitter: float) -> int:
        """The wait after the failure number `failures` (from 1); `jitter` from 0 to 1 picks the place in its range."""
        # The exponent is bounded: the wait has reached its maximum long before, and floats overflow at 1024.
        base = min(self.initial * self.multiplier ** min(failures - 1, 60), float(self.maximum))
        return int(base * (1 + self.jitter * (2 * jitter - 1)))


NO_RETRY = RetryPlan()


@dataclass(frozen=True, slots=True)
class LockPlan:
    """A lock that a step holds while it is under way. A `key` that comes of expressions is empty."""

    key: str
    limit: int


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """How many instances of a step run at a time (0: all), and whether the first failed one stops the others."""

    max_parallel: int = 0
    fail_fast: bool = True


EXPRESSION_MARK = b"${{"
"""Where an expression begins within the text of a step's params."""

_DIGITS = bytes.maketrans(b"01", b"\0\1")


@dataclass(frozen=True, slots=True)
class GatePlan:
    """How many must approve, what is decided when time has passed, and what is asked unless expressions make it."""

    approvals: int
    default: pipeline_pb2.Decision.ValueType
    message: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step; `needs` and `dependents` are indexes into `Plan.steps`, times are in microseconds.

    A `timeout` or `queue_timeout` of 0 is no bound. A step without a driver is none that workers take. The timeout of a
    gate is its `queue_timeout`. `calls` is the pipeline that a step runs. `judged`: it has expressions, which decide
    whether it runs, with which params, on which workers and under which lock; those of one whose params have none are
    `params`, a serialized Struct, and so is its `selector`. An instance of a matrix has the index of the step that has
    the matrix.
    """

    index: int
    id: str
    driver: str
    needs: tuple[int, ...]
    dependents: tuple[int, ...]
    rule: pipeline_pb2.TriggerRule.ValueType
    allow_failure: bool
    is_finally: bool
    timeout: int
    queue_timeout: int
    retry: RetryPlan
    judged: bool = False
    params: bytes = b""
    selector: Selector = ANY
    gate: GatePlan | None = None
    lock: LockPlan | None = None
    calls: str = ""
    matrix: MatrixPlan | None = None
    matrix_step: int = -1

    @property
    def is_instance(self) -> bool:
        """Whether it is one of the instances of a matrix."""
        return self.matrix_step >= 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The `declared` steps in snapshot order, finally steps last: the first `main` ones are the others.

    Behind them stand the instances of matrices that were expanded, in that order: `instances` says where those of a
    step are. `mains` and `finals` are the indexes of what ends before the finally steps begin, and of those, instances
    included. `judged`, `has_matrix`, `calls`, `optional_gates`: any step is, has one, runs a pipeline, or is one.

    A broadcast has neither order nor failure policy: each driver answers for itself.
    """

    steps: tuple[PlanStep, ...]
    index: Mapping[str, int]
    main: int
    declared: int
    is_list: bool
    fail_fast: bool
    broadcast: bool
    timeout: int
    finally_timeout: int
    ancestors: tuple[int, ...]
    mains: Sequence[int]
    finals: Sequence[int]
    judged: bool = False
    calls: bool = False
    optional_gates: bool = False
    has_matrix: bool = False
    instances: Mapping[int, range] = field(default_factory=dict)

    def in_order(self) -> list[str]:
        """The ids of all steps, those of instances right behind their step's."""
        return [step.id for step in sorted(self.steps, key=_place)]

    def inputs(self, index: int) -> Sequence[int]:
        """The steps whose results the step receives: all before it, all ancestors in a graph, or all main ones."""
        return list(compress(range(len(self.steps)), self.selectors(index)))

    def selectors(self, index: int) -> bytes:
        """The same as one byte for each step: 1 for those it receives from. Zeros at the end are left out."""
        step = self.steps[index]
        found = self._selectors(step.matrix_step if step.is_instance else index)
        if not self.instances:
            return found
        # Instances are received with the step that has their matrix.
        parts = [found.ljust(self.declared, b"\0")]
        parts += [parts[0][of : of + 1] * len(places) for of, places in self.instances.items()]
        return b"".join(parts)

    def _selectors(self, index: int) -> bytes:
        if index >= self.main:
            return b"\1" * self.main
        if self.is_list:
            return b"\1" * index
        return bin(self.ancestors[index])[:1:-1].encode().translate(_DIGITS)


def _place(step: PlanStep) -> tuple[int, int]:
    return (step.matrix_step, step.index) if step.is_instance else (step.index, 0)


def micros(duration: Duration) -> int:
    """The duration in microseconds."""
    return duration.seconds * SECOND + duration.nanos // 1000


def _timeout(step: pipeline_pb2.Step) -> int:
    if step.HasField("timeout"):
        return micros(step.timeout)
    # A run within a run has bounds of its own.
    return 0 if step.HasField("runs") else DEFAULT_STEP_TIMEOUT


def _retry_plan(step: pipeline_pb2.Step) -> RetryPlan:
    if not step.HasField("retry"):
        return NO_RETRY
    retry = step.retry
    initial = micros(retry.initial_backoff) if retry.HasField("initial_backoff") else DEFAULT_INITIAL_BACKOFF
    maximum = micros(retry.max_backoff) if retry.HasField("max_backoff") else max(DEFAULT_MAX_BACKOFF, initial)
    return RetryPlan(
        max_attempts=retry.max_attempts if retry.HasField("max_attempts") else DEFAULT_MAX_ATTEMPTS,
        initial=initial,
        maximum=maximum,
        multiplier=retry.multiplier if retry.HasField("multiplier") else DEFAULT_MULTIPLIER,
        jitter=retry.jitter if retry.HasField("jitter") else DEFAULT_JITTER,
    )


def _gate_plan(step: pipeline_pb2.Step) -> GatePlan | None:
    if not step.HasField("gate"):
        return None
    gate = step.gate
    default = gate.default_decision or pipeline_pb2.DECISION_REJECTED
    return GatePlan(max(1, gate.approvals), default, gate.message, gate.optional)


def _queue_timeout(step: pipeline_pb2.Step) -> int:
    if step.HasField("gate"):
        return micros(step.gate.timeout) if step.gate.HasField("timeout") else 0
    return micros(step.queue_timeout) if step.HasField("queue_timeout") else 0


def _ancestor_masks(needs: Sequence[tuple[int, ...]], dependents: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """For each step the set of its direct and indirect needs, as a bit mask; linear in steps and edges."""
    masks = [0] * len(needs)
    open_needs = [len(n) for n in needs]
    order = [i for i, n in enumerate(needs) if not n]
    for index in order:
        below = masks[index] | (1 << index)
        for dependent in dependents[index]:
            masks[dependent] |= below
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                order.append(dependent)
    return tuple(masks)


def given_params(step: pipeline_pb2.Step) -> Struct:
    """What the step gives to whoever does its work: its driver, or the pipeline that it runs."""
    return step.runs.params if step.HasField("runs") else step.params


def _params(step: pipeline_pb2.Step) -> tuple[bool, bytes]:
    """Whether the step's params have expressions, and the params if not."""
    params = given_params(step).SerializeToString()
    return (True, b"") if EXPRESSION_MARK in params else (False, params)


def _selector(step: pipeline_pb2.Step) -> tuple[bool, Selector]:
    """Whether the step's selector has expressions, and the selector if not."""
    if not step.HasField("worker_selector"):
        return False, ANY
    if EXPRESSION_MARK in step.worker_selector.SerializeToString():
        return True, ANY
    return False, compile_selector(step.worker_selector)


def lock_limit(lock: pipeline_pb2.Lock) -> int:
    """How many holders a lock may have."""
    return lock.limit if lock.HasField("limit") else DEFAULT_LOCK_LIMIT


def _lock(step: pipeline_pb2.Step) -> LockPlan | None:
    if not step.HasField("lock"):
        return None
    return LockPlan("" if EXPRESSION_MARK.decode() in step.lock.key else step.lock.key, lock_limit(step.lock))


def _judged(step: pipeline_pb2.Step) -> bool:
    """Whether the step has a condition, or expressions in its texts."""
    mark = EXPRESSION_MARK.decode()
    return bool(step.when) or mark in step.gate.message or mark in step.lock.key


def _matrix(step: pipeline_pb2.Step) -> MatrixPlan | None:
    if not step.HasField("matrix"):
        return None
    matrix = step.matrix
    return MatrixPlan(matrix.max_parallel, matrix.fail_fast if matrix.HasField("fail_fast") else True)


def compile_plan(pipeline: pipeline_pb2.Pipeline) -> Plan:
    """The plan of a pipeline that was validated before; a pipeline without a name is a broadcast."""
    main = len(pipeline.steps)
    sources = [*pipeline.steps, *pipeline.finally_steps]
    index = {step.id: i for i, step in enumerate(sources)}
    broadcast = not pipeline.name
    is_list = pipeline.order != pipeline_pb2.ORDER_GRAPH and not broadcast
    needs: list[tuple[int, ...]] = []
    dependents: list[list[int]] = [[] for _ in sources]
    for i, step in enumerate(sources):
        if i >= main:
            before: tuple[int, ...] = ()
        elif is_list:
            before = (i - 1,) if i else ()
        else:
            before = tuple(dict.fromkeys(index[need] for need in step.needs))
        needs.append(before)
        for need in before:
            dependents[need].append(i)
    params = [_params(step) for step in sources]
    selectors = [_selector(step) for step in sources]
    steps = tuple(
        PlanStep(
            index=i,
            id=step.id,
            driver=step.driver,
            needs=needs[i],
            dependents=tuple(dependents[i]),
            rule=step.trigger_rule or pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS,
            allow_failure=step.allow_failure,
            is_finally=i >= main,
            timeout=_timeout(step),
            queue_timeout=_queue_timeout(step),
            retry=_retry_plan(step),
            judged=_judged(step) or params[i][0] or selectors[i][0],
            params=params[i][1],
            selector=selectors[i][1],
            gate=_gate_plan(step),
            lock=_lock(step),
            calls=step.runs.pipeline,
            matrix=_matrix(step),
        )
        for i, step in enumerate(sources)
    )
    return Plan(
        steps=steps,
        index=index,
        main=main,
        declared=len(steps),
        is_list=is_list,
        fail_fast=pipeline.failure_policy != pipeline_pb2.FAILURE_POLICY_CONTINUE and not broadcast,
        broadcast=broadcast,
        timeout=micros(pipeline.timeout) if pipeline.HasField("timeout") else DEFAULT_RUN_TIMEOUT,
        finally_timeout=(
            micros(pipeline.finally_timeout) if pipeline.HasField("finally_timeout") else DEFAULT_FINALLY_TIMEOUT
        ),
        ancestors=() if is_list else _ancestor_masks(needs, dependents),
        calls=any(step.calls for step in steps),
        mains=range(main),
        finals=range(main, len(steps)),
        judged=any(step.judged or step.matrix is not None for step in steps),
        has_matrix=any(step.matrix is not None for step in steps),
        optional_gates=any(step.gate is not None and step.gate.optional for step in steps),
    )
