"""What is printed as YAML is read as the same by readers of YAML 1.1 and 1.2."""

import pytest
from ruamel.yaml import YAML

from conveyor.cli.nodes import Node
from conveyor.cli.yaml_reader import read_yaml
from conveyor.cli.yaml_writer import to_yaml

VALUE = {
    "empty": {"map": {}, "list": [], "text": "", "nothing": None},
    "words": ["no", "on", "Yes", "true", "null", "~", "y", "NaN", ".inf", "<<", "="],
    "numbers": [0, -1, 1.5, 1e300, 1e-7, True, False],
    "texts": [
        "1",
        "0755",
        "1e3",
        "2022-01-16",
        "12:30:00",
        "0x1f",
        "a: b",
        "a #b",
        "- a",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
    ],
    "hard": ["é", "😀", "\x7f", "\u2028", "\x85", "\ufeff", "a\tb", "\\", '"', "'", " a ", "a:", "?", "a\rb"],
    "lines": {
        "block": "one\n  two\n\nthree\n",
        "strip": "one\ntwo",
        "kept": "one\n\n",
        "first": " one\ntwo",
        "cr": "a\r\nb",
    },
    "nested": [[1, [2]], [{"a": [{"b": "one\ntwo\n"}], "c": 1}]],
    "key: odd": {"1": 1, "on": 2, "": 3, "a b": 4},
}


def plain(node: Node) -> object:
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(value) for value in node.value]
    return node.value


def test_it_comes_back() -> None:
    (node,) = read_yaml(to_yaml(VALUE))
    assert plain(node) == VALUE


@pytest.mark.parametrize("version", [(1, 1), (1, 2)])
def test_other_readers_take_it_for_the_same(version: tuple[int, int]) -> None:
    reader = YAML(typ="safe", pure=True)
    reader.version = version  # type: ignore[assignment]
    assert reader.load(to_yaml(VALUE)) == VALUE


def test_lists_and_nothing() -> None:
    assert to_yaml([]) == "[]\n"
    assert to_yaml([{"a": 1, "b": [2]}, 3]) == "- a: 1\n  b:\n  - 2\n- 3\n"
