"""The store port: a small key-value store with revisions, guards, watches and leases.

Everything durable in Conveyor goes through this port. Two drivers stand behind it, `sqlite` and
`etcd`, and one conformance suite (`tests/contract/test_store.py`) holds both to the words here.

Contract
--------
* Keys are text without NUL, ordered by their UTF-8 bytes. A prefix is matched as bytes; callers end it with "/".
* A *revision* is a positive integer that grows with every change of the store. A key's
  `mod_revision` is the revision of its last change. Several commits may share one revision
  (a batch), so a revision is whole only when its `Changes` has been delivered.
* `commit` is all or nothing. All its guards are compared before any of its writes.
* Commits of one process that touch a common key take effect in the order in which `commit` was called.
* A commit is never retried by a driver: after `Uncertain` the caller reads and decides.
* Reads are linearizable: a `get` that starts after a `commit` returned sees it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_OPERATIONS = 96
"""Puts and deletes in one commit, and guards too; etcd refuses transactions of more than 128 of either."""

MAX_COMMIT_BYTES = 1_310_720
"""Bytes of keys (the guarded ones too) and values in one commit (1.25 MiB); etcd refuses requests above 1.5 MiB."""


class StoreError(Exception):
    """The store could not do what was asked."""


class Conflict(StoreError):
    """A guard did not hold; nothing was written.

    `key` names the first guard that failed and `current` is what the store holds there (None: no such key).
    """

    def __init__(self, key: str, current: KeyValue | None) -> None:
        super().__init__(f"the guard on {key} does not hold")
        self.key = key
        self.current = current


class Unavailable(StoreError):
    """The store cannot be reached; the commit or read surely had no effect."""


class Uncertain(StoreError):
    """The answer was lost: the commit may or may not have taken effect."""


class TooLarge(StoreError):
    """The commit has more operations or bytes than the store takes; nothing was written."""


class Exhausted(StoreError):
    """The store has no room left (quota or disk); reads go on, nothing was written."""


class LeaseLost(StoreError):
    """The lease has run out or was revoked; its keys are gone."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One stored key with its value and the revision of its last change."""

    key: str
    value: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """Holds when `key` has exactly this `mod_revision`; 0 means that the key must not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Writes `value` to `key`, bound to the lease with id `lease` unless that is 0."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a prefix, in ascending key order.

    `more` says whether keys follow the last one; `revision` is the store's revision at the read.
    """

    items: tuple[KeyValue, ...]
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One changed key. A delete has `value` None; `prior` is the value before it (None: there was none).

    `prior` is only promised for deletes.
    """

    key: str
    value: bytes | None
    prior: bytes | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """All changes of one revision below the watched prefix, in the order in which they were made."""

    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Reset:
    """History before `revision` is gone: the watcher must list again. `Changes` after `revision` follow."""

    revision: int


class Lease(Protocol):
    """A time-to-live that keys can be bound to; without `refresh` it ends `ttl` seconds later."""

    @property
    def id(self) -> int:
        """Positive number to put into `Put.lease`."""
        ...

    async def refresh(self) -> None:
        """Give the lease its full time again. Raises LeaseLost, Unavailable."""
        ...

    async def revoke(self) -> None:
        """End the lease now; its keys are deleted. A lease that is gone already is no error."""
        ...


class Store(Protocol):
    """What a driver offers. All methods belong to one event loop."""

    @property
    def epoch(self) -> str:
        """Names one unbroken history of revisions: a watch position from another epoch means nothing here.

        etcd: the cluster id, and a name that ends with a restore. SQLite: new at each open, since its history does not
        outlive the process.
        """
        ...

    async def get(self, key: str) -> KeyValue | None:
        """The value of `key`, or None. Raises Unavailable."""
        ...

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        """Up to `limit` keys (0: all) below `prefix` that are greater than the key `after`. Raises Unavailable.

        `keys_only` leaves the values empty. Asking for all pages internally, so no answer is too large.
        """
        ...

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        """All keys below each of up to 100 prefixes, in ascending order, as they were at one revision.

        For prefixes that hold few keys: the answer is one message. Raises Unavailable.
        """
        ...

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        """Write all or nothing and return the revision, which is then the mod_revision of each key put.

        Raises Conflict, Unavailable, Uncertain, TooLarge, Exhausted; LeaseLost for a put under a lease that is gone.
        A key may stand at most once among puts and deletes. Deleting a missing key is no error.
        When the caller is cancelled, the commit may still take effect.
        """
        ...

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        """Every change below `prefix` after that revision, revision by revision, without end.

        A driver reconnects by itself and resumes without gap or repetition, or yields a Reset. `aclose` ends the
        watch. A position in the future yields a Reset at once. After `close` it raises Unavailable.
        """
        ...

    async def lease(self, ttl: float) -> Lease:
        """A new lease of `ttl` seconds (etcd rounds up to whole seconds). Raises Unavailable, Exhausted."""
        ...

    async def close(self) -> None:
        """Finish or fail what is under way and free everything. Later calls raise Unavailable."""
        ...
