"""Pipelines as drawings."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conveyor.v1.pipeline_pb2 import LabelSelector, Pipeline, Step

Conveyor = Callable[..., Any]

RELEASE = """\
kind: Pipeline
name: release
order: GRAPH
failurePolicy: CONTINUE
lock: {key: releases}
steps:
- {id: clone, driver: git}
- {id: unit, driver: go-test, needs: [clone], when: 'params.runTests == "true"'}
- id: build
  driver: go
  needs: [clone]
  matrix: {axes: {os: [linux, mac], arch: "${{ params.archs }}"}, maxParallel: 2}
- id: publish
  driver: ko
  needs: [unit, build]
  triggerRule: NONE_FAILED
  timeout: 2h
  lock: {key: registry, limit: 3}
- {id: end, driver: report, needs: [publish, clone], allowFailure: true, retry: {}}
- id: lint
  driver: 'a"b<c>\\#`'
  workerSelector:
    matchLabels: {os: linux, arch: "${{ params.arch }}"}
    matchExpressions:
    - {key: zone, operator: NOT_IN, values: [a, b]}
    - {key: gpu, operator: EXISTS}
    - {key: spot, operator: DOES_NOT_EXIST}
finally:
- {id: graph, driver: broom}
- {id: show, driver: mail}
"""
TEXT = """\
pipeline/release: 6 steps in 4 layers, CONTINUE, lock releases

      1 ┬─ clone    git
        └─ lint     a"b<c>\\#`                    on arch=${{ params.arch }}, os=linux, zone notin (a, b), gpu, !spot
      2 ┬─ unit     go-test    ← clone           when params.runTests == "true"
        └─ build    go         ← clone           matrix arch[${{ params.archs }}] × os[2] (2 at a time)
      3 ── publish  ko         ← unit, build     NONE_FAILED, lock registry (3 at a time), timeout 2h00m
      4 ── end      report     ← publish, clone  may fail, 3 attempts
finally ┬─ graph    broom
        └─ show     mail
