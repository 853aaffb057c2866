"""Names on the broker, there and back."""

from __future__ import annotations

import pytest

from conveyor.bus import subjects
from conveyor.bus.subjects import DriverName, LogSubject
from tests.support.vectors import vectors


@pytest.mark.parametrize(
    ("plain", "elsewhere", "make"),
    [
        ("drivers.d.resources.r", "ns.a.drivers.d.resources.r", lambda ns: subjects.ticket(ns, "d", "r")),
        ("resources.r", "ns.a.resources.r", lambda ns: subjects.broadcast(ns, "r")),
        ("pipelines.run.created", "ns.a.pipelines.run.created", subjects.run_created),
        ("pipelines.driver.result", "ns.a.pipelines.driver.result", subjects.driver_result),
        ("logs.R", "ns.a.logs.R", lambda ns: subjects.logs(ns, "R")),
        ("logs.R.s", "ns.a.logs.R.s", lambda ns: subjects.logs(ns, "R", "s")),
        ("cancel.R.s", "ns.a.cancel.R.s", lambda ns: subjects.cancel(ns, "R", "s")),
        ("d", "a_d", lambda ns: subjects.consumer(ns, "d")),
    ],
)
def test_each_namespace_has_its_own(plain: str, elsewhere: str, make) -> None:  # type: ignore[no-untyped-def]
    assert make("") == make("default") == plain
    assert make("a") == elsewhere


def test_subjects_split_back() -> None:
    assert subjects.split("pipelines.driver.result") == ("default", "pipelines.driver.result")
    assert subjects.split("ns.a.pipelines.driver.result") == ("a", "pipelines.driver.result")
    assert subjects.parse_logs("logs.R") == LogSubject("default", "R", "")
    assert subjects.parse_logs("ns.a.logs.R.s") == LogSubject("a", "R", "s")
    assert subjects.parse_logs("live.logs.R.d") is None


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("kube", DriverName("default", "kube")),
        ("team-a_kube", DriverName("team-a", "kube")),
        ("default_kube", None),
        ("a_b_c", None),
        ("Kube", None),
        ("kube-", None),
        ("_kube", None),
    ],
)
def test_a_consumer_tells_its_driver(name: str, whose: DriverName | None) -> None:
    assert subjects.parse_consumer(name) == whose


@pytest.mark.parametrize(
    ("wanted", "subject", "expected"),
    [
        ("drivers.img.resources.app", "drivers.img.resources.app", True),
        ("drivers.img.resources.*", "drivers.img.resources.app", True),
        ("drivers.>", "drivers.img.resources.app", True),
        (">", "drivers.img.resources.app", True),
        ("drivers.*.resources.app", "drivers.img.resources.app", True),
        ("drivers.img.resources", "drivers.img.resources.app", False),
        ("drivers.img.resources.app.>", "drivers.img.resources.app", False),
        ("drivers.im.resources.app", "drivers.img.resources.app", False),
        ("drivers.img.resources.app.more", "drivers.img.resources.app", False),
        ("*", "drivers.img.resources.app", False),
    ],
)
def test_filters_match_as_the_broker_does(wanted: str, subject: str, expected: bool) -> None:
    assert subjects.matches(wanted, subject) is expected


@pytest.mark.parametrize("request_", vectors("js-api-request"), ids=lambda v: v["subject"])
def test_an_older_driver_listens_where_we_publish(request_: dict) -> None:  # type: ignore[type-arg]
    config = request_["body"]["config"]
    driver = config["name"]
    assert subjects.parse_consumer(driver) == DriverName("default", driver)
    wanted = config["filter_subjects"]
    assert any(subjects.matches(f, subjects.ticket("default", driver, "load")) for f in wanted)
    assert any(subjects.matches(f, subjects.broadcast("default", "load")) for f in wanted)
    assert not any(subjects.matches(f, subjects.ticket("default", driver, "other")) for f in wanted)


@pytest.mark.parametrize("name", ["a b", "*", ">", "a..b", "a.", "", "a\r\nPUB x 0"])
def test_what_would_break_a_subject_is_no_token(name: str) -> None:
    assert not subjects.is_token(name)
