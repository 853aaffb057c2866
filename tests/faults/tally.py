"""How often each fault struck, added up over rounds and runs.

python -m tests.faults.tally FILE    prints the table of docs/reliability.md
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.round import Outcome


class Tally:
    """A JSON file: for each store the rounds, the violations by invariant, and the strikes by component and fault."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, outcome: Outcome) -> None:
        """Count a round. Several processes may do so at the same time."""
        with self._file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        text = self._file.read_text()
        whole = json.loads(text) if text else {}
        counts = whole.setdefault(outcome.settings.layout.store, {"rounds": 0, "violations": {}, "strikes": {}})
        counts["rounds"] += 1
        for violation in outcome.violations:
            number = str(violation.invariant)
            counts["violations"][number] = counts["violations"].get(number, 0) + 1
        for (component, fault), times in outcome.strikes.items():
            mine = counts["strikes"].setdefault(component, {})
            mine[fault] = mine.get(fault, 0) + times
        self._file.write_text(json.dumps(whole, indent=1, sort_keys=True))

    def markdown(self) -> str:
        """The tables: what struck how often, and what that violated."""
        whole: dict[str, Any] = json.loads(self._file.read_text())
        stores = sorted(whole, reverse=True)
        struck = {store: whole[store]["strikes"] for store in stores}
        components = sorted({component for each in struck.values() for component in each})
        lines = [f"| component | faults | {' | '.join(stores)} |", f"|---|---|{'---|' * len(stores)}"]
        for component in components:
            mine = {store: struck[store].get(component, {}) for store in stores}
            names = ", ".join(f"`{name}`" for name in sorted({name for each in mine.values() for name in each}))
            lines.append(f"| {component} | {names} | {_row(_counted(mine[store]) for store in stores)} |")
        lines.append(f"| | rounds | {_row(whole[store]['rounds'] for store in stores)} |")
        lines.append(f"| | violations | {_row(sum(whole[store]['violations'].values()) for store in stores)} |")
        return "\n".join(lines)


def _counted(strikes: dict[str, int]) -> str:
    """All strikes, and how many of them killed."""
    kills = sum(times for name, times in strikes.items() if name.startswith(("kill-", "failpoint-")))
    return f"{sum(strikes.values())}, {kills} of them kills" if kills else str(sum(strikes.values()))


def _row(cells: Iterable[object]) -> str:
    return " | ".join(map(str, cells))


if __name__ == "__main__":
    print(Tally(Path(sys.argv[1])).markdown())
