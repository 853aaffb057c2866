"""WorkerService: where drivers take part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from conveyor.core import errors
from conveyor.core.errors import Violation
from conveyor.core.limits import LABEL_KEY_BYTES, LABEL_VALUE_BYTES
from conveyor.core.names import name_fault
from conveyor.engine.loop import Engine
from conveyor.gateway.logs_port import Logs
from conveyor.gateway.sessions import Sessions
from conveyor.gateway.stream import MAX_SLOTS, WorkStream, answer
from conveyor.state.ids import is_run_id
from conveyor.v1 import worker_pb2, worker_service_pb2

PROTOCOL = 1
HELLO_WITHIN = 10.0
"""Seconds that a stream has for its Hello."""

_MAX_WORKER_BYTES = 253
_MAX_LABELS = 64
_MAX_DEFINITIONS = 1000


class WorkerServicer:
    """Work streams and results from elsewhere."""

    def __init__(self, engine: Engine, sessions: Sessions, logs: Logs | None) -> None:
        self._engine = engine
        self._sessions = sessions
        self._logs = logs

    async def Work(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> AsyncIterator[bytes]:
        """One worker, as long as its stream lives."""
        requests = aiter(request_iterator)
        try:
            first = await asyncio.wait_for(anext(requests), HELLO_WITHIN)
        except TimeoutError:
            raise errors.ProtocolViolation(f"no Hello within {HELLO_WITHIN:g} s") from None
        except StopAsyncIteration:
            raise errors.ProtocolViolation("the stream ended without a Hello") from None
        if not first.HasField("hello"):
            raise errors.ProtocolViolation("a stream begins with Hello")
        if first.results or first.logs or first.HasField("drain"):
            raise errors.ProtocolViolation("Hello comes alone: send results and lines after Welcome")
        check_hello(first.hello)
        stream = WorkStream(self._engine, self._sessions, self._logs)
        async for response in stream.converse(first.hello, first.hello.namespace or "default", requests):
            yield response

    async def ReportResults(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_service_pb2.ReportResultsRequest], context: Any
    ) -> AsyncIterator[worker_service_pb2.ReportResultsResponse]:
        """Results of any program; the answers come in their order."""
        async for request in request_iterator:
            namespace = request.namespace or "default"
            acks = await asyncio.gather(
                *(
                    self._engine.spawn(answer(self._engine, namespace, report, report.driver))
                    for report in request.results
                )
            )
            yield worker_service_pb2.ReportResultsResponse(acks=acks)


def add_worker_service(servicer: WorkerServicer, server: Any) -> None:
    """As the generated function does; but what a Work stream sends is serialized already."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Work": grpc.stream_stream_rpc_method_handler(servicer.Work, worker_service_pb2.WorkRequest.FromString),
        "ReportResults": grpc.stream_stream_rpc_method_handler(
            servicer.ReportResults,
            worker_service_pb2.ReportResultsRequest.FromString,
            worker_service_pb2.ReportResultsResponse.SerializeToString,
        ),
    }
    name = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def check_hello(hello: worker_pb2.Hello) -> None:
    """Raises errors.InvalidRequest with all that is wrong with a Hello."""
    found: list[Violation] = []

    def name(field: str, value: str) -> None:
        fault = name_fault(value)
        if fault:
            found.append(Violation(field, fault))

    if hello.protocol > PROTOCOL:
        found.append(Violation("hello.protocol", f"this server speaks protocol {PROTOCOL}, not {hello.protocol}"))
    if hello.namespace:
        name("hello.namespace", hello.namespace)
    name("hello.driver", hello.driver)
    for index, definition in enumerate(hello.definitions):
        name(f"hello.definitions[{index}]", definition)
    if not 1 <= hello.slots <= MAX_SLOTS:
        found.append(Violation("hello.slots", f"must be from 1 to {MAX_SLOTS}, not {hello.slots}"))
    for field, value in (("worker", hello.worker), ("sdk", hello.sdk)):
        if len(value.encode()) > _MAX_WORKER_BYTES:
            found.append(Violation(f"hello.{field}", f"must have at most {_MAX_WORKER_BYTES} bytes"))
    if hello.session and not is_run_id(hello.session):
        found.append(Violation("hello.session", "must be empty, or a session that Welcome named"))
    if len(hello.definitions) > _MAX_DEFINITIONS:
        found.append(Violation("hello.definitions", f"must be at most {_MAX_DEFINITIONS}"))
    if len(hello.labels) > _MAX_LABELS:
        found.append(Violation("hello.labels", f"must be at most {_MAX_LABELS}"))
    for key, value in hello.labels.items():
        if len(key.encode()) > LABEL_KEY_BYTES or len(value.encode()) > LABEL_VALUE_BYTES:
            rule = f"keys have at most {LABEL_KEY_BYTES} bytes, values at most {LABEL_VALUE_BYTES}"
            found.append(Violation("hello.labels", rule))
    if found:
        raise errors.InvalidRequest(violations=found)
