"""What README.md and the pages show is so: their commands are typed, and links and targets are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.examples import DRIVERS, toolchains
from tests.support.tour import TREE, matches, walk

README = (TREE / "README.md").read_text()


def test_the_tour_goes_as_it_says(tmp_path: Path) -> None:
    assert walk(README.partition("\n## The tour")[2].partition("\n## ")[0], tmp_path) > 15


@pytest.mark.parametrize(("page", "count"), [("http", 15), ("grpcurl", 30), ("python-client", 4)])
def test_pages_go_as_they_say(tmp_path: Path, page: str, count: int) -> None:
    def fails(command: str) -> bool:
        # Among the calls that no pipe follows these show errors.
        return command.startswith("call RunService/GetRun ") and "|" not in command

    assert walk((TREE / "docs" / f"{page}.md").read_text(), tmp_path, fails=fails) > count


@pytest.mark.timeout(600)
def test_the_drivers_without_an_sdk_go_as_they_say(tmp_path: Path) -> None:
    page = (DRIVERS / "README.md").read_text()
    assert walk(page, tmp_path, folder=DRIVERS, environment=toolchains()) > 15


def test_what_is_shown_is_compared() -> None:
    shown = ["run … started", "…", "done"]
    assert matches(["run 1 started", "done"], shown)
    assert matches(["run 1 started", "a", "", "done "], shown)
    assert not matches(["run 1 ended", "done"], shown)
    assert not matches(["run 1 started", "done", "and more"], shown)
    assert not matches(["run 1 started"], shown)


def test_links_lead_somewhere_and_all_pages_are_listed() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README)}
    assert [link for link in sorted(links) if not (TREE / link).exists()] == []
    assert {f"docs/{page.name}" for page in (TREE / "docs").glob("*.md")} <= links


def test_the_targets_that_it_names_exist() -> None:
    makefile = (TREE / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "help"}
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
