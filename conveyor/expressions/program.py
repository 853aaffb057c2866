"""The expressions of a pipeline's steps at work: whether a step runs, and with which params."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cel_expr_python import cel

from conveyor.core import limits
from conveyor.core.inputs import Expansion, Seen, Verdict
from conveyor.core.locks import RUN
from conveyor.core.plan import Plan, given_params
from conveyor.expressions import results
from conveyor.expressions.cost import MOST_WORK
from conveyor.expressions.errors import MissingValue, NotAnExpression, NoValue, TooLarge
from conveyor.expressions.expression import Expression, Values, compile_expression, evaluated
from conveyor.expressions.layout import Layout
from conveyor.expressions.matrix import MatrixCode
from conveyor.expressions.selectors import Place, render_selector, selector_texts
from conveyor.expressions.template import OPEN, Given, Template, compile_text, render_text
from conveyor.expressions.values import RunValues, Wanted, wanted
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2

_MESSAGE_CHARS = 1024


def _wanted(expressions: Iterable[Expression]) -> Wanted:
    return wanted(reference for expression in expressions for reference in expression.outline.references)


@dataclass(frozen=True, slots=True)
class _StepCode:
    """The compiled expressions of a step, or of the instances of one with a matrix.

    `asks` is what a gate asks. `together` is all of the others as one, since each evaluation has its price: a list of
    what its params and then its selector come to, empty when the condition is false. None when there is only one, or
    when they don't go together.
    """

    when: Expression | None
    params: Layout
    selector: pipeline_pb2.LabelSelector | None
    labels: tuple[tuple[Place, Template], ...]
    wanted: Wanted
    parts: tuple[Expression, ...]
    asks: Template | None
    lock: Template | None
    together: Expression | None

    @classmethod
    def of(cls, step: pipeline_pb2.Step) -> _StepCode:
        """Raises NotAnExpression, which registration rules out."""
        when = compile_expression(step.when) if step.when else None
        if when is not None and step.HasField("matrix") and not _of_instances(when):
            when = None  # The step itself is judged by it.
        params = Layout.of(given_params(step), compile_expression)
        labels = tuple(
            (place, compile_text(text, compile_expression)) for place, text in selector_texts(step.worker_selector)
        )
        parts = [*params.expressions(), *(part.expression for _, template in labels for part in template.parts())]
        asks, lock = _compiled(step.gate.message), _compiled(step.lock.key)
        in_text = [part.expression for text in (asks, lock) if text for part in text.parts()]
        used = [*([when] if when else ()), *parts, *in_text]
        return cls(
            when,
            params,
            step.worker_selector if labels else None,
            labels,
            _wanted(used),
            (*parts, *in_text),
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
    wanted: Wanted

    @classmethod
    def of(cls, step: pipeline_pb2.Step) -> _MatrixCode:
        """Raises NotAnExpression, which registration rules out."""
        when = compile_expression(step.when) if step.when else None
        if when is not None and _of_instances(when):
            when = None
        matrix = MatrixCode.of(step.matrix)
        used = matrix.expressions()
        return cls(when, matrix, _wanted([when, *used] if when else used))


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
        self._values = RunValues(spec)

    def judge(self, index: int, seen: Seen) -> Verdict:
        """What becomes of a step; see StepInputs."""
        try:
            step = seen.plan.steps[index]
            code = self._program.code(step.matrix_step if step.is_instance else index)
            values = self._values.of(code.wanted, index, seen)
            verdict = _judge(code, values)
            if verdict.reason or code.lock is None:
                return verdict
            return replace(verdict, lock=_key(code.lock, values))
        except _FAILURES as error:
            return Verdict(_reason(error), _cut(error))

    def expand(self, index: int, seen: Seen) -> Expansion:
        """The instances of a step with a matrix; see StepInputs."""
        try:
            code = self._program.matrix(index)
            if code is None:
                return Expansion()
            values = self._values.of(code.wanted, index, seen)
            if code.when is not None and not _holds(code.when, values):
                return Expansion(run_pb2.STEP_REASON_CONDITION_FALSE)
            expressions = code.matrix.expressions()
            _check_work(expressions, values)
            return Expansion(instances=code.matrix.instances(evaluated(expressions, values)))
        except _FAILURES as error:
            return Expansion(_reason(error), _cut(error))

    def run_lock(self, head: storage_pb2.RunHead) -> str:
        """The key of the pipeline's lock for this run. Raises NoValue, and NotAnExpression."""
        code = self._program.run_code()
        if code.lock is None:
            return self._spec.pipeline.lock.key
        seen = Seen(self._program.plan, head, head.step_states, head.step_reasons, ())
        return _key(code.lock, self._values.of(code.wanted, 0, seen))

    def repeats(self, index: int) -> bool:
        """Whether a retry's condition comes to the same; one that looks at the run itself may not."""
        matrix = self._program.matrix(index)
        if matrix is not None and "run" in matrix.wanted:
            return False
        return "run" not in self._program.code(index).wanted


