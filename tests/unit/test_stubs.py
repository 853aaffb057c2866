"""The generated synchronous stubs, on a channel that only records: each rpc goes out under its own name and type."""

from __future__ import annotations

from types import ModuleType

import grpc
import grpc_testing
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

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
    server_service_pb2,
    server_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

STUBS: dict[ServiceDescriptor, ModuleType] = {
    next(iter(messages.DESCRIPTOR.services_by_name.values())): stubs
    for messages, stubs in (
        (driver_service_pb2, driver_service_pb2_grpc),
        (log_service_pb2, log_service_pb2_grpc),
        (pipeline_service_pb2, pipeline_service_pb2_grpc),
        (resource_definition_service_pb2, resource_definition_service_pb2_grpc),
        (resource_service_pb2, resource_service_pb2_grpc),
        (run_service_pb2, run_service_pb2_grpc),
        (server_service_pb2, server_service_pb2_grpc),
        (worker_service_pb2, worker_service_pb2_grpc),
    )
}
METHODS = [method for service in STUBS for method in service.methods]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name.removeprefix("conveyor.v1."))
def test_each_rpc_reaches_its_method_and_brings_back_its_answer(method: MethodDescriptor) -> None:
    service = method.containing_service
    channel = grpc_testing.channel(list(STUBS), grpc_testing.strict_real_time())
    call = getattr(getattr(STUBS[service], f"{service.name}Stub")(channel), method.name)
    request, answer = GetMessageClass(method.input_type)(), GetMessageClass(method.output_type)()
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    if kind == "unary_unary":
        waiting = call.future(request)
        _, received, rpc = channel.take_unary_unary(method)
        rpc.terminate(answer, (), grpc.StatusCode.OK, "")
        assert waiting.result() == answer
    elif kind == "unary_stream":
        answers = call(request)
        _, received, rpc = channel.take_unary_stream(method)
        rpc.send_response(answer)
        rpc.terminate((), grpc.StatusCode.OK, "")
        assert list(answers) == [answer]
    elif kind == "stream_unary":
        waiting = call.future(iter([request]))
        _, rpc = channel.take_stream_unary(method)
        received = rpc.take_request()
        rpc.requests_closed()
        rpc.terminate(answer, (), grpc.StatusCode.OK, "")
        assert waiting.result() == answer
    else:
        answers = call(iter([request]))
        _, rpc = channel.take_stream_stream(method)
        received = rpc.take_request()
        rpc.requests_closed()
        rpc.send_response(answer)
        rpc.terminate((), grpc.StatusCode.OK, "")
        assert list(answers) == [answer]
    assert received == request
