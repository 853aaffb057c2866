"""Opens the bus that the settings name."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from conveyor.bus.nats import Bus
from conveyor.bus.options import BusOptions, StreamSettings, tls_context
from conveyor.server.config import Config, ConfigError

_EMBEDDED_MESSAGES_BYTES = 256 << 20


async def open_bus(config: Config, embedded_url: str | None) -> Bus:
    """The bus; it connects by itself, now or later. Raises ConfigError and BusError for what can never work."""
    settings = StreamSettings(
        replicas=config.nats_replicas,
        logs_max_age=timedelta(seconds=config.log_retention),
        logs_max_bytes=config.log_max_bytes,
    )
    if embedded_url is not None:
        # The broker reserves these on the disk of whoever tries it out.
        settings = StreamSettings(
            pipeline_max_bytes=_EMBEDDED_MESSAGES_BYTES,
            messages_max_bytes=_EMBEDDED_MESSAGES_BYTES,
            logs_max_age=settings.logs_max_age,
            logs_max_bytes=settings.logs_max_bytes,
        )
        return await Bus.start(BusOptions(servers=[embedded_url]), settings)
    credentials = ""
    if config.nats_credentials is not None:
        try:
            credentials = await asyncio.to_thread(config.nats_credentials.read_text)
        except OSError as error:
            raise ConfigError(f"{config.nats_credentials} cannot be read: {error.strerror}") from None
    options = BusOptions(
        servers=list(config.nats),
        user=config.nats_user,
        password=config.nats_password,
        token=config.nats_token,
        credentials=credentials,
        tls=await asyncio.to_thread(tls_context, ca=config.nats_ca) if config.nats_ca is not None else None,
    )
    return await Bus.start(options, settings)
