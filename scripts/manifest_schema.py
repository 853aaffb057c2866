"""The JSON Schema of the files that `conveyor apply` takes, from the protos and their comments.

It is of draft 7, which all editors know, and says what conveyor/cli/decode.py does, as far as a schema can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto
from json_types import SCALARS, WELL_KNOWN, Json, described, field_schema, field_text, in_choice, short

if TYPE_CHECKING:
    from gen_api_docs import File

_SERVERS = "Set by the server:"
# What no object can do without: its own fields, and those of the messages within.
_REQUIRED = {
    "ResourceDefinition": ["name"],
    "Pipeline": ["name", "steps"],
    "Resource": ["name", "definition"],
    "Schedule": ["name", "definition", "resource", "cron"],
    "Step": ["id"],
    "Param": ["name"],
}
_DURATION: Json = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)?(ms|us|µs|ns|d|h|m|s))+$",
    "examples": ["90s", "5m", "1h30m"],
}
# At the top of a document, what begins like this is for anchors alone.
_TEMPLATES = r"^(\.|x-)"
_DESCRIPTION = "A manifest of Conveyor: an object, or a list of objects."


def document(files: Sequence[File]) -> str:
    """The schema of all kinds of objects that have an apply."""
    kinds = [
        method.name.removeprefix("Apply")
        for file in files
        for service in file.proto.service
        for method in service.method
        if method.name.startswith("Apply")
    ]
    messages = {each.name: (file, i, each) for file in files for i, each in enumerate(file.proto.message_type)}
    enums = {each.name: (file, i, each) for file in files for i, each in enumerate(file.proto.enum_type)}
    definitions: Json = {}
    todo = list(kinds)
    for name in todo:
        if name in enums:
            definitions[name] = _enum(*enums[name])
        else:
            definitions[name] = _message(*messages[name], is_kind=name in kinds)
            todo += [each for each in _used(messages[name][2]) if each not in todo]
    chosen = [{"if": _is_kind(kind), "then": _ref(kind)} for kind in kinds]
    one = {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": kinds}}, "allOf": chosen}
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Conveyor manifest",
        "description": _DESCRIPTION,
        # Documents may be empty.
        "type": ["object", "array", "null"],
        "if": {"type": "object"},
        "then": _ref("Object"),
        "else": {"items": _ref("Object")},
        "definitions": {"Object": one, **dict(sorted(definitions.items()))},
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _is_kind(kind: str) -> Json:
    return {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}


def _message(file: File, index: int, message: DescriptorProto, *, is_kind: bool) -> Json:
    required, ways = _needed(message)
    properties: Json = {}
    patterns: Json = {}
    if is_kind:
        version = {"const": "conveyor/v1", "description": "May be left out."}
        properties = {"apiVersion": version, "kind": {"const": message.name}}
        patterns = {"patternProperties": {_TEMPLATES: {"description": "Not read: a place for anchors."}}}
    for i, field in enumerate(message.field):
        text = field_text(file, (4, index, 2, i), message, field)
        properties |= _spelled(field, described(_field(message, field, text, required), text))
    schema = {
        "type": "object",
        "required": ["kind", *required] if is_kind else required,
        "properties": properties,
        **patterns,
        "additionalProperties": False,
        **ways,
    }
    return described(schema, file.comment(4, index))


def _field(message: DescriptorProto, field: FieldDescriptorProto, text: str, required: Sequence[str]) -> Json:
    if text.startswith(_SERVERS):
        # Taken, and not read.
        return {"doNotSuggest": True}
    schema = field_schema(message, field, _type)
    return schema if field.name in required or in_choice(field) else _or_nothing(schema)


def _or_nothing(schema: Json) -> Json:
    """The same, or a key without a value, which is as if it were not there."""
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def _spelled(field: FieldDescriptorProto, schema: Json) -> Json:
    """A field by its name in JSON, which editors suggest, and by that in the proto."""
    if field.name == field.json_name:
        return {field.name: schema}
    return {field.json_name: schema, field.name: {**schema, "doNotSuggest": True}}


def _needed(message: DescriptorProto) -> tuple[list[str], Json]:
    """The fields that must be there, and what says that of the fields of a choice exactly one is."""
    required = _REQUIRED.get(message.name, [])
    choices = [sorted({field.json_name, field.name}) for field in message.field if in_choice(field)]
    names = [spelling for spellings in choices for spelling in spellings]
    if len(names) < 2:
        return required + names, {}
    return required, {"oneOf": [{"required": [name]} for name in names]}


def _type(field: FieldDescriptorProto) -> Json:
    name = field.type_name.removeprefix(".google.protobuf.")
    if name == "Duration":
        return dict(_DURATION)
    if name in WELL_KNOWN:
        return dict(WELL_KNOWN[name])
    if name:
        return _ref(short(name))
    if field.type in {FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_UINT64}:
        return {"type": "integer"}
    return dict(SCALARS[field.type])


def _enum(file: File, index: int, enum: EnumDescriptorProto) -> Json:
    zero = enum.value[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    names = {value.name.removeprefix(prefix): file.comment(5, index, 2, i) for i, value in enumerate(enum.value) if i}
    text = "\n".join([file.comment(5, index), "", *(f"- `{name}`: {comment}" for name, comment in names.items())])
    # Editors suggest only the first form.
    full = f"^{prefix}({'|'.join(names)})$"
    return {"description": text, "anyOf": [{"enum": list(names)}, {"type": "string", "pattern": full}]}


def _used(message: DescriptorProto) -> Iterator[str]:
    """The messages and enums that the fields of a message are of."""
    nested = {each.name: each for each in message.nested_type}
    for field in message.field:
        name = short(field.type_name)
        if name in nested:
            yield from _used(nested[name])
        elif name and not field.type_name.startswith(".google."):
            yield name


def _ref(name: str) -> Json:
    return {"$ref": f"#/definitions/{name}"}
