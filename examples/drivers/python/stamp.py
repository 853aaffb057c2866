"""Stamps parcels: the driver of these examples, with the SDK for Python."""

import asyncio

from conveyor.sdk import Driver, Job

driver = Driver("python")


@driver.reconcile
async def stamp(job: Job) -> dict[str, object]:
    stamps = max((result.data.get("stamps", []) for result in job.results.values()), key=len, default=[])
    if greeting := job.context.get("greeting"):
        job.log("%s from python, after: %s", greeting, ", ".join(stamps) or "nobody")
    for line in job.spec.get("log", []):
        job.log("%s", line)
    await asyncio.sleep(job.spec.get("seconds", 0))
    if "fail" in job.spec:
        raise job.fail(job.spec["fail"])
    return {**job.spec.get("data", {}), "stamps": [*stamps, "python"]}


driver.run()
