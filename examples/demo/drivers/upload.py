"""Uploads the wheel that `compile` built to the package index that the pipeline's context names."""

from pathlib import Path
from urllib.request import Request, urlopen

from conveyor.sdk import Driver, Job

driver = Driver("upload", definitions=["app"])


@driver.reconcile
def upload(job: Job) -> dict[str, object]:
    wheel = Path(str(job.results["compile"].data["wheel"]))
    url = f"{job.context['index']}/packages/{wheel.name}"
    job.log("PUT %s", url)
    request = Request(url, wheel.read_bytes(), {"Content-Type": "application/octet-stream"}, method="PUT")
    with urlopen(request, timeout=60) as answer:
        job.log("%d %s", answer.status, answer.reason)
    return {"url": url}


driver.run()
