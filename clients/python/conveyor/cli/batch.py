"""Does the same to several objects: a failure is told, and the others are done all the same."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from conveyor.cli.dispatch import report
from conveyor.cli.failures import Ended, Exit
from conveyor.cli.options import Settings
from conveyor.cli.output import print_value
from conveyor.cli.terminal import note
from conveyor.sdk.errors import ConveyorError, NotFound

T = TypeVar("T")

_SEVERITY: Sequence[Exit] = (
    Exit.OK,
    Exit.RUN_CANCELLED,
    Exit.RUN_FAILED,
    Exit.TIMED_OUT,
    Exit.GIVEN_UP,
    Exit.USAGE,
    Exit.ERROR,
)


async def each(
    items: Iterable[T],
    name: Callable[[T], str],
    do: Callable[[T], Awaitable[None]],
    *,
    place: Callable[[T, str], str] | None = None,
    missing_is_fine: bool = False,
) -> None:
    """Do one after another. Ended with the worst exit code when any failed; without a server the rest is not tried.

    `place` says where a field of an item is, and what item it is of.
    """
    codes = [Exit.OK]
    left = list(items)
    while left:
        item = left.pop(0)
        try:
            await do(item)
        except ConveyorError as error:
            if missing_is_fine and isinstance(error, NotFound):
                continue
            codes.append(report(error, name(item), partial(place, item) if place else None))
            if left and codes[-1] is Exit.GIVEN_UP:
                note(f"  not tried: {', '.join(map(name, left))}")
                break
    finish(codes)


def finish(codes: Iterable[Exit]) -> None:
    """End the command with the worst of the codes."""
    worst = max(codes, key=_SEVERITY.index, default=Exit.OK)
    if worst is not Exit.OK:
        raise Ended(worst)


class Results:
    """What a command did to each object, printed as it happens or, in JSON and YAML, as one list at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._values: list[dict[str, object]] = []

    def add(self, label: str, outcome: str, value: dict[str, object], *, extra: str = "") -> None:
        """Say what became of an object."""
        self._values.append(value)
        if self._settings.output == "name":
            print(label, flush=True)
        elif self._settings.output == "table" and not self._settings.quiet:
            print(f"{label} {outcome}{extra}", flush=True)

    def close(self) -> None:
        """Print the list."""
        if self._settings.output in {"json", "yaml"}:
            print_value(self._settings, self._values)
