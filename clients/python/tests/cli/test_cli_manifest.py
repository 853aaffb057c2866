"""Files: what is read, and how what is wrong is told."""

import json
import tracemalloc
from pathlib import Path

import pytest

from conveyor.cli.encode import encode_object
from conveyor.cli.failures import CliError
from conveyor.cli.manifest import Manifest, load
from conveyor.cli.sources import Source, read_sources
from conveyor.cli.yaml_writer import to_yaml


def loaded(text: str | bytes, name: str = "f.yaml") -> list[Manifest]:
    data = text.encode() if isinstance(text, str) else text
    return load([Source(name, data)])


def refused(text: str | bytes, name: str = "f.yaml") -> list[str]:
    with pytest.raises(CliError) as caught:
        loaded(text, name)
    return list(caught.value.details) or [caught.value.message]


def spec_of(text: str) -> object:
    (manifest,) = loaded(f"kind: Resource\ndefinition: app\nname: shop\nspec:\n{text}")
    return encode_object(manifest.object)["spec"]


def spec_refused(text: str) -> list[str]:
    return refused(f"kind: Resource\ndefinition: app\nname: shop\nspec:\n{text}")


PIPELINE = """\
apiVersion: conveyor/v1
kind: Pipeline
name: release
order: GRAPH
failure_policy: FAILURE_POLICY_CONTINUE
timeout: 1h30m
labels: {team: "7"}
context: {registry: here}
steps:
- {id: build, driver: compile, timeout: 500ms}
- id: test
  driver: pytest
  needs: [build]
  triggerRule: ALL_DONE
  retry: {maxAttempts: 3, initial_backoff: 0.5s, multiplier: 2}
finally:
- {id: clean, driver: broom}
params:
- {name: level, type: NUMBER, default: 5, enum: [1, 5]}
"""


def test_a_pipeline_with_all_spellings() -> None:
    (manifest,) = loaded(PIPELINE)
    assert manifest.label == "pipeline/release"
    assert encode_object(manifest.object) == {
        "kind": "Pipeline",
        "name": "release",
        "labels": {"team": "7"},
        "order": "GRAPH",
        "steps": [
            {"id": "build", "driver": "compile", "timeout": "0.500s"},
            {
                "id": "test",
                "driver": "pytest",
                "needs": ["build"],
                "triggerRule": "ALL_DONE",
                "retry": {"maxAttempts": 3, "initialBackoff": "0.500s", "multiplier": 2},
            },
        ],
        "finally": [{"id": "clean", "driver": "broom"}],
        "failurePolicy": "CONTINUE",
        "context": {"registry": "here"},
        "timeout": "5400s",
        "params": [{"name": "level", "type": "NUMBER", "default": 5, "enum": [1, 5]}],
    }


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_get_prints_can_be_applied(form: str) -> None:
    (manifest,) = loaded(PIPELINE)
    printed = encode_object(manifest.object) | {
        "uid": "u",
        "generation": 3,
        "etag": "e",
        "createTime": "2026-01-31T12:00:00Z",
        "updateTime": "2026-01-31T12:00:00Z",
    }
    text = to_yaml(printed) if form == "yaml" else json.dumps(printed)
    (again,) = loaded(text, f"f.{form}")
    assert again.object == manifest.object


def test_what_list_prints_can_be_applied() -> None:
    (manifest,) = loaded(PIPELINE)
    printed = [encode_object(manifest.object), encode_object(manifest.object) | {"name": "other"}]
    assert [each.label for each in loaded(to_yaml(printed))] == ["pipeline/release", "pipeline/other"]


def test_objects_come_in_the_order_in_which_they_need_each_other() -> None:
    text = """\
---
# nothing but a comment
---
kind: Resource
name: shop
definition: app
---
kind: Pipeline
name: release
---
kind: ResourceDefinition
name: app
---
"""
    labels = [manifest.label for manifest in loaded(text)]
    assert labels == ["definition/app", "pipeline/release", "resource/app/shop"]


