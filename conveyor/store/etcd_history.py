"""Which history of an etcd this is: one that is put back to a snapshot begins another, under the same cluster id.

Every change of etcd's data is an entry of its log, and some entries change nothing. So the index of the log grows at
least as fast as the revision, as long as the cluster lives. A restore keeps the revision and begins the log anew: the
index is then far behind where it was, as seen from the revision.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from conveyor.etcd.v1 import etcd_pb2 as pb
from conveyor.store.etcd_client import RANGE, STATUS, TXN, Client
from conveyor.store.port import StoreError, Unavailable

_log = logging.getLogger("conveyor.store.etcd")

_LOOKS = 3
_SLACK = 16
"""Entries that may be under way between the two numbers of one answer."""


@dataclass(frozen=True, slots=True)
class HistoryKeys:
    """`history` holds the history's name; `restored` is put when a new one begins after a restore."""

    history: str
    restored: str


async def identify(client: Client, keys: HistoryKeys) -> str:
    """The name of the history, the same for all who ask until etcd is restored. Raises Unavailable."""
    while True:
        found = await client.read(RANGE, pb.RangeRequest(key=keys.history.encode()))
        lead = max([await _lead(client) for _ in range(_LOOKS)])
        name, mod_revision = "", 0
        if found.kvs:
            name, _, least = found.kvs[0].value.decode().partition(" ")
            mod_revision = found.kvs[0].mod_revision
            if lead >= int(least):
                return name
            _log.warning("etcd was restored from a snapshot: positions from before mean nothing any more")
        fresh = uuid.uuid4().hex
        request = pb.TxnRequest()
        request.compare.add(target=pb.COMPARE_TARGET_MOD, key=keys.history.encode(), mod_revision=mod_revision)
        put = request.success.add().request_put
        put.key, put.value = keys.history.encode(), f"{fresh} {lead - _SLACK}".encode()
        if name:
            request.success.add().request_put.key = keys.restored.encode()
        try:
            await client.call(TXN, request)
        except StoreError as error:
            raise Unavailable(f"the name of etcd's history cannot be written: {error}") from error
        # Read again: another server may have been faster.


async def _lead(client: Client) -> int:
    """How far the log's index is ahead of the revision."""
    status = await client.read(STATUS, pb.StatusRequest())
    return int(status.raft_index) - status.header.revision
