"""Installs the wheel that `compile` built, alone in a new environment, and runs the package's tests against it."""

import sys
from pathlib import Path

from conveyor.sdk import Driver, Job

driver = Driver("test", definitions=["app"])


@driver.reconcile
async def test(job: Job) -> dict[str, object]:
    source = Path(str(job.results["clone"].data["path"]))
    wheel = str(job.results["compile"].data["wheel"])
    venv = Path(str(job.context["workspace"]), job.run, f"test-{job.attempt}")
    python = venv / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install")
    await job.subprocess(sys.executable, "-m", "venv", "--without-pip", venv)
    await job.subprocess(*install, "--require-hashes", "-r", source / str(job.spec["requirements"]))
    # Without an index: a dependency that the wheel declares and the locked requirements lack is an error.
    await job.subprocess(*install, "--no-index", f"{wheel}[cli,jetstream]")
    # -P: what is imported is the wheel, not the sources beside the tests.
    tests = Path(str(job.spec["package"]), "tests")
    done = await job.subprocess(python, "-P", "-m", "pytest", tests, cwd=source, check=False, capture=True)
    summary = done.stdout.strip().rpartition("\n")[2].strip("= ")
    if done.returncode:
        raise job.fail(summary, retryable=False)
    return {"summary": summary}


driver.run()
