"""A driver as a process: command line, logging, signals."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import get_args

from conveyor.sdk import config, process
from conveyor.sdk.config import DEFAULT_ADDRESS
from conveyor.sdk.driver import Driver, TransportName
from conveyor.sdk.errors import ConfigurationError, ConveyorError
from conveyor.sdk.init import supervise

_log = logging.getLogger(__name__)


def run(driver: Driver, argv: Sequence[str] | None) -> None:
    """See Driver.run."""
    _take_options(driver, argv)
    if os.getpid() == 1:
        supervise()
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s %(levelname)s {driver.name}: %(message)s"
        )
    try:
        asyncio.run(_serve(driver))
    except ConveyorError as error:
        sys.stderr.write(f"{driver.name}: {error}\n")
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)


def _take_options(driver: Driver, argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=f"A worker of the Conveyor driver {driver.name!r}.")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT[,…]",
        help=f"the server, or several of one installation (CONVEYOR_ADDRESS; default {DEFAULT_ADDRESS})",
    )
    parser.add_argument("-n", "--namespace", help='the namespace (CONVEYOR_NAMESPACE; default "default")')
    parser.add_argument("--slots", type=int, help="how many jobs it takes at a time (CONVEYOR_SLOTS; default 1)")
    parser.add_argument(
        "--transport",
        choices=get_args(TransportName),
        help="how it takes part: the server's Work stream or NATS JetStream (CONVEYOR_TRANSPORT; default grpc)",
    )
    parser.add_argument("--nats", metavar="URL", help="the broker, for --transport jetstream (CONVEYOR_NATS)")
    parser.add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="something that steps may choose this worker by; again for more (CONVEYOR_WORKER_LABELS, with commas)",
    )
    options = vars(parser.parse_args(argv))
    for text in options.pop("label"):
        try:
            driver.labels.update([config.label(text, "--label")])
        except ConfigurationError as error:
            parser.error(str(error))
    for name, value in options.items():
        if value is not None:
            setattr(driver, name, value)


async def _serve(driver: Driver) -> None:
    stopping = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopping
        if stopping:
            process.kill_all()
            os._exit(128 + number)
        stopping = True
        _log.info("%s: taking no more work; a second signal exits at once", number.name)
        driver.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await driver.serve()
