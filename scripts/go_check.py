"""Checks the Go module of clients/go: its format, go vet, staticcheck, and that go.mod says what it needs."""

import os
import subprocess
import sys

import gotool

MODULE = gotool.ROOT / "clients" / "go"


def main() -> None:
    go = gotool.compiler()
    if go is None or not gotool.build("staticcheck", "honnef.co/go/tools/cmd/staticcheck"):
        return
    # gofmt and what staticcheck calls are beside the compiler.
    folder = subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip() + "/bin"
    env = os.environ | {"PATH": folder + os.pathsep + os.environ["PATH"]}
    unformatted = subprocess.run(
        ["gofmt", "-l", "."], cwd=MODULE, env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    if unformatted:
        sys.exit("\n  ".join(["these files are not what gofmt makes of them:", *unformatted]))
    staticcheck = gotool.TOOLS / "bin" / "staticcheck"
    for command in ([go, "mod", "tidy", "-diff"], [go, "vet", "./..."], [staticcheck, "./..."]):
        if subprocess.run(command, cwd=MODULE, env=env).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
