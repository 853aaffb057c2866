"""Reads JSON as the YAML reader reads YAML: with lines, and with a key only once."""

import re
from collections.abc import Iterator
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]

from conveyor.cli.nodes import Fault, Node, child, shortened, stands_twice
from conveyor.cli.yaml_reader import LONE_SURROGATE, MAX_DEPTH, integer

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"-?[A-Za-z]+")


class NotJson(Fault):
    """The text has not the form of JSON; it may be YAML."""


def read_json(text: str) -> Iterator[Node]:
    """The values of a text, one after another. Raises Fault, and NotJson where the form is wrong."""
    reader = _Reader(text)
    while reader.more():
        yield reader.value("", 0)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0

    def more(self) -> bool:
        """Whether there is anything but white space left."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._at < len(self._text)

    def value(self, path: str, depth: int) -> Node:
        """The value that comes next."""
        first = self._peek()
        line = self._here()
        if depth > MAX_DEPTH:
            raise Fault(line, path, f"more than {MAX_DEPTH} levels of nesting")
        if first == "{":
            return self._object(line, path, depth)
        if first == "[":
            return self._array(line, path, depth)
        if first == '"':
            text = self._string(path)
            return Node(None, line, wrong=LONE_SURROGATE) if _is_torn(text) else Node(text, line)
        if word := _WORD.match(self._text, self._at):
            if word[0] in {"NaN", "Infinity", "-Infinity"}:
                self._at = word.end()
                return Node(None, line, wrong=f"JSON has no {word[0]}; send it as a string")
            if word[0] not in _WORDS:
                raise NotJson(line, path, f"not JSON: a value was expected, not {shortened(word[0])}")
            self._at = word.end()
            return Node(_WORDS[word[0]], line, text=word[0])
        if number := _NUMBER.match(self._text, self._at):
            self._at = number.end()
            return _number(number[0], line, whole=not (number[1] or number[2]))
        raise NotJson(line, path, f"not JSON: a value was expected, not {first!r}")

    def _object(self, line: int, path: str, depth: int) -> Node:
        values: dict[str, Node] = {}
        lines: dict[str, int] = {}
        self._at += 1
        if self._peek() != "}":
            while True:
                if self._peek() != '"':
                    raise self._expected("a key in quotes", path)
                key_line = self._here()
                key = self._string(path)
                if _is_torn(key):
                    raise Fault(key_line, path, LONE_SURROGATE)
                where = child(path, key)
                self._take(":", where)
                value = self.value(where, depth + 1)
                if key in values:
                    del values[key]
                    value = stands_twice(key_line, lines[key])
                lines.setdefault(key, key_line)
                values[key] = value
                if self._peek() == "}":
                    break
                self._take(",", path)
        self._at += 1
        return Node(values, line, key_lines=lines)

    def _array(self, line: int, path: str, depth: int) -> Node:
        items: list[Node] = []
        self._at += 1
        if self._peek() != "]":
            while True:
                items.append(self.value(f"{path}[{len(items)}]", depth + 1))
                if self._peek() == "]":
                    break
                self._take(",", path)
        self._at += 1
        return Node(items, line)

    def _string(self, path: str) -> str:
        try:
            value, self._at = scanstring(self._text, self._at + 1, True)
        except JSONDecodeError as error:
            raise NotJson(error.lineno, path, f"not JSON: {error.msg}") from None
        text: str = value
        return text

    def _peek(self) -> str:
        return self._text[self._at] if self.more() else ""

    def _take(self, mark: str, path: str) -> None:
        if self._peek() != mark:
            raise self._expected(repr(mark), path)
        self._at += 1

    def _expected(self, what: str, path: str) -> NotJson:
        return NotJson(self._here(), path, f"not JSON: {what} was expected, not {self._peek() or 'the end'!r}")

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


def _number(text: str, line: int, *, whole: bool) -> Node:
    try:
        return Node(integer(text) if whole else float(text), line, text=text)
    except ValueError as error:
        return Node(None, line, wrong=str(error))


def _is_torn(text: str) -> bool:
    """Whether it has half of a pair of surrogates."""
    return not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text)
