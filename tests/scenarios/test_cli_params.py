"""Parameters and conditions by the command line: from a file to what a driver gets and `run get` shows."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conveyor.sdk import Job
from tests.support.belt import Belt
from tests.support.cli import Cli, Done

FILES = """
kind: ResourceDefinition
name: app
---
kind: Pipeline
name: deploy
params:
- {name: env, enum: [test, prod], required: true}
- {name: replicas, type: NUMBER, default: 2}
- {name: version}
steps:
- id: deploy
  driver: helm
  params: {to: "web-${{ params.env }}", replicas: "${{ params.replicas }}", version: "${{ params.version }}"}
- {id: announce, driver: helm, when: params.env == 'prod' && steps.deploy.data.ok}
---
kind: Resource
definition: app
name: web
"""


async def test_parameters_from_the_command_line(belt: Belt, tmp_path: Path) -> None:
    given: list[dict[str, object]] = []

    async def helm(job: Job) -> dict[str, object]:
        given.append(job.params)
        return {"ok": True}

    belt.drive("helm", helm)
    cli = Cli(belt.address, belt.namespace)

    async def run(*arguments: str, stdin: str = "") -> Done:
        return await asyncio.to_thread(cli, *arguments, stdin=stdin)

    applied = await run("apply", "-f", "-", stdin=FILES)
    assert applied.code == 0, applied.err

    start = ("run", "start", "app/web", "--pipeline", "deploy")
    refused = await run(*start, "-p", "env=stage", "-p", "replica=3", "-p", "replicas=3")
    assert (refused.code, refused.out) == (1, "")
    for said in (
        "params.replica: the pipeline has no such parameter; it has env, replicas, version",
        'params.env: must be one of "test", "prod"',
        "params.replicas: must be a number, not text",
    ):
        assert said in refused.err

    file = tmp_path / "values.yaml"
    file.write_text("env: prod\nversion: '2'\n")
    done = await run(*start, "--params", str(file), "-p", "version=1.10", "--param-json", "replicas=5", "--wait")
    assert done.code == 0, done.err
    assert given == [{"to": "web-prod", "replicas": 5, "version": "1.10"}, {}]

    done = await run(*start, "-p", "env=test", "--wait", "-o", "name")
    assert done.code == 3, done.err
    shown = await run("get", done.out.strip())
    assert "Params:" in shown.out
    assert "env: test" in shown.out
    assert "replicas: 2" in shown.out
    assert "INPUT_MISSING" in shown.out
    assert "params.version: params.version is not there" in shown.out


async def test_a_pipeline_that_cannot_work_is_refused_with_its_places(belt: Belt) -> None:
    bad = """
kind: Pipeline
name: bad
steps:
- {id: a, driver: x, when: steps.b.state == 'X'}
- {id: b, driver: x, when: "params.env == 'prod' &&"}
- id: c
  driver: x
  params: {image: "v${{ steps.a.dta }}"}
"""
    done = await asyncio.to_thread(Cli(belt.address, belt.namespace), "apply", "-f", "-", stdin=bad)
    assert done.code == 1
    for said in (
        "steps[0].when: line 1, column 1: step b does not end before step a begins",
        "steps[1].when: line 1, column 24: Syntax error",
        "steps[2].params.image: line 1, column 13: there is no field dta here, but state, reason, data",
    ):
        assert said in done.err
