"""The store: the port in `port`, and its drivers behind `open_sqlite` and `open_etcd`."""

from conveyor.store.sqlite import SqliteStore

open_sqlite = SqliteStore.open

__all__ = ["SqliteStore", "open_sqlite"]
