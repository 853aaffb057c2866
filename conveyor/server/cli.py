"""`conveyor server …`: start a server, embedded or for production."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from conveyor.server.backups import backup, restore
from conveyor.server.config import Config, ConfigError, load, to_toml
from conveyor.server.folders import default_data_dir, ephemeral_folder


@click.group()
def server() -> None:
    """Run a Conveyor server."""


server.add_command(backup)
server.add_command(restore)


def _settings(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A flag for each setting; only those that were given reach the command."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for item in reversed(fields(Config)):
            if item.name in left_out:
                continue
            flag = f"--{item.name.replace('_', '-')}"
            shown = item.metadata["help"]
            if isinstance(item.default, bool):
                command = click.option(flag, item.name, is_flag=True, default=None, help=shown)(command)
            else:
                command = click.option(flag, item.name, metavar=item.metadata["metavar"], help=shown)(command)
        return command

    return decorate


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@server.command()
@_settings()
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings", metavar="FILE")
@click.option("--check-config", is_flag=True, help="check the settings, say what they are, and exit")
def start(file: Path | None, check_config: bool, **options: Any) -> None:
    """Run a server on etcd and NATS."""
    config = _load(_given(options), file, {})
    _serve_or_show(config, check_config)


@server.command()
@_settings("etcd", "etcd_ca", "etcd_cert", "etcd_key", "etcd_username", "etcd_password")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings", metavar="FILE")
@click.option("--check-config", is_flag=True, help="check the settings, say what they are, and exit")
@click.option("--ephemeral", is_flag=True, help="keep nothing: the data goes when the server does")
def dev(file: Path | None, ephemeral: bool, check_config: bool, **options: Any) -> None:
    """Run everything in one process: embedded store, embedded broker, data in --data-dir."""
    with contextlib.ExitStack() as stack:
        defaults: dict[str, Any] = {"data_dir": default_data_dir(), "http_listen": "127.0.0.1:7462"}
        given = _given(options)
        if ephemeral:
            if "data_dir" in given:
                _fail("--ephemeral and --data-dir exclude each other")
            given["data_dir"] = stack.enter_context(ephemeral_folder())
        _serve_or_show(_load(given, file, defaults), check_config)


def _serve_or_show(config: Config, show: bool) -> None:
    if show:
        click.echo(to_toml(config))
    else:
        _serve(config)


def _load(flags: dict[str, Any], file: Path | None, defaults: dict[str, Any]) -> Config:
    try:
        return load(flags, os.environ, file, defaults)
    except ConfigError as error:
        _fail(str(error))
        raise AssertionError from None  # _fail does not return


def _fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(1)


def _serve(config: Config) -> None:
    # gRPC's own lines on standard error say again, and worse, what we say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from conveyor.server import logging
    from conveyor.server.app import App, StartupError

    logging.configure(config.log_level, config.log_format)
    # Hardly anything here is cyclic garbage: looking for it as often as by default takes an eighth of the time.
    gc.set_threshold(50_000, 20, 100)
    # The store's writer is a thread: with the default of 5 ms a busy loop starves it.
    sys.setswitchinterval(0.0005)

    async def main() -> None:
        app = App(config)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(1)  # asked twice: at once
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        starting = asyncio.create_task(app.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await starting
                gc.freeze()
                click.echo(f"ready: listening on {', '.join(app.addresses)}")
                sys.stdout.flush()
                await stopping
        finally:
            await app.stop()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main())
    except StartupError as error:
        _fail(str(error))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
