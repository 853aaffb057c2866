"""Which revisions this process wrote: a watcher of other replicas' changes leaves them out."""

from __future__ import annotations

_KEPT = 4096


class OwnRevisions:
    """The last few thousand of them."""

    def __init__(self) -> None:
        self._revisions: dict[int, None] = {}

    def __contains__(self, revision: int) -> bool:
        return revision in self._revisions

    def add(self, revision: int) -> None:
        """This process has written the revision."""
        self._revisions[revision] = None
        if len(self._revisions) > _KEPT:
            del self._revisions[next(iter(self._revisions))]
