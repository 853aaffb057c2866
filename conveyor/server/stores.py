"""Opens the store that the settings name; waits for one that is away."""

from __future__ import annotations

import asyncio

import structlog

from conveyor.server.config import Config
from conveyor.state import keys
from conveyor.store import HistoryKeys, Tls, open_etcd, open_sqlite
from conveyor.store.port import Store, Unavailable

FOLDER = "store"
"""Of the data directory: where the embedded store is."""

log = structlog.get_logger("conveyor.server")

_LONGEST_PAUSE = 5.0


class StoreProblem(Exception):
    """The store cannot be opened; the message says what to do."""


async def open_store(config: Config) -> Store:
    """The store, open. An etcd that is away is tried again for ever. Raises StoreProblem."""
    if not config.etcd:
        if config.data_dir is None:
            raise StoreProblem("give --etcd, or --data-dir for the embedded store")
        try:
            return await open_sqlite(config.data_dir / FOLDER)
        except (Unavailable, OSError) as error:
            raise StoreProblem(f"the store in {config.data_dir} cannot be opened: {error}") from error
    pause = 0.5
    while True:
        try:
            return await open_etcd(
                config.etcd,
                tls=_tls(config),
                username=config.etcd_username,
                password=config.etcd_password,
                history_keys=HistoryKeys(keys.HISTORY, keys.RESTORED),
            )
        except Unavailable as error:
            log.warning("etcd_unavailable", endpoints=",".join(config.etcd), error=str(error), retry_in_s=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        except (ValueError, OSError) as error:
            raise StoreProblem(f"etcd at {','.join(config.etcd)}: {error}") from error


def _tls(config: Config) -> Tls | None:
    if config.etcd_ca is None and config.etcd_cert is None:
        return None
    return Tls(ca=config.etcd_ca, cert=config.etcd_cert, key=config.etcd_key)
