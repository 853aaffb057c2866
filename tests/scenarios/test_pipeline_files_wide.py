"""The pipelines of examples/pipelines that fan out: P06, whose stages are barriers, and P09; scenario by scenario."""

from __future__ import annotations

from tests.support.belt import Belt
from tests.support.pipeline_files import Played, Stage, staged

LAB = {"type": "packet", "network": "lab"}


def ran(played: Played, stage: str) -> list[str]:
    """The jobs of a stage that were given out."""
    return sorted(str(each.params["job"]) for each in played.dispatches if each.step.startswith(f"{stage}["))


def barriers(played: Played) -> bool:
    """Whether each stage began when all before it had ended."""
    stages = ["unit-tests", "moderator", "deploy-part1", "deploy-part2", "deploy-special"]
    order = [stages.index(each.step.partition("[")[0]) for each in played.dispatches if each.step[:5] != "clean"]
    return order == sorted(order)


async def kubespray(belt: Belt) -> Stage:
    """P06 with a worker in the lab and one elsewhere, which takes what needs no label."""
    stage = await staged(belt, "p06-kubespray-ci.yaml", "p06", workers=False)
    stage.work(labels=LAB)
    return stage


# P06, kubespray


async def test_p06_a_pull_request(belt: Belt) -> None:
    stage = await kubespray(belt)
    ended = await stage.play()
    assert (ended.state, ended.code) == ("SUCCEEDED", 0)
    assert len(ran(ended, "unit-tests")) == 4
    assert [len(ran(ended, name)) for name in ("moderator", "deploy-part1", "deploy-part2", "deploy-special")] == [
        1,
        1,
        2,
        0,
    ]
    assert barriers(ended)
    assert ended.states["deploy-special"] == "SKIPPED"
    assert ran(ended, "clean-part2") == ran(ended, "deploy-part2")
    assert ran(ended, "clean-special") == []
    manual = await stage.start()
    assert (await stage.ended(manual)).states["deploy-part2[13]"] == "SKIPPED"


async def test_p06_a_trigger_and_empty_stages(belt: Belt) -> None:
    stage = await kubespray(belt)
    ended = await stage.play(source="trigger")
    assert (ended.state, ended.code) == ("SUCCEEDED", 0)
    assert [ended.states[name] for name in ("unit-tests", "moderator", "deploy-part1")] == ["SKIPPED"] * 3
    assert len(ran(ended, "deploy-part2")) == 11
    assert ran(ended, "deploy-special") == ["tf-validate-upcloud"]
    assert barriers(ended)


async def test_p06_a_deployment_fails(belt: Belt) -> None:
    stage = await kubespray(belt)
    ended = await stage.play({"deploy-part1": "fail"})
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert ran(ended, "clean-part1") == ["packet-ubuntu20-calico-aio"]
    assert ran(ended, "deploy-part2") == ran(ended, "clean-part2") == []


async def test_p06_the_moderator_fails(belt: Belt) -> None:
    stage = await kubespray(belt)
    ended = await stage.play({"moderator": "fail"})
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert {each.step.partition("[")[0] for each in ended.dispatches} == {"unit-tests", "moderator"}


async def test_p06_cancelled_in_a_stage(belt: Belt) -> None:
    stage = await kubespray(belt)
    run = await stage.start({"deploy-part2": "hold"})
    await stage.until_given(run, "deploy-part2[0]", "deploy-part2[1]")
    assert (await stage.cli("run", "cancel", run)).code == 0
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("CANCELLED", 5)
    assert ran(ended, "clean-part2") == ran(ended, "deploy-part2")
    assert {ended.states[each] for each in ("deploy-part2[0]", "deploy-part2[1]")} == {"CANCELLED"}


# P09, cpython

BUILDS = {"check-abi", "check-generated-files", "build-win32", "build-win-amd64", "build-macos", "build-ubuntu"}
SSL = ["build-ubuntu-ssltests[0]", "build-ubuntu-ssltests[1]"]


async def cpython(belt: Belt) -> tuple[Stage, dict[str, set[str]]]:
    """P09 with a worker for each system; which steps each of them got."""
    stage = await staged(belt, "p09-cpython-build.yaml", "p09", workers=False)
    by: dict[str, set[str]] = {system: set() for system in ("ubuntu", "windows", "macos")}
    for system, steps in by.items():
        stage.work(labels={"os": system}, seen=steps)
    return stage, by


async def test_p09(belt: Belt) -> None:
    stage, by = await cpython(belt)
    ended = await stage.play()
    assert (ended.state, ended.code, len(ended.steps)) == ("SUCCEEDED", 0, 9)
    assert set(ended.steps) == {"check-source", *BUILDS, *SSL}
    assert by["windows"] == {"build-win32", "build-win-amd64"}
    assert by["macos"] == {"build-macos"}
    assert ended.first(SSL[1]).params == {"openssl": "3.0.9"}

    nothing_said = await stage.play({})
    assert (nothing_said.state, nothing_said.code) == ("SUCCEEDED", 0)
    assert nothing_said.steps == ["check-source"]
    assert nothing_said.with_state("SKIPPED") == {*BUILDS, "build-ubuntu-ssltests"}

    no_ssl = await stage.play({"check-source": "output run_tests=true"})
    assert (no_ssl.state, no_ssl.code) == ("SUCCEEDED", 0)
    assert set(no_ssl.steps) == {"check-source", *BUILDS}
    assert no_ssl.with_state("SKIPPED") == {"build-ubuntu-ssltests"}

    first_fails = await stage.play({"check-source": "fail"})
    assert (first_fails.state, first_fails.code) == ("FAILED", 3)
    assert first_fails.with_state("SKIPPED") == {*BUILDS, "build-ubuntu-ssltests"}


async def test_p09_one_instance_fails(belt: Belt) -> None:
    stage, _ = await cpython(belt)
    script = {"check-source": "output run_tests=true run_ssl_tests=true", SSL[0]: "fail", SSL[1]: "hold"}
    run = await stage.start(script)
    await stage.until_given(run, *SSL)
    await belt.until_step(await belt.client.runs.get(run), SSL[0], "FAILED")
    stage.release(SSL[1])
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert (ended.states[SSL[0]], ended.states[SSL[1]]) == ("FAILED", "SUCCEEDED")
    shown = await stage.cli("run", "get", run)
    assert "openssl=1.1.1u" in shown.out
