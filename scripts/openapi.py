"""The OpenAPI document of the API over HTTP, from the protos and their comments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from json_types import SCALARS, WELL_KNOWN, Json, described, field_schema, field_text, short

if TYPE_CHECKING:
    from gen_api_docs import File

_READS = ("Get", "List", "Read", "Watch")
_CONVERSATIONS = {"WorkerService/Work"}

_DESCRIPTION = """\
Every call is a POST of a JSON object to its path; calls that only read also take a GET with the object, in JSON, as
`message`. Streams are newline-delimited JSON, or server-sent events for who asks for them. Fields that are not set may
be left out, and are left out. Names of fields may also be written as in the protos."""

_ERROR: Json = {
    "description": "Why a call failed; docs/errors.md says what each reason means.",
    "type": "object",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "string", "description": "The gRPC status code in lower case.", "examples": ["not_found"]},
        "message": {"type": "string", "description": "For people."},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "value"],
                "properties": {
                    "type": {"type": "string", "examples": ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]},
                    "value": {"type": "string", "description": "The message in base64, without padding."},
                    "debug": {"type": "object", "description": "The same in JSON; an ErrorInfo has the reason."},
                },
            },
        },
    },
}


def document(files: Sequence[File]) -> str:
    """The document for all services in these files."""
    schemas: Json = {"Error": _ERROR}
    paths: Json = {}
    tags: list[Json] = []
    for file in files:
        for i, message in enumerate(file.proto.message_type):
            schemas[message.name] = _message(file, (4, i), message)
        for i, enum in enumerate(file.proto.enum_type):
            schemas[enum.name] = _enum(file, (5, i), enum)
        for i, service in enumerate(file.proto.service):
            tags.append({"name": service.name, "description": file.comment(6, i)})
            paths.update(_paths(file, i, service))
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "Conveyor", "version": "v1", "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": {"Error": {"description": "The call failed.", **_content("application/json", _ref("Error"))}},
        },
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _paths(file: File, index: int, service: ServiceDescriptorProto) -> Iterator[tuple[str, Json]]:
    for i, method in enumerate(service.method):
        name = f"{service.name}/{method.name}"
        if name not in _CONVERSATIONS:
            path = f"/{file.proto.package}.{name}"
            yield path, _operations(service, method, file.comment(6, index, 2, i))


def _operations(service: ServiceDescriptorProto, method: MethodDescriptorProto, comment: str) -> Json:
    taken = _ref(short(method.input_type))
    common: Json = {"tags": [service.name], "description": comment}
    body: Json = _content("application/json", taken)
    if method.client_streaming:
        body["content"]["application/x-ndjson"] = {"schema": taken}
        body["description"] = "One object, or one after another."
    responses = {"200": _answer(method), "default": {"$ref": "#/components/responses/Error"}}
    operations: Json = {
        "post": {
            "operationId": f"{service.name}_{method.name}",
            **common,
            "requestBody": {"required": True, **body},
            "responses": responses,
        }
    }
    if method.name.startswith(_READS):
        query = {"name": "message", "in": "query", "required": True, **_content("application/json", taken)}
        operations["get"] = {
            "operationId": f"{service.name}_{method.name}_get",
            **common,
            "parameters": [query],
            "responses": responses,
        }
    return operations


def _answer(method: MethodDescriptorProto) -> Json:
    given = _ref(short(method.output_type))
    if not method.server_streaming:
        return {"description": "The answer.", **_content("application/json", given)}
    answer: Json = {
        "description": "One answer after another, each in a line or an event; a last one with `error` if the call "
        "fails after the first. Empty lines and comments mean that the stream lives. The last event is `end`."
    }
    error = {"type": "object", "required": ["error"], "properties": {"error": _ref("Error")}}
    answer["content"] = {
        "application/x-ndjson": {"schema": {"anyOf": [given, error]}},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return answer


def _message(file: File, path: tuple[int, ...], message: DescriptorProto) -> Json:
    properties = {
        field.json_name: described(field_schema(message, field, _type), field_text(file, (*path, 2, i), message, field))
        for i, field in enumerate(message.field)
    }
    return described({"type": "object", "properties": properties}, file.comment(*path))


def _type(field: FieldDescriptorProto) -> Json:
    name = field.type_name.removeprefix(".google.protobuf.")
    if name in WELL_KNOWN:
        return dict(WELL_KNOWN[name])
    return _ref(short(name)) if name else dict(SCALARS[field.type])


def _enum(file: File, path: tuple[int, ...], enum: EnumDescriptorProto) -> Json:
    values = [(value.name, file.comment(*path, 2, i)) for i, value in enumerate(enum.value)]
    text = "\n".join([file.comment(*path), "", *(f"- `{name}`: {comment}" for name, comment in values)])
    return {"type": "string", "description": text, "enum": [name for name, _ in values]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(kind: str, schema: Json) -> Json:
    return {"content": {kind: {"schema": schema}}}
