"""The store: the port in `port`, and its drivers behind `open_sqlite` and `open_etcd`."""

from conveyor.store.etcd import EtcdStore
from conveyor.store.etcd_client import Tls
from conveyor.store.etcd_history import HistoryKeys
from conveyor.store.sqlite import SqliteStore

open_sqlite = SqliteStore.open
open_etcd = EtcdStore.open

__all__ = ["EtcdStore", "HistoryKeys", "SqliteStore", "Tls", "open_etcd", "open_sqlite"]
