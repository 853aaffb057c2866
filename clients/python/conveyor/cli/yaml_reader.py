"""Reads YAML 1.2 with its core schema and nothing of YAML 1.1: `no`, `on` and dates are text.

The events of ruamel.yaml are composed here, so that every value knows its line, a key stands once, and an alias is
counted before it is expanded.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent
from ruamel.yaml.reader import ReaderError

from conveyor.cli.nodes import Fault, Node, Scalar, child, shortened, stands_twice

MAX_DEPTH = 100
# What aliases may add to a file: enough for any that a person writes, and little memory.
MAX_EXPANSION = 100_000
# Of how many documents that are not YAML it is told.
MAX_BROKEN = 20
LONE_SURROGATE = "the text is not valid Unicode (a lone surrogate)"

_MARK = "\ufeff"
_MARK_BEFORE = re.compile(r"^\ufeff(?=---)", re.MULTILINE)
_MARK_BEHIND = re.compile(r"(^---[ \t]*\r?\n)\ufeff", re.MULTILINE)
_DOCUMENT = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
# What has a meaning of its own at the beginning of a value, and the words by which the parser says so.
_SPECIAL = (("*", "while scanning an alias"), ("@", "found character '@'"), ("`", "found character '`'"))
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PADDED = re.compile(r"[-+]?0[0-9]+")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_yaml(text: str) -> Iterator[Node]:
    """The documents of a text, the empty ones left out.

    One that has not the form of YAML is a node that says so, and what follows is read from the next `---` on.
    """
    if _MARK in text:
        # Files that were put together; the mark at the beginning of the first is gone already.
        text = _MARK_BEHIND.sub(r"\1", _MARK_BEFORE.sub("", text))
    start = 0
    for _ in range(MAX_BROKEN):
        # Lines are counted from the beginning of the file.
        part = "\n" * text.count("\n", 0, start) + text[start:]
        broken = yield from _read(part)
        following = _DOCUMENT.search(text, max(_offset(text, broken.resume), start + 1)) if broken else None
        if following is None:
            return
        start = following.start()
    raise Fault(0, "", f"more than {MAX_BROKEN} documents are not YAML")


@dataclass(frozen=True, slots=True)
class _Broken:
    resume: int
    """The first line that may begin another document, counted from 0."""


def _read(text: str) -> Generator[Node, None, _Broken | None]:
    """The documents up to one that is broken."""
    try:
        yield from _Composer(text).documents()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Node(None, mark.line + 1 if mark else 0, wrong=_explain(error))
        # At the beginning of a line, it may be the marker itself that came too early.
        return _Broken(mark.line + bool(mark.column)) if mark else None
    except ReaderError as error:
        # The reader looks at all characters first.
        line = text.count("\n", 0, int(error.position))
        before = [match.start() for match in _DOCUMENT.finditer(text, 0, int(error.position))]
        if before:
            yield from read_yaml(text[: before[-1]])
        yield Node(None, line + 1, wrong=f"the character U+{int(error.character):04X} is not allowed in YAML")
        return _Broken(line + 1)
    except YAMLError as error:
        yield Node(None, 0, wrong=str(error))
    except Fault as fault:
        yield Node(None, fault.line, wrong=str(fault))
        return _Broken(fault.line)
    return None


def _offset(text: str, line: int) -> int:
    """Where a line begins."""
    at = 0
    for _ in range(line):
        at = text.find("\n", at) + 1
        if not at:
            return len(text)
    return at


def is_plain_text(text: str) -> bool:
    """Whether a scalar written without quotes is read as text."""
    try:
        return isinstance(_resolved(text), str)
    except ValueError:
        return False


class _Composer:
    def __init__(self, text: str) -> None:
        # Its event classes have no types of their own.
        self._events: Iterator[Any] = iter(YAML(typ="safe", pure=True).parse(text))
        self._anchors: dict[str, Node | None] = {}
        self._expansion = 0

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._anchors.clear()
                node = self._node(next(self._events), "", 0)
                if node.value is not None or node.wrong:
                    yield node

    def _node(self, event: Any, path: str, depth: int) -> Node:
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, line, path)
        if depth > MAX_DEPTH:
            raise Fault(line, path, f"more than {MAX_DEPTH} levels of nesting")
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            node = _scalar(event, line)
        elif isinstance(event, SequenceStartEvent):
            _check_tag(event, "seq", line, path)
            node = self._sequence(event, line, path, depth)
        else:
            _check_tag(event, "map", line, path)
            node = self._mapping(event, line, path, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str, line: int, path: str) -> Node:
        if anchor not in self._anchors:
            return Node(None, line, wrong=f"the alias *{anchor} has no anchor &{anchor} before it")
        node = self._anchors[anchor]
        if node is None:
            return Node(None, line, wrong=f"the alias *{anchor} is within its own anchor")
        self._expansion += node.cost
        if self._expansion > MAX_EXPANSION:
            raise Fault(line, path, f"the aliases expand to more than {MAX_EXPANSION:,} values")
        return replace(node, line=line)

    def _sequence(self, start: Any, line: int, path: str, depth: int) -> Node:
        items: list[Node] = []
        cost = 1
        while not _ends(event := next(self._events)):
            items.append(self._node(event, f"{path}[{len(items)}]", depth + 1))
            cost += items[-1].cost
        return Node(items, line, cost=cost)

    def _mapping(self, start: MappingStartEvent, line: int, path: str, depth: int) -> Node:
        values: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: list[Node] = []
        cost = 1
        while not _ends(event := next(self._events)):
            key_line = event.start_mark.line + 1
            if _is_merge(event):
                merged += _mergeable(self._node(next(self._events), child(path, "<<"), depth + 1), key_line, path)
                continue
            key, wrong = self._key(event, key_line, path)
            node = self._node(next(self._events), child(path, key), depth + 1)
            cost += 1 + node.cost
            if wrong:
                node = Node(None, key_line, wrong=wrong)
            elif key in values:
                del values[key]
                node = stands_twice(key_line, lines[key])
            lines.setdefault(key, key_line)
            values[key] = node
        # A key that is written out wins over merged ones, and of those the first.
        for source in merged:
            assert isinstance(source.value, dict)
            cost += source.cost
            for key, node in source.value.items():
                values.setdefault(key, node)
                lines.setdefault(key, source.line_of(key))
        return Node(values, line, key_lines=lines, cost=cost)

    def _key(self, event: Any, line: int, path: str) -> tuple[str, str]:
        """The key, and what is wrong with it."""
        if isinstance(event, AliasEvent):
            node = self._alias(event.anchor, line, path)
        elif isinstance(event, ScalarEvent):
            node = _scalar(event, line)
            if event.anchor:
                self._anchors[event.anchor] = node
        else:
            raise Fault(line, path, "a key must be text, not a list or mapping")
        if isinstance(node.value, str):
            return node.value, ""
        return node.text, node.wrong or f'the key is {node.kind}, not text: quote it: "{node.text}"'


def _ends(event: Any) -> bool:
    return type(event).__name__ in {"SequenceEndEvent", "MappingEndEvent"}


def _is_merge(event: Any) -> bool:
    return isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None and not event.tag


def _mergeable(node: Node, line: int, path: str) -> list[Node]:
    sources = node.value if isinstance(node.value, list) else [node]
    for source in sources:
        if not isinstance(source.value, dict):
            raise Fault(line, child(path, "<<"), source.wrong or "only mappings can be merged")
    return sources


def _check_tag(event: Any, kind: str, line: int, path: str) -> None:
    if event.tag and event.tag not in {_TAG + kind, "!"}:
        raise Fault(line, path, f"the tag {_tag_name(event.tag)} is not supported here")


def _scalar(event: Any, line: int) -> Node:
    text: str = event.value
    try:
        value = _tagged(event)
    except ValueError as error:
        return Node(None, line, text=text, wrong=str(error))
    if isinstance(value, str):
        return Node(value, line, cost=1 + len(value) // 64)
    return Node(value, line, text=text)


def _tagged(event: Any) -> Scalar:
    """What a scalar is. ValueError says why it is nothing."""
    text: str = event.value
    tag = event.tag
    if tag in {None, ""}:
        value = _resolved(text) if event.style is None else text
    elif tag in {_TAG + "str", "!"}:
        value = text
    elif tag in {_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"}:
        value = _resolved(text)
        if isinstance(value, str):
            raise ValueError(f"{shortened(text)!r} is not what the tag {_tag_name(tag)} says")
    else:
        raise ValueError(f"the tag {_tag_name(tag)} is not supported; write the value as text")
    return _whole(value) if isinstance(value, str) else value


def _resolved(text: str) -> Scalar:
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return integer(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _PADDED.fullmatch(text):
        # 755 for some readers of YAML and 493 for others.
        bare = text.lstrip("+-0") or "0"
        raise ValueError(f'{text} is ambiguous: quote this value as text, "{text}", or write the number {bare}')
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"JSON has no {text}; send it as a string")
    return text


def integer(text: str) -> int:
    """The integer that a text is. Python refuses those of thousands of digits, and so do we, with a ValueError."""
    if len(text) > 400:
        raise ValueError(f"an integer of {len(text)} digits does not fit a double; send it as a string")
    return int(text)


def _whole(text: str) -> str:
    """The text with pairs of surrogates, as JSON writes them, joined."""
    if text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(LONE_SURROGATE) from None


def _tag_name(tag: str) -> str:
    return tag.replace(_TAG, "!!")


def _explain(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "not YAML").replace("\\t", "\t")
    if "\t" in problem:
        return "a tab; YAML is indented with spaces"
    context = f" ({error.context})" if error.context else ""
    # As cron expressions do.
    special = next((mark for mark, said in _SPECIAL if said in f"{problem}{context}"), "")
    hint = f"; a value that begins with {special} must be quoted" if special else ""
    return f"not YAML: {problem}{context}{hint}"
