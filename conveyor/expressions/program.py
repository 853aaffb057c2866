"""The expressions of a pipeline's steps at work: whether a step runs, and with which params."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cel_expr_python import cel
from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core import limits
from conveyor.core.inputs import Expansion, Seen, Verdict
from conveyor.core.locks import RUN
from conveyor.core.matrix import data_of, values_of
from conveyor.core.model import TERMINAL_STEP
from conveyor.core.plan import Plan, given_params
from conveyor.core.rules import outcome
from conveyor.expressions import results
from conveyor.expressions.errors import MissingValue, NotAnExpression, NoValue, TooLarge
from conveyor.expressions.expression import Expression, Values, activation, compile_expression
from conveyor.expressions.matrix import MatrixCode
from conveyor.expressions.selectors import Place, render_selector, selector_texts
from conveyor.expressions.template import OPEN, Evaluate, Template, compile_text, render_struct, render_text, texts
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2

_MESSAGE_CHARS = 1024


@dataclass(frozen=True, slots=True)
class _Referred:
    """What expressions refer to: variables, and earlier steps."""

    roots: frozenset[str]
    steps: frozenset[str]

    @classmethod
    def by(cls, expressions: Iterable[Expression]) -> _Referred:
        names = [reference.names for expression in expressions for reference in expression.outline.references]
        return cls(
            frozenset(each[0] for each in names),
            frozenset(each[1] for each in names if each[0] == "steps" and len(each) > 1),
        )


@dataclass(frozen=True, slots=True)
class _StepCode:
    """The compiled expressions of a step, or of the instances of one with a matrix.

    `asks` is what a gate asks. `together` is all of the others as one, since each evaluation has its price: a list of
    what its params and then its selector come to, empty when the condition is false. None when there is only one, or
    when they don't go together.
    """

    when: Expression | None
    params: Struct | None
    templates: tuple[tuple[tuple[str | int, ...], Template], ...]
    selector: pipeline_pb2.LabelSelector | None
    labels: tuple[tuple[Place, Template], ...]
    referred: _Referred
    asks: Template | None
    lock: Template | None
    together: Expression | None

    @classmethod
    def of(cls, step: pipeline_pb2.Step) -> _StepCode:
        """Raises NotAnExpression, which registration rules out."""
        when = compile_expression(step.when) if step.when else None
        if when is not None and step.HasField("matrix") and not _of_instances(when):
            when = None  # The step itself is judged by it.
        params = given_params(step)
        templates = tuple((keys, compile_text(text, compile_expression)) for keys, text in texts(params))
        labels = tuple(
            (place, compile_text(text, compile_expression)) for place, text in selector_texts(step.worker_selector)
        )
        parts = [part.expression for _, template in (*templates, *labels) for part in template.parts()]
        asks, lock = _compiled(step.gate.message), _compiled(step.lock.key)
        in_text = [part.expression for text in (asks, lock) if text for part in text.parts()]
        used = [*([when] if when else ()), *parts, *in_text]
        return cls(
            when,
            params if templates else None,
            templates,
            step.worker_selector if labels else None,
            labels,
            _Referred.by(used),
            asks,
            lock,
            _together(when, parts) if parts and len(used) > 1 else None,
        )

    @classmethod
    def of_run(cls, pipeline: pipeline_pb2.Pipeline) -> _StepCode:
        """What is evaluated for a run as a whole. Raises NotAnExpression, which registration rules out."""
        return cls.of(pipeline_pb2.Step(lock=pipeline.lock))


def _compiled(text: str) -> Template | None:
    """A text, if it has expressions."""
    return compile_text(text, compile_expression) if OPEN in text else None


@dataclass(frozen=True, slots=True)
class _MatrixCode:
    """The compiled expressions that say which instances a step has, and whether any."""

    when: Expression | None
    matrix: MatrixCode
    referred: _Referred

    @classmethod
    def of(cls, step: pipeline_pb2.Step) -> _MatrixCode:
        """Raises NotAnExpression, which registration rules out."""
        when = compile_expression(step.when) if step.when else None
        if when is not None and _of_instances(when):
            when = None
        matrix = MatrixCode.of(step.matrix)
        used = matrix.expressions()
        return cls(when, matrix, _Referred.by([when, *used] if when else used))


def _of_instances(when: Expression) -> bool:
    """Whether a condition is about the values of instances: each of them is judged by it, and not their step."""
    return any(reference.names[0] == "matrix" for reference in when.outline.references)


def _together(when: Expression | None, parts: Sequence[Expression]) -> Expression | None:
    # Each ends its line, since it may end with a comment.
    items = "".join(f"{part.text}\n," for part in parts)
    try:
        return compile_expression(f"({when.text}\n) ? [{items}] : []" if when else f"[{items}]")
    except NotAnExpression:
        return None  # too deep, or a condition that is known to be none


class Program:
    """The expressions of one pipeline; each step's are compiled when it is judged first."""

    def __init__(self, pipeline: pipeline_pb2.Pipeline, plan: Plan) -> None:
        self._sources = [*pipeline.steps, *pipeline.finally_steps]
        self.plan = plan
        self._codes: dict[int, _StepCode] = {}
        self._pipeline = pipeline
        self._matrices: dict[int, _MatrixCode] = {}

    def code(self, index: int) -> _StepCode:
        """What the step's expressions are."""
        code = self._codes.get(index)
        if code is None:
            code = self._codes[index] = _StepCode.of(self._sources[index])
        return code

    def run_code(self) -> _StepCode:
        """What is evaluated for a run as a whole."""
        code = self._codes.get(RUN)
        if code is None:
            code = self._codes[RUN] = _StepCode.of_run(self._pipeline)
        return code

    def matrix(self, index: int) -> _MatrixCode | None:
        """What the expressions of the step's matrix are, if it has one."""
        code = self._matrices.get(index)
        if code is None and self.plan.steps[index].matrix is not None:
            code = self._matrices[index] = _MatrixCode.of(self._sources[index])
        return code


