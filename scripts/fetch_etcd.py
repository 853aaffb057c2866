"""Gets the two versions of etcd that the tests of the store run against, into .tools/.

etcd 3.4 is Debian's package, unpacked without root; etcd 3.7 is built from the modules that tools/etcd pins. What is
there already is left alone. What can't be had is said loudly, and is an error in CI.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gotool

OLD = gotool.TOOLS / "etcd-3.4" / "etcd"
NEW = gotool.TOOLS / "etcd-3.7" / "etcd"


def unpack() -> None:
    """Takes the server out of Debian's etcd-server, which neither needs nor gets installed."""
    if OLD.exists():
        return
    print("unpacking etcd 3.4 …", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", "--quiet", "etcd-server"], cwd=folder, check=True)
            (package,) = Path(folder).glob("etcd-server_*.deb")
            subprocess.run(["dpkg", "-x", package, "unpacked"], cwd=folder, check=True)
            program = Path(folder) / "unpacked" / "usr" / "bin" / "etcd"
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            missing("3.4", error)
            return
        if "etcd Version: 3.4." not in version:
            missing("3.4", ValueError(f"this system's package is another version: {version.splitlines()[0]}"))
            return
        OLD.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(program, OLD)


def build() -> None:
    """Builds the server from its modules."""
    gotool.build("etcd", ".")
    built = gotool.TOOLS / "bin" / "etcd"
    if built.exists() and not NEW.exists():
        NEW.parent.mkdir(parents=True, exist_ok=True)
        NEW.symlink_to(os.path.relpath(built, NEW.parent))


def missing(version: str, error: Exception) -> None:
    message = f"SKIPPED: etcd {version} can't be had here, so the tests that need it will not run: {error}"
    if os.environ.get("CI"):
        sys.exit(message)
    print(message, file=sys.stderr)


if __name__ == "__main__":
    unpack()
    build()
