"""Applies what files describe without storing it."""

from conveyor.cli.kinds import DEFINITION, PIPELINE, RESOURCE
from conveyor.cli.manifest import Manifest
from conveyor.cli.objects import Clients, Sent, send
from conveyor.sdk.errors import ApiError, InvalidArgument
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.schedule_pb2 import Schedule

# Why the server refuses an object that another one would make right.
_ABOUT_OTHERS = frozenset(
    {"UNKNOWN_DEFINITION", "UNKNOWN_PIPELINE", "UNKNOWN_RESOURCE", "DEFINITION_MISMATCH", "SCHEMA_VIOLATION"}
)
# Which parameters there are is said by the pipeline.
_PARAMS = ("resource.params", "schedule.params")


class Unchecked(Exception):
    """An object needs others of the same files, as they are only there."""

    def __init__(self, needed: list[str], refusal: ApiError) -> None:
        super().__init__(f"it needs {' and '.join(needed)}, which a dry run does not store")
        self.refusal = refusal


class DryRun:
    """Remembers what would be new, because the server can check nothing that needs it."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._unsettled: set[tuple[str, str]] = set()

    async def send(self, manifest: Manifest) -> Sent:
        """What an apply would do. Raises Unchecked, and ApiError when the server refuses the object."""
        namespace = self._clients.full(manifest.object.namespace)
        self._unsettled.add((namespace, manifest.label))
        try:
            sent = await send(await self._clients.of(namespace), manifest.object, validate_only=True)
        except ApiError as error:
            needed = [label for label in _needed(manifest, error) if (namespace, label) in self._unsettled]
            if needed:
                raise Unchecked(needed, error) from error
            raise
        if sent.outcome == ApplyOutcome.APPLY_OUTCOME_UNCHANGED:
            self._unsettled.discard((namespace, manifest.label))
        return sent


def _needed(manifest: Manifest, error: ApiError) -> list[str]:
    """The objects for whose sake the server may have refused this one."""
    thing = manifest.object
    if not isinstance(thing, Resource | Schedule) or not (error.reason in _ABOUT_OTHERS or _is_about_params(error)):
        return []
    needed = [f"{DEFINITION.word}/{thing.definition}", f"{PIPELINE.word}/{thing.pipeline}"]
    if isinstance(thing, Schedule):
        needed.append(f"{RESOURCE.word}/{thing.definition}/{thing.resource}")
    return needed


def _is_about_params(error: ApiError) -> bool:
    return (
        isinstance(error, InvalidArgument)
        and bool(error.violations)
        and all(violation.field.startswith(_PARAMS) for violation in error.violations)
    )
