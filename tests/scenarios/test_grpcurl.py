"""grpcurl against every service: reflection, then one call of each kind that people make by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.belt import Belt, Site
from tests.support.grpcurl import call, grpcurl
from tests.support.raw_worker import RawWorker

SERVICES = {
    "conveyor.v1.DriverService",
    "conveyor.v1.LogService",
    "conveyor.v1.PipelineService",
    "conveyor.v1.ResourceDefinitionService",
    "conveyor.v1.ResourceService",
    "conveyor.v1.RunService",
    "conveyor.v1.ScheduleService",
    "conveyor.v1.ServerService",
    "conveyor.v1.WorkerService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}
RPCS = {
    "DriverService": "DeleteDriver GetDriver ListDrivers",
    "RunService": "CancelRun DecideStep DeleteRun GetRun ListLocks ListRuns RetryRun StartRun WatchRun WatchRuns",
    "ScheduleService": "ApplySchedule CreateSchedule DeleteSchedule GetSchedule ListSchedules TriggerSchedule "
    "UpdateSchedule",
    "LogService": "ReadLogs WriteLogs",
    "WorkerService": "ReportResults Work",
    "ServerService": "GetServerInfo",
}


def test_list_and_describe(sqlite_site: Site) -> None:
    address = sqlite_site.server.address
    listed = grpcurl("-plaintext", address, "list")
    assert set(listed.stdout.split()) == SERVICES
    for service in SERVICES:
        described = grpcurl("-plaintext", address, "describe", service)
        assert described.returncode == 0
        assert described.stdout.startswith(f"{service} is a service:")
    for service, rpcs in RPCS.items():
        methods = grpcurl("-plaintext", address, "list", f"conveyor.v1.{service}").stdout.split()
        assert [method.rpartition(".")[2] for method in methods] == rpcs.split()
    message = grpcurl("-plaintext", address, "describe", "conveyor.v1.Run").stdout
    assert "repeated .conveyor.v1.StepState step_states = 18;" in message


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection(sqlite_site: Site, version: str) -> None:
    method = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    (_, answer) = call(sqlite_site.server.address, method, {"list_services": ""}).values()
    assert {each["name"] for each in answer["service"]} == SERVICES


async def test_a_run_by_hand(belt: Belt) -> None:
    """Everything that a person without an SDK needs, from the definition to the result."""
    address = belt.address

    async def rpc(method: str, **request: object) -> dict[str, Any]:
        return await asyncio.to_thread(call, address, f"conveyor.v1.{method}", {"namespace": belt.namespace, **request})

    created = await rpc(
        "ResourceDefinitionService/CreateResourceDefinition",
        resourceDefinition={"name": "app", "schema": {"type": "object", "required": ["size"]}},
    )
    assert created["resourceDefinition"]["generation"] == "1"
    steps = [{"id": "build", "driver": "by-hand"}]
    applied = await rpc("PipelineService/ApplyPipeline", pipeline={"name": "release", "steps": steps})
    assert applied["outcome"] == "APPLY_OUTCOME_CREATED"
    resource = {"name": "shop", "definition": "app", "pipeline": "release", "spec": {"size": 3}}
    run = (await rpc("ResourceService/CreateResource", resource=resource))["run"]["id"]
    async with RawWorker(address, belt.namespace, "by-hand") as worker:
        given = await worker.assignments.get()
        drivers = await rpc("DriverService/ListDrivers")
        assert [(each["name"], each["workers"][0]["busy"]) for each in drivers["drivers"]] == [("by-hand", 1)]
        lines = [{"run": run, "step": "build", "attempt": 1, "seq": "1", "text": "hello"}]
        await rpc("LogService/WriteLogs", lines=lines)
        result = {"outcome": "OUTCOME_SUCCEEDED", "message": "done", "data": {"n": 1}}
        report = {
            "run": run,
            "step": "build",
            "attempt": 1,
            "token": given.token,
            "driver": "by-hand",
            "result": result,
        }
        acks = await rpc("WorkerService/ReportResults", results=[report])
        assert acks["acks"][0]["disposition"] == "DISPOSITION_ACCEPTED"
    got = (await rpc("RunService/GetRun", id=run))["run"]
    assert (got["state"], got["steps"][0]["result"]) == ("RUN_STATE_SUCCEEDED", result)
    assert (await rpc("LogService/ReadLogs", run=run))["lines"][0]["text"] == "hello"
    assert [each["id"] for each in (await rpc("RunService/ListRuns"))["runs"]] == [run]
    watched = await rpc("RunService/WatchRun", id=run)
    assert watched["snapshot"]["runs"][0]["state"] == "RUN_STATE_SUCCEEDED"
    info = (await asyncio.to_thread(call, address, "conveyor.v1.ServerService/GetServerInfo", {}))["serverInfo"]
    assert (info["store"], info["storeAvailable"], info["brokerAvailable"]) == ("sqlite", True, True)


def test_health(sqlite_site: Site) -> None:
    for service in ("", *(name for name in SERVICES if name.startswith("conveyor"))):
        answer = call(sqlite_site.server.address, "grpc.health.v1.Health/Check", {"service": service})
        assert answer == {"status": "SERVING"}