class RunInputs:
    """The expressions of one run: the core's StepInputs."""

    def __init__(self, program: Program, spec: storage_pb2.RunSpec) -> None:
        self._program = program
        self._spec = spec
        self._params: Struct | None = None

    def judge(self, index: int, seen: Seen) -> Verdict:
        """What becomes of a step; see StepInputs."""
        try:
            step = seen.plan.steps[index]
            code = self._program.code(step.matrix_step if step.is_instance else index)
            values = self._values(code.referred, index, seen)
            given = activation(values)
            verdict = self._judge(code, given, values)
            if verdict.reason or code.lock is None:
                return verdict
            return replace(verdict, lock=_key(code.lock, given, values))
        except _FAILURES as error:
            return Verdict(_reason(error), _cut(error))

    def expand(self, index: int, seen: Seen) -> Expansion:
        """The instances of a step with a matrix; see StepInputs."""
        try:
            code = self._program.matrix(index)
            if code is None:
                return Expansion()
            values = self._values(code.referred, index, seen)
            given = activation(values)
            if code.when is not None and not _holds(code.when, given, values):
                return Expansion(run_pb2.STEP_REASON_CONDITION_FALSE)
            return Expansion(instances=code.matrix.instances(lambda each: each.evaluate(given, values)))
        except _FAILURES as error:
            return Expansion(_reason(error), _cut(error))

    def _judge(self, code: _StepCode, given: cel.Activation, values: Values) -> Verdict:
        items = _all_at_once(code, given, values)
        if items is not None:
            if not items:
                return Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
            each_in_turn = iter(items)
            return _made(code, lambda _: next(each_in_turn))
        if code.when is not None and not _holds(code.when, given, values):
            return Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
        if code.asks is not None:
            return Verdict(message=_asked(code.asks, given, values))
        return _made(code, lambda each: each.evaluate(given, values))

    def run_lock(self, head: storage_pb2.RunHead) -> str:
        """The key of the pipeline's lock for this run. Raises NoValue, and NotAnExpression."""
        code = self._program.run_code()
        if code.lock is None:
            return self._spec.pipeline.lock.key
        values = self._values(code.referred, 0, Seen(self._program.plan, head, head.step_states, head.step_reasons, ()))
        return _key(code.lock, activation(values), values)

    def repeats(self, index: int) -> bool:
        """Whether a retry's condition comes to the same; one that looks at the run itself may not."""
        matrix = self._program.matrix(index)
        if matrix is not None and "run" in matrix.referred.roots:
            return False
        return "run" not in self._program.code(index).referred.roots

    def _values(self, referred: _Referred, index: int, seen: Seen) -> Values:
        """What the step's expressions refer to, and no more."""
        values: dict[str, object] = {}
        spec, roots = self._spec, referred.roots
        if "params" in roots:
            if self._params is None:
                self._params = Struct.FromString(spec.params)
            values["params"] = self._params
        if "context" in roots:
            values["context"] = spec.pipeline.context
        if "resource" in roots:
            resource = spec.resource
            values["resource"] = {
                "namespace": resource.namespace,
                "name": resource.name,
                "definition": resource.definition,
                "labels": dict(resource.labels),
                "spec": resource.spec,
            }
        if "run" in roots:
            values["run"] = _run(index, seen)
        if "steps" in roots:
            values["steps"] = _steps(referred.steps, seen)
        if "matrix" in roots:
            values["matrix"] = _matrix(index, seen)
        return values


