"""A driver that does nothing, as a process of its own: `python -m bench.driver NAME [options of Driver.run]`."""

import sys

from conveyor.sdk import Driver, Job

driver = Driver(sys.argv[1])


@driver.reconcile
async def reconcile(job: Job) -> dict[str, int]:
    """Succeed with a little data."""
    return {"n": 1}


if __name__ == "__main__":
    driver.run(sys.argv[2:])
