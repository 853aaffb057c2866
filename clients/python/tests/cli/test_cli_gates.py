"""Who decides at a gate when nobody says."""

import getpass
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("error", [OSError("no such user"), KeyError("uid 1234")])
def test_nobody_cannot_decide(
    conveyor: Callable[..., Any], run_id: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unknown() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", unknown)
    done = conveyor("run", "approve", run_id, "ask")
    assert (done.code, done.out) == (2, "")
    assert "nobody knows who you are here; say it with --as NAME" in done.err
