"""YAML as it is really written: anchors and merge keys everywhere, files put together, one document of many broken."""

from pathlib import Path

import pytest

from conveyor.cli.encode import encode_object
from conveyor.cli.failures import CliError
from conveyor.cli.manifest import load
from conveyor.cli.sources import Source, read_sources
from conveyor.cli.yaml_reader import MAX_BROKEN


def loaded(text: str | bytes) -> list[dict[str, object]]:
    data = text.encode() if isinstance(text, str) else text
    return [encode_object(manifest.object) for manifest in load([Source("f.yaml", data)])]


def refused(text: str | bytes) -> list[str]:
    with pytest.raises(CliError) as caught:
        loaded(text)
    return list(caught.value.details) or [caught.value.message]


# As .gitlab-ci.yml files are: hidden templates, templates made of templates, several merge keys in one map.
TEMPLATES = """\
# A comment before everything.
---
.packet: &packet
  driver: packet
  retry: {maxAttempts: 2}
  params: &packet-params {ansible: "2.10", os: ubuntu}
.slow: &slow
  timeout: 2h
  retry: {maxAttempts: 5}
.manual: &manual
  allowFailure: true
.slow-manual: &slow-manual
  <<: [*slow, *manual]
  timeout: 3h
x-versions: &versions {from: "1.20", to: "1.21.10"}

kind: Pipeline
name: deploy
order: GRAPH
context: &context
  <<: *versions
  on: push
steps:
- id: unit
  driver: tox
- &part1
  id: part1
  needs: [unit]
  <<: *packet
  <<: *slow
- <<: *part1
  <<: *manual
  id: part2
  needs: [part1]
  params:
    <<: *packet-params
    os: "7.10"
- {<<: [*slow-manual, *packet], id: special, needs: [part1, part2]}
"""


def test_templates_and_merge_keys() -> None:
    packet = {"ansible": "2.10", "os": "ubuntu"}
    (pipeline,) = loaded(TEMPLATES)
    assert pipeline["context"] == {"from": "1.20", "on": "push", "to": "1.21.10"}
    assert pipeline["steps"] == [
        {"id": "unit", "driver": "tox"},
        # Of several merge keys the first one wins, as of several maps in one.
        {
            "id": "part1",
            "driver": "packet",
            "needs": ["unit"],
            "timeout": "7200s",
            "retry": {"maxAttempts": 2},
            "params": packet,
        },
        {
            "id": "part2",
            "driver": "packet",
            "needs": ["part1"],
            "allowFailure": True,
            "timeout": "7200s",
            "retry": {"maxAttempts": 2},
            "params": packet | {"os": "7.10"},
        },
        {
            "id": "special",
            "driver": "packet",
            "needs": ["part1", "part2"],
            "allowFailure": True,
            "timeout": "10800s",
            "retry": {"maxAttempts": 5},
            "params": packet,
        },
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("timeout: 3h", "timout: 3h", "steps[3].timout: unknown field; did you mean timeout?"),
        ('ansible: "2.10"', "ansible: 02", 'steps[1].params.ansible: 02 is ambiguous: quote this value as text, "02"'),
        ("name: deploy", "name: deploy\non: push", "on: unknown field"),
        ("name: deploy", "name: deploy\nname: deploy", "name: the key stands twice; first in line 18"),
        ("  on: push", "  on: push\n  on: tag", "context.on: the key stands twice; first in line 22"),
        ("- <<: *part1", "- <<: *part-1", "steps[2]['<<']: the alias *part-1 has no anchor &part-1 before it"),
        ("  <<: *versions", "  <<: 1.20", "context['<<']: only mappings can be merged"),
        ('os: "7.10"', "os: x\n---\n<<: *slow", "['<<']: the alias *slow has no anchor &slow before it"),
    ],
)
def test_mistakes_among_merge_keys(old: str, new: str, told: str) -> None:
    before, after = TEMPLATES.split(old, 1)
    line = (before + new).count("\n") + 1
    mistakes = refused(before + new + after)
    assert any(each.startswith(f"f.yaml:{line}: {told}") for each in mistakes), mistakes


def test_a_template_is_for_its_own_document_alone() -> None:
    (told, *_) = refused("---\n.t: &t {driver: x}\nkind: Pipeline\nname: a\n---\nkind: Pipeline\nsteps: [*t]\n")
    assert told.startswith("f.yaml:7: steps[0]: the alias *t has no anchor &t before it")


BROKEN = {
    "tab": "kind: Pipeline\n\tname: b",
    "colon": "kind: Pipeline\nname: b: c",
    "open quote": "kind: Pipeline\nname: 'b",
    "open bracket": "kind: Pipeline\nsteps: [",
    "open brace in the marker's line": "--- {kind: Pipeline,\n",
    "key": "kind: Pipeline\n? [a]\n: b",
    "tag": "kind: Pipeline\nlabels: !!set {a}",
    "deep": f"kind: Pipeline\ncontext: {'[' * 200}{']' * 200}",
    "control character": "kind: Pipeline\nname: \x07",
    "directive": "%YAML 3.0",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_document_that_is_not_yaml_hides_no_other(broken: str, end: str) -> None:
    begin = "" if broken.startswith(("---", "%")) else "---\n"
    others = "---\nkind: Pipeline\nname: c\nc: 1\n---\nkind: Pipeline\nname: d\nd: 1\n"
    text = f"kind: Pipeline\nname: a\na: 1\n{begin}{broken}\n{others}"
    mistakes = refused(text.replace("\n", end))
    last = text.count("\n")
    expected = {f"f.yaml:{line}: {key}: unknown field" for line, key in ((3, "a"), (last - 4, "c"), (last, "d"))}
    assert expected <= {told.partition(";")[0] for told in mistakes}
    # Its own place is told once.
    assert len(mistakes) == 4, mistakes


def test_many_documents_that_are_not_yaml_end_soon() -> None:
    text = "---\nkind: [\n" * 20_000
    with pytest.raises(CliError) as caught:
        loaded(text)
    assert caught.value.message == f"{MAX_BROKEN + 1} mistakes; nothing was sent"


def test_files_with_byte_order_marks_put_together() -> None:
    one = "\ufeff---\nkind: Pipeline\nname: {}\n"
    for text in (one.format("a") + one.format("b"), "kind: Pipeline\nname: a\n---\n\ufeffkind: Pipeline\nname: b\n"):
        for end in ("\n", "\r\n"):
            assert [each["name"] for each in loaded(text.replace("\n", end))] == ["a", "b"]


def test_hidden_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    for name in (".github/workflows/build.yml", ".venv/lib/x.json", "sub/.hidden.yaml", "sub/shop.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kind: Pipeline\nname: a\n")
    assert [source.name for source in read_sources([str(tmp_path)])] == [str(tmp_path / "sub/shop.yaml")]
    # A folder that is named itself is meant.
    assert len(read_sources([str(tmp_path / ".github"), str(tmp_path / "sub/.hidden.yaml")])) == 2
