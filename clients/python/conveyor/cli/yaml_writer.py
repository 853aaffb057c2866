"""Writes plain values as YAML that readers of YAML 1.1 and 1.2 read alike."""

import re
from collections.abc import Iterator

# Anything else is quoted, and so are these words, which some reader takes for something else than text.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*(?: [A-Za-z0-9_./@+(),-]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def to_yaml(value: object) -> str:
    """The YAML of mappings with text keys, lists, text, numbers, booleans and None."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _entry(f"{_text(str(key))}:", each)
    elif isinstance(value, list) and value:
        for each in value:
            inner = _lines(each) if isinstance(each, dict | list) else iter([_scalar(each)])
            yield f"- {next(inner)}"
            for line in inner:
                yield f"  {line}" if line else line
    else:
        yield _scalar(value)


def _entry(head: str, value: object) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        indent = "  " if isinstance(value, dict) else ""
        for line in _lines(value):
            yield indent + line if line else line
    elif isinstance(value, str) and _is_block(value):
        yield f"{head} {'|' if value.endswith(chr(10)) else '|-'}"
        for line in value.removesuffix("\n").split("\n"):
            yield f"  {line}" if line else line
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        return "[]"
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return repr(value).replace("e", ".0e")
    return repr(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in {'"', "\\"}:
        return "\\" + char
    if char.isprintable():
        return char
    if char == "\n":
        return "\\n"
    if char == "\t":
        return "\\t"
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_block(text: str) -> bool:
    """Whether a text of several lines is the same as a literal block."""
    return (
        "\n" in text.removesuffix("\n")
        and not text[0].isspace()
        and not text.endswith("\n\n")
        and all(char.isprintable() or char == "\n" for char in text)
    )