def _all_at_once(code: _StepCode, given: cel.Activation, values: Values) -> list[cel.Value] | None:
    """What all expressions come to; None when one of them has to be found that comes to nothing."""
    if code.together is None:
        return None
    try:
        items: list[cel.Value] = code.together.evaluate(given, values).value()
    except NoValue:
        return None
    return items


def _made(code: _StepCode, evaluate: Evaluate) -> Verdict:
    """That the step runs, with what its expressions come to."""
    params = render_struct(code.params, code.templates, evaluate) if code.params is not None else b""
    selector = render_selector(code.selector, code.labels, evaluate) if code.selector is not None else None
    return Verdict(params=params, selector=selector)


def _holds(when: Expression, given: cel.Activation, values: Values) -> bool:
    try:
        return results.truth(when.evaluate(given, values))
    except NoValue as error:
        raise type(error)(f"when: {error}") from None


def _asked(asks: Template, given: cel.Activation, values: Values) -> str:
    try:
        return render_text(asks, lambda each: each.evaluate(given, values))[:_MESSAGE_CHARS]
    except NoValue as error:
        raise type(error)(f"gate.message: {error}") from None


def _key(lock: Template, given: cel.Activation, values: Values) -> str:
    try:
        key = render_text(lock, lambda each: each.evaluate(given, values))
        if not 1 <= (size := len(key.encode())) <= limits.LOCK_KEY_BYTES:
            raise NoValue(f"it has {size} bytes; a key has 1 to {limits.LOCK_KEY_BYTES}")
    except NoValue as error:
        raise type(error)(f"lock.key: {error}") from None
    return key


def _run(index: int, seen: Seen) -> dict[str, object]:
    head, plan = seen.head, seen.plan
    created = Timestamp()
    created.FromMicroseconds(head.create_time)
    run: dict[str, object] = {
        "namespace": head.namespace,
        "id": head.id,
        "pipeline": head.pipeline,
        "parent_run": head.parent_run,
        "create_time": created,
        "labels": dict(head.labels),
    }
    if plan.steps[index].is_finally:
        state = head.outcome or outcome(plan, bytes(seen.states[: plan.main]))[0]
        run["state"] = run_pb2.RunState.Name(state).removeprefix("RUN_STATE_")
    return run


def _matrix(index: int, seen: Seen) -> Struct:
    """The values of an instance."""
    record = seen.steps[seen.plan.steps[index].matrix_step]
    return Struct.FromString(values_of(record, index)) if record is not None else Struct()


def _steps(wanted: Iterable[str], seen: Seen) -> dict[str, object]:
    """The earlier steps that are referred to; one that never ran has no data."""
    found: dict[str, object] = {}
    for step in wanted:
        index = seen.plan.index.get(step)
        if index is None or seen.states[index] not in TERMINAL_STEP:
            continue
        reason = seen.reasons[index]
        found[step] = {
            "state": run_pb2.StepState.Name(seen.states[index]).removeprefix("STEP_STATE_"),  # type: ignore[arg-type]
            "reason": run_pb2.StepReason.Name(reason).removeprefix("STEP_REASON_") if reason else "",  # type: ignore[arg-type]
            "data": _data(index, seen),
        }
    return found


def _data(index: int, seen: Seen) -> Struct | ListValue:
    """The data of a step's result; of one with a matrix a list, with that of each instance in its place."""
    if seen.plan.steps[index].matrix is None:
        record = seen.steps[index]
        return Struct.FromString(record.result.data) if record is not None else Struct()
    return data_of([seen.steps[place] for place in seen.plan.instances.get(index, ())])


_FAILURES = (NoValue, NotAnExpression)


def _reason(error: Exception) -> run_pb2.StepReason.ValueType:
    if isinstance(error, MissingValue):
        return run_pb2.STEP_REASON_INPUT_MISSING
    if isinstance(error, TooLarge):
        return run_pb2.STEP_REASON_INPUT_TOO_LARGE
    return run_pb2.STEP_REASON_INPUT_INVALID


def _cut(error: Exception) -> str:
    return str(error)[:_MESSAGE_CHARS]
