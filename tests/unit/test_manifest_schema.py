"""The JSON Schema of manifests says what `conveyor apply` says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from conveyor.cli.failures import CliError
from conveyor.cli.kinds import KINDS
from conveyor.cli.manifest import load
from conveyor.cli.nodes import Node
from conveyor.cli.sources import Source

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "clients/python/conveyor/cli/manifest.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema_rs.Draft7Validator(SCHEMA)


def examples() -> dict[str, str]:
    """All manifests of the examples and of the pages."""
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.glob("examples/**/*.y*ml")}
    for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found |= {f"{page.name}-{index}": block for index, block in enumerate(blocks)}
    return {name: text for name, text in found.items() if re.search(r"^(- )?kind: ", text, re.MULTILINE)}


EXAMPLES = examples()


def plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(value) for value in node.value]
    return node.value


def faults(text: str) -> list[str]:
    """What the schema has against the documents of a text."""
    documents = Source("f.yaml", text.encode()).documents()
    return [error.message for node in documents for error in VALIDATOR.iter_errors(plain(node))]


def test_it_is_a_schema_of_all_kinds_that_files_hold() -> None:
    jsonschema_rs.meta.validate(SCHEMA)
    assert SCHEMA["definitions"]["Object"]["properties"]["kind"]["enum"] == [k.name for k in KINDS if k.applied]


def test_there_are_examples() -> None:
    assert {"examples/demo/release.yaml", "manifests.md-0", "pipelines.md-0"} <= set(EXAMPLES)


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_all_examples_conform(text: str) -> None:
    assert load([Source("f.yaml", text.encode())])
    assert faults(text) == []


def test_an_empty_document_conforms() -> None:
    """Readers of YAML here leave them out; editors don't."""
    assert VALIDATOR.is_valid(None)


@pytest.mark.parametrize("wrong", ["text", 5, True, [None], ["text"], [[]]])
def test_what_is_no_object_is_told_once(wrong: object) -> None:
    assert len(list(VALIDATOR.iter_errors(wrong))) == 1


PIPELINE = "kind: Pipeline\nname: p\n"
STEPS = f"{PIPELINE}steps:\n- {{id: a, driver: x}}\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{STEPS}order: GRAPH\nfailure_policy: FAILURE_POLICY_CONTINUE\n",
        f"{STEPS}labels:\ntimeout: 1h30m\nfinally_timeout: 0.5s\ncontext: {{a: [1, null]}}\n",
        f"{STEPS}finally: [{{id: b, driver: x}}]\nconcurrency: {{policy: QUEUE}}\n",
        f"{STEPS}uid: u\ngeneration: 3\netag: e\ncreateTime: 2026-01-31T12:00:00Z\nupdate_time: x\n",
        f"{STEPS}params: [{{name: n, type: NUMBER, default: 5, enum: [1, 5]}}, {{name: o, default: }}]\n",
        f".base: &base {{driver: x}}\nx-more: 1\n{PIPELINE}steps: [{{<<: *base, id: a}}]\n",
        f"{PIPELINE}steps:\n- {{id: a, driver: x, retry: {{maxAttempts: 3.0, jitter: 0.5, maxBackoff: 1m}}, when: }}\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, matrix: {{axes: {{os: [a], n: t}}, include: [{{os: b}}]}}}}]\n",
        "kind: Resource\napiVersion: conveyor/v1\nname: r\ndefinition: d\nspec: {a: {b: [1.5]}}\nparams: {x: 1}\n",
        "kind: ResourceDefinition\nname: d\nschema: {type: object}\n",
        "[{kind: ResourceDefinition, name: d}, {kind: ResourceDefinition, name: e}]\n",
        "---\n# nothing\n---\nkind: ResourceDefinition\nname: d\n",
    ],
)
def test_what_apply_takes_conforms(text: str) -> None:
    assert load([Source("f.yaml", text.encode())])
    assert faults(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "name: p\n",
        "just text",
        "kind: pipeline\nname: p\n",
        "kind: Run\nname: p\n",
        "apiVersion: v2\nkind: ResourceDefinition\nname: d\n",
        "kind: ResourceDefinition\n",
        "kind: ResourceDefinition\nname:\n",
        "kind: Resource\nname: r\n",
        "kind: Resource\nname: r\ndefinition: d\nspec: [1]\n",
        "- kind: ResourceDefinition\n  nam: d\n",
        f"{STEPS}ordre: GRAPH\n",
        f"{STEPS}order: TREE\n",
        f"{STEPS}order: ORDER_UNSPECIFIED\n",
        f"{STEPS}timeout: 90\n",
        f"{STEPS}timeout: 5 min\n",
        f"{STEPS}timeout: -1s\n",
        f"{STEPS}labels: {{a: 1}}\n",
        f"{STEPS}labels: {{a: }}\n",
        f"{STEPS}labels: [a]\n",
        f"{STEPS}finally: {{id: a}}\n",
        f"{STEPS}context: text\n",
        f"{STEPS}concurrency: {{policy: SOME}}\n",
        f"{STEPS}.t: 1\ny-t: 1\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, retires: 3}}]\n",
        f"{PIPELINE}steps: [{{id: 5, driver: x}}]\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, allowFailure: yes}}]\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, retry: {{maxAttempts: -1}}}}]\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, retry: {{maxAttempts: 1.5}}}}]\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, needs: a}}]\n",
        f"{PIPELINE}steps: [{{id: a, driver: x, matrix: {{include: [1]}}}}]\n",
    ],
)
def test_what_apply_refuses_does_not_conform(text: str) -> None:
    with pytest.raises(CliError):
        load([Source("f.yaml", text.encode())])
    assert faults(text)


@pytest.mark.parametrize("text", [PIPELINE, f"{PIPELINE}steps: [{{driver: x}}]\n", f"{PIPELINE}steps: [{{id: x}}]\n"])
def test_what_only_the_server_would_refuse_does_not_conform(text: str) -> None:
    assert load([Source("f.yaml", text.encode())])
    assert faults(text)
