"""Free-form values keep what they are, or are refused with their path."""

import datetime as dt
import math

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.sdk import ValueNotRepresentable, from_struct, to_struct


def test_values_come_back_as_they_were():
    values = {
        "none": None,
        "yes": True,
        "no": False,
        "zero": 0,
        "whole": 3,
        "negative": -1,
        "fraction": 0.1,
        "exact": 2**53,
        "large": 2**60,
        "text": "Grüße 🚀",
        "empty": {"list": [], "map": {}, "text": ""},
        "deep": [[1, [2]], {"a": [{"b": None}]}],
    }
    back = from_struct(to_struct(values))
    assert back == values
    assert type(back["whole"]) is int
    assert type(back["yes"]) is bool
    assert type(back["large"]) is int


def test_whole_floats_come_back_as_integers():
    back = from_struct(to_struct({"n": 3.0}))
    assert type(back["n"]) is int


def test_the_sign_of_zero_stays():
    back = from_struct(to_struct({"n": -0.0}))
    assert math.copysign(1, back["n"]) == -1


def test_very_large_numbers_stay_floats():
    assert type(from_struct(to_struct({"n": 1e300}))["n"]) is float


def test_tuples_become_lists():
    assert from_struct(to_struct({"t": (1, 2)})) == {"t": [1, 2]}


def test_a_value_that_nobody_set_is_none():
    struct = Struct()
    assert struct.fields["x"] is not None
    assert from_struct(struct) == {"x": None}


@pytest.mark.parametrize(
    ("values", "path", "why"),
    [
        ({"id": 2**53 + 1}, "$.id", "send it as a string"),
        ({"a": [{"id": 9223372036854775807}]}, "$.a[0].id", "send it as a string"),
        ({"id": 10**400}, "$.id", "send it as a string"),
        ({"x": math.nan}, "$.x", "send it as a string"),
        ({"x": [1.0, -math.inf]}, "$.x[1]", "send it as a string"),
        ({"a": {1: "x"}}, "$.a", "not a string"),
        ({"a b": {"c": {1, 2}}}, "$['a b'].c", "set is not a JSON type"),
        ({"at": dt.date(2022, 1, 16)}, "$.at", "send it as a string"),
        ({"raw": b"x"}, "$.raw", "send it as a string"),
        ({"text": "\ud800"}, "$.text", "not valid Unicode"),
        ({"\ud800": 1}, "$", "not valid Unicode"),
    ],
)
def test_what_would_change_is_refused_with_its_path(values, path, why):
    with pytest.raises(ValueNotRepresentable) as caught:
        to_struct(values)
    assert caught.value.path == path
    assert why in str(caught.value)


def nested(levels: int) -> dict[str, object]:
    value: object = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def test_nesting_has_a_bound():
    assert from_struct(to_struct(nested(32))) == nested(32)
    with pytest.raises(ValueNotRepresentable, match="more than 32 levels"):
        to_struct(nested(33))
    with pytest.raises(ValueNotRepresentable, match="more than 32 levels"):
        to_struct({"a": [[[nested(30)]]]})


def test_a_value_that_contains_itself_is_refused():
    loop: dict[str, object] = {}
    loop["a"] = loop
    with pytest.raises(ValueNotRepresentable):
        to_struct(loop)


def test_only_mappings_become_structs():
    with pytest.raises(ValueNotRepresentable, match="list is not a mapping"):
        to_struct([1])