def test_words_and_dates_stay_text() -> None:
    text = "\n".join(
        f"  {line}"
        for line in (
            "A: no",
            "B: on",
            "C: off",
            "D: yes",
            "E: Y",
            "K: 12:30:00",
            "released: 2022-01-16",
            "at: 2022-01-16T10:00:00Z",
            "on: {y: n}",
        )
    )
    assert spec_of(text) == {
        "A": "no",
        "B": "on",
        "C": "off",
        "D": "yes",
        "E": "Y",
        "K": "12:30:00",
        "at": "2022-01-16T10:00:00Z",
        "on": {"y": "n"},
        "released": "2022-01-16",
    }


def test_numbers_keep_their_values() -> None:
    text = "  {a: 386, b: 1e10, c: 1.10, d: -1, e: 3.0, f: 0.1, g: 9007199254740992, h: 0x1F, i: null, j: ~,"
    text += "\n   k: 9007199254740994}"
    spec = spec_of(text)
    assert json.dumps(spec) == (
        '{"a": 386, "b": 10000000000, "c": 1.1, "d": -1, "e": 3, "f": 0.1, "g": 9007199254740992, "h": 31, '
        '"i": null, "j": null, "k": 9007199254740994}'
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("9007199254740993", "spec.a[0]: the integer 9007199254740993 does not fit a double; send it as a string"),
        (
            "9223372036854775807",
            "spec.a[0]: the integer 9223372036854775807 does not fit a double; send it as a string",
        ),
        ("9" * 5000, "spec.a[0]: an integer of 5000 digits does not fit a double; send it as a string"),
        ("1e400", "spec.a[0]: the number 1e400 does not fit a double; send it as a string"),
        (".nan", "spec.a[0]: JSON has no .nan; send it as a string"),
        ("-.inf", "spec.a[0]: JSON has no -.inf; send it as a string"),
        ("0755", 'spec.a[0]: 0755 is ambiguous: quote this value as text, "0755", or write the number 755'),
        ("08", 'spec.a[0]: 08 is ambiguous: quote this value as text, "08", or write the number 8'),
        ("!!binary aGk=", "spec.a[0]: the tag !!binary is not supported; write the value as text"),
    ],
)
def test_values_that_would_change_on_the_way(value: str, told: str) -> None:
    assert spec_refused(f"  a:\n  - {value}\n") == [f"f.yaml:6: {told}"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["f.json", "standard input"])
def test_words_that_json_has_not(word: str, name: str) -> None:
    text = f'{{"kind": "Resource", "definition": "app", "name": "shop", "spec":\n{{"a": {word}}}}}'
    assert refused(text, name) == [f"{name}:2: spec.a: JSON has no {word}; send it as a string"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("steps: [{id: a, driver: x, retires: 3}]", "steps[0].retires: unknown field; did you mean retry?"),
        ("steps: [{id: a, driver: x, timeOut: 5s}]", "steps[0].timeOut: unknown field; did you mean timeout?"),
        ("needs: [a]", "needs: unknown field; it belongs into steps"),
        ("maxAttempts: 3", "maxAttempts: unknown field; it belongs into steps.retry"),
        ("steps: {a: x}", "steps: must be a list, not a mapping"),
        ("steps: [{id: 5, driver: x}]", 'steps[0].id: is the number 5, not text: quote this value: "5"'),
        ("steps: [{id: a, driver: true}]", 'steps[0].driver: is the boolean true, not text: quote this value: "true"'),
        ("labels: {a: 1.10}", 'labels.a: is the number 1.10, not text: quote this value: "1.10"'),
        ("labels: {1: a}", "labels['1']: the key is the number 1, not text: quote it: \"1\""),
        ("steps: [{id: a, allowFailure: yes}]", "steps[0].allowFailure: must be true or false, not the text 'yes'"),
        ("order: TREE", "order: 'TREE' is not one of LIST, GRAPH"),
        ("order: ORDER_UNSPECIFIED", "order: 'ORDER_UNSPECIFIED' is not one of LIST, GRAPH"),
        ("timeout: 90", 'timeout: 90 has no unit; write "90s" for seconds'),
        ('timeout: "90"', 'timeout: 90 has no unit; write "90s" for seconds'),
        ("timeout: 0", 'timeout: 0 has no unit; write "0s" for seconds'),
        ("timeout: inf", 'timeout: \'inf\' is not a duration; write numbers with units, e.g. "90s", "5m" or "1h30m"'),
        (
            "timeout: 5 min",
            'timeout: \'5 min\' is not a duration; write numbers with units, e.g. "90s", "5m" or "1h30m"',
        ),
        ("timeout: -1s", 'timeout: \'-1s\' is not a duration; write numbers with units, e.g. "90s", "5m" or "1h30m"'),
        ("timeout: 9000000000000000s", "timeout: 9000000000000000s is longer than 10,000 years"),
        ("steps: [{retry: {maxAttempts: -1}}]", "steps[0].retry.maxAttempts: must be from 0 to 4294967295"),
        (
            "steps: [{retry: {maxAttempts: 1.5}}]",
            "steps[0].retry.maxAttempts: must be a whole number, not the number 1.5",
        ),
        ("failurePolicy: CONTINUE\nfailure_policy: CONTINUE", "failure_policy: stands twice, as failurePolicy too"),
        ("apiVersion: v2", "apiVersion: must be conveyor/v1"),
        ("steps: [{runs: deploy}]", "steps[0].runs: must be a mapping, not the text 'deploy'"),
        (
            "steps: [{driver: x, runs: {pipeline: y}}]",
            "steps[0].runs: does not go together with driver: give one of them",
        ),
    ],
)
def test_mistakes_are_told_with_line_and_path(lines: str, told: str) -> None:
    (mistake,) = refused(f"kind: Pipeline\nname: release\n{lines}\n")
    line, _, text = mistake.removeprefix("f.yaml:").partition(": ")
    assert (text, int(line) >= 3) == (told, True)


