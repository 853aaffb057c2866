"""Generates the code of the protos, or with --check says whether what is committed is what the protos give."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import gotool

ROOT = gotool.ROOT
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi", ".pb.go")
# The plugins are beside the interpreter of the virtual environment and among the tools.
PATH = os.pathsep.join([str(Path(sys.executable).parent), str(gotool.TOOLS / "bin"), os.environ["PATH"]])


class Target(NamedTuple):
    """A folder, and the packages of proto/conveyor whose code goes there."""

    folder: str
    template: str
    packages: list[str]

    def generated(self) -> dict[Path, bytes]:
        """Returns what the protos give."""
        protos = [f"proto/conveyor/{package}" for package in self.packages]
        paths = [word for proto in protos if any((ROOT / proto).rglob("*.proto")) for word in ("--path", proto)]
        with tempfile.TemporaryDirectory() as out:
            command = ["buf", "generate", "--template", self.template, "-o", out, *paths]
            subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": PATH}, check=True)
            # mypy-protobuf writes a service stub for every file, also for those without services.
            for stub in Path(out).rglob("*_pb2_grpc.pyi"):
                if not stub.with_suffix(".py").exists():
                    stub.unlink()
            return {path.relative_to(out): path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}

    def committed(self) -> dict[Path, bytes]:
        """Returns what is there."""
        root = ROOT / self.folder
        files = [path for package in self.packages for path in (root / "conveyor" / package).rglob("*")]
        return {path.relative_to(root): path.read_bytes() for path in files if path.name.endswith(SUFFIXES)}


# The clients have what is public, the server's distribution the rest.
PYTHON = [
    Target("clients/python", "buf.gen.yaml", ["v1"]),
    Target(".", "buf.gen.yaml", ["cel", "etcd", "reflection", "storage"]),
]
GO = Target("clients/go", "buf.gen.go.yaml", ["v1"])


def write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    has_go = gotool.build("protoc-gen-go", "google.golang.org/protobuf/cmd/protoc-gen-go") and gotool.build(
        "protoc-gen-go-grpc", "google.golang.org/grpc/cmd/protoc-gen-go-grpc"
    )
    stale = []
    for target in [*PYTHON, GO] if has_go else PYTHON:
        new, old = target.generated(), target.committed()
        for path in sorted(new.keys() | old.keys()):
            if new.get(path) != old.get(path):
                stale.append(Path(target.folder, path))
                if not check:
                    write(ROOT / target.folder / path, new.get(path))
    if check and stale:
        sys.exit("\n  ".join(["these files are not what the protos give; run `make gen`:", *map(str, stale)]))
    for path in stale:
        print(path)


if __name__ == "__main__":
    main()
