"""The server's settings: flags first, then CONVEYOR_* in the environment, then a TOML file, then the defaults."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from conveyor.server.durations import parse_duration


class ConfigError(Exception):
    """A setting is wrong; the message names it, where it stands, and what to write."""


def _duration(text: str) -> float:
    return parse_duration(text)


def _addresses(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("name at least one address")
    return found


def _origins(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in found:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#\s@]+", origin):
            raise ValueError(f"{origin} is not an origin: write https://host or http://host:port")
    return found


def _flag(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def _setting(default: Any, parse: Callable[[str], Any], text: str, metavar: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text, "metavar": metavar, "secret": secret})


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; times in seconds. Each is a flag, a CONVEYOR_ variable and a TOML key by the same name."""

    listen: tuple[str, ...] = _setting(
        ("127.0.0.1:7460",), _addresses, "addresses for gRPC; port 0 takes a free one", "HOST:PORT,…"
    )
    http_listen: str = _setting("", str, "address for the API over HTTP, in JSON; empty: none", "HOST:PORT")
    http_allow_origin: tuple[str, ...] = _setting(
        (), _origins, "origins whose pages may call over HTTP; *: all; without: none", "URL,…"
    )
    metrics_listen: str = _setting("127.0.0.1:7461", str, "address for Prometheus metrics; empty: none", "HOST:PORT")
    data_dir: Path | None = _setting(None, Path, "where the embedded store and broker keep their data", "DIR")
    etcd: tuple[str, ...] = _setting((), _addresses, "endpoints of etcd; without: the embedded store", "URL,…")
    etcd_ca: Path | None = _setting(None, Path, "root certificates for etcd, PEM", "FILE")
    etcd_cert: Path | None = _setting(None, Path, "client certificate for etcd, PEM", "FILE")
    etcd_key: Path | None = _setting(None, Path, "key of the client certificate for etcd, PEM", "FILE")
    etcd_username: str = _setting("", str, "user name for etcd", "NAME")
    etcd_password: str = _setting("", str, "password for etcd; better in CONVEYOR_ETCD_PASSWORD", "TEXT", secret=True)
    nats: tuple[str, ...] = _setting((), _addresses, "addresses of NATS; without: an embedded server", "URL,…")
    nats_user: str = _setting("", str, "user name for NATS", "NAME")
    nats_password: str = _setting("", str, "password for NATS; better in CONVEYOR_NATS_PASSWORD", "TEXT", secret=True)
    nats_token: str = _setting("", str, "token for NATS; better in CONVEYOR_NATS_TOKEN", "TEXT", secret=True)
    nats_credentials: Path | None = _setting(None, Path, "credentials file for NATS", "FILE")
    nats_ca: Path | None = _setting(None, Path, "root certificates for NATS, PEM", "FILE")
    nats_replicas: int = _setting(1, _count, "replicas of the JetStream streams", "N")
    nats_port: int = _setting(0, _count, "port of the embedded NATS server; 0 takes a free one", "PORT")
    tls_cert: Path | None = _setting(None, Path, "certificate for gRPC and HTTP, PEM", "FILE")
    tls_key: Path | None = _setting(None, Path, "key of the certificate, PEM", "FILE")
    tls_client_ca: Path | None = _setting(None, Path, "clients must show a certificate of this authority", "FILE")
    insecure: bool = _setting(False, _flag, "allow addresses other than loopback without TLS", "")
    session_ttl: float = _setting(15.0, _duration, "how long a worker may be silent; at least 3s", "TIME")
    lease_ttl: float = _setting(5.0, _duration, "how long a dead replica counts as living; at least 2s", "TIME")
    sweep_period: float = _setting(60.0, _duration, "how often unfinished runs are looked over", "TIME")
    run_retention: float = _setting(30 * 86400.0, _duration, "how long finished runs are kept; 0s: for ever", "TIME")
    max_runs: int = _setting(10_000, _count, "how many runs of a namespace are kept; 0: all", "N")
    log_retention: float = _setting(30 * 86400.0, _duration, "how long log lines are kept", "TIME")
    log_max_bytes: int = _setting(1 << 30, _count, "room for log lines on the broker, in bytes", "N")
    broadcast_timeout: float = _setting(600.0, _duration, "how long drivers have to answer a broadcast", "TIME")
    drain_timeout: float = _setting(10.0, _duration, "how long calls may take to end at a shutdown", "TIME")
    log_level: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "least level that is logged", "LEVEL"
    )
    log_format: str = _setting("auto", _choice("auto", "console", "json"), "auto: json unless on a terminal", "FORMAT")

    def check(self) -> None:
        """Raises ConfigError for settings that don't go together, or out of range."""
        addresses = [("listen", address) for address in self.listen]
        if self.http_listen:
            addresses.append(("http_listen", self.http_listen))
        for name, address in addresses:
            host, _ = split_address(address)
            if not is_loopback(host) and self.tls_cert is None and not self.insecure:
                raise ConfigError(
                    f"{name}: {address} is reachable from other machines without TLS; "
                    "give --tls-cert and --tls-key, or say --insecure"
                )
        if self.metrics_listen:
            split_address(self.metrics_listen)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key")
        if (self.etcd_cert is None) != (self.etcd_key is None):
            raise ConfigError("etcd_cert and etcd_key go together")
        if not self.etcd and self.data_dir is None:
            raise ConfigError("give --etcd, or --data-dir for the embedded store")
        if not self.nats and self.data_dir is None:
            raise ConfigError("give --nats, or --data-dir for the embedded broker")
        if not 3 <= self.session_ttl <= 3600:
            raise ConfigError("session_ttl must be from 3s to 1h")
        if not 2 <= self.lease_ttl <= 600:
            raise ConfigError("lease_ttl must be from 2s to 10m")
        if self.broadcast_timeout < 1 or self.sweep_period < 1:
            raise ConfigError("broadcast_timeout and sweep_period must be at least 1s")
        for name in _FILES:
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"{name}: {path} cannot be read")


