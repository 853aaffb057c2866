"""`conveyor server backup` and `restore`: the embedded store as one file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from conveyor.server.folders import default_data_dir
from conveyor.server.stores import FOLDER
from conveyor.state import keys
from conveyor.store import sqlite_backup
from conveyor.store.sqlite_backup import BackupError, Occupied


def _data_dir(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        envvar="CONVEYOR_DATA_DIR",
        default=default_data_dir,
        show_default="where `conveyor server dev` keeps it",
        help="directory with the embedded store",
        metavar="DIR",
    )(command)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data_dir
@click.option("--force", is_flag=True, help="replace FILE if there is one")
def backup(file: Path, data_dir: Path, force: bool) -> None:
    """Write the embedded store to FILE, whether its server runs or not.

    FILE holds every run, step, result and object; log lines are not part of it.
    """
    try:
        revision = sqlite_backup.back_up(data_dir / FOLDER, file, replace=force)
    except BackupError as error:
        _fail(error, "--force replaces it")
    click.echo(f"{file}: {file.stat().st_size:,} bytes, revision {revision}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data_dir
@click.option("--force", is_flag=True, help="replace the store that is there; it is kept beside the new one")
def restore(file: Path, data_dir: Path, force: bool) -> None:
    """Make the embedded store what FILE, a backup, holds. Its server must not run."""
    try:
        kept = sqlite_backup.restore(file, data_dir / FOLDER, keys.RESTORED, replace=force)
    except BackupError as error:
        _fail(error, "--force replaces it, and keeps it beside the new one")
    if kept is not None:
        click.echo(f"the store that was there is kept in {kept}")
    click.echo(f"restored {data_dir} from {file}: start the server")


def _fail(error: BackupError, hint: str) -> NoReturn:
    click.echo(f"error: {error}" + (f"; {hint}" if isinstance(error, Occupied) else ""), err=True)
    sys.exit(1)
