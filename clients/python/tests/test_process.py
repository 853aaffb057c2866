"""Subprocesses of jobs: output as lines, exit status, nothing left behind."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conveyor.sdk import JobCancelled, JobFailed, ProcessFailed, process_tree
from conveyor.sdk.process import run_process, start_process
from conveyor.sdk.process_tree import VARIABLE, Mark, Process, ProcessTree, names
from conveyor.v1.log_pb2 import LogStream

OUT, ERR = LogStream.LOG_STREAM_STDOUT, LogStream.LOG_STREAM_STDERR


class Owner:
    """A job as far as a subprocess needs one."""

    def __init__(self, grace=30.0):
        self.cancelled = False
        self.cancel_message = "enough"
        self.grace = grace
        self.notes = []
        self.told = []
        self.output = []
        self.came = threading.Condition()

    def log(self, message, *args):
        self.notes.append(message % args if args else message)

    def notice(self, text):
        self.told.append(text)

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


# What a command leaves behind

with_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="without /proc only the group is known")

ESCAPES = {
    "in its group": "",
    "in another group": "preexec_fn=os.setpgrp",
    "in another session": "start_new_session=True",
    "a daemon": "start_new_session=True, stdout=DEVNULL, stderr=DEVNULL",
}

DEAF = "trap '' TERM; echo deaf; while :; do sleep 600; done"


def leaving(how, *command):
    """A command that leaves another one behind, once that has said a word or at least runs."""
    script = f"""if True:
        import os
        from subprocess import DEVNULL, PIPE, Popen
        child = Popen({command!r}, {how})
        if child.stdout:
            child.stdout.readline()
        print(child.pid)
    """
    return [sys.executable, "-c", script]


def gone(pid):
    """Whether a process has ended; an orphan may still wait for somebody to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@with_proc
@pytest.mark.parametrize("how", ESCAPES.values(), ids=ESCAPES)
def test_what_outlives_the_command_is_ended_and_told_wherever_it_went(how):
    owner = Owner()
    done = run(owner, *leaving(how, "sleep", "600"))
    pid = int(owner.text(OUT))
    assert done.returncode == 0
    assert owner.told == [f"1 process outlived the command and was ended: sleep ({pid})"]
    assert gone(pid)


@with_proc
@pytest.mark.parametrize("last", ["before", "after"])
def test_process_ids_that_begin_anew_hide_nobody(monkeypatch, tmp_path, last):
    """As the system gave out its last id, and then the first ones again, since the command began; or not."""
    loadavg = tmp_path / "loadavg"
    child = subprocess.Popen(["sleep", "600"], env=(mark := Mark()).environment(None))
    try:
        leader = {"before": child.pid + 1, "after": child.pid - 1}[last]
        loadavg.write_text(f"0.5 0.5 0.5 1/200 {child.pid}\n")
        monkeypatch.setattr(process_tree, "_LAST", loadavg)
        assert [str(found) for found in ProcessTree(mark, leader).alive()] == [f"sleep ({child.pid})"]
        loadavg.write_text(f"0.5 0.5 0.5 1/200 {leader}\n")
        tree = ProcessTree(mark, leader)
        assert tree.alive() == []
        monkeypatch.setattr(process_tree, "_SHORT", -1.0)
        assert len(tree.alive()) == 1, "after a while ids may have gone round, and all are looked at"
    finally:
        child.kill()
        child.wait()


@with_proc
@pytest.mark.parametrize("how", ["stdout=PIPE", "stdout=PIPE, start_new_session=True"])
def test_what_does_not_end_when_told_to_is_killed(how):
    owner = Owner()
    run(owner, *leaving(how, "sh", "-c", DEAF))
    assert "sh (" in owner.told[0]
    assert gone(int(owner.text(OUT)))


@with_proc
def test_a_failure_tells_it_too():
    owner = Owner()
    with pytest.raises(ProcessFailed):
        run(owner, "sh", "-c", "sleep 600 & exit 3")
    assert len(owner.told) == 1


def test_nothing_is_told_of_children_that_end_with_the_command():
    owner = Owner()
    run(owner, "sh", "-c", "sleep 0 & sleep 0 & wait")
    assert not owner.told
    assert not owner.notes


@with_proc
@pytest.mark.parametrize("how", ESCAPES.values(), ids=ESCAPES)
def test_a_cancelled_command_takes_along_all_that_it_started(how):
    owner = Owner()
    thread = cancelled_run(owner, "sh", "-c", shlex.join(leaving(how, "sleep", "600")) + "; sleep 600")
    owner.until(lambda o: o.text(OUT).endswith("\n"))
    owner.cancelled = True
    thread.join()
    assert gone(int(owner.text(OUT)))
    assert not owner.told
    assert not owner.notes


@with_proc
def test_what_did_not_stop_in_its_grace_is_named():
    owner = Owner(grace=0.2)
    thread = cancelled_run(owner, "sh", "-c", DEAF)
    owner.until(lambda o: o.output)
    owner.cancelled = True
    thread.join()
    (note,) = owner.notes
    assert re.fullmatch(r"\[did not stop when told to, and killed: sh \([0-9]+\), sleep \([0-9]+\)\]", note)


@with_proc
def test_what_a_cancelled_command_started_has_the_grace_too(tmp_path):
    """The command itself ends at once; a daemon of it has something to clean up then, and holds no output."""
    owner = Owner()
    clean = "while kill -0 $PPID 2>/dev/null; do sleep 0.01; done; sleep 0.2; echo > cleaned; exit"
    child = f"trap {shlex.quote(clean)} TERM; echo ready; exec >/dev/null 2>&1; while :; do sleep 0.01; done"
    thread = cancelled_run(owner, "sh", "-c", f"cd {tmp_path}; setsid sh -c {shlex.quote(child)} & wait")
    owner.until(lambda o: "ready" in o.text(OUT))
    owner.cancelled = True
    thread.join()
    assert (tmp_path / "cleaned").exists()
    assert not owner.notes


def test_the_mark_is_that_of_this_command_and_of_those_around_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, "outer")
    done = run(Owner(), "sh", "-c", f"echo ${VARIABLE}", env={"PATH": os.defpath}, capture=True)
    assert re.fullmatch("outer:[0-9a-f]{16}\n", done.stdout)
    assert Mark().environment({})[VARIABLE] != Mark().environment({})[VARIABLE]


def test_of_many_processes_the_first_ten_are_named():
    many = [Process(pid, "make", in_group=True) for pid in range(12)]
    assert names(many).endswith("make (9) and 2 more")
    assert names(many[:2]) == "make (0), make (1)"
