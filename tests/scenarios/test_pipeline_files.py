"""The pipelines of examples/pipelines whose point is order and conditions: P01, P02 and P04, scenario by scenario."""

from __future__ import annotations

from tests.support.belt import Belt, reason
from tests.support.pipeline_files import FOLDER, Played, staged

ORDER_P01 = [
    ("git-clone", "precheck"),
    ("precheck", "unit-tests"),
    ("precheck", "build"),
    ("unit-tests", "publish-images"),
    ("build", "publish-images"),
    ("publish-images", "publish-to-bucket"),
    ("publish-images", "publish-to-bucket-latest"),
    ("publish-to-bucket", "report-bucket"),
]


def in_order(played: Played, pairs: list[tuple[str, str]]) -> bool:
    """Whether each pair was given out in this order, where both were at all."""
    steps = played.steps
    return all(steps.index(a) < steps.index(b) for a, b in pairs if a in steps and b in steps)


async def test_the_whole_folder_is_applied(belt: Belt) -> None:
    stage = await staged(belt, "p04-argo-enhanced-depends.yaml", "p04", workers=False)
    applied = await stage.cli("apply", "-f", str(FOLDER))
    assert applied.code == 0, applied.err
    for file in FOLDER.glob("p*.yaml"):
        name = f"pipeline/{next(line[6:] for line in file.read_text().splitlines() if line.startswith('name: '))}"
        assert name in applied.out, applied.out
        drawn = await stage.cli("pipeline", "graph", name.removeprefix("pipeline/"))
        assert drawn.code == 0, drawn.err


# P01, tektoncd: edges that are order only


async def test_p01(belt: Belt) -> None:
    stage = await staged(belt, "p01-tekton-release.yaml", "p01")
    everything = await stage.play()
    assert (everything.state, everything.code, len(everything.steps)) == ("SUCCEEDED", 0, 8)
    assert in_order(everything, ORDER_P01)
    assert everything.data("git-clone")["commit"] == "0665f10"
    assert everything.data("report-bucket")["release"] == "gs://tekton-releases-nightly/v1.2.0"

    no_tests = await stage.play(runTests="false")
    assert (no_tests.state, no_tests.code) == ("SUCCEEDED", 0)
    assert no_tests.with_state("SKIPPED") == {"unit-tests", "build"}
    assert len(no_tests.steps) == 6
    assert in_order(no_tests, ORDER_P01)

    not_latest = await stage.play(releaseAsLatest="false")
    assert (not_latest.state, not_latest.code) == ("SUCCEEDED", 0)
    assert not_latest.with_state("SKIPPED") == {"publish-to-bucket-latest"}
    assert not_latest.data("report-bucket")["release"] == "gs://tekton-releases-nightly/v1.2.0"


async def test_p01_a_test_fails_while_the_build_runs(belt: Belt) -> None:
    stage = await staged(belt, "p01-tekton-release.yaml", "p01")
    run = await stage.start({"unit-tests": "fail", "build": "hold"})
    await stage.until_given(run, "unit-tests", "build")
    await belt.until_step(await belt.client.runs.get(run), "unit-tests", "FAILED")
    stage.release("build")
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert ended.states["build"] == "SUCCEEDED"
    assert sorted(ended.steps) == ["build", "git-clone", "precheck", "unit-tests"]


async def test_p01_a_required_parameter_is_missing(belt: Belt) -> None:
    stage = await staged(belt, "p01-tekton-release.yaml", "p01", workers=False)
    text = (FOLDER / "p01-tekton-release.yaml").read_text().replace("  versionTag: v1.2.0\n", "")
    refused = await stage.cli("apply", "-f", "-", stdin=text)
    assert refused.code == 1
    assert "versionTag" in refused.err


# P02, konflux: edges that carry data, and a final step

SCANS = {
    "deprecated-base-image-check",
    "clair-scan",
    "ecosystem-cert-preflight-checks",
    "sast-snyk-check",
    "clamav-scan",
    "coverity-availability-check",
    "sast-shell-check",
    "sast-unicode-check",
    "rpms-signature-scan",
}
OUTPUTS = {
    "init": "output build=true",
    "clone-repository": "output commit=1 url=https://example.org/app.git",
    "build-container": "output IMAGE_URL=i",
    "build-image-index": "output IMAGE_URL=i IMAGE_DIGEST=d",
    "coverity-availability-check": "output STATUS=success",
}


