"""The objects that files describe, all checked before the first of them is sent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from conveyor.cli.decode import MAX_FAULTS, decode, set_by_server
from conveyor.cli.failures import CliError
from conveyor.cli.kinds import DEFINITION, KINDS, PIPELINE, RESOURCE, SCHEDULE, Kind, kind_of
from conveyor.cli.nodes import Fault, Node
from conveyor.cli.places import line_of
from conveyor.cli.refs import Ref
from conveyor.cli.sources import Source
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.schedule_pb2 import Schedule

API_VERSION = "conveyor/v1"
_MAX_SHOWN = 20
# Keys at the top of a document that are only there for anchors.
_TEMPLATES = (".", "x-")
_MESSAGES = {
    DEFINITION.name: ResourceDefinition,
    PIPELINE.name: Pipeline,
    RESOURCE.name: Resource,
    SCHEDULE.name: Schedule,
}
# What no object can do without, besides a name.
_REQUIRED = {RESOURCE.name: ("definition",), SCHEDULE.name: ("definition", "resource", "cron")}

Object: TypeAlias = Pipeline | ResourceDefinition | Resource | Schedule


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object that a file describes."""

    kind: Kind
    object: Object
    file: str
    node: Node
    """What the file has of it."""

    @property
    def source(self) -> str:
        """The file and line where it begins."""
        return f"{self.file}:{self.node.line}"

    @property
    def ref(self) -> Ref:
        """Its name as the command line takes it."""
        return Ref(self.kind, self.object.name, self.object.definition if isinstance(self.object, Resource) else "")

    @property
    def label(self) -> str:
        """Its kind and name, as in output."""
        return self.ref.label

    def place(self, field: str) -> str:
        """The file, the line of a field that the server names, and the object."""
        return f"{self.file}:{line_of(self.node, self.object, field)}: {self.label}"

    def __str__(self) -> str:
        return f"{self.source}: {self.label}"


def load(sources: Iterable[Source]) -> list[Manifest]:
    """All objects of the files: definitions, pipelines, resources, schedules, each as written.

    CliError lists all mistakes.
    """
    manifests: list[Manifest] = []
    mistakes: list[str] = []
    names: list[str] = []
    for source in sources:
        names.append(source.name)
        try:
            for node in _objects(source):
                manifest = _manifest(node, source.name, mistakes)
                if manifest is not None:
                    manifests.append(manifest)
        except Fault as fault:
            mistakes.append(_located(source.name, fault))
    mistakes += _repeated(manifests)
    if mistakes:
        raise _refusal(mistakes)
    if not manifests:
        raise CliError(f"there is no object in {', '.join(names)}")
    return sorted(manifests, key=lambda manifest: KINDS.index(manifest.kind))


def _objects(source: Source) -> Iterator[Node]:
    """The documents; one that is a list, as `list -o json` prints, stands for its items."""
    for node in source.documents():
        if isinstance(node.value, list):
            yield from node.value
        else:
            yield node


def _manifest(node: Node, source: str, mistakes: list[str]) -> Manifest | None:
    try:
        kind, body = _headed(node)
    except Fault as fault:
        mistakes.append(_located(source, fault))
        return None
    message = _MESSAGES[kind.name]()
    faults = decode(body, message, set_by_server(message))
    required = ["name", *_REQUIRED.get(kind.name, ())]
    written = {fault.path for fault in faults}
    faults += [
        Fault(node.line, field, "is missing")
        for field in required
        if not getattr(message, field) and field not in written
    ]
    mistakes += [_located(source, fault) for fault in faults]
    return None if faults else Manifest(kind, message, source, body)


def _headed(node: Node) -> tuple[Kind, Node]:
    """The kind of an object, and the object without its head."""
    if node.wrong:
        raise Fault(node.line, "", node.wrong)
    if not isinstance(node.value, dict):
        raise Fault(node.line, "", f"an object must be a mapping with the key kind, not {node.kind}")
    for key in ("apiVersion", "kind"):
        if key in node.value and node.value[key].wrong:
            raise Fault(node.value[key].line, key, node.value[key].wrong)
    version = node.value.get("apiVersion")
    if version is not None and version.value != API_VERSION:
        raise Fault(node.line_of("apiVersion"), "apiVersion", f"must be {API_VERSION}")
    kinds = [kind for kind in KINDS if kind.applied]
    wanted = ", ".join(kind.name for kind in kinds)
    given = node.value.get("kind")
    if given is None:
        raise Fault(node.line, "kind", f"is missing; it is one of {wanted}")
    kind = kind_of(given.value) if isinstance(given.value, str) else None
    if kind is None or given.value != kind.name:
        hint = f"; did you mean {kind.name}?" if kind in kinds else f"; it is one of {wanted}"
        raise Fault(node.line_of("kind"), "kind", f"must not be {given.kind}{hint}")
    if kind not in kinds:
        raise Fault(node.line_of("kind"), "kind", f"a {kind.name} can't be applied; only {wanted} can")
    rest = {
        key: value
        for key, value in node.value.items()
        if key not in {"kind", "apiVersion"} and not key.startswith(_TEMPLATES)
    }
    return kind, Node(rest, node.line, key_lines=node.key_lines)


def _repeated(manifests: Iterable[Manifest]) -> Iterator[str]:
    first: dict[tuple[str, str], str] = {}
    for manifest in manifests:
        key = (manifest.object.namespace, manifest.label)
        if key in first:
            yield f"{manifest.source}: {manifest.label} stands twice; first in {first[key]}"
        first.setdefault(key, manifest.source)


def _located(source: str, fault: Fault) -> str:
    return f"{source}:{fault.line}: {fault}" if fault.line else f"{source}: {fault}"


def _refusal(mistakes: list[str]) -> CliError:
    if len(mistakes) == 1:
        return CliError(mistakes[0])
    shown = mistakes[:_MAX_SHOWN]
    # Of an object with more mistakes than that, they were not all counted.
    exact = len(mistakes) <= MAX_FAULTS
    if len(mistakes) > len(shown):
        shown.append(f"… and {len(mistakes) - len(shown)} more" if exact else "… and more")
    count = f"{len(mistakes)}" if exact else f"more than {MAX_FAULTS}"
    return CliError(f"{count} mistakes; nothing was sent", shown)
