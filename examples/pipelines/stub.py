"""A driver that does what the resource's script says: one program in place of all that the pipelines here would need.

Run it beside a server: `python examples/pipelines/stub.py`. The words of a script:

- `ok`: succeed; `fail TEXT`: fail;
- `sleep SECONDS`: take that long first, unless told to stop;
- `output KEY=VALUE ...`: succeed with these data;
- a list: one of these for each attempt, the last one for all further ones.

A step is looked up under the name that its param `script` gives, else under its id, and an instance of a matrix under
that of its step too.
"""

from __future__ import annotations

import asyncio

from conveyor.sdk import Driver, Job

driver = Driver("stub", slots=64)


def words(job: Job) -> tuple[str, str]:
    """What the script says for this attempt: a word and what follows it."""
    script = job.spec.get("script", {})
    name = job.params.get("script", job.step)
    said = script.get(name, script.get(name.partition("[")[0], "ok"))
    if isinstance(said, list):
        said = said[min(job.attempt, len(said)) - 1]
    word, _, rest = said.partition(" ")
    return word, rest


@driver.reconcile
async def perform(job: Job) -> dict[str, str]:
    """Do it."""
    word, rest = words(job)
    job.log("%s %s", word, rest)
    match word:
        case "ok":
            return {}
        case "sleep":
            await asyncio.sleep(float(rest))
            return {}
        case "output":
            return dict(pair.split("=", 1) for pair in rest.split())
        case "fail":
            raise job.fail(rest or "the script says so")
    raise job.fail(f"the script has no word {word}", retryable=False)


if __name__ == "__main__":
    driver.run()