_FILES = ("etcd_ca", "etcd_cert", "etcd_key", "nats_credentials", "nats_ca", "tls_cert", "tls_key", "tls_client_ca")


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None, defaults: Mapping[str, Any] | None = None
) -> Config:
    """The settings from all places. `flags` holds only what was given, as text or bool. Raises ConfigError."""
    values: dict[str, Any] = dict(defaults or {})
    known = {item.name: item for item in fields(Config)}
    if file is not None:
        for name, value in _read_toml(file).items():
            if name not in known:
                raise ConfigError(f"{file}: there is no setting {name}; `conveyor server start --help` lists them all")
            values[name] = _parse(known[name], _as_text(file, name, value), f"{file}: {name}")
    for name, item in known.items():
        variable = f"CONVEYOR_{name.upper()}"
        if variable in environ:
            values[name] = _parse(item, environ[variable], variable)
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        values[name] = value if isinstance(value, bool) else _parse(known[name], value, flag)
    config = Config(**values)
    config.check()
    return config


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _as_text(file: Path, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, str | int):
        return str(value)
    raise ConfigError(f"{file}: {name} must be text, a whole number, true, false or a list of texts")


def _parse(item: Any, text: str, where: str) -> Any:
    try:
        return item.metadata["parse"](text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def without_secrets(url: str) -> str:
    """The URL with *** for a password or token in it."""
    return re.sub(r"(?<=://)(?:([^/@:]*):)?[^/@]*@", lambda match: f"{match[1]}:***@" if match[1] else "***@", url)


def to_toml(config: Config) -> str:
    """All settings as a file that says the same; passwords are left out, those in URLs are hidden."""
    lines = []
    for item in fields(Config):
        value = getattr(config, item.name)
        if value is None or (item.metadata["secret"] and value):
            lines.append(f"# {item.name}" + (" is set" if value else ""))
        elif isinstance(value, bool | int):
            lines.append(f"{item.name} = {str(value).lower()}")
        elif isinstance(value, float):
            lines.append(f'{item.name} = "{value:.12g}s"')
        elif isinstance(value, tuple):
            lines.append(f"{item.name} = {json.dumps([without_secrets(part) for part in value])}")
        else:
            lines.append(f"{item.name} = {json.dumps(str(value))}")
    return "\n".join(lines)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ConfigError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535 or not host or (":" in host and host[0] != "["):
        raise ConfigError(f"{address!r} is not an address: write host:port or [v6 address]:port")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ConfigError(f"{address!r} is not an address: {host!r} cannot be the name of a host") from None
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
