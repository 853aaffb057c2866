"""Whether the expressions of a pipeline can work: checked when it is registered, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from google.protobuf.struct_pb2 import Struct

from conveyor.core.errors import Violation
from conveyor.core.plan import Plan, compile_plan, given_params
from conveyor.expressions import matrix
from conveyor.expressions.declarations import ANY, LIST, OBJECT, Declarations
from conveyor.expressions.errors import Fault, NotAnExpression
from conveyor.expressions.expression import Expression, check_expression
from conveyor.expressions.results import NOT_JSON
from conveyor.expressions.selectors import selector_texts, spell_place
from conveyor.expressions.template import OPEN, Compile, Template, compile_text, spell, texts
from conveyor.v1 import pipeline_pb2

Place = Callable[[Expression, int], Fault]
"""The place of an offset in an expression, within the whole text of its field."""

_NO_PLACE_IN_TEXT = ("LIST", "MAP", "NULL", "conveyor.")


def check_expressions(pipeline: pipeline_pb2.Pipeline, path: str) -> Iterator[Violation]:
    """What is wrong with the expressions of a pipeline whose steps, needs and parameters were checked before."""
    if not pipeline.HasField("lock") and not any(map(_may_have, (*pipeline.steps, *pipeline.finally_steps))):
        return
    plan = compile_plan(pipeline)
    declared = [Declarations.of(pipeline.params, after_all=after) for after in (False, True)]
    yield from _BeforeSteps(plan, 0, declared[False], pipeline_pb2.Step()).lock(pipeline.lock, f"{path}.lock")
    for name, steps, first in (("steps", pipeline.steps, 0), ("finally", pipeline.finally_steps, plan.main)):
        for i, step in enumerate(steps):
            checker = _Step(plan, first + i, declared[bool(first)], step)
            yield from checker.check(f"{path}.{name}[{i}]")


def _may_have(step: pipeline_pb2.Step) -> bool:
    has_values = bool(given_params(step).fields) or step.HasField("worker_selector") or step.HasField("matrix")
    return bool(step.when) or has_values or OPEN in step.gate.message or OPEN in step.lock.key


class _Step:
    """Checks the expressions of one step."""

    def __init__(self, plan: Plan, index: int, declarations: Declarations, step: pipeline_pb2.Step) -> None:
        self._plan = plan
        self._index = index
        self._step = step
        self._before = self._declarations = declarations
        if step.HasField("matrix"):
            self._declarations = replace(declarations, matrix=tuple(sorted(matrix.names(step.matrix))))

    def check(self, path: str) -> Iterator[Violation]:
        """All that is wrong."""
        step = self._step
        if step.HasField("matrix"):
            yield from self._matrix(matrix.as_struct(step.matrix), path)
        if step.when:
            yield from self._when(step.when, f"{path}.when")
        params, base = given_params(step), f"{path}.runs" if step.HasField("runs") else path
        yield from self._struct(params, "params", base, self._compile)
        if OPEN in step.gate.message:
            yield from self._text(step.gate.message, f"{path}.gate.message", self._compile, only_text=True)
        for place, text in selector_texts(step.worker_selector):
            yield from self._text(text, f"{path}.{spell_place(place)}", self._compile, only_text=True)
        yield from self.lock(step.lock, f"{path}.lock")

    def lock(self, lock: pipeline_pb2.Lock, path: str) -> Iterator[Violation]:
        """What is wrong with the expressions in the key of a lock."""
        if OPEN in lock.key:
            yield from self._text(lock.key, f"{path}.key", self._compile, only_text=True)

    def _text(self, text: str, path: str, compiled: Compile, *, only_text: bool = False) -> Iterator[Violation]:
        try:
            faults = tuple(self._template(compile_text(text, compiled), only_text=only_text))
        except NotAnExpression as error:
            faults = error.faults
        yield from (Violation(path, str(fault)) for fault in faults)

    def _struct(self, struct: Struct, root: str, path: str, compiled: Compile) -> Iterator[Violation]:
        """Values with expressions in their texts."""
        for key in _marked_keys(struct):
            yield Violation(f"{path}.{root}", f"has the key {key[:64]}; expressions have no place in keys")
        for keys, text in texts(struct):
            yield from self._text(text, f"{path}.{spell(keys, root)}", compiled)

    def _matrix(self, struct: Struct, path: str) -> Iterator[Violation]:
        """The axes of a matrix, which are evaluated before there are instances."""
        faults = list(self._struct(struct, matrix.ROOT, path, self._compile_before))
        yield from faults
        for name, value in sorted(struct.fields["axes"].struct_value.fields.items()) if not faults else ():
            if value.WhichOneof("kind") != "string_value":
                continue
            template = compile_text(value.string_value, self._compile_before)
            kind = next(template.parts()).expression.type_name if template.whole else "STRING"
            if kind != "DYN" and not kind.startswith("LIST"):
                where = f"{path}.{matrix.ROOT}.axes.{name}"
                yield Violation(where, "must be a list, or one expression in ${{ }} that yields a list")

    def _when(self, text: str, path: str) -> Iterator[Violation]:
        if OPEN in text:
            yield Violation(path, "is an expression as it is; leave out the ${{ }}")
            return
        try:
            expression = self._compile(text)
        except NotAnExpression as error:
            yield from (Violation(path, str(fault)) for fault in error.faults)
            return
        if expression.type_name not in ("BOOL", "DYN"):
            fault = Fault(1, 1, f"a condition is true or false; this is {_called(expression)}")
            yield Violation(path, str(fault))

    def _template(self, template: Template, *, only_text: bool) -> Iterator[Fault]:
        for part in template.parts():
            kind = part.expression.type_name
            if kind in NOT_JSON or kind.startswith("optional"):
                hint = "; .orValue() gives it a value" if kind.startswith("optional") else ""
                yield Fault(part.line, part.column, f"comes to {_called(part.expression)}, which is no JSON{hint}")
            elif (only_text or not template.whole) and kind.startswith(_NO_PLACE_IN_TEXT):
                said = f"comes to {_called(part.expression)}, which has no place within other text"
                yield Fault(part.line, part.column, said)

    def _compile(self, text: str) -> Expression:
        return self._checked(text, self._declarations)

    def _compile_before(self, text: str) -> Expression:
        """The same of what has no values of the matrix yet."""
        return self._checked(text, self._before)

    def _checked(self, text: str, declarations: Declarations) -> Expression:
        if not self._plan.has_matrix:
            expression = check_expression(text, declarations)
        else:
            expression = check_expression(text, replace(declarations, data=ANY))
        faults = tuple(self._unknown_steps(expression))
        if faults:
            raise NotAnExpression(faults)
        if self._plan.has_matrix and (data := self._data(expression)) != ANY:
            return check_expression(text, replace(declarations, data=data))
        return expression

    def _data(self, expression: Expression) -> str:
        """Of which type the data of the steps is that an expression refers to: all of one step, or of both kinds."""
        steps = {each.names[1] for each in expression.outline.references if each.names[0] == "steps"}
        kinds = {LIST if self._plan.steps[self._plan.index[step]].matrix else OBJECT for step in steps}
        return kinds.pop() if len(kinds) == 1 else ANY

    def _unknown_steps(self, expression: Expression) -> Iterator[Fault]:
        """References to what is no earlier step."""
        earlier = self._plan.selectors(self._index)
        for reference in expression.outline.references:
            if reference.names[0] != "steps":
                continue
            if len(reference.names) == 1:
                said = 'steps must be followed by the id of a step: steps.build, or steps["unit-tests"]'
            else:
                step = reference.names[1]
                index = self._plan.index.get(step)
                if index is None:
                    said = f"there is no step {step[:64]}{self._instance_hint(step)}"
                elif index < len(earlier) and earlier[index]:
                    continue
                else:
                    said = self._not_earlier(step)
            yield _place(expression.text, reference.offset, said)

    def _instance_hint(self, step: str) -> str:
        name, bracket, place = step.partition("[")
        if not bracket or name not in self._plan.index:
            return ""
        return f"; the data of an instance is steps.{name}.data[{place.removesuffix(']')}]"

    def _not_earlier(self, step: str) -> str:
        own = self._plan.steps[self._index]
        if step == own.id:
            return f"step {step} refers to itself"
        hint = "" if self._plan.is_list or own.is_finally else "; it must be among its needs, directly or not"
        return f"step {step} does not end before step {own.id} begins{hint}"


class _BeforeSteps(_Step):
    """Checks what is evaluated when a run is made."""

    def _unknown_steps(self, expression: Expression) -> Iterator[Fault]:
        for reference in expression.outline.references:
            if reference.names[0] == "steps":
                said = "none of the steps has ended when this is evaluated; it is when the run is made"
                yield _place(expression.text, reference.offset, said)


def _place(text: str, offset: int, said: str) -> Fault:
    before = text[:offset]
    return Fault(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1, said)


def _called(expression: Expression) -> str:
    kind = expression.type_name
    if kind.startswith("conveyor."):
        return "a map"
    return {"STRING": "text", "INT": "a number", "DOUBLE": "a number"}.get(kind, kind.partition("<")[0].lower())


def _marked_keys(struct: Struct) -> Iterator[str]:
    """Keys, at any depth, that have the mark of an expression."""
    if OPEN.encode() not in struct.SerializeToString():
        return
    open_structs = [struct]
    while open_structs:
        for key, value in open_structs.pop().fields.items():
            if OPEN in key:
                yield key
            items = [value]
            while items:
                item = items.pop()
                kind = item.WhichOneof("kind")
                if kind == "struct_value":
                    open_structs.append(item.struct_value)
                elif kind == "list_value":
                    items.extend(item.list_value.values)
