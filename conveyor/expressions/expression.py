"""One expression: compiled once, evaluated against the values that it refers to."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cel_expr_python import cel

from conveyor.core import limits
from conveyor.expressions.cost import work
from conveyor.expressions.declarations import VARIABLES, Declarations, checking, evaluating
from conveyor.expressions.errors import Fault, MissingValue, NotAnExpression, NoValue
from conveyor.expressions.syntax import Outline, outline

Values = Mapping[str, object]
"""Variables with their values: dicts, lists, text, numbers, and messages of google.protobuf."""

_ERROR = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_STATUS = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_NO_FIELD = re.compile(r"undefined field '(.*)' not found in struct 'conveyor\.(\w+)'")
_UNDECLARED = re.compile(r"undeclared reference to '\.?(\w+).*'")
_NO_KEY = re.compile(r'Key not found in map : "(.*)"$', re.DOTALL)
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that compiles. `type_name` is its static type, DYN when that is known only when it is evaluated."""

    text: str
    type_name: str
    outline: Outline
    _code: cel.Expression

    def evaluate(self, values: Values) -> cel.Value:
        """Its value. Raises NoValue."""
        value = self._evaluate(values)
        if value.type() == cel.Type.ERROR:
            raise self._failure(value, values)
        return value

    def items(self, values: Values) -> list[cel.Value]:
        """The items of its value, which is a list if it is any. Raises NoValue."""
        value = self._evaluate(values)
        items = value.value()
        if not isinstance(items, list):  # asking for its type takes longer
            raise self._failure(value, values)
        return items

    def work(self, values: Values) -> int:
        """What that takes, at most, in a unit of its own. Raises NoValue when it is too much."""
        return work(self.outline, values, len(self.text))

    def _evaluate(self, values: Values) -> cel.Value:
        self.work(values)
        try:
            return self._code.eval(data=values)
        except RuntimeError as error:
            raise NoValue(_plain(str(error))) from None

    def _failure(self, value: cel.Value, values: Values) -> NoValue:
        try:
            said = str(value.value())
        except TypeError:
            # The only kind of value that the library does not give out; it calls it an error.
            return NoValue("it is an optional; .orValue() gives it a value")
        key = _NO_KEY.search(said)
        if key is None:
            return NoValue(_plain(said))
        return MissingValue(f"{self._missing(key[1], values)} is not there")

    def _missing(self, key: str, values: Values) -> str:
        """The whole name of what the library calls by its last part only."""
        for reference in self.outline.references:
            for depth in range(2, len(reference.names) + 1):
                names = reference.names[:depth]
                if reference.sure and names[-1] == key and not _is_there(names, values):
                    return spell(names)
        return f"the key {key}"


def evaluated(expressions: Iterable[Expression], values: Values) -> Iterator[cel.Value]:
    """What the expressions come to, one after the other. Taking the next may raise NoValue."""
    return (expression.evaluate(values) for expression in expressions)


def compile_expression(text: str) -> Expression:
    """An expression to evaluate, whose types were checked when it was registered. Raises NotAnExpression."""
    return _compile(text)


def check_expression(text: str, declarations: Declarations) -> Expression:
    """An expression whose types and names are checked. Raises NotAnExpression with all that is wrong."""
    if (size := len(text.encode(errors="replace"))) > limits.EXPRESSION_BYTES:
        raise NotAnExpression((Fault(1, 1, f"has {size} bytes; at most {limits.EXPRESSION_BYTES}"),))
    if not text.strip():
        raise NotAnExpression((Fault(1, 1, "is empty"),))
    return _code(text, checking(declarations), declarations)


@functools.lru_cache(maxsize=_KEPT)
def _compile(text: str) -> Expression:
    return _code(text, evaluating(), Declarations())


def _code(text: str, environment: cel.Env, declarations: Declarations) -> Expression:
    try:
        code = environment.compile(text)
    except (RuntimeError, TypeError) as error:
        raise NotAnExpression(_faults(str(error), declarations)) from None
    return Expression(text, code.return_type().name(), outline(code.serialize()), code)


def _faults(said: str, declarations: Declarations) -> tuple[Fault, ...]:
    found = [
        Fault(max(1, int(line)), max(1, int(column)), _explain(text, declarations))
        for line, column, text in _ERROR.findall(said)
        if "'*error*'" not in text  # what follows from another one
    ]
    return tuple(dict.fromkeys(found)) or (Fault(1, 1, _plain(said.partition("\n")[0])),)


def _explain(said: str, declarations: Declarations) -> str:
    said = _plain(said).partition(" expecting ")[0].replace("conveyor.", "")
    if field := _NO_FIELD.search(said.replace("struct '", "struct 'conveyor.")):
        known = ", ".join(declarations.fields().get(field[2], ())) or "nothing"
        if field[2] == "Params":
            return f"the pipeline has no parameter {field[1]}; it has {known}"
        return f"there is no field {field[1]} here, but {known}"
    if name := _UNDECLARED.search(said):
        return f"there is no variable or function {name[1]}; variables are {', '.join(VARIABLES[:5])}"
    return said


def _plain(said: str) -> str:
    """Without what the library puts around."""
    text = _STATUS.sub("", said)
    if "Iteration budget exceeded" in text:
        return "it goes through more than 10,000 items"
    if "<jump_condition>" in text:
        return "a condition is neither true nor false"
    if "Applying SELECT to non-message type" in text:
        return "a key is taken of what is no map"
    if "incompatible function arguments" in text:
        return "has a character that is no part of UTF-8"
    return _STATUS.sub("", text)


def _is_there(names: tuple[str, ...], values: Values) -> bool:
    value: object = values
    for name in names:
        if value is None or isinstance(value, str | int | float | list):
            return False
        try:
            value = value[name]  # type: ignore[index]
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
    return True


def spell(names: tuple[str, ...]) -> str:
    """Names as one writes them."""
    first, *rest = names
    return first + "".join(f".{name}" if name.isidentifier() else f'["{name}"]' for name in rest)
