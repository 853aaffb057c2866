"""Clones the repository of an app at the revision that its spec names."""

from pathlib import Path

from conveyor.sdk import Driver, Job

driver = Driver("clone", definitions=["app"])


@driver.reconcile
async def clone(job: Job) -> dict[str, object]:
    repository, revision = str(job.spec["repository"]), str(job.spec.get("revision", "HEAD"))
    target = Path(str(job.context["workspace"]), job.run, f"clone-{job.attempt}")
    await job.subprocess("git", "clone", "--", repository, target)
    await job.subprocess("git", "checkout", "--quiet", "--detach", revision, "--", cwd=target)
    head = await job.subprocess("git", "rev-parse", "HEAD", cwd=target, capture=True)
    return {"path": str(target), "commit": head.stdout.strip()}


driver.run()
