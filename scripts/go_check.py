"""Checks the Go modules of client and examples: format, go vet, staticcheck, and that go.mod says what they need."""

import os
import subprocess
import sys
from pathlib import Path

import gotool

EXAMPLES = gotool.ROOT / "examples" / "drivers"
MODULES = (gotool.ROOT / "clients" / "go", EXAMPLES / "go", EXAMPLES / "jetstream")


def main() -> None:
    go = gotool.compiler()
    if go is None or not gotool.build("staticcheck", "honnef.co/go/tools/cmd/staticcheck"):
        return
    # gofmt and what staticcheck calls are beside the compiler.
    folder = subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip() + "/bin"
    env = os.environ | {"PATH": folder + os.pathsep + os.environ["PATH"]}
    for module in MODULES:
        check(go, module, env)


def check(go: str, module: Path, env: dict[str, str]) -> None:
    unformatted = subprocess.run(
        ["gofmt", "-l", "."], cwd=module, env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    if unformatted:
        sys.exit("\n  ".join([f"these files of {module.name} are not what gofmt makes of them:", *unformatted]))
    staticcheck = gotool.TOOLS / "bin" / "staticcheck"
    for command in ([go, "mod", "tidy", "-diff"], [go, "vet", "./..."], [staticcheck, "./..."]):
        if subprocess.run(command, cwd=module, env=env).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
