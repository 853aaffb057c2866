"""`conveyor driver verify` finds what is wrong with a driver: one planted fault per check, over both transports."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from conveyor.verify.catalogue import NAMES, TRANSPORTS
from conveyor.verify.kit import Settings, Verdict, verdicts
from tests.support.tour import TREE

SLOW = frozenset({"heartbeats", "slots", "cancels", "reattaches", "once", "slow-server", "drains"})
QUICK = frozenset(NAMES) - SLOW
"""What takes the kit less than a second each, for a driver that does it."""
AT_ONCE = 10

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of this tree find it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TREE), os.environ.get("PYTHONPATH", "")]))


async def verify(transport: str, fault: str, only: frozenset[str], directory: Path) -> list[Verdict]:
    """What the kit says of the driver with this fault."""
    command = [sys.executable, "-P", "-m", f"tests.support.planted_{transport}", fault]
    folder = directory / f"{transport}-{fault}"
    folder.mkdir()
    return await verdicts(Settings(command, folder, transport=transport, namespace="verify", only=only))


async def test_each_fault_fails_its_check_and_no_other(tmp_path: Path) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def failed(transport: str, fault: str, only: frozenset[str]) -> tuple[str, list[str]]:
        async with places:
            found = await verify(transport, fault, only, tmp_path)
        assert {each.check for each in found if each.verdict != "skipped"} == only
        return f"{transport} {fault}", [f"{each.check}: {each.said}" for each in found if each.verdict == "FAIL"]

    # Long ones first, so that they don't stand alone at the end.
    planted = [
        (transport, fault, QUICK | {fault})
        for fault in sorted(NAMES, key=QUICK.__contains__)
        for transport in TRANSPORTS
    ]
    # There are two ways to be impatient.
    planted.append(("grpc", "slow-server-welcome", QUICK | {"slow-server"}))
    # The drivers are right but for their faults.
    planted[:0] = [(transport, "none", frozenset(NAMES)) for transport in TRANSPORTS]
    found = dict(await asyncio.gather(*(failed(*each) for each in planted)))
    for transport in TRANSPORTS:
        assert found.pop(f"{transport} none") == []
    wrong = {
        name: said
        for name, said in found.items()
        if [each.partition(":")[0] for each in said] != [name.split()[1].removesuffix("-welcome")]
    }
    assert wrong == {}


async def test_a_driver_that_does_not_come_is_given_up_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no settings')"]
    first, *rest = await verdicts(Settings(command, tmp_path))
    assert first.check == "registers"
    assert first.said == "expected the driver to come; the driver ended with exit status 1: no settings"
    assert {each.said for each in rest} == {"the driver does not come"}
