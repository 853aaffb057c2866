"""Free-form values as plain ones: exact, bounded, and with JSON pointers to what cannot be."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conveyor.state.structs import Unrepresentable, json_bytes, plain, pointer

values = st.recursive(
    st.none() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def struct(document: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(document)
    return made


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), values, max_size=5))
def test_nothing_is_lost(document: dict[str, Any]) -> None:
    assert plain(struct(document)) == document


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), values, max_size=5))
def test_the_size_is_that_of_compact_json(document: dict[str, Any]) -> None:
    text = json.dumps(plain(struct(document)), ensure_ascii=False, separators=(",", ":"))
    assert json_bytes(plain(struct(document))) == len(text.encode())


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.0, "3"), (-1.0, "-1"), (0.1, "0.1"), (-0.0, "-0.0"), (2.0**53, "9007199254740992"), (1e300, "1e+300")],
)
def test_whole_numbers_are_integers_as_far_as_doubles_are_exact(number: float, text: str) -> None:
    assert json.dumps(plain(struct({"n": number}))["n"]) == text


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"a": math.nan}, "/a"),
        ({"a": {"b/c": [1, {"~": math.inf}]}}, "/a/b~1c/1/~0"),
        ({"": [[-math.inf]]}, "//0/0"),
    ],
)
def test_what_json_does_not_have_is_pointed_to(document: dict[str, Any], where: str) -> None:
    with pytest.raises(Unrepresentable) as refused:
        plain(struct(document))
    assert (refused.value.pointer, refused.value.too_deep) == (where, False)


def test_levels_are_counted_through_objects_and_lists() -> None:
    document = {"a": [{"b": []}]}
    assert plain(struct(document), 4) == document
    with pytest.raises(Unrepresentable) as refused:
        plain(struct(document), 3)
    assert (refused.value.pointer, refused.value.too_deep) == ("/a/0/b", True)


def test_pointers() -> None:
    assert pointer(["a/b", 0, "~"]) == "/a~1b/0/~0"
    assert pointer([]) == ""
