"""How the fields of the protos look in JSON: what the documents that describe JSON have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

if TYPE_CHECKING:
    from gen_api_docs import File

Json = dict[str, Any]

WELL_KNOWN: dict[str, Json] = {
    "Timestamp": {"type": "string", "format": "date-time"},
    "Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$", "examples": ["3.5s"]},
    "Struct": {"type": "object"},
    # Any JSON.
    "Value": {},
}

_TYPES = FieldDescriptorProto
SCALARS: dict[int, Json] = {
    _TYPES.TYPE_STRING: {"type": "string"},
    _TYPES.TYPE_BOOL: {"type": "boolean"},
    _TYPES.TYPE_INT32: {"type": "integer", "format": "int32"},
    _TYPES.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    # Those that a double may not hold stand in quotes.
    _TYPES.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    _TYPES.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
    _TYPES.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _TYPES.TYPE_FLOAT: {"type": "number", "format": "float"},
}


def field_schema(message: DescriptorProto, field: FieldDescriptorProto, one: Callable[[_TYPES], Json]) -> Json:
    """The schema of a field, with `one` for that of a single value."""
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            return {"type": "object", "additionalProperties": one(nested.field[1])}
    return {"type": "array", "items": one(field)} if field.label == _TYPES.LABEL_REPEATED else one(field)


def field_text(file: File, path: tuple[int, ...], message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """What is said of a field."""
    text = file.comment(*path)
    if in_choice(field):
        text += f" At most one field of `{message.oneof_decl[field.oneof_index].name}` is set."
    return text.strip()


def in_choice(field: FieldDescriptorProto) -> bool:
    """Whether a field is one of several of which only one can be set."""
    return field.HasField("oneof_index") and not field.proto3_optional


def short(type_name: str) -> str:
    """The name of a type without its package."""
    return type_name.rpartition(".")[2]


def described(schema: Json, text: str) -> Json:
    """A schema with its description, if there is one."""
    return {"description": text, **schema} if text else schema