BAD_VALUES = """\
kind: Resource
definition: 5
name: shop
specs: {}
spec:
  k: 9007199254740993
  m: 0
  i: [.inf, 1, -.inf]
  e: 1e400
  p: 0755
  t: !!binary aGk=
  s: "\\ud800"
  a: *nowhere
  m: .nan
  1: 1
  o: 1e3
labels: {a: 08}
"""


def test_all_values_that_are_wrong_are_told_in_their_order() -> None:
    does_not_fit = "does not fit a double; send it as a string"
    text = f"{BAD_VALUES}---\nkind: Pipeline\n"
    assert [told.removeprefix("f.yaml:") for told in refused(text)] == [
        '2: definition: is the number 5, not text: quote this value: "5"',
        "4: specs: unknown field; did you mean spec?",
        "6: spec.k: the integer 9007199254740993 " + does_not_fit,
        "8: spec.i[0]: JSON has no .inf; send it as a string",
        "8: spec.i[2]: JSON has no -.inf; send it as a string",
        "9: spec.e: the number 1e400 " + does_not_fit,
        '10: spec.p: 0755 is ambiguous: quote this value as text, "0755", or write the number 755',
        "11: spec.t: the tag !!binary is not supported; write the value as text",
        "12: spec.s: the text is not valid Unicode (a lone surrogate)",
        "13: spec.a: the alias *nowhere has no anchor &nowhere before it",
        "14: spec.m: the key stands twice; first in line 7",
        "15: spec['1']: the key is the number 1, not text: quote it: \"1\"",
        '17: labels.a: 08 is ambiguous: quote this value as text, "08", or write the number 8',
        "19: name: is missing",
    ]


@pytest.mark.parametrize("name", ["f.json", "standard input"])
def test_all_values_that_are_wrong_in_json(name: str) -> None:
    text = """{"kind": "Resource", "definition": "app", "name": "shop", "spec": {
"n": 9007199254740993,
"m": NaN, "i": 1, "e": [1e400, Infinity],
"s": "\\ud800",
"i": 2, "l": NaN}}"""
    assert [told.removeprefix(f"{name}:").partition(": ")[0::2] for told in refused(text, name)] == [
        ("2", "spec.n: the integer 9007199254740993 does not fit a double; send it as a string"),
        ("3", "spec.m: JSON has no NaN; send it as a string"),
        ("3", "spec.e[0]: the number 1e400 does not fit a double; send it as a string"),
        ("3", "spec.e[1]: JSON has no Infinity; send it as a string"),
        ("4", "spec.s: the text is not valid Unicode (a lone surrogate)"),
        ("5", "spec.i: the key stands twice; first in line 3"),
        ("5", "spec.l: JSON has no NaN; send it as a string"),
    ]


