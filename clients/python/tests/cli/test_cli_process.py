"""How the command behaves as a process: Ctrl-C, closed pipes, what it loads, what is missing."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conveyor.v1.log_pb2 import LogLine
from conveyor.version import VERSION

Start = Callable[..., "subprocess.Popen[bytes]"]


def test_version_waits_for_nothing() -> None:
    code = (
        "import sys; from conveyor.cli.dispatch import dispatch; assert dispatch(['version']) == 0; "
        "print([name for name in ('grpc', 'google.protobuf', 'ruamel', 'asyncio', 'importlib.metadata') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"conveyor {VERSION}\n[]\n"


@pytest.mark.parametrize("arguments", [("watch", "RUN"), ("start", "app/shop", "--wait"), ("start", "a/b", "--watch")])
def test_ctrl_c_ends_only_the_command(
    server: Any, make_run: Any, run_id: str, start: Start, arguments: tuple[str, ...]
) -> None:
    server.runs[run_id] = make_run()
    process = start("run", *(each.replace("RUN", run_id) for each in arguments))
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert f"run {run_id} goes on".encode() in err
    assert not any(type(request).__name__ == "CancelRunRequest" for request in server.requests)


def test_ctrl_c_with_a_server_that_hangs(run_id: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("CONVEYOR_ADDRESS", f"127.0.0.1:{mute.getsockname()[1]}")
        process = start("run", "wait", run_id)
        connection, _ = mute.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_programs_get_utf8_whatever_the_locale(
    server: Any, make_run: Any, run_id: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    server.runs[run_id] = make_run(message="é 😀")
    for form in ("json", "table"):
        out, err = start("run", "get", run_id, "-o", form).communicate()
        assert ("é 😀".encode() in out, err) == (True, b"")


def test_ctrl_c_does_not_wait_for_what_is_stuck() -> None:
    code = """
import asyncio, os, signal
from conveyor.cli.failures import Interrupted
from conveyor.cli.session import run_alone

async def stuck():
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

try:
    run_alone(stuck())
except Interrupted:
    os._exit(130)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 130


def test_output_that_nobody_ever_reads(start: Start) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("version", stdout=writer)
    os.close(writer)
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_closed_pipe_is_no_error(server: Any, make_run: Any, start: Start) -> None:
    for number in range(3000):
        server.runs[str(number)] = make_run(id=str(number))
    process = start("run", "list")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_closed_pipe_ends_logs_that_say_nothing_more(server: Any, make_run: Any, run_id: str, start: Start) -> None:
    server.runs[run_id] = make_run()
    server.lines.append(LogLine(run=run_id, step="build", attempt=1, seq=1, text="first"))
    process = start("run", "logs", "-f", run_id)
    assert process.stdout is not None
    assert process.stdout.readline() == b"[build] first\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')\n")
    code = "from conveyor.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: click is missing: pip install 'conveyor-client[cli]'\n"


def test_a_package_that_shadows_the_namespace_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import conveyor
    from conveyor.cli import main

    monkeypatch.setattr(conveyor, "__file__", "old/conveyor/__init__.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["conveyor", "version"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: an older package named conveyor shadows this one (old/conveyor/__init__.py): pip")


def test_without_the_server_the_command_names_its_package(
    conveyor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    done = conveyor("server", "dev")
    assert (done.code, done.err) == (1, "error: `conveyor server` belongs to another package: pip install conveyor\n")


def completed(*words: str) -> list[str]:
    line = ["conveyor", *words]
    environment = {
        **os.environ,
        "_CONVEYOR_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(line) - 1),
    }
    code = "from conveyor.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion(server: Any, make_run: Any) -> None:
    server.runs["0193-abc"] = make_run(id="0193-abc")
    server.runs["0200-abc"] = make_run(id="0200-abc")
    assert completed("ve") == ["version"]
    assert completed("run", "w") == ["watch", "wait"]
    assert completed("get", "pi") == ["pipeline"]
    assert completed("get", "run", "0193") == ["0193-abc"]
    assert completed("run", "wait", "02") == ["0200-abc"]


def test_completion_without_a_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYOR_ADDRESS", "127.0.0.1:1")
    assert completed("get", "pipeline", "") == []
