"""Unified diffs: `patch` makes the new text of the old one, and what is moved or repeated confuses nothing."""

import random
import re

import pytest

from conveyor.cli.line_diff import unified_diff

_HEAD = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def patched(old: list[str], diff: list[str]) -> list[str]:
    """What `patch` makes of a text; fails where the diff does not fit."""
    new: list[str] = []
    at = 0
    for line in diff[2:]:
        if match := _HEAD.fullmatch(line):
            start = int(match[1]) - (match[2] != "0")
            new += old[at:start]
            at = start
            assert len(new) == int(match[3]) - (match[4] != "0")
        else:
            if line[0] in " -":
                assert line[1:] == old[at]
                at += 1
            if line[0] in " +":
                new.append(line[1:])
    return new + old[at:]


def diff_of(old: list[str], new: list[str]) -> list[str]:
    return list(unified_diff(old, new, "old", "new"))


@pytest.mark.parametrize("seed", range(60))
def test_a_diff_leads_from_one_text_to_the_other(seed: int) -> None:
    luck = random.Random(seed)
    words = [f"line {number}" for number in range(luck.choice([2, 5, 40]))]
    old = luck.choices(words, k=luck.randrange(40))
    new = list(old)
    for _ in range(luck.randrange(8)):
        at = luck.randrange(len(new) + 1)
        new[at : at + luck.randrange(4)] = luck.choices(words, k=luck.randrange(4))
    diff = diff_of(old, new)
    assert patched(old, diff) == new
    assert bool(diff) == (old != new)


def test_its_form() -> None:
    old = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]
    assert diff_of(old, ["a", "B", *old[2:], "l"]) == [
        "--- old",
        "+++ new",
        "@@ -1,5 +1,5 @@",
        " a",
        "-b",
        "+B",
        " c",
        " d",
        " e",
        "@@ -9,3 +9,4 @@",
        " i",
        " j",
        " k",
        "+l",
    ]
    assert diff_of([], ["a"]) == ["--- old", "+++ new", "@@ -0,0 +1 @@", "+a"]
    assert diff_of(["a"], []) == ["--- old", "+++ new", "@@ -1 +0,0 @@", "-a"]


def test_as_many_steps_as_a_pipeline_has() -> None:
    """With the standard library alone this takes minutes."""

    def text(driver: str) -> list[str]:
        return [
            line
            for step in range(1000)
            for line in (f"- id: s{step}", f"  driver: {driver}", *(f"  - s{need}" for need in range(step - 20, step)))
        ]

    diff = diff_of(text("old"), text("new"))
    assert (
        sum(line.startswith("-  driver") for line in diff) == sum(line.startswith("+  driver") for line in diff) == 1000
    )
    assert not any(line.startswith(("-  - ", "+  - ", "-- id", "+- id")) for line in diff)
    # Nothing in common, and nothing that stands once.
    assert len(diff_of(["a", "b"] * 10_000, ["c", "d"] * 10_000)) == 40_003
