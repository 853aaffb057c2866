"""Files before a real server: apply, diff and prune."""

from __future__ import annotations

import io
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conveyor.cli.dispatch import dispatch
from tests.support.belt import Site
from tests.support.cli import Done

Conveyor = Callable[..., Done]

# Pipelines before definitions, and a resource before both.
SHOP = """\
kind: Resource
definition: part
name: shop
labels: {app: shop}
pipeline: release
spec: {size: 1}
---
kind: Pipeline
name: release
labels: {app: shop}
definition: part
timeout: 1h30m
steps: [{id: build, driver: nobody}]
---
kind: ResourceDefinition
name: part
labels: {app: shop}
schema: {type: object, properties: {size: {type: integer}}}
"""
OLD = """\
kind: Resource
definition: old
name: relic
labels: {app: shop}
pipeline: old
---
kind: Pipeline
name: old
labels: {app: shop}
steps: [{id: build, driver: nobody}]
---
kind: ResourceDefinition
name: old
labels: {app: shop}
---
kind: Pipeline
name: other
steps: [{id: build, driver: nobody}]
"""
PRUNE = ("--prune", "-l", "app=shop")


@pytest.fixture
def cli(sqlite_site: Site, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Conveyor:
    """Runs commands in this process, before the shared server in a namespace of its own."""
    monkeypatch.setenv("CONVEYOR_ADDRESS", sqlite_site.server.address)
    monkeypatch.setenv("CONVEYOR_NAMESPACE", f"files-{secrets.token_hex(4)}")

    def run(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = dispatch(arguments)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return Done(int(code), captured.out.decode(), captured.err.decode())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    (path / "shop.yaml").write_text(SHOP)
    (path / "README.md").write_text("# Not a manifest")
    return path


def test_diff_says_what_apply_would_change(cli: Conveyor, folder: Path) -> None:
    files = ("-f", str(folder))
    before = cli("diff", *files)
    assert (before.code, before.err) == (1, "")
    assert [line for line in before.out.splitlines() if line.startswith("+++")] == [
        f"+++ definition/part ({folder}/shop.yaml:15)",
        f"+++ pipeline/release ({folder}/shop.yaml:8)",
        f"+++ resource/part/shop ({folder}/shop.yaml:1)",
    ]
    assert "--- /dev/null" in before.out
    dry = cli("apply", *files, "--dry-run")
    assert dry.out.splitlines()[2].startswith("resource/part/shop not checked: it needs definition/part and pipeline/")
    assert cli("list", "definitions", "-l", "app=shop", "-o", "name").out == ""
    assert cli("apply", *files).code == 0
    assert cli("diff", *files) == Done(0, "", "")
    (folder / "shop.yaml").write_text(SHOP.replace("size: 1", "size: 2").replace("1h30m", "5400s"))
    changed = cli("diff", *files)
    assert changed.code == 1
    assert changed.out.splitlines()[:3] == [
        "--- resource/part/shop (stored)",
        f"+++ resource/part/shop ({folder}/shop.yaml:1)",
        "@@ -6,4 +6,4 @@",
    ]
    assert changed.out.splitlines()[-2:] == ["-  size: 1", "+  size: 2"]
    assert cli("diff", *files, "-o", "name").out == "resource/part/shop\n"
    (told,) = json.loads(cli("diff", *files, "-o", "json").out)
    assert (told["kind"], told["name"], told["outcome"]) == ("Resource", "shop", "CHANGED")
    assert told["diff"] == changed.out
    assert cli("diff", *files, "-q") == Done(1, "", "")


def test_what_a_changed_schema_allows_is_not_refused_before_it_is_stored(cli: Conveyor, folder: Path) -> None:
    files = ("-f", str(folder))
    assert cli("apply", *files).code == 0
    wrong = SHOP.replace("size: 1", "size: big")
    (folder / "shop.yaml").write_text(wrong)
    refused = cli("diff", *files)
    assert (refused.code, refused.out) == (2, "")
    assert "resource/part/shop: " in refused.err
    assert cli("apply", *files, "--dry-run").code == 1
    (folder / "shop.yaml").write_text(wrong.replace("type: integer", "type: string"))
    dry = cli("apply", *files, "--dry-run", "-o", "json")
    assert dry.code == 0
    assert [each["outcome"] for each in json.loads(dry.out)] == ["CHANGED", "UNCHANGED", "UNCHECKED"]
    assert cli("diff", *files, "-o", "name").out.split() == ["definition/part", "resource/part/shop"]
    assert cli("apply", *files).code == 0
    assert cli("diff", *files).code == 0


def test_diff_fails_with_more_than_one(cli: Conveyor, folder: Path) -> None:
    (folder / "bad.yaml").write_text("kind: Pipeline\nnom: x\n")
    assert cli("diff", "-f", str(folder)).code == 2
    assert cli("diff", "-f", str(folder / "nothing")).code == 2
    assert cli("diff", "-f", str(folder / "shop.yaml"), "--prune").code == 2
    assert cli("diff", "-f", str(folder / "shop.yaml"), "--address", "127.0.0.1:1").code == 7


def test_prune_deletes_what_the_files_hold_no_longer(cli: Conveyor, folder: Path) -> None:
    files = ("-f", str(folder))
    assert cli("apply", "-f", "-", stdin=OLD).code == 0
    assert cli("apply", *files).code == 0
    pruned = ["resource/old/relic", "pipeline/old", "definition/old"]

    would = cli("diff", *files, *PRUNE)
    assert would.code == 1
    assert [line for line in would.out.splitlines() if line.startswith("---")] == [
        f"--- {it} (stored)" for it in pruned
    ]
    dry = cli("apply", *files, *PRUNE, "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert dry.out.splitlines()[3:] == [f"{it} pruned (dry run)" for it in pruned]
    assert cli("get", "resource", "old/relic").code == 0

    done = cli("apply", *files, *PRUNE)
    assert (done.code, done.out.splitlines()[3:]) == (0, [f"{it} pruned" for it in pruned])
    left = cli("list", "pipelines", "-o", "name")
    assert left.out.split() == ["pipeline/other", "pipeline/release"]
    assert cli("diff", *files, *PRUNE) == Done(0, "", "")


def test_prune_does_nothing_when_something_is_refused(cli: Conveyor, folder: Path) -> None:
    assert cli("apply", "-f", "-", stdin=OLD).code == 0
    (folder / "shop.yaml").write_text(SHOP.replace("size: 1", "size: big"))
    done = cli("apply", "-f", str(folder), *PRUNE)
    assert (done.code, "pruned" in done.out) == (1, False)
    assert done.err.splitlines()[-1] == "  nothing was pruned, because not everything could be applied"
    assert cli("get", "pipeline", "old").code == 0


def test_prune_wants_to_know_what_belongs_to_the_files(cli: Conveyor, folder: Path) -> None:
    (folder / "more.yaml").write_text("kind: Pipeline\nname: more\nsteps: [{id: a, driver: b}]\n")
    done = cli("apply", "-f", str(folder), *PRUNE)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[1] == f"  {folder}/more.yaml:1: pipeline/more lacks app=shop"
    assert cli("apply", "-f", str(folder), "--prune").code == 2
    assert cli("apply", "-f", str(folder), "-l", "app=shop").code == 2
    assert cli("list", "pipelines", "-o", "name").out == ""


def test_prune_leaves_what_the_files_need(cli: Conveyor, folder: Path) -> None:
    assert cli("apply", "-f", str(folder)).code == 0
    (folder / "shop.yaml").write_text(SHOP.split("---\n")[0])
    stays = [f"{it} is in none of the files, but stays: " for it in ("pipeline/release", "definition/part")]
    for command in (("diff", "-f"), ("apply", "--dry-run", "-f"), ("apply", "-f")):
        done = cli(*command, str(folder), *PRUNE)
        assert (done.code, "pruned" in done.out) == (0, False)
        assert done.err.splitlines() == [f"{it}{folder}/shop.yaml:1: resource/part/shop needs it" for it in stays]


def test_files_by_a_pattern_of_the_shell(cli: Conveyor, folder: Path) -> None:
    (folder / "more.yaml").write_text("kind: Pipeline\nname: more\nsteps: [{id: a, driver: b}]\n")
    files = (str(folder / "more.yaml"), str(folder / "shop.yaml"))
    applied = cli("apply", "-R", "-f", *files)
    assert (applied.code, len(applied.out.splitlines())) == (0, 4)
    assert cli("diff", "-f", *files).code == 0
    deleted = cli("delete", "-f", *files)
    assert [line.split()[0] for line in deleted.out.splitlines()] == [
        "resource/part/shop",
        "pipeline/release",
        "pipeline/more",
        "definition/part",
    ]