def test_the_mistakes_of_one_object_are_bounded() -> None:
    with pytest.raises(CliError) as caught:
        loaded("kind: Resource\ndefinition: app\nname: shop\nspec:\n" + "".join(f"  k{n}: .nan\n" for n in range(500)))
    assert caught.value.message == "more than 100 mistakes; nothing was sent"
    assert len(caught.value.details) == 21
    assert caught.value.details[-1] == "… and more"


def test_an_alias_of_a_wrong_value_is_wrong_where_it_stands() -> None:
    assert [told.partition(": ")[0] for told in spec_refused("  a: &a .nan\n  b: *a\n")] == ["f.yaml:5", "f.yaml:6"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: .nan\n", "f.yaml:1: kind: JSON has no .nan; send it as a string"),
        ("kind: Pipeline\nname: a\napiVersion: 01\n", "f.yaml:3: apiVersion: 01 is ambiguous"),
        (".inf", "f.yaml:1: JSON has no .inf; send it as a string"),
        ("- .inf", "f.yaml:1: JSON has no .inf; send it as a string"),
    ],
)
def test_wrong_values_in_place_of_an_object_or_its_head(text: str, told: str) -> None:
    (only,) = refused(text)
    assert only.startswith(told)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.yaml", "kind: Pipeline\nname: a\nsteps: [{id: x,\n id: y}]"),
        ("f.yaml", 'kind: Pipeline\nname: a\nsteps:\n- "id": x\n  id: y'),
        ("f.json", '{"kind": "Pipeline", "name": "a",\n "steps": [{"id": "x",\n "id": "y"}]}'),
    ],
)
def test_a_key_stands_once(name: str, text: str) -> None:
    (told,) = refused(text, name)
    assert told.endswith((": steps[0].id: the key stands twice; first in line 2", "first in line 3", "first in line 4"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no object in f.yaml"),
        ("# only this\n---\n", "there is no object in f.yaml"),
        ("kind: Pipeline\n", "f.yaml:1: name: is missing"),
        ("kind: Resource\nname: a\n", "f.yaml:1: definition: is missing"),
        ("name: a\n", "f.yaml:1: kind: is missing; it is one of ResourceDefinition, Pipeline, Resource, Schedule"),
        ("kind: pipeline\n", "f.yaml:1: kind: must not be the text 'pipeline'; did you mean Pipeline?"),
        (
            "kind: Pod\n",
            "f.yaml:1: kind: must not be the text 'Pod'; it is one of ResourceDefinition, Pipeline, Resource, Schedule",
        ),
        (
            "kind: Run\n",
            "f.yaml:1: kind: a Run can't be applied; only ResourceDefinition, Pipeline, Resource, Schedule can",
        ),
        ("just text", "f.yaml:1: an object must be a mapping with the key kind, not the text 'just text'"),
        ("kind: Pipeline\n\tname: a\n", "f.yaml:2: a tab; YAML is indented with spaces"),
        ("kind: Pipeline\nname: *a\n", "f.yaml:2: name: the alias *a has no anchor &a before it"),
        (
            "kind: Pipeline\nname: x\ncontext: &a {b: *a}\n",
            "f.yaml:3: context.b: the alias *a is within its own anchor",
        ),
        (b"kind: Pipeline\nname: \xe9", "f.yaml:2: the byte 0xE9 is not UTF-8 (Latin-1?); save the file as UTF-8"),
        ("kind: Pipeline".encode("utf-16"), "f.yaml:1: the file is UTF-16; save it as UTF-8"),
        ("kind: Pipeline".encode("utf-16-le"), "f.yaml:1: the file looks like UTF-16; save it as UTF-8"),
        ("kind: Pipeline\nname: a\nlabels: {b: \x07}\n", "f.yaml:3: the character U+0007 is not allowed in YAML"),
        ('kind: Pipeline\nname: "\\ud800"\n', "f.yaml:2: name: the text is not valid Unicode (a lone surrogate)"),
    ],
)
def test_files_that_cannot_be_read(text: str | bytes, told: str) -> None:
    assert refused(text) == [told]


