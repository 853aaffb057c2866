"""Runs that retry others, and those others, find each other."""

from __future__ import annotations

from pathlib import Path

from conveyor.v1 import run_pb2
from conveyor.v1 import run_service_pb2 as pb
from tests.support.api import Api, refused, served


async def listed(api: Api, **fields: object) -> list[str]:
    """All ids, over all pages."""
    request = pb.ListRunsRequest(**fields)  # type: ignore[arg-type]
    found: list[str] = []
    while True:
        page = await api.runs.ListRuns(request)
        found += [run.id for run in page.runs]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_a_run_knows_its_parent_and_is_found_by_it(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.setup()
        parent, stranger = [(await api.cancelled((await api.create(name)).run.id)).id for name in ("web", "other")]
        children = [(await api.runs.RetryRun(pb.RetryRunRequest(id=parent))).run for _ in range(2)]
        newest_first = [child.id for child in reversed(children)]
        assert {child.parent_run for child in children} == {parent}
        assert await listed(api, parent_run=parent) == newest_first
        assert await listed(api, parent_run=parent, page_size=1, pipeline="main") == newest_first
        await api.cancelled(children[0].id)
        assert await listed(api, parent_run=parent, states=[run_pb2.RUN_STATE_CANCELLED]) == [children[0].id]
        assert await listed(api, parent_run=stranger) == []
        assert await listed(api, parent_run=children[1].id) == []
        # They name a parent that is gone all the same.
        await api.runs.DeleteRun(pb.DeleteRunRequest(id=parent))
        assert await listed(api, parent_run=parent) == newest_first
        assert (await refused(api.runs.ListRuns(pb.ListRunsRequest(parent_run="it")))).fields == ["parent_run"]