def _judge(code: _StepCode, values: Values) -> Verdict:
    items = _all_at_once(code, values)
    if items is not None:
        if not items:
            return Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
        return _made(code, iter(items))
    if code.when is not None and not _holds(code.when, values):
        return Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
    _check_work(code.parts, values)
    if code.asks is not None:
        return Verdict(message=_asked(code.asks, values))
    return _made(code, evaluated(code.parts, values))


def _check_work(parts: Iterable[Expression], values: Values) -> None:
    """What is evaluated one by one must not take more together than one may. Raises NoValue."""
    taken = 0
    for part in parts:
        with contextlib.suppress(NoValue):  # said with its place when it is evaluated
            taken += part.work(values)
    if taken > MOST_WORK:
        raise NoValue("the expressions of the step would take too much work together: they go through long lists")


def _all_at_once(code: _StepCode, values: Values) -> list[cel.Value] | None:
    """What all expressions come to; None when one of them has to be found that comes to nothing."""
    if code.together is None:
        return None
    try:
        return code.together.items(values)
    except NoValue:
        return None


def _made(code: _StepCode, given: Given) -> Verdict:
    """That the step runs, with what its expressions come to."""
    params = code.params.render(given) if code.params.templates else b""
    selector = render_selector(code.selector, code.labels, given) if code.selector is not None else None
    return Verdict(params=params, selector=selector)


def _holds(when: Expression, values: Values) -> bool:
    try:
        return results.truth(when.evaluate(values))
    except NoValue as error:
        raise type(error)(f"when: {error}") from None


def _of_text(text: Template, values: Values) -> Given:
    return evaluated((part.expression for part in text.parts()), values)


def _asked(asks: Template, values: Values) -> str:
    try:
        return render_text(asks, _of_text(asks, values))[:_MESSAGE_CHARS]
    except NoValue as error:
        raise type(error)(f"gate.message: {error}") from None


def _key(lock: Template, values: Values) -> str:
    try:
        key = render_text(lock, _of_text(lock, values))
        if not 1 <= (size := len(key.encode())) <= limits.LOCK_KEY_BYTES:
            raise NoValue(f"it has {size} bytes; a key has 1 to {limits.LOCK_KEY_BYTES}")
    except NoValue as error:
        raise type(error)(f"lock.key: {error}") from None
    return key


_FAILURES = (NoValue, NotAnExpression)


def _reason(error: Exception) -> run_pb2.StepReason.ValueType:
    if isinstance(error, MissingValue):
        return run_pb2.STEP_REASON_INPUT_MISSING
    if isinstance(error, TooLarge):
        return run_pb2.STEP_REASON_INPUT_TOO_LARGE
    return run_pb2.STEP_REASON_INPUT_INVALID


def _cut(error: Exception) -> str:
    return str(error)[:_MESSAGE_CHARS]