def test_all_mistakes_of_all_files_are_told() -> None:
    with pytest.raises(CliError) as caught:
        load(
            [
                Source("a.yaml", b"kind: Pipeline\nname: a\nordre: LIST\n"),
                Source("b.yaml", b"kind: [\n"),
                Source("c.yaml", b"kind: Pipeline\nname: c\n---\nkind: Pipeline\nname: c\n"),
            ]
        )
    assert caught.value.message == "3 mistakes; nothing was sent"
    assert [detail.partition(" ")[0] for detail in caught.value.details] == ["a.yaml:3:", "b.yaml:2:", "c.yaml:4:"]
    assert caught.value.details[2] == "c.yaml:4: pipeline/c stands twice; first in c.yaml:1"


def test_byte_order_mark_and_line_ends_change_nothing() -> None:
    text = "kind: Pipeline\nname: release\ndescription: |\n  one\n  two\nlabels: {a: 'b\n\n  c'}\n"
    (plain,) = loaded(text)
    for other in ("\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\r\n", 4)):
        assert loaded(other)[0].object == plain.object
    assert "\r" not in str(loaded(text.replace("\n", "\r\n"))[0].object)
    json_text = '{"kind": "Pipeline",\n"name": "release"}\n'
    for other in ("\ufeff" + json_text, json_text.replace("\n", "\r\n")):
        assert loaded(other, "f.json")[0].label == "pipeline/release"


def test_json_with_tabs_and_pairs_of_surrogates() -> None:
    text = '{\n\t"kind": "Pipeline",\n\t"name": "a",\n\t"description": "\\ud83d\\ude00"\n}'
    assert loaded(text, "f.json")[0].object == loaded(text, "standard input")[0].object
    assert encode_object(loaded(text, "f.json")[0].object)["description"] == "😀"


def test_anchors_and_merge_keys() -> None:
    spec = spec_of("  base: &b {a: 1, c: [1]}\n  merged: {<<: *b, a: 2}\n  both: {<<: [{a: 9}, *b]}\n  same: *b\n")
    assert spec == {
        "base": {"a": 1, "c": [1]},
        "both": {"a": 9, "c": [1]},
        "merged": {"a": 2, "c": [1]},
        "same": {"a": 1, "c": [1]},
    }


@pytest.mark.parametrize("width", ["x", "x" * 10_000])
def test_a_bomb_of_aliases_costs_nothing(width: str) -> None:
    lines = [f"  a0: &a0 [{','.join([width] * 9)}]"]
    lines += [f"  a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    tracemalloc.start()
    try:
        (told,) = spec_refused("\n".join(lines))
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert told.endswith("the aliases expand to more than 100,000 values")


@pytest.mark.parametrize(("levels", "told"), [(40, "more than 32 levels of nesting"), (5000, "more than 100 levels")])
@pytest.mark.parametrize("name", ["f.yaml", "f.json"])
def test_nesting_is_bounded(levels: int, told: str, name: str) -> None:
    nested = '{"a":' * levels + "1" + "}" * levels
    (mistake,) = refused(f'{{"kind": "Resource", "definition": "a", "name": "b", "spec": {nested}}}', name)
    assert told in mistake


def test_as_deep_as_the_api_takes_is_fine() -> None:
    nested = '{"a":' * 32 + "1" + "}" * 32
    (manifest,) = loaded(f'{{"kind": "Resource", "definition": "a", "name": "b", "spec": {nested}}}', "f.json")
    assert manifest.label == "resource/a/b"


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.yml", "a.json", "c.yaml", "notes.txt"):
        (tmp_path / name).write_text(f"name of {name}")
    assert [Path(source.name).name for source in read_sources([str(tmp_path)])] == ["a.json", "2.yml", "c.yaml"]


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"no \*\.yaml"):
        read_sources([str(tmp_path)])
    with pytest.raises(CliError, match=r"cannot read .*nope: No such file"):
        read_sources([str(tmp_path / "nope")])
