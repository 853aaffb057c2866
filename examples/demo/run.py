"""The demo: takes this source tree through a pipeline, on a server and with drivers of its own.

It starts the embedded server, a small package index, and the four drivers in `drivers/`, each a process; then it
applies `release.yaml` with the command line, follows the run, and checks what came of it: from a clone of this tree a
wheel of the client, built, tested and uploaded, that pip installs from the index. With --break STEP it brings a fault
in, and checks that the run stops there. Exit status: 0 when all went as it should, else 1.
"""

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from string import Template
from typing import Any

import source
from index import Index
from processes import DemoError, Processes

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
PYTHON = Path(sys.executable)
CONVEYOR = PYTHON.with_name("conveyor")
STEPS = ("clone", "compile", "test", "upload")
RESOURCE = "app/conveyor-client"
UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")
MARK = ".conveyor-demo"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Demo:
    """One run of the demo; everything it writes is in one folder."""

    def __init__(self, folder: Path, fault: str | None) -> None:
        self.folder = folder
        self.fault = fault
        self.data, self.work, self.wheels = folder / "data", folder / "work", folder / "index"
        self.environment = source.environment()
        self.processes = Processes(folder / "logs", self.environment)

    def run(self) -> None:
        """DemoError when something is not as it should be."""
        # The runs of earlier demos can still be looked at; what they left to work with can't.
        for leftover in (self.work, self.wheels):
            shutil.rmtree(leftover, ignore_errors=True)
        self.work.mkdir()
        found = source.find(TREE, self.work, self.fault)
        index = Index(self.wheels, read_only=self.fault == "upload")
        threading.Thread(target=index.serve_forever, daemon=True).start()
        try:
            self.start_server()
            self.cancel_leftovers()
            self.start_drivers()
            run_id = self.start_run(found, index.url)
            self.follow(run_id)
            self.check(self.conveyor("run", "get", run_id), index.url)
        finally:
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_IGN)
            self.processes.stop()
        say("\nLook at it again: in one terminal")
        say(f"  {shown(CONVEYOR, 'server', 'dev', '--data-dir', self.data)}")
        say("and in another")
        for words in (("get", run_id), ("logs", run_id)):
            say(f"  {shown(CONVEYOR, 'run', *words)}")

    def start_server(self) -> None:
        """The embedded server, on free ports."""
        command = (CONVEYOR, "server", "dev", "--data-dir", self.data, "--listen", "127.0.0.1:0")
        say_command(*command)
        self.processes.start("server", *command, "--http-listen", "", "--metrics-listen", "")
        log = self.processes.log("server")

        def ready() -> re.Match[str] | None:
            return re.search(r"^ready: listening on (\S+)\n", log.read_text(errors="replace"), re.MULTILINE)

        self.environment["CONVEYOR_ADDRESS"] = self.processes.until(ready, 60)[1]
        # Where the driver over JetStream finds the broker.
        self.environment["CONVEYOR_NATS"] = (self.data / "nats.url").read_text().strip()
        say(f"ready: gRPC on {self.environment['CONVEYOR_ADDRESS']}, {self.environment['CONVEYOR_NATS']}")

    def cancel_leftovers(self) -> None:
        """Runs of a demo that was ended in the middle would be taken up again."""
        wanted = [word for state in UNFINISHED for word in ("--state", state)]
        for run in self.conveyor("run", "list", *wanted):
            self.conveyor("run", "cancel", run["id"])

    def start_drivers(self) -> None:
        """Three take part over gRPC, and one over JetStream."""
        for step in STEPS:
            transport = ("--transport", "jetstream") if step == "test" else ()
            command = (PYTHON, HERE / "drivers" / f"{step}.py", *transport)
            say_command(*command)
            self.processes.start(step, *command)

    def start_run(self, found: source.Source, index: str) -> str:
        """Apply what release.yaml says; the run that this starts, or one of the Resource as it is."""
        values = {
            "workspace": self.work,
            "index": index,
            "repository": found.repository,
            "revision": found.revision,
        }
        manifest = self.folder / "release.yaml"
        # JSON strings are YAML strings, whatever is in them.
        quoted = {name: json.dumps(str(value)) for name, value in values.items()}
        manifest.write_text(Template((HERE / "release.yaml").read_text()).substitute(quoted))
        for words in (("apply", "-f", manifest), ("run", "start", RESOURCE)):
            say_command(CONVEYOR, *words)
            output = self.call(CONVEYOR, *words)
            say(output, end="")
            # A Resource that is as it was starts no run when it is applied.
            if started := re.search(r"\brun (\S+) started$", output, re.MULTILINE):
                return started[1]
        raise DemoError(f"`conveyor run start` told of no run: {output}")

    def follow(self, run_id: str) -> None:
        """Show the run until it has ended."""
        say_command(CONVEYOR, "run", "watch", run_id)
        status = self.processes.run(CONVEYOR, "run", "watch", run_id, "--timeout", "30m")
        if status not in (0, 3):
            raise DemoError(f"`conveyor run watch` ended with exit status {status}")

    def check(self, run: dict[str, Any], index: str) -> None:
        """That the run came to what it should."""
        at = STEPS.index(self.fault) if self.fault else len(STEPS)
        wanted = dict.fromkeys(STEPS, "SKIPPED") | dict.fromkeys(STEPS[:at], "SUCCEEDED")
        if self.fault:
            wanted[self.fault] = "FAILED"
        ended = "FAILED" if self.fault else "SUCCEEDED"
        states = {step["step"]: step["state"] for step in run["steps"]}
        if (run["state"], states) != (ended, wanted):
            for step in STEPS:
                if states[step] not in ("SUCCEEDED", wanted[step]):
                    self.show_log(run["id"], step)
            raise DemoError(f"the run is {run['state']} with {states}; it should be {ended} with {wanted}")
        if not self.fault:
            self.check_wheel({step["step"]: step["result"].get("data", {}) for step in run["steps"]}, index)
            return
        self.show_log(run["id"], self.fault)
        if left := list(self.wheels.iterdir()):
            raise DemoError(f"the index holds {left[0].name} although the run failed")
        never = f"; {', '.join(STEPS[at + 1 :])} never started" if STEPS[at + 1 :] else ""
        say(f"\nAs it should be: {self.fault} failed, and the run is registered {run['state']}{never}.")

    def check_wheel(self, results: dict[str, Any], index: str) -> None:
        """That pip installs the wheel from the index into a new environment."""
        name = Path(results["compile"]["wheel"]).name
        venv = self.work / "installed"
        self.call(PYTHON, "-m", "venv", "--without-pip", venv)
        pip = (
            PYTHON,
            "-m",
            "pip",
            "--isolated",
            "--python",
            venv / "bin" / "python",
            "install",
            "--quiet",
            "--no-deps",
        )
        # Of no other index, whatever pip is configured for.
        self.environment["PIP_CONFIG_FILE"] = os.devnull
        self.call(*pip, "--no-cache-dir", "--index-url", f"{index}/simple/", f"conveyor-client=={name.split('-')[1]}")
        version = self.call(
            venv / "bin" / "python", "-I", "-c", "import conveyor.version as it; print(it.VERSION)"
        ).strip()
        say(f"\n{name} ({results['compile']['size']:,} bytes, sha256 {results['compile']['sha256'][:12]}…)")
        say(f"  built of commit   {results['clone']['commit']}")
        say(f"  tested            {results['test']['summary']}")
        say(f"  went to           {results['upload']['url']}")
        say(f"  which is          {short(self.wheels / name)}")
        say(f"  installed by pip  conveyor-client {version} in {short(venv)}")

    def show_log(self, run_id: str, step: str) -> None:
        """The last lines of a step."""
        say_command(CONVEYOR, "run", "logs", run_id, "--step", step, "--tail", "12")
        self.processes.run(CONVEYOR, "run", "logs", run_id, "--step", step, "--tail", "12")

    def conveyor(self, *words: str | Path) -> Any:
        """What the command line answers."""
        return json.loads(self.call(CONVEYOR, *words, "-o", "json"))

    def call(self, *command: str | Path) -> str:
        """Run a short command; what it wrote to standard output."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        if done.returncode:
            raise DemoError(f"{shown(*command)} ended with exit status {done.returncode}:\n{done.stderr.strip()}")
        return done.stdout


def short(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def shown(*command: str | Path) -> str:
    """A command as one would type it here."""
    return shlex.join(short(word) if isinstance(word, Path) else word for word in command)


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def say_command(*command: str | Path) -> None:
    say(f"$ {shown(*command)}")


def take(folder: Path) -> int:
    """Make the folder ours until we end. DemoError when it is somebody else's."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise DemoError(f"{folder} holds something else; give the demo a folder of its own with --dir")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / MARK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoError(f"another demo runs in {folder}; give this one a folder of its own with --dir") from None
    return lock


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Takes this source tree through a pipeline: clone, compile, test, upload."
    )
    parser.add_argument("--break", dest="fault", choices=STEPS, help="bring in a fault that makes this step fail")
    parser.add_argument(
        "--dir", type=Path, default=TREE / ".demo", help="where everything is written (default: %(default)s)"
    )
    options = parser.parse_args()
    folder = options.dir.resolve()
    for number in INTERRUPTS:
        signal.signal(number, interrupt)
    started = time.monotonic()
    try:
        take(folder)
        Demo(folder, options.fault).run()
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all processes have ended", file=sys.stderr)
        return 130
    say(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
