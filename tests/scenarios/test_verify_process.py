"""The process of a driver that is verified: nothing of it stays."""

import os
from pathlib import Path

import pytest

from conveyor.verify.process import DriverProcess
from tests.support.wait import until


@pytest.mark.parametrize("apart", ["set -m; sleep 611 &", "setsid sleep 611 &"])
async def test_what_a_driver_started_ends_with_it(tmp_path: Path, apart: str) -> None:
    log = tmp_path / "log"
    process = await DriverProcess.start(["bash", "-c", f"{apart} echo $!; wait"], {}, log, lambda: None)
    await until(lambda: log.read_text().endswith("\n"))
    job = int(log.read_text())
    assert os.getpgid(job) != os.getpgid(0)
    await process.kill()
    assert process.code == -9
    assert not runs(job)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
