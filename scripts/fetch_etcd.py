"""Gets the two versions of etcd that the tests of the store run against, into .tools/.

etcd 3.4 and its etcdctl are Debian's packages, unpacked without root; etcd 3.7 is built from the modules that
tools/etcd pins. What is there already is left alone. What can't be had is said loudly, and is an error in CI.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gotool

OLD = gotool.TOOLS / "etcd-3.4"
NEW = gotool.TOOLS / "etcd-3.7" / "etcd"


def unpack(name: str, package: str) -> None:
    """Takes a program out of one of Debian's packages, which neither needs nor gets installed."""
    target = OLD / name
    if target.exists():
        return
    print(f"unpacking {name} 3.4 …", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, check=True)
            (archive,) = Path(folder).glob(f"{package}_*.deb")
            subprocess.run(["dpkg", "-x", archive, "unpacked"], cwd=folder, check=True)
            program = Path(folder) / "unpacked" / "usr" / "bin" / name
            asked = [program, "version"] if name == "etcdctl" else [program, "--version"]
            version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            missing(f"{name} 3.4", error)
            return
        if "ersion: 3.4." not in version:
            missing(f"{name} 3.4", ValueError(f"this system's package is another version: {version.splitlines()[0]}"))
            return
        OLD.mkdir(parents=True, exist_ok=True)
        shutil.move(program, target)


def build() -> None:
    """Builds the server from its modules."""
    gotool.build("etcd", ".")
    built = gotool.TOOLS / "bin" / "etcd"
    if built.exists() and not NEW.exists():
        NEW.parent.mkdir(parents=True, exist_ok=True)
        NEW.symlink_to(os.path.relpath(built, NEW.parent))


def missing(what: str, error: Exception) -> None:
    message = f"SKIPPED: {what} can't be had here, so the tests that need it will not run: {error}"
    if os.environ.get("CI"):
        sys.exit(message)
    print(message, file=sys.stderr)


if __name__ == "__main__":
    unpack("etcd", "etcd-server")
    unpack("etcdctl", "etcd-client")
    build()
