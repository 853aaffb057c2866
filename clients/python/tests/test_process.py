"""Subprocesses of jobs: output as lines, exit status, nothing left behind."""

import asyncio
import os
import sys
import threading

import pytest

from conveyor.sdk import JobCancelled, JobFailed, ProcessFailed
from conveyor.sdk.process import run_process, start_process
from conveyor.v1.log_pb2 import LogStream

OUT, ERR = LogStream.LOG_STREAM_STDOUT, LogStream.LOG_STREAM_STDERR


class Owner:
    """A job as far as a subprocess needs one."""

    def __init__(self, grace=30.0):
        self.cancelled = False
        self.cancel_message = "enough"
        self.grace = grace
        self.notes = []
        self.output = []
        self.came = threading.Condition()

    def log(self, message, *args):
        self.notes.append(message % args if args else message)

    def write_output(self, text, stream, *, partial=False):
        with self.came:
            self.output.append((text, stream, partial))
            self.came.notify_all()

    def until(self, condition):
        with self.came:
            assert self.came.wait_for(lambda: condition(self), 30)

    def text(self, stream):
        return "".join(text for text, where, _ in self.output if where == stream)


def run(owner, *command, cwd=None, env=None, check=True, capture=False):
    return run_process(owner, command, cwd=cwd, env=env, check=check, capture=capture)


def cancelled_run(owner, *command):
    """A thread that runs a command to its cancellation."""

    def body():
        with pytest.raises(JobCancelled):
            run(owner, *command)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def start(owner, *command, check=True, capture=False):
    return start_process(owner, command, cwd=None, env=None, check=check, capture=capture)


def test_output_becomes_lines_and_the_status_is_returned():
    owner = Owner()
    done = run(owner, "sh", "-c", "echo one; echo two; echo three >&2; printf four")
    assert done.returncode == 0
    assert owner.text(OUT) == "one\ntwo\nfour"
    assert owner.text(ERR) == "three\n"
    assert not owner.notes


def test_output_is_returned_when_asked_for():
    owner = Owner()
    done = run(owner, "sh", "-c", "echo out; echo err >&2", capture=True)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert owner.text(OUT) == "out\n"


def test_directory_and_environment(tmp_path):
    done = run(Owner(), "sh", "-c", "pwd; echo $A", cwd=tmp_path, env={"A": "b", "PATH": os.defpath}, capture=True)
    assert done.stdout.splitlines() == [str(tmp_path.resolve()), "b"]


def test_another_status_than_0_fails_with_the_last_words():
    with pytest.raises(ProcessFailed) as caught:
        run(Owner(), "sh", "-c", "echo no such branch >&2; exit 3")
    assert caught.value.returncode == 3
    assert str(caught.value).endswith("ended with exit status 3: no such branch")
    assert run(Owner(), "sh", "-c", "exit 3", check=False).returncode == 3


def test_a_signal_is_named():
    with pytest.raises(ProcessFailed, match="was ended by SIGKILL"):
        run(Owner(), "sh", "-c", "kill -9 $$")


def test_a_command_that_is_not_there_fails():
    with pytest.raises(JobFailed, match="cannot start no-such-command: No such file"):
        run(Owner(), "no-such-command")


def test_a_line_that_does_not_end_is_shown_soon():
    owner = Owner()
    script = "import sys, time; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read(); time.sleep(600)"
    thread = cancelled_run(owner, sys.executable, "-c", script)
    owner.until(lambda o: o.output)
    assert owner.output[0] == (".", OUT, True)
    owner.cancelled = True
    thread.join()


def test_bytes_that_are_no_text_are_replaced():
    owner = Owner()
    run(owner, "printf", r"gr\303\274n \377\n")
    assert owner.text(OUT) == "grün �\n"


def test_what_outlives_the_command_is_killed_and_told():
    owner = Owner()
    run(owner, "sh", "-c", "sleep 600 & echo started")
    assert owner.text(OUT) == "started\n"
    assert owner.notes == ["[processes that outlived the command were killed]"]


def test_a_cancelled_command_may_clean_up():
    owner = Owner()
    thread = cancelled_run(owner, "sh", "-c", "trap 'echo cleaned; exit 0' TERM; echo ready; sleep 600 & wait")
    owner.until(lambda o: "ready" in o.text(OUT))
    owner.cancelled = True
    thread.join()
    assert owner.text(OUT) == "ready\ncleaned\n"


def test_a_command_that_does_not_listen_is_killed_within_the_grace():
    owner = Owner(grace=0.2)
    script = "trap '' TERM; echo ready; while :; do sleep 600 & wait; done"
    thread = cancelled_run(owner, "sh", "-c", script)
    owner.until(lambda o: "ready" in o.text(OUT))
    owner.cancelled = True
    thread.join()


async def test_the_event_loop_goes_on_meanwhile():
    owner = Owner()
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    done = await start(owner, "sh", "-c", "echo hello", capture=True)
    ticking.cancel()
    assert done.stdout == "hello\n"
    assert ticks > 1


async def test_errors_come_out_of_the_await():
    with pytest.raises(ProcessFailed):
        await start(Owner(), "false")


async def test_a_cancelled_await_returns_when_the_process_is_gone():
    owner = Owner()
    task = asyncio.create_task(start(owner, "sh", "-c", "echo $$; exec sleep 600"))
    await asyncio.to_thread(owner.until, lambda o: o.output)
    pid = int(owner.text(OUT))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_lot_of_output_comes_whole():
    owner = Owner()
    run(owner, sys.executable, "-c", "for n in range(100_000): print(n)")
    assert owner.text(OUT).split() == [str(number) for number in range(100_000)]
