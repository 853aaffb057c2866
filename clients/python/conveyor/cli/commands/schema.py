"""`conveyor schema`."""

import json
from importlib.resources import files

import click

from conveyor.cli.complete import complete_kind
from conveyor.cli.kinds import KINDS
from conveyor.cli.options import command
from conveyor.cli.refs import parse_kind

_FILE = "manifest.schema.json"


@command("schema", formats=("json",))
@click.argument("word", metavar="[KIND]", required=False, shell_complete=complete_kind)
def schema(word: str | None) -> None:
    """Print the JSON Schema of the files that apply takes, or of a single kind of object.

    Editors that know it complete and check manifests as they are written.
    """
    text = (files("conveyor.cli") / _FILE).read_text(encoding="utf-8")
    if word is not None:
        kind = parse_kind(word)
        if not kind.applied:
            there = ", ".join(each.word for each in KINDS if each.applied)
            raise click.UsageError(f"files don't hold a {kind.word}; they hold {there}")
        whole = json.loads(text)
        part = {"$schema": whole["$schema"], "title": kind.name, "allOf": [{"$ref": f"#/definitions/{kind.name}"}]}
        text = json.dumps({**part, "definitions": whole["definitions"]}, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
