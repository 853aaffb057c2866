"""What applying files would change, as text for people and for `patch`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from conveyor.cli.decode import set_by_server
from conveyor.cli.dry_run import DryRun, Unchecked
from conveyor.cli.encode import encode_object
from conveyor.cli.line_diff import unified_diff
from conveyor.cli.manifest import Manifest, Object
from conveyor.cli.objects import Clients, fetch
from conveyor.cli.refs import Ref
from conveyor.cli.yaml_writer import to_yaml
from conveyor.sdk.errors import NotFound

_NOTHING = "/dev/null"


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it is stored and as the files have it. None: it is not there."""

    ref: Ref
    source: str
    stored: Object | None
    wanted: Object | None

    @property
    def outcome(self) -> str:
        """What an apply would do, as in its output for programs."""
        if self.wanted is None:
            return "PRUNED"
        if self.stored is None:
            return "CREATED"
        return "UNCHANGED" if _written(self.stored) == _written(self.wanted) else "CHANGED"

    def lines(self) -> Iterator[str]:
        """The lines of a unified diff of what the user wrote; none when nothing would change."""
        return unified_diff(
            _written(self.stored),
            _written(self.wanted),
            _NOTHING if self.stored is None else f"{self.ref.label} (stored)",
            _NOTHING if self.wanted is None else f"{self.ref.label} ({self.source})",
        )


async def change(clients: Clients, dry_run: DryRun, manifest: Manifest) -> Change:
    """What applying an object would change. ApiError when the server refuses it."""
    stored: Object | None
    try:
        stored = cast(Object, await fetch(await clients.of(manifest.object.namespace), manifest.ref))
    except NotFound:
        stored = None
    try:
        wanted = (await dry_run.send(manifest)).object
    except Unchecked:
        wanted = manifest.object
        wanted.namespace = clients.full(wanted.namespace)
    return Change(manifest.ref, manifest.source, stored, wanted)


def _written(thing: Object | None) -> list[str]:
    """What the user wrote of an object, in lines."""
    if thing is None:
        return []
    fields = thing.DESCRIPTOR.fields_by_name
    left_out = {fields[name].json_name for name in set_by_server(thing)}
    return to_yaml({key: value for key, value in encode_object(thing).items() if key not in left_out}).splitlines()
