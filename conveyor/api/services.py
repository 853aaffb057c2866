"""All services of one server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conveyor.api.definition_service import DefinitionServicer
from conveyor.api.driver_service import DriverServicer
from conveyor.api.health import NAME as HEALTH
from conveyor.api.health import Health
from conveyor.api.log_service import LogServicer
from conveyor.api.pipeline_service import PipelineServicer
from conveyor.api.ports import Drivers, Engine, Hub, Logs, Waits
from conveyor.api.reflection import add_reflection
from conveyor.api.resource_service import ResourceServicer
from conveyor.api.run_service import RunServicer
from conveyor.api.schedule_service import ScheduleServicer
from conveyor.api.server_service import ServerServicer
from conveyor.state.repositories import Repositories
from conveyor.v1 import (
    driver_service_pb2,
    driver_service_pb2_grpc,
    log_service_pb2,
    log_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    resource_definition_service_pb2,
    resource_definition_service_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    server_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    worker_service_pb2,
)

SERVICES = [
    service.full_name
    for module in (
        resource_definition_service_pb2,
        pipeline_service_pb2,
        resource_service_pb2,
        schedule_service_pb2,
        run_service_pb2,
        log_service_pb2,
        worker_service_pb2,
        driver_service_pb2,
        server_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
"""The full names of all services of the API, the worker service included, which the gateway adds."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the services work on. `info` says of the server what it knows, but for its limits and the time."""

    repositories: Repositories
    engine: Engine
    hub: Hub
    logs: Logs
    waits: Waits
    drivers: Drivers
    info: Callable[[], server_pb2.ServerInfo]


def add_services(server: Any, services: Services) -> Health:
    """Add all services but the worker service, with reflection and health; the health is to be kept up to date."""
    repositories, engine, hub, logs = services.repositories, services.engine, services.hub, services.logs
    resource_definition_service_pb2_grpc.add_ResourceDefinitionServiceServicer_to_server(
        DefinitionServicer(repositories), server
    )
    pipeline_service_pb2_grpc.add_PipelineServiceServicer_to_server(PipelineServicer(repositories), server)
    resource_service_pb2_grpc.add_ResourceServiceServicer_to_server(ResourceServicer(repositories), server)
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleServicer(repositories), server)
    runs = RunServicer(repositories, engine, hub, logs, services.waits)
    run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
    log_service_pb2_grpc.add_LogServiceServicer_to_server(LogServicer(engine, hub, logs), server)
    driver_service_pb2_grpc.add_DriverServiceServicer_to_server(DriverServicer(services.drivers), server)
    server_service_pb2_grpc.add_ServerServiceServicer_to_server(ServerServicer(services.info), server)
    health = Health(SERVICES)
    health.add_to(server)
    add_reflection(server, [*SERVICES, HEALTH])
    return health
