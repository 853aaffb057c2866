"""The options of the commands that read manifests, and what they have in common."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from conveyor.cli.failures import CliError
from conveyor.cli.manifest import Manifest, load
from conveyor.cli.options import pairs, settings
from conveyor.cli.sources import read_sources

CallableT = TypeVar("CallableT", bound=Callable[..., Any])

RECURSIVE = click.option(
    "-R",
    "--recursive",
    is_flag=True,
    expose_value=False,
    help="Changes nothing: folders are read with all below them.",
)


def file_options(function: CallableT) -> CallableT:
    """Give a command -f, as `names`, and the names that a shell's pattern after -f stands for, as `more`."""
    for option in (
        click.argument("more", metavar="", nargs=-1),
        RECURSIVE,
        click.option(
            "-f",
            "--filename",
            "names",
            metavar="FILE|DIR|-",
            multiple=True,
            required=True,
            help="File, folder, or - for standard input. May be given several times, or with several names.",
        ),
    ):
        function = option(function)
    return function


def prune_options(function: CallableT) -> CallableT:
    """Give a command --prune and -l, as `prune` and `labels`."""
    for option in (
        click.option(
            "-l",
            "--label",
            "--selector",
            "labels",
            metavar="KEY=VALUE",
            multiple=True,
            help="With --prune: the label of all objects of these files. Several: all of them.",
        ),
        click.option("--prune", is_flag=True, help="Delete what has the labels of -l and is in none of the files."),
    ):
        function = option(function)
    return function


def selector(prune: bool, labels: Sequence[str]) -> dict[str, str] | None:
    """The labels by which --prune finds what it may delete; None without it."""
    if prune != bool(labels):
        raise click.UsageError("--prune needs -l KEY=VALUE" if prune else "-l goes with --prune")
    return pairs(labels, "-l") if prune else None


def read(names: Sequence[str]) -> list[Manifest]:
    """The objects that files describe, all in a namespace that -n allows."""
    manifests = load(read_sources(names))
    namespace = settings().namespace
    for manifest in manifests:
        other = manifest.object.namespace
        if namespace and other and other != namespace:
            raise CliError(f"{manifest} is of namespace {other}, but -n says {namespace}")
    return manifests