"""
# What a line of each language may be; both are read whole by their own programs, of which none is at hand here.
QUOTED = r'"(?:[^"\\]|\\.)*"'
DOT = [
    rf"digraph {QUOTED} \{{",
    r"\s+rankdir=LR",
    r"\s+node \[.*\]",
    rf"\s+{QUOTED} \[(?:\w+=(?:{QUOTED}|\w+)(?:, )?)+\]",
    rf"\s+{QUOTED} -> {QUOTED}(?: \[(?:\w+=\w+(?:, )?)+\])?",
    r"\s+subgraph cluster_finally \{",
    rf"\s+(?:label|style)={QUOTED}",
    r"\s*\}",
]
MERMAID = [
    r"flowchart LR",
    r'\s+[sf]\d+\["[^"`\\]*"\]',
    r"\s+[sf]\d+ --> [sf]\d+",
    r'\s+ended\(\("all ended"\)\)',
    r'\s+subgraph final \["finally"\]',
    r"\s+end",
    r"\s+s\d+ -\.- ended",
    r"\s+ended -\.-> f\d+",
    r"\s+classDef mayFail stroke-dasharray: 5 5",
    r"\s+class [sf]\d+(?:,[sf]\d+)* mayFail",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE)
    return path


def test_layers_as_text(conveyor: Conveyor, file: Path) -> None:
    done = conveyor("pipeline", "graph", "-f", str(file))
    assert (done.code, done.out, done.err) == (0, TEXT, "")
    assert conveyor("pipeline", "graph", "release", "-f", str(file), "-o", "text").out == TEXT
    assert conveyor("-o", "text", "pipeline", "graph", "-f", str(file)).out == TEXT


@pytest.mark.parametrize(("form", "lines"), [("dot", DOT), ("mermaid", MERMAID)])
def test_what_other_programs_draw(conveyor: Conveyor, file: Path, form: str, lines: list[str]) -> None:
    done = conveyor("-o", form, "pipeline", "graph", "-f", str(file))
    assert done.code == 0
    for line in done.out.splitlines():
        assert any(re.fullmatch(each, line) for each in lines), line
    # All edges between steps, no more; and those to and from the finally steps.
    arrow = "->" if form == "dot" else "-->"
    plain = [line for line in done.out.splitlines() if f" {arrow} " in line and "dashed" not in line]
    assert len(plain) == 6
    assert sum("dashed" in line and "->" in line for line in done.out.splitlines()) == (4 if form == "dot" else 0)


def test_a_registered_pipeline_that_is_a_list(conveyor: Conveyor, server: Any) -> None:
    steps = [Step(id=name, driver="x") for name in ("build", "test", "ship")]
    server.objects["pipeline", "short"] = Pipeline(name="short", steps=steps)
    assert conveyor("pipeline", "graph", "short").out == (
        "pipeline/short: 3 steps one after another, FAIL_FAST\n\n1 ── build  x\n2 ── test   x\n3 ── ship   x\n"
    )
    dot = conveyor("pipeline", "graph", "pipeline/short", "-o", "dot").out
    assert '  "build" -> "test"\n  "test" -> "ship"\n}' in dot
    assert conveyor("pipeline", "graph", "nope").code == 1


def test_which_workers_a_registered_pipeline_wants(conveyor: Conveyor, server: Any) -> None:
    selector = LabelSelector(match_labels={"os": "mac"})
    steps = [Step(id="build", driver="x", worker_selector=selector), Step(id="ship", driver="x")]
    server.objects["pipeline", "p"] = Pipeline(name="p", steps=steps)
    *_, head, build, ship = conveyor("pipeline", "get", "p").out.splitlines()
    assert (head.split(), build.split(), ship.split()) == (
        ["STEP", "DRIVER", "WORKERS"],
        ["build", "x", "os=mac"],
        ["ship", "x"],
    )


def test_a_wide_graph_names_whole_layers(conveyor: Conveyor, tmp_path: Path) -> None:
    jobs = [f"job-{index}" for index in range(58)]
    lines = [f"- {{id: {job}, driver: x}}" for job in jobs]
    lines += [f"- {{id: all, driver: x, needs: [{', '.join(jobs)}]}}", "- {id: some, driver: x, needs: [job-1, all]}"]
    path = tmp_path / "wide.yaml"
    path.write_text("kind: Pipeline\nname: wide\norder: GRAPH\nsteps:\n" + "\n".join(lines))
    drawn = conveyor("pipeline", "graph", "-f", str(path)).out.splitlines()
    assert len(drawn) == 62
    assert (drawn[2][:3], drawn[58][:4], drawn[59][:4]) == ("1 ┬", "  ├─", "  └─")
    assert drawn[-2:] == ["2 ── all     x  ← all of 1", "3 ── some    x  ← job-1, all"]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("[{id: a, driver: x, needs: [b]}]", "step a needs b, which is not among the steps"),
        (
            "[{id: c, driver: x, needs: [b]}, {id: a, driver: x, needs: [b]}, {id: b, driver: x, needs: [a]}]",
            "steps need each other: a → b → a",
        ),
        ("[{id: a, driver: x, needs: [a]}]", "steps need each other: a → a"),
        ("[{id: a, driver: x}, {id: a, driver: y}]", "the id a stands twice"),
        ("[{driver: x}]", "step 1 has no id"),
    ],
)
def test_what_cannot_be_drawn(conveyor: Conveyor, tmp_path: Path, steps: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"kind: Pipeline\nname: bad\norder: GRAPH\nsteps: {steps}\n")
    done = conveyor("pipeline", "graph", "-f", str(path))
    assert (done.code, done.out, done.err) == (1, "", f"error: pipeline/bad can't be drawn: {told}\n")


def test_which_pipeline(conveyor: Conveyor, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("kind: Pipeline\nname: other\n---\nkind: ResourceDefinition\nname: app\n")
    both = ("pipeline", "graph", "-f", str(tmp_path))
    assert conveyor(*both).err == "error: which pipeline? there are other, release\n"
    assert conveyor(*both, "nope").err == "error: there is no pipeline nope, but other, release\n"
    assert conveyor(*both, "other").out == "pipeline/other: 0 steps one after another, FAIL_FAST\n\n"
    assert conveyor("pipeline", "graph").code == 2
    assert conveyor("pipeline", "graph", "-f", str(file), "--generation", "2").code == 2
    for place in (("-o", "dot", "list", "pipelines"), ("list", "pipelines", "-o", "dot")):
        assert conveyor(*place).code == 2
    assert conveyor("pipeline", "graph", "-f", str(file), "-o", "json").code == 2


def test_short_forms_for_pipelines(conveyor: Conveyor, server: Any) -> None:
    for name in ("a", "b"):
        server.objects["pipeline", name] = Pipeline(name=name, steps=[Step(id="build", driver="x")])
    assert conveyor("pipeline", "list", "-o", "name").out.split() == ["pipeline/a", "pipeline/b"]
    assert conveyor("pipeline", "list", "--limit", "1", "-o", "name").out == "pipeline/a\n"
    assert conveyor("pipeline", "get", "b").out == conveyor("get", "pipeline", "b").out
    assert conveyor("pipeline", "delete", "a", "pipeline/b").out == "pipeline/a deleted\npipeline/b deleted\n"
    assert server.objects == {}
