"""TLS for the gRPC port."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from conveyor.server.config import Config, ConfigError


def server_credentials(config: Config) -> grpc.ServerCredentials | None:
    """What the settings ask for; None without TLS. Raises ConfigError for files that cannot be used."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    _check(config.tls_cert, config.tls_key, config.tls_client_ca)
    return grpc.ssl_server_credentials(
        [(_read(config.tls_key), _read(config.tls_cert))],
        root_certificates=_read(config.tls_client_ca) if config.tls_client_ca is not None else None,
        require_client_auth=config.tls_client_ca is not None,
    )


def _check(cert: Path, key: Path, client_ca: Path | None) -> None:
    """gRPC only says that it cannot listen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"tls_cert {cert} and tls_key {key} are no certificate with its key: {error}") from None
    except OSError as error:
        raise ConfigError(f"{cert} or {key} cannot be read: {error.strerror}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls_client_ca {client_ca} holds no certificate: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
