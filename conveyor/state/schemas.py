"""JSON Schema, draft 2020-12: of definitions at their registration, of specs at each change.

No schema can make the server fetch anything, nor think for long: references stay within the schema, patterns are
matched in linear time, and what a schema expands to is bounded.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
from google.protobuf.struct_pb2 import Struct

from conveyor.core import errors
from conveyor.core.errors import Violation
from conveyor.state.structs import PlainValue, escape, plain, pointer
from conveyor.v1 import errors_pb2, resource_definition_pb2

DRAFT = "https://json-schema.org/draft/2020-12/schema"
MAX_VIOLATIONS = 100
MAX_EXPANDED_SCHEMAS = 20_000
"""Subschemas after following all references; each may be tried on each value of a spec."""

MAX_LISTED_PATHS = 10_000
"""Ways through a schema with loops down to the depth of a spec, for all violations to be listed."""

_ON_THE_LOOP_BYTES = 4 << 10
_VALIDATORS_KEPT = 256
_MESSAGE_LENGTH = 300

# Below these keywords stands data, not schemas.
_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A schema that can be used. `loops` counts the references that lead back to where they are within."""

    validator: jsonschema_rs.Draft202012Validator
    loops: int


class Schemas:
    """Compiled schemas by uid and generation of their definitions."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[str, int], _Compiled] = OrderedDict()

    async def check_schema(self, schema: Struct, field: str) -> None:
        """Raise errors.InvalidSchema, with `field` as where the schema is, unless it can be used."""
        if schema.fields:
            await _run(schema.ByteSize(), _compile_schema, schema, field)

    async def check_spec(
        self, definition: resource_definition_pb2.ResourceDefinition, spec: Struct, field: str
    ) -> None:
        """Raise errors.SchemaViolation with all violations (at most 100), each a JSON pointer after `field`."""
        if not definition.schema.fields:
            return
        key = (definition.uid, definition.generation)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = await _run(definition.schema.ByteSize(), _compile_schema, definition.schema, "schema")
            self._compiled[key] = compiled
            if len(self._compiled) > _VALIDATORS_KEPT:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(key)
        violations = await _run(spec.ByteSize(), _violations, compiled, spec, field)
        if violations:
            raise errors.SchemaViolation(
                f"the spec breaks the schema of {definition.name}: {_summary(violations, field)}",
                violations=violations,
                metadata={"definition": definition.name, "generation": str(definition.generation)},
            )


async def _run(size: int, function: Any, *args: Any) -> Any:
    """Call it here when there is little to do, else in a thread."""
    if size <= _ON_THE_LOOP_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)


def _summary(violations: list[Violation], field: str) -> str:
    first = violations[0]
    where = first.field[len(field) :]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{where}: {first.description}{more}" if where else f"{first.description}{more}"


def _violations(compiled: _Compiled, spec: Struct, field: str) -> list[Violation]:
    value = plain(spec)
    # The plain answer remembers what it has seen, and is quick for any schema; the list of violations is not.
    if compiled.validator.is_valid(value):
        return []
    reason = errors_pb2.ERROR_REASON_SCHEMA_VIOLATION
    if compiled.loops > 1 and compiled.loops ** _depth(value) > MAX_LISTED_PATHS:
        return [Violation(field, "breaks the schema, which has too many loops for saying where", reason)]
    found = itertools.islice(compiled.validator.iter_errors(value), MAX_VIOLATIONS)
    return [Violation(field + pointer(error.instance_path), _text(error), reason) for error in found]


def _depth(value: PlainValue) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _text(error: jsonschema_rs.ValidationError) -> str:
    text = error.message
    if error.schema_path and error.schema_path[-1] == "additionalProperties" and text.startswith("False schema"):
        text = "has properties that the schema does not allow"
    return text if len(text) <= _MESSAGE_LENGTH else text[: _MESSAGE_LENGTH - 1] + "…"


def _compile_schema(schema: Struct, field: str) -> _Compiled:
    document = plain(schema)
    violations = list(itertools.islice(_foreign(document, field), MAX_VIOLATIONS))
    if violations:
        raise errors.InvalidSchema(violations=violations)
    try:
        validator = jsonschema_rs.Draft202012Validator(
            document, pattern_options=jsonschema_rs.RegexOptions(), retriever=_fetch_nothing
        )
    except jsonschema_rs.ValidationError as error:
        raise _invalid(field + pointer(error.instance_path), _text(error)) from error
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise _invalid(field, str(error)[:_MESSAGE_LENGTH]) from error
    expansion = _Expansion(document)
    if expansion.size() > MAX_EXPANDED_SCHEMAS:
        text = f"expands to more than {MAX_EXPANDED_SCHEMAS} subschemas once all references are followed"
        raise _invalid(field, text)
    return _Compiled(validator, expansion.loops)


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not part of the schema")


def _invalid(field: str, description: str) -> errors.InvalidSchema:
    return errors.InvalidSchema(violations=[Violation(field, description, errors_pb2.ERROR_REASON_INVALID_SCHEMA)])


def _foreign(document: Any, path: str) -> Iterator[Violation]:
    """References that leave the schema, schemas within it that stand alone, and other drafts."""
    reason = errors_pb2.ERROR_REASON_INVALID_SCHEMA
    for where, schema in _schemas(document, path):
        for keyword in ("$ref", "$dynamicRef"):
            target = schema.get(keyword)
            if isinstance(target, str) and not target.startswith("#"):
                text = f"{target[:_MESSAGE_LENGTH]!r} leads out of the schema; only references that begin with # work"
                yield Violation(f"{where}/{keyword}", text, reason)
        if "$id" in schema and where != path:
            text = "only the whole schema may have an id: references within it begin at its top"
            yield Violation(f"{where}/$id", text, reason)
        draft = schema.get("$schema", DRAFT)
        if not isinstance(draft, str) or draft.removesuffix("#") != DRAFT:
            yield Violation(f"{where}/$schema", f"must be {DRAFT}, or left out", reason)


def _schemas(document: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All subschemas with their places, without recursion. What only looks like a schema may be among them."""
    stack: list[tuple[str, Any, bool]] = [(path, document, True)]
    while stack:
        where, node, is_schema = stack.pop()
        if isinstance(node, dict):
            if is_schema:
                yield where, node
            for key, child in node.items():
                if not (is_schema and key in _DATA):
                    stack.append((f"{where}/{escape(key)}", child, not (is_schema and key in _NAMED_SCHEMAS)))
        elif isinstance(node, list):
            stack.extend((f"{where}/{i}", child, True) for i, child in enumerate(node))


