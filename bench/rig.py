"""Real processes to measure: a server, its store and broker, and drivers of the SDK."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from conveyor.server.nats_child import URL_FILE
from conveyor.v1 import (
    pipeline_pb2,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    resource_pb2,
    resource_service_pb2,
    resource_service_pb2_grpc,
)
from conveyor.v1 import resource_definition_pb2 as definition_pb2
from conveyor.v1 import resource_definition_service_pb2 as definition_service_pb2
from conveyor.v1 import resource_definition_service_pb2_grpc as definition_service_grpc
from tests.support import golang
from tests.support.etcd import Etcd, find
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer

SLOTS = 64
_TICKS_PER_S = 100


@contextlib.contextmanager
def server(folder: Path, store: str = "sqlite", arguments: Sequence[str] = ()) -> Iterator[ConveyorServer]:
    """A server on a fresh store; yields it when it serves."""
    with contextlib.ExitStack() as stack:
        if store == "sqlite":
            process = ConveyorServer(folder, arguments)
        else:
            program = find("3.7") or find("3.4")
            if program is None:
                raise SystemExit("no etcd is here: run scripts/fetch_etcd.py")
            etcd = Etcd(program, folder / "etcd")
            stack.callback(etcd.stop)
            etcd.start()
            nats = NatsServer(folder / "nats")
            stack.callback(nats.stop)
            nats.start()
            process = ConveyorServer(folder, ["--etcd", etcd.url, "--nats", nats.url, *arguments], mode="start")
        stack.callback(process.stop)
        yield process.start()


def nats_url(process: ConveyorServer) -> str:
    """Where the embedded broker of a server listens."""
    return (process.directory / "data" / URL_FILE).read_text().strip()


@contextlib.contextmanager
def drivers(
    process: ConveyorServer, names: Sequence[str], transport: str = "grpc", language: str = "python"
) -> Iterator[None]:
    """One process of the SDK for each driver, all with the same number of slots."""
    command = [sys.executable, "-m", "bench.driver"]
    if language == "go":
        command = [str(golang.build("./internal/benchdriver", race=False) / "benchdriver")]
    settings = {"ADDRESS": process.address, "TRANSPORT": transport, "SLOTS": str(SLOTS)}
    if transport == "jetstream":
        settings["NATS"] = nats_url(process)
    environment = {**os.environ, **{f"CONVEYOR_{name}": value for name, value in settings.items()}}
    started = [subprocess.Popen([*command, name], env=environment, stderr=subprocess.DEVNULL) for name in names]
    try:
        yield
    finally:
        for child in started:
            child.terminate()
        for child in started:
            child.wait(30)


def apply(address: str, pipeline: pipeline_pb2.Pipeline) -> None:
    """Store the definition "app", the resource "web" and a pipeline."""
    with grpc.insecure_channel(address) as channel:
        definition_service_grpc.ResourceDefinitionServiceStub(channel).ApplyResourceDefinition(
            definition_service_pb2.ApplyResourceDefinitionRequest(
                resource_definition=definition_pb2.ResourceDefinition(name="app")
            )
        )
        pipeline_service_pb2_grpc.PipelineServiceStub(channel).ApplyPipeline(
            pipeline_service_pb2.ApplyPipelineRequest(pipeline=pipeline)
        )
        resource = resource_pb2.Resource(name="web", definition="app")
        resource.spec.update({"repository": "https://example.org/web.git"})
        resource_service_pb2_grpc.ResourceServiceStub(channel).ApplyResource(
            resource_service_pb2.ApplyResourceRequest(resource=resource)
        )


def three_steps() -> pipeline_pb2.Pipeline:
    """A list of three steps on three drivers."""
    steps = [pipeline_pb2.Step(id=name, driver=name) for name in ("a", "b", "c")]
    return pipeline_pb2.Pipeline(name="three", steps=steps)


def three_steps_with_expressions() -> pipeline_pb2.Pipeline:
    """The same with a parameter, and with a condition and two expressions in each step."""
    pipeline = pipeline_pb2.Pipeline(name="expressions", params=[pipeline_pb2.Param(name="env")])
    pipeline.params[0].default.string_value = "test"
    for before, name in (("", "a"), ("a", "b"), ("b", "c")):
        after = f" && steps.{before}.data.n == 1" if before else ""
        step = pipeline.steps.add(id=name, driver=name, when=f"params.env != 'none'{after}")
        step.params.update({"env": "${{ params.env }}", "from": "${{ resource.spec.repository }}, to be tested"})
    return pipeline


def matrix_of(count: int) -> pipeline_pb2.Pipeline:
    """A step that runs once for each number, with the number among its params."""
    pipeline = pipeline_pb2.Pipeline(name="matrix")
    step = pipeline.steps.add(id="a", driver="a")
    step.matrix.axes["n"].list_value.extend(list(range(count)))
    step.params.update({"n": "${{ matrix.n }}"})
    return pipeline


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_mib(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    for entry in Path(f"/proc/{pid}/status").read_text().splitlines():
        if entry.startswith("VmRSS:"):
            return int(entry.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")
