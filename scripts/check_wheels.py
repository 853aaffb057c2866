"""Builds both wheels and checks them as their users get them: installed, and without this source tree."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT = {"cli", "sdk", "v1", "verify", "version.py"}
# The oldest runtime that the generated code allows, and the newest.
PROTOBUFS = ["protobuf==6.33.5", "protobuf>=7,<8"]

CLIENT_ALONE = """
import importlib.util
import conveyor.sdk, conveyor.v1
for name in ("api", "core", "engine", "server", "store"):
    assert importlib.util.find_spec(f"conveyor.{name}") is None, name
"""

ALL_GENERATED = """
import importlib, pkgutil
import conveyor
names = [module.name for module in pkgutil.walk_packages(conveyor.__path__, "conveyor.") if "_pb2" in module.name]
for name in names:
    importlib.import_module(name)
assert any(name.startswith("conveyor.storage.") for name in names), names
"""


def contents(wheel: Path) -> set[str]:
    """Returns the names in the wheel's part of the namespace, after checking that each is a typed package."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name.split("/") for name in archive.namelist()]
    tops = {parts[1] for parts in files if parts[0] == "conveyor"}
    others = {parts[0] for parts in files if parts[0] != "conveyor" and not parts[0].endswith(".dist-info")}
    assert wheel.name.endswith("-py3-none-any.whl"), wheel.name
    assert not others, f"{wheel.name} holds {others}"
    assert "__init__.py" not in tops, f"{wheel.name} takes the namespace for itself"
    untyped = {top for top in tops if "." not in top and ["conveyor", top, "py.typed"] not in files}
    assert not untyped, f"{wheel.name} has no py.typed in {untyped}"
    return tops


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def run(*command: str | Path) -> None:
            # gRPC's own words about connections would stand in what tests read.
            subprocess.run(command, cwd=folder, check=True, env={**os.environ, "GRPC_VERBOSITY": "NONE"})

        pip = ["-m", "pip", "--disable-pip-version-check"]
        build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist"]
        run(sys.executable, *build, ROOT, ROOT / "clients" / "python")
        (client,) = folder.glob("dist/conveyor_client-*.whl")
        (server,) = folder.glob("dist/conveyor-*.whl")
        assert contents(client) == CLIENT, contents(client)
        assert not contents(server) & CLIENT, contents(server)

        run(sys.executable, "-m", "venv", "venv")
        python = folder / "venv" / "bin" / "python"
        install = [python, *pip, "install", "--quiet"]
        run(*install, client)
        run(python, "-c", CLIENT_ALONE)
        run(*install, f"{client}[cli,jetstream]", "pytest")
        run(python, "-m", "pytest", "--quiet", ROOT / "clients" / "python" / "tests")
        run(python.with_name("conveyor"), "version")
        run(*install, server, "--find-links", "dist")
        run(python.with_name("conveyor"), "server", "--help")
        for protobuf in PROTOBUFS:
            run(*install, "--no-deps", protobuf)
            run(python, "-W", "error", "-c", ALL_GENERATED)
    print("both wheels hold what they should")


if __name__ == "__main__":
    main()
