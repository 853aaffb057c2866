"""How objects are named on the command line: `KIND NAME…` or `kind/name…`, resources as `DEFINITION/NAME`."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from conveyor.cli.kinds import KINDS, RESOURCE, RUN, Kind, kind_of


@dataclass(frozen=True, slots=True)
class Ref:
    """An object that was named."""

    kind: Kind
    name: str
    definition: str = ""

    @property
    def label(self) -> str:
        """Its kind and name, as in output."""
        return f"{self.kind.word}/{self.definition}/{self.name}" if self.definition else f"{self.kind.word}/{self.name}"

    @property
    def value(self) -> dict[str, object]:
        """Its kind and name, as in output for programs."""
        value: dict[str, object] = {"kind": self.kind.name, "name": self.name}
        return {**value, "definition": self.definition} if self.definition else value


def parse_kind(word: str) -> Kind:
    """The kind that a word means."""
    kind = kind_of(word)
    if kind is None:
        raise click.UsageError(f"there is no kind {word!r}; the kinds are {', '.join(each.word for each in KINDS)}")
    return kind


def parse_refs(words: Sequence[str]) -> list[Ref]:
    """The objects that the words name."""
    if kind_of(words[0]) is not None or "/" not in words[0]:
        kind = parse_kind(words[0])
        if not words[1:]:
            raise click.UsageError(f"which {kind.word}? give its name too")
        return [ref(kind, word) for word in words[1:]]
    refs: list[Ref] = []
    for word in words:
        head, slash, rest = word.partition("/")
        if not slash:
            raise click.UsageError(f"{word!r} is not kind/name")
        refs.append(ref(parse_kind(head), rest))
    return refs


def ref(kind: Kind, word: str) -> Ref:
    """The object of a kind that a word names, with or without the kind before it."""
    word = word.removeprefix(f"{kind.word}/") if kind is not RESOURCE or word.count("/") > 1 else word
    if kind is RESOURCE:
        return Ref(kind, *reversed(parse_resource(word)))
    if not word or "/" in word:
        raise click.UsageError(f"{word!r} is not the name of a {kind.word}")
    return Ref(kind, word)


def parse_resource(word: str) -> tuple[str, str]:
    """Definition and name of a resource."""
    parts = word.removeprefix("resource/").split("/") if word.count("/") > 1 else word.split("/")
    if len(parts) != 2 or not all(parts):
        raise click.UsageError(f"{word!r} is not a resource; write DEFINITION/NAME")
    return parts[0], parts[1]


def parse_run(word: str) -> str:
    """The id of a run, given with or without `run/`."""
    return ref(RUN, word).name
