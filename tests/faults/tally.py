"""How often each fault struck, added up over rounds and runs.

python -m tests.faults.tally FILE    prints the table of docs/reliability.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.round import Outcome


class Tally:
    """A JSON file: for each store the rounds, the violations by invariant, and the strikes by component and fault."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, outcome: Outcome) -> None:
        """Count a round."""
        whole = json.loads(self._file.read_text()) if self._file.exists() else {}
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
        """The table."""
        whole: dict[str, Any] = json.loads(self._file.read_text())
        stores = sorted(whole, reverse=True)
        rows = sorted({(c, f) for store in stores for c, fs in whole[store]["strikes"].items() for f in fs})
        lines = [
            f"| component | fault | {' | '.join(stores)} |",
            f"|---|---|{'---|' * len(stores)}",
            *(f"| {c} | {f} | {' | '.join(_count(whole[s], c, f) for s in stores)} |" for c, f in rows),
            f"| | **rounds** | {' | '.join(str(whole[store]['rounds']) for store in stores)} |",
            f"| | **violations** | {' | '.join(str(sum(whole[s]['violations'].values())) for s in stores)} |",
        ]
        return "\n".join(lines)


def _count(counts: dict[str, Any], component: str, fault: str) -> str:
    return str(counts["strikes"].get(component, {}).get(fault, 0))


if __name__ == "__main__":
    print(Tally(Path(sys.argv[1])).markdown())
