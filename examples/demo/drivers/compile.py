"""Builds the wheel of an app from what `clone` fetched."""

import hashlib
import sys
from pathlib import Path

from conveyor.sdk import Driver, Job

driver = Driver("compile", definitions=["app"])


# A plain function runs in a thread: it may block.
@driver.reconcile
def build(job: Job) -> dict[str, object]:
    clone = job.results["clone"].data
    package = Path(str(clone["path"]), str(job.spec["package"]))
    target = Path(str(job.context["workspace"]), job.run, f"compile-{job.attempt}")
    job.log("building %s at commit %s", package.name, clone["commit"])
    # What builds it is installed beside this driver, so that nothing is fetched.
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target)
    job.run_subprocess(*pip, package)
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise job.fail(f"one wheel was expected, not {len(wheels)}", retryable=False)
    content = wheels[0].read_bytes()
    return {"wheel": str(wheels[0]), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


driver.run()