class _Expansion:
    """Counts the subschemas that validation may visit for one value, each reference followed.

    Definitions that refer to others twice grow like 2ⁿ; a loop of references counts once, since it only goes round
    again on a deeper value.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._anchors = {
            anchor: schema
            for _, schema in _schemas(document, "")
            for anchor in (schema.get("$anchor"), schema.get("$dynamicAnchor"))
            if isinstance(anchor, str)
        }
        self._sizes: dict[int, int] = {}
        self.loops = 0

    def size(self) -> int:
        """How many, up to a bound far beyond what is accepted."""
        # Post-order without recursion: a schema is summed up when all that it leads to has been.
        stack: list[tuple[dict[str, Any], bool]] = [(self._document, False)]
        while stack:
            schema, done = stack.pop()
            if not done:
                if id(schema) in self._sizes:
                    continue
                self._sizes[id(schema)] = 0  # under way: a loop back to here adds nothing
                stack.append((schema, True))
                for child in self._next(schema):
                    if id(child) not in self._sizes:
                        stack.append((child, False))
                    elif not self._sizes[id(child)]:
                        self.loops += 1
            else:
                total = 1 + sum(self._sizes.get(id(child), 0) for child in self._next(schema))
                self._sizes[id(schema)] = min(total, 1 << 60)
        return self._sizes[id(self._document)]

    def _next(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for key, child in schema.items():
            if key in ("$ref", "$dynamicRef"):
                target = self._resolve(child)
                if target is not None:
                    yield target
            elif key in ("$defs", "definitions") or key in _DATA:
                continue  # applied only where they are referred to
            elif isinstance(child, dict):
                if key in _NAMED_SCHEMAS:
                    yield from (named for named in child.values() if isinstance(named, dict))
                else:
                    yield child
            elif isinstance(child, list):
                yield from (item for item in child if isinstance(item, dict))

    def _resolve(self, reference: Any) -> dict[str, Any] | None:
        if not isinstance(reference, str):
            return None
        fragment = unquote(reference.removeprefix("#"))
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(fragment)
        node: Any = self._document
        for part in fragment.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            node = node.get(part) if isinstance(node, dict) else _item(node, part)
        return node if isinstance(node, dict) else None


def _item(node: Any, part: str) -> Any:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    return None
