"""The API over HTTP: calls, streams, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.behaviour import ok
from tests.support.belt import Belt, step
from tests.support.http import Http, http_url


@pytest.fixture
async def http(belt: Belt) -> AsyncIterator[Http]:
    async with Http(http_url(belt.site.server), belt.namespace) as client:
        yield client


async def test_a_run_is_started_and_shown(belt: Belt, http: Http) -> None:
    belt.drive("build", ok)
    await belt.pipeline(step("build"))
    resource = {"name": "shop", "definition": "app", "pipeline": "release", "spec": {"size": 3}}
    run = (await http.call("ResourceService/CreateResource", resource=resource))["run"]["id"]
    await belt.ended(run)
    got = (await http.call("RunService/GetRun", id=run))["run"]
    assert (got["id"], got["state"], got["steps"][0]["step"]) == (run, "RUN_STATE_SUCCEEDED", "build")
    shown = (await http.call("ResourceService/GetResource", definition="app", name="shop"))["resource"]
    assert (shown["spec"], shown["generation"]) == ({"size": 3}, "1")
