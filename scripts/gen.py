"""Generates the code of the protos, or with --check says whether what is committed is what the protos give."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
# Where the code of which protos goes: the client's distribution has what is public, the server's the rest.
TARGETS = {
    "clients/python": ["v1"],
    ".": ["etcd", "reflection", "storage"],
}


def generate(packages: list[str], out: Path) -> dict[Path, bytes]:
    """Returns the generated files by their path under `out`'s root."""
    protos = [f"proto/conveyor/{package}" for package in packages]
    protos = [proto for proto in protos if any((ROOT / proto).rglob("*.proto"))]
    if protos:
        # The plugins are scripts beside the interpreter of the virtual environment.
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        paths = [word for proto in protos for word in ("--path", proto)]
        subprocess.run(["buf", "generate", "-o", out, *paths], cwd=ROOT, env=env, check=True)
    # mypy-protobuf writes a service stub for every file, also for those without services.
    for stub in out.rglob("*_pb2_grpc.pyi"):
        if not stub.with_suffix(".py").exists():
            stub.unlink()
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def committed(packages: list[str], root: Path) -> dict[Path, bytes]:
    """Returns the generated files that are there."""
    folders = [root / "conveyor" / package for package in packages]
    files = [path for folder in folders for path in folder.rglob("*") if path.name.endswith(SUFFIXES)]
    return {path.relative_to(root): path.read_bytes() for path in files}


def write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = []
    for target, packages in TARGETS.items():
        root = ROOT / target
        with tempfile.TemporaryDirectory() as folder:
            new = generate(packages, Path(folder))
        old = committed(packages, root)
        for path in sorted(new.keys() | old.keys()):
            if new.get(path) == old.get(path):
                continue
            stale.append((root / path).relative_to(ROOT))
            if not check:
                write(root / path, new.get(path))
    if check and stale:
        sys.exit("\n  ".join(["these files are not what the protos give; run `make gen`:", *map(str, stale)]))
    for path in stale:
        print(path)


if __name__ == "__main__":
    main()
