"""Deliberate bugs in what expressions come to."""

from __future__ import annotations

from dataclasses import replace

from conveyor.core.inputs import Seen, Verdict
from conveyor.expressions.program import RunInputs
from conveyor.v1 import run_pb2
from tests.faults.plant import plant, put


@plant("a step runs whatever its condition says", 3, faults=("kill-grpc-driver",))
def conditions_are_ignored() -> None:
    judge = RunInputs.judge

    def lax(self: RunInputs, index: int, seen: Seen) -> Verdict:
        verdict = judge(self, index, seen)
        return Verdict() if verdict.reason == run_pb2.STEP_REASON_CONDITION_FALSE else verdict

    put(RunInputs, "judge", lax)


@plant("a step whose input is missing runs with a hole in it", 3, faults=("kill-grpc-driver",))
def missing_inputs_run() -> None:
    judge = RunInputs.judge

    def lax(self: RunInputs, index: int, seen: Seen) -> Verdict:
        verdict = judge(self, index, seen)
        return Verdict() if verdict.reason == run_pb2.STEP_REASON_INPUT_MISSING else verdict

    put(RunInputs, "judge", lax)


@plant("some steps are not given what their expressions come to", 3, faults=("kill-grpc-driver",))
def params_are_lost() -> None:
    judge = RunInputs.judge

    def forgetful(self: RunInputs, index: int, seen: Seen) -> Verdict:
        verdict = judge(self, index, seen)
        return replace(verdict, params=b"") if index % 3 == 0 else verdict

    put(RunInputs, "judge", forgetful)
