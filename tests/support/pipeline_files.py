"""The pipelines of examples/pipelines, played with scripts: started by the CLI, worked on by their own stub."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from conveyor.sdk import Client, Job
from conveyor.sdk.values import to_struct
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt, state, states
from tests.support.cli import Cli, Done
from tests.support.wait import until

FOLDER = Path(__file__).parents[2] / "examples" / "pipelines"
"""Where the pipelines are."""

TIMED_OUT = 6
"""The exit code of a wait that took too long."""

Script = Mapping[str, str | list[str]]


def _stub() -> Any:
    spec = importlib.util.spec_from_file_location("pipelines_stub", FOLDER / "stub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A step that a worker was given."""

    run: str
    step: str
    attempt: int
    params: Mapping[str, object]


@dataclass(slots=True)
class Played:
    """A run that has ended."""

    run: Run
    code: int
    """The exit code of `conveyor run wait`."""
    dispatches: list[Dispatch]

    @property
    def state(self) -> str:
        return state(self.run)

    @property
    def states(self) -> dict[str, str]:
        return states(self.run)

    @property
    def steps(self) -> list[str]:
        """The steps in the order in which they were given out, with repetitions."""
        return [each.step for each in self.dispatches]

    def first(self, step: str) -> Dispatch:
        """The first dispatch of a step."""
        return next(each for each in self.dispatches if each.step == step)

    def with_state(self, wanted: str) -> set[str]:
        """The steps that ended so."""
        return {each for each, found in self.states.items() if found == wanted}

    def data(self, step: str) -> dict[str, object]:
        """What the step's result says."""
        found = next(each for each in self.run.steps if each.step == step)
        return {key: value.string_value for key, value in found.result.data.fields.items()}


@dataclass
class Stage:
    """One pipeline file, applied to a namespace in which its stub works.

    A step that the script says to `hold` is at work until it is released.
    """

    belt: Belt
    resource: str
    dispatches: list[Dispatch] = field(default_factory=list)
    released: dict[str, asyncio.Event] = field(default_factory=dict)
    at_work: list[str] = field(default_factory=list)
    most_at_work: int = 0

    @property
    def client(self) -> Client:
        return self.belt.client

    def work(self, *, seen: set[str] | None = None, **options: Any) -> None:
        """Have a worker of the stub; `seen` gets the steps that it is given."""
        stub = _stub()

        async def perform(job: Job) -> dict[str, str]:
            if seen is not None:
                seen.add(job.step)
            self.dispatches.append(Dispatch(job.run, job.step, job.attempt, job.params))
            self.at_work.append(job.step)
            self.most_at_work = max(self.most_at_work, len(self.at_work))
            try:
                if stub.words(job)[0] == "hold":
                    await self._gate(job.step).wait()
                    return {}
                done: dict[str, str] = await stub.perform(job)
                return done
            finally:
                self.at_work.remove(job.step)

        self.belt.drive("stub", perform, slots=64, **options)

    def _gate(self, step: str) -> asyncio.Event:
        return self.released.setdefault(step, asyncio.Event())

    def release(self, *steps: str) -> None:
        """Let steps go on that are held, or will be."""
        for step in steps:
            self._gate(step).set()

    def given(self, run: str) -> list[Dispatch]:
        """What workers were given of a run so far."""
        return [each for each in self.dispatches if each.run == run]

    async def until_given(self, run: str, *steps: str) -> None:
        """Wait until a worker has been given each of these steps."""
        await until(lambda: set(steps) <= {each.step for each in self.given(run)}, f"{steps} to be given out")

    async def cli(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command in this namespace."""
        return await asyncio.to_thread(Cli(self.belt.address, self.belt.namespace), *arguments, stdin=stdin)

    async def start(self, script: Script | None = None, **params: str) -> str:
        """Start a run of the resource with another script, or its own, and return the run's id."""
        if script is not None:
            stored = await self.client.resources.get("source", self.resource)
            stored.spec.CopyFrom(to_struct({"script": dict(script)}))
            await self.client.resources.update(stored)
        given = [argument for name, value in params.items() for argument in ("-p", f"{name}={value}")]
        started = await self.cli("run", "start", f"source/{self.resource}", "-o", "name", *given)
        assert started.code == 0, started.err
        return started.out.strip().rpartition("/")[2]

    async def ended(self, run: str) -> Played:
        """Wait for the end of a run by the CLI."""
        waited = await self.cli("run", "wait", run, "--timeout", "50s")
        assert waited.code != TIMED_OUT, (await self.cli("run", "get", run)).out
        return Played(await self.client.runs.get(run), waited.code, self.given(run))

    async def play(self, script: Script | None = None, **params: str) -> Played:
        """Start a run and wait for its end."""
        return await self.ended(await self.start(script, **params))


def documents(file: str) -> list[dict[str, Any]]:
    """The documents of one of the files, as plain values."""
    return list(yaml.safe_load_all((FOLDER / file).read_text()))


async def staged(belt: Belt, file: str, resource: str, *, workers: bool = True) -> Stage:
    """The pipeline of a file, applied, with a worker of its stub."""
    stage = Stage(belt, resource)
    applied = await stage.cli("apply", "-f", str(FOLDER / "definition.yaml"), "-f", str(FOLDER / file))
    assert applied.code == 0, applied.err
    if workers:
        stage.work()
    return stage
