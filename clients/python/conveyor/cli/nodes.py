"""What readers of YAML and JSON make of a document: values that know where they were written."""

from dataclasses import dataclass
from typing import TypeAlias

_MAX_PATH = 160

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """A value of a document.

    `line` counts from 1. `text` is a plain scalar as it was written, when it is not a string. `cost` is what the value
    costs once all of its aliases are expanded. `wrong` says what is the matter with one that could be read but means
    nothing: whoever takes the node tells it, with the path that it has there.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int
    text: str = ""
    key_lines: dict[str, int] | None = None
    cost: int = 1
    wrong: str = ""

    @property
    def kind(self) -> str:
        """What it is, for people."""
        value = self.value
        if isinstance(value, dict):
            return "a mapping"
        if isinstance(value, list):
            return "a list"
        if value is None:
            return "empty"
        if isinstance(value, bool):
            return f"the boolean {self.text}"
        if isinstance(value, int | float):
            return f"the number {shortened(self.text)}"
        return f"the text {shortened(value)!r}"

    def line_of(self, key: str) -> int:
        """The line of a key of a mapping."""
        return (self.key_lines or {}).get(key, self.line)


class Fault(Exception):
    """A mistake in a document, with its line (0: unknown) and the path of the field, if it is in one."""

    def __init__(self, line: int, path: str, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.path = path
        self.message = message

    def __str__(self) -> str:
        path = self.path if len(self.path) <= _MAX_PATH else f"{self.path[:_MAX_PATH]}…"
        return f"{path}: {self.message}" if path else self.message


def stands_twice(line: int, first: int) -> Node:
    """What a key of a mapping has when it stands there again."""
    return Node(None, line, wrong=f"the key stands twice; first in line {first}")


def child(path: str, key: str) -> str:
    """The path of a key of a mapping."""
    step = key if key.replace("-", "_").isidentifier() else f"[{shortened(key)!r}]"
    return f"{path}.{step}" if path and not step.startswith("[") else f"{path}{step}"


def shortened(text: str, width: int = 60) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= width else text[: width - 1] + "…"