async def test_p02(belt: Belt) -> None:
    stage = await staged(belt, "p02-konflux-docker-build.yaml", "p02")
    everything = await stage.play(build_source_image="true")
    assert (everything.state, everything.code) == ("SUCCEEDED", 0)
    assert len(everything.steps) == len(set(everything.steps)) == 19
    assert everything.steps[-1] == "show-summary"
    assert everything.steps.index("sast-coverity-check") > everything.steps.index("coverity-availability-check")

    no_checks = await stage.play(skip_checks="true")
    assert (no_checks.state, no_checks.code) == ("SUCCEEDED", 0)
    assert no_checks.with_state("SKIPPED") == {*SCANS, "sast-coverity-check", "build-source-image"}
    assert {"apply-tags", "push-dockerfile", "show-summary"} <= set(no_checks.steps)

    not_there = await stage.play({**OUTPUTS, "coverity-availability-check": "output STATUS=failure"})
    assert (not_there.state, not_there.code) == ("SUCCEEDED", 0)
    assert not_there.with_state("SKIPPED") == {"sast-coverity-check", "build-source-image"}


async def test_p02_nothing_is_to_be_built(belt: Belt) -> None:
    stage = await staged(belt, "p02-konflux-docker-build.yaml", "p02")
    ended = await stage.play({"init": "output build=false"})
    assert (ended.state, ended.code) == ("SUCCEEDED", 0)
    assert ended.steps == ["init", "prefetch-dependencies", "show-summary"]
    assert ended.first("show-summary").params == {
        "build": "SKIPPED",
        "image": "",
        "url": "https://example.org/app.git",
    }


async def test_p02_a_scan_fails_beside_others(belt: Belt) -> None:
    stage = await staged(belt, "p02-konflux-docker-build.yaml", "p02")
    run = await stage.start({**OUTPUTS, "clair-scan": "fail", "clamav-scan": "hold"})
    await stage.until_given(run, "clair-scan", "clamav-scan")
    await belt.until_step(await belt.client.runs.get(run), "clair-scan", "FAILED")
    stage.release("clamav-scan")
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert ended.states["clamav-scan"] == "SUCCEEDED"
    assert ended.steps[-1] == "show-summary"
    assert ended.first("show-summary").params["build"] == "SUCCEEDED"


async def test_p02_cancelled_in_the_fan_out(belt: Belt) -> None:
    stage = await staged(belt, "p02-konflux-docker-build.yaml", "p02")
    held = dict.fromkeys(SCANS, "hold")
    run = await stage.start({**OUTPUTS, **held})
    await stage.until_given(run, *SCANS)
    cancelled = await stage.cli("run", "cancel", run)
    assert cancelled.code == 0, cancelled.err
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("CANCELLED", 5)
    assert ended.with_state("CANCELLED") >= SCANS
    assert ended.steps[-1] == "show-summary"
    assert ended.states["show-summary"] == "SUCCEEDED"


# P04, argo: what depends on an outcome


async def test_p04(belt: Belt) -> None:
    stage = await staged(belt, "p04-argo-enhanced-depends.yaml", "p04")
    one_fails = await stage.play()
    assert (one_fails.state, one_fails.code, reason(one_fails.run)) == ("FAILED", 3, "STEP_FAILED")
    assert sorted(one_fails.steps) == ["a", "b", "c", "x1", "x2", "x3"]
    assert one_fails.states["n"] == "SKIPPED"

    none_fails = await stage.play({})
    assert (none_fails.state, none_fails.code) == ("SUCCEEDED", 0)
    assert sorted(none_fails.steps) == ["a", "b", "c", "n", "x1", "x2", "x3"]

    first_fails = await stage.play({"a": "fail"})
    assert (first_fails.state, first_fails.code) == ("FAILED", 3)
    assert first_fails.steps == ["a"]
    assert first_fails.with_state("SKIPPED") == {"b", "c", "n", "x1", "x2", "x3"}


async def test_p04_waits_until_it_is_decided(belt: Belt) -> None:
    """Although b alone would do, x2 waits for c, and then starts once."""
    stage = await staged(belt, "p04-argo-enhanced-depends.yaml", "p04")
    run = await stage.start({"c": "hold"})
    await stage.until_given(run, "b", "c")
    await belt.until_step(await belt.client.runs.get(run), "b", "SUCCEEDED")
    assert "x2" not in {each.step for each in stage.given(run)}
    stage.release("c")
    assert (await stage.ended(run)).steps.count("x2") == 1
