"""Page tokens: they go on where the page ended, of their own query only."""

from __future__ import annotations

import pytest

from conveyor.api.paging import open_page
from conveyor.core import errors
from conveyor.v1 import pipeline_service_pb2, run_service_pb2

List = pipeline_service_pb2.ListPipelinesRequest


def token(request: List | run_service_pb2.ListRunsRequest, after: str = "main") -> str:
    return open_page(request, request.namespace or "default").token(after)


def test_sizes() -> None:
    assert open_page(List(), "default").size == 100
    assert open_page(List(page_size=7), "default").size == 7
    assert open_page(List(page_size=1001), "default").size == 1000


def test_a_token_goes_on_where_the_page_ended() -> None:
    page = open_page(List(page_token=token(List(labels={"a": "b", "c": "d"})), labels={"c": "d", "a": "b"}), "default")
    assert page.after == "main"
    assert page.token("") == ""


def test_another_page_size_is_the_same_query_and_so_is_the_default_namespace_by_name() -> None:
    assert open_page(List(page_token=token(List(page_size=5)), namespace="default"), "default").after == "main"


@pytest.mark.parametrize(
    "other",
    [
        List(labels={"a": "c"}),
        List(namespace="team", labels={"a": "b"}),
        run_service_pb2.ListRunsRequest(labels={"a": "b"}),
    ],
    ids=["filter", "namespace", "method"],
)
def test_a_token_of_another_query_is_refused(other: List | run_service_pb2.ListRunsRequest) -> None:
    other.page_token = token(List(labels={"a": "b"}))
    with pytest.raises(errors.InvalidPageToken, match="another query"):
        open_page(other, other.namespace or "default")


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: "x" + t[1:], lambda t: t + "AAAA", lambda t: "é"])
def test_a_broken_token_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(errors.InvalidPageToken):
        open_page(List(page_token=change(token(List()))), "default")


def test_a_token_that_was_changed_in_the_middle_is_refused() -> None:
    good = token(List(), "a" * 30)
    for i in range(12, 36):
        changed = good[:i] + ("A" if good[i] != "A" else "B") + good[i + 1 :]
        with pytest.raises(errors.InvalidPageToken, match="broken"):
            open_page(List(page_token=changed), "default")


@pytest.mark.parametrize("text", ["x", "====", "AAAA", " ", "a b", "null"])
def test_no_token_at_all_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidPageToken, match="broken"):
        open_page(List(page_token=text), "default")
