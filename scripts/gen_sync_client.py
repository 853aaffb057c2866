"""Derives the synchronous client from the asyncio one, or with --check says whether what is committed is that.

What cannot be derived, single calls and the wait between them, is in `calls.py` of both.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "clients" / "python" / "conveyor" / "sdk"
MODULES = ("client", "connection", "drivers", "logs", "objects", "resume", "runs", "watch")
# In this order, each all over a module, its docstrings included.
RULES = (
    (r"\(await (.+)\)\.", r"\1."),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclosing\b", "closing"),
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\b(\w+Service)AsyncStub\b", r"\1Stub"),
    (r"\bgrpc\.aio\.AioRpcError\b", "grpc.RpcError"),
    (r"\bgrpc\.aio\.", "grpc."),
    (r"\bconveyor\.sdk import calls, (.+)", r"conveyor.sdk import \1\nfrom conveyor.sdk.sync import calls"),
    (r"\bconveyor\.sdk import calls\b", "conveyor.sdk.sync import calls"),
    (rf"\bconveyor\.sdk\.({'|'.join(MODULES)}) import\b", r"conveyor.sdk.sync.\1 import"),
    (r"\bClient\b", "SyncClient"),
    (r"\b([Ff])or one event loop\b", r"\1or any number of threads"),
)


def derived(module: str) -> str:
    """The module's synchronous twin."""
    text = (SDK / f"{module}.py").read_text()
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    text = f"# Derived from conveyor/sdk/{module}.py by `make gen`; change that.\n{text}"
    # Imports in their new order, and loops that only yield as `yield from`.
    for command in (["check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet"], ["format", "--quiet"]):
        place = ["--stdin-filename", str(SDK / "sync" / f"{module}.py"), "-"]
        ruff = [str(Path(sys.executable).parent / "ruff"), *command, *place]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return text


def main() -> None:
    stale = []
    for module in MODULES:
        path, text = SDK / "sync" / f"{module}.py", derived(module)
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if sys.argv[1:] != ["--check"]:
                path.write_text(text)
                print(stale[-1])
    if stale and sys.argv[1:] == ["--check"]:
        sys.exit("\n  ".join(["these files are not what the asyncio client gives; run `make gen`:", *stale]))


if __name__ == "__main__":
    main()
