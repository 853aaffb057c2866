"""Where the server is and how to reach it: arguments first, then the environment, then the defaults.

| variable | meaning |
|---|---|
| CONVEYOR_ADDRESS | `host:port`, or several with commas between them; default 127.0.0.1:7460 |
| CONVEYOR_NAMESPACE | the namespace; default "default" |
| CONVEYOR_TLS | 1: TLS with the system's root certificates |
| CONVEYOR_TLS_CA | file of the root certificates (PEM); switches TLS on |
| CONVEYOR_TLS_CERT, CONVEYOR_TLS_KEY | files of the client's certificate and key (PEM), for mutual TLS |
| CONVEYOR_TLS_SERVER_NAME | the name that the server's certificate must have, when it is not the address's |
| CONVEYOR_NO_PROXY | 1: never go through a proxy |
| CONVEYOR_WORKER_LABELS | what a worker says of itself: `key=value`, several with commas between them |
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyor.sdk.errors import ConfigurationError

DEFAULT_PORT = 7460
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_NAMESPACE = "default"

_FALSE = frozenset({"", "0", "false", "no", "off"})
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True, slots=True)
class Tls:
    """How the connection is secured. All fields are optional: `Tls()` is TLS with the system's root certificates."""

    ca: bytes | None = None
    """Root certificates that the server's must lead to, PEM."""
    cert: bytes | None = None
    """The client's certificate chain, PEM; for mutual TLS, together with `key`."""
    key: bytes | None = None
    """The client's private key, PEM."""
    server_name: str | None = None
    """The name that the server's certificate must have, when it is not the address's."""

    @classmethod
    def from_files(
        cls,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
    ) -> "Tls":
        """Read the PEM files. ConfigurationError when one cannot be read, or one of cert and key is missing."""
        if (cert is None) != (key is None):
            raise ConfigurationError("a TLS client certificate needs its key, and the key its certificate")
        return cls(_read(ca), _read(cert), _read(key), server_name)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Tls | None":
        """What CONVEYOR_TLS and CONVEYOR_TLS_* ask for; None when they ask for nothing."""
        ca, cert, key, name = (
            environ.get(f"CONVEYOR_TLS_{part}") or None for part in ("CA", "CERT", "KEY", "SERVER_NAME")
        )
        if not (ca or cert or key) and not flag("CONVEYOR_TLS", environ):
            return None
        return cls.from_files(ca, cert, key, name)


def addresses(given: str | Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The servers' addresses, each as `host:port`; a missing port is the default one.

    ConfigurationError when one is malformed.
    """
    if given is None:
        given = environ.get("CONVEYOR_ADDRESS") or DEFAULT_ADDRESS
    parts = given.split(",") if isinstance(given, str) else list(given)
    found = tuple(_address(part.strip()) for part in parts if part.strip())
    if not found:
        raise ConfigurationError("the address is empty: give host:port, e.g. " + DEFAULT_ADDRESS)
    return found


def namespace(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """The namespace that was given, else that of the environment, else "default"."""
    return given or environ.get("CONVEYOR_NAMESPACE") or DEFAULT_NAMESPACE


def worker_labels(given: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The labels that were given, and those of CONVEYOR_WORKER_LABELS whose keys are not among them.

    ConfigurationError when the variable is malformed.
    """
    parts = [part.strip() for part in environ.get("CONVEYOR_WORKER_LABELS", "").split(",")]
    return {**dict(label(part, "CONVEYOR_WORKER_LABELS") for part in parts if part), **given}


def label(text: str, source: str) -> tuple[str, str]:
    """Key and value of `key=value`. ConfigurationError, which names the source, when it is not that."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigurationError(f"{source} has {text!r}, which is not KEY=VALUE, e.g. os=linux")
    return key.strip(), value.strip()


def flag(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable is set to anything but 0, false, no or off."""
    return environ.get(name, "").strip().lower() not in _FALSE


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine."""
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxied(address: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The proxy that gRPC would take for an address; None when it goes there directly."""
    if is_loopback(address) or flag("CONVEYOR_NO_PROXY", environ) or _is_excepted(address, environ):
        return None
    return next((environ[name] for name in _PROXY_VARIABLES if environ.get(name)), None)


def _is_excepted(address: str, environ: Mapping[str, str]) -> bool:
    """Whether no_proxy, which gRPC reads as well, names the host by a suffix or a network."""
    host = address.rpartition(":")[0].strip("[]").lower()
    for entry in (environ.get("no_grpc_proxy") or environ.get("no_proxy") or "").lower().split(","):
        name = entry.strip()
        if not name:
            continue
        if host.endswith(name):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name):
                return True
        except ValueError:
            continue
    return False


def _address(text: str) -> str:
    for scheme in ("grpc://", "http://", "https://"):
        if text.startswith(scheme):
            raise ConfigurationError(f"the address {text!r} is not a URL but host:port, e.g. {DEFAULT_ADDRESS}")
    if text.startswith(("unix:", "unix-abstract:")):
        return text
    if text.count(":") > 1 and not text.startswith("["):
        raise ConfigurationError(f"the address {text!r} is not host:port; an IPv6 host stands in brackets: [::1]:7460")
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"the address {text!r} is not host:port, e.g. {DEFAULT_ADDRESS}")
    return f"{host}:{port}"


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the TLS file {os.fspath(path)}: {error.strerror}") from None
