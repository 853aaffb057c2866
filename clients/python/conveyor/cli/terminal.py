"""What a terminal may be shown, and how wide it is there."""

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

# What is called before a note, by those who draw over what they drew before.
room_makers: "list[Callable[[], None]]" = []

_RESET = "\x1b[0m"
_SGR = re.compile(r"\x1b\[[0-9;:]*m")
# Control sequences, and strings that end with BEL or ST: titles, the clipboard, links.
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]P_^X]|[\x9d\x90\x9f\x9e\x98]).*?(?:\x07|\x1b\\|\x9c|$)"
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
# They reorder what is displayed.
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_STATE_COLOURS = {
    "SUCCEEDED": "32",
    "FAILED": "31",
    "CANCELLED": "33",
    "CANCELLING": "33",
    "RETRYING": "33",
    "RUNNING": "36",
    "QUEUED": "35",
    "PENDING": "2",
    "SKIPPED": "2",
}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at a stream."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def use_colour(stream: TextIO) -> bool:
    """Whether colours are welcome there."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns() -> int:
    """How wide the terminal is."""
    return shutil.get_terminal_size().columns


def rows() -> int:
    """How high the terminal is."""
    return shutil.get_terminal_size().lines


def coloured(state: str) -> str:
    """A state in its colour."""
    colour = _STATE_COLOURS.get(state.strip())
    return f"\x1b[{colour}m{state}{_RESET}" if colour else state


def harmless(text: str, *, colours: bool = False) -> str:
    """A text that cannot drive a terminal: colours at most, other escape sequences left out, controls as pictures."""
    text = text.rstrip("\r")
    if text.isascii() and text.isprintable():
        return text
    parts: list[str] = []
    at = 0
    coloured = False
    for match in _SEQUENCE.finditer(text):
        parts.append(_pictured(text[at : match.start()]))
        at = match.end()
        if colours and _SGR.fullmatch(match[0]):
            parts.append(match[0])
            coloured = True
    parts.append(_pictured(text[at:]))
    if coloured:
        parts.append(_RESET)
    return "".join(parts)


def one_line(text: str) -> str:
    """A text in one line that cannot drive a terminal."""
    return harmless(" ".join(text.split()))


def width(text: str) -> int:
    """How many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def padded(text: str, size: int) -> str:
    """A text filled up with blanks."""
    return text + " " * (size - width(text))


def cut(text: str, size: int) -> str:
    """A text of at most so many columns."""
    if width(text) <= size:
        return text
    taken = 0
    for index, char in enumerate(text):
        taken += _char_width(char)
        if taken >= size:
            return text[:index] + "…"
    return text


def note(text: str) -> None:
    """Tell a person something that is not data."""
    for make_room in room_makers:
        make_room()
    print(harmless(text), file=sys.stderr, flush=True)


def _pictured(text: str) -> str:
    text = _BIDI.sub("\ufffd", text)
    return _CONTROL.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
