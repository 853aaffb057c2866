"""Finds what files held once and hold no longer, by the labels that all of their objects have."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from conveyor.cli.failures import CliError
from conveyor.cli.kinds import DEFINITION, KINDS, PIPELINE, RESOURCE, Kind
from conveyor.cli.manifest import Manifest, Object
from conveyor.cli.objects import Clients, labelled
from conveyor.cli.options import settings
from conveyor.cli.refs import Ref
from conveyor.cli.terminal import note
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.schedule_pb2 import Schedule


@dataclass(frozen=True, slots=True)
class Leftover:
    """A stored object that has the labels and is in none of the files."""

    kind: Kind
    object: Object

    @property
    def ref(self) -> Ref:
        """Its name as the command line takes it."""
        return Ref(self.kind, self.object.name, self.object.definition if isinstance(self.object, Resource) else "")

    def __str__(self) -> str:
        return self.ref.label


def check_labels(manifests: Iterable[Manifest], labels: Mapping[str, str]) -> None:
    """CliError when an object lacks a label: it would stay for ever once the files hold it no longer."""
    lacking = [
        f"{manifest} lacks {key}={value}"
        for manifest in manifests
        for key, value in labels.items()
        if manifest.object.labels.get(key) != value
    ]
    if lacking:
        raise CliError("--prune finds what it may delete by the labels of -l, which all objects must have", lacking)


async def leftovers(
    clients: Clients, manifests: Iterable[Manifest], labels: Mapping[str, str], namespace: str | None
) -> list[Leftover]:
    """What may be deleted, in the order in which it can be: schedules, resources, pipelines, definitions.

    Only namespaces that a file names an object in, or that -n names, are looked at. What an object of the files needs
    is not among it, wherever that is kept.
    """
    manifests = list(manifests)
    held = {(clients.full(manifest.object.namespace), manifest.ref) for manifest in manifests}
    needed = {
        (clients.full(manifest.object.namespace), ref): manifest for manifest in manifests for ref in _needs(manifest)
    }
    namespaces = {each for each, _ in held} | ({namespace} if namespace else set())
    found: list[Leftover] = []
    for kind in reversed([kind for kind in KINDS if kind.applied]):
        for each in sorted(namespaces):
            async for thing in labelled(await clients.of(each), kind, labels):
                leftover = Leftover(kind, thing)
                key = (each, leftover.ref)
                if key in held:
                    continue
                if key not in needed:
                    found.append(leftover)
                elif not settings().quiet:
                    note(f"{leftover} is in none of the files, but stays: {needed[key]} needs it")
    return found


def _needs(manifest: Manifest) -> Iterator[Ref]:
    """The objects that an object names."""
    thing = manifest.object
    if not isinstance(thing, ResourceDefinition):
        yield Ref(DEFINITION, thing.definition)
    if isinstance(thing, Resource | Schedule):
        yield Ref(PIPELINE, thing.pipeline)
    if isinstance(thing, Schedule):
        yield Ref(RESOURCE, thing.resource, thing.definition)
