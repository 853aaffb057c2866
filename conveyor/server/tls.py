"""TLS for the gRPC port."""

from __future__ import annotations

from pathlib import Path

import grpc

from conveyor.server.config import Config, ConfigError


def server_credentials(config: Config) -> grpc.ServerCredentials | None:
    """What the settings ask for; None without TLS. Raises ConfigError for files that cannot be read."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return grpc.ssl_server_credentials(
        [(_read(config.tls_key), _read(config.tls_cert))],
        root_certificates=_read(config.tls_client_ca) if config.tls_client_ca is not None else None,
        require_client_auth=config.tls_client_ca is not None,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
