"""README.md says what is so: its tour is walked, and its links and targets are there."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.tour import PATH, TREE, Command, Terminal, bare_environment, matches, steps, terminal

README = (TREE / "README.md").read_text()
# What the README shows; here the server takes a free port.
ADDRESS = "127.0.0.1:7460"


def test_the_tour_goes_as_it_says(tmp_path: Path) -> None:
    environment = bare_environment(tmp_path)
    folder = tmp_path / "tour"
    folder.mkdir()
    tour = README.partition("\n## The tour")[2].partition("\n## ")[0]
    address, walked = ADDRESS, 0
    with ExitStack() as stack:
        here: Terminal | None = None
        for step in steps(tour):
            if not isinstance(step, Command):
                (folder / step[0]).write_text(step[1])
                continue
            walked += 1
            text, expected = (part.replace(ADDRESS, address) for part in (step.text, "\n".join(step.output)))
            if text.startswith("grpcurl ") and shutil.which("grpcurl", path=PATH) is None:
                assert not os.environ.get("CI"), "no grpcurl: run scripts/fetch_grpcurl.py"
                pytest.skip("no grpcurl: run scripts/fetch_grpcurl.py; all before it was fine")
            if step.stays:
                other = stack.enter_context(terminal(folder, environment))
                # Its log goes to standard error.
                other.type(f"exec 2>>log; {text}")
                if step.output:
                    line = other.line()
                    address = line.rpartition(" ")[2]
                    environment["CONVEYOR_ADDRESS"] = address
                    assert line == step.output[0].replace(ADDRESS, address)
                continue
            here = here or stack.enter_context(terminal(folder, environment))
            output, status = here.run(text)
            assert matches(output, expected.splitlines()), f"$ {text}\n" + "\n".join(output)
            assert status == 0, f"$ {text} ended with {status}"
    assert walked > 15


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
