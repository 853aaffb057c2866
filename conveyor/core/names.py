"""What a name is: of namespaces, objects, drivers and steps, which become keys and subjects."""

from __future__ import annotations

import re

NAME_RULE = "1 to 63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit"

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


def is_name(text: str) -> bool:
    """Whether the text may be a name."""
    return _NAME.fullmatch(text) is not None


def name_fault(text: str) -> str:
    """What is wrong with a text that is no name, and what a name is; "" for a name."""
    if is_name(text):
        return ""
    return f"{text[:80]!r} is no name; a name has {NAME_RULE}" if text else f"is missing; a name has {NAME_RULE}"


_STEP_ID = re.compile(_NAME.pattern + r"(?:\[(?:0|[1-9][0-9]{0,4})\])?")


def is_step_id(text: str) -> bool:
    """Whether the text may be the id of a step in a run: a name, or that of an instance of a matrix, "test[0]"."""
    return _STEP_ID.fullmatch(text) is not None
