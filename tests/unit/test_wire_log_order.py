"""What is stored of lines that come in any way, and what is read of lines that are stored in any way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conveyor.bus.loglines import StoredLine, decode_lines, encode_line, join
from conveyor.logs.attempts import Attempts
from conveyor.logs.reader import Continuity
from conveyor.v1 import log_pb2

SLICES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10), st.booleans()), max_size=30)


def line(seq: int, **fields: int) -> log_pb2.LogLine:
    return log_pb2.LogLine(run="r", step="s", attempt=1, seq=seq, text=f"line {seq}", **fields)


def covered(found: list[log_pb2.LogLine]) -> list[int]:
    """The numbers that lines and marks stand for, in order."""
    return [seq for one in found for seq in range(one.seq - max(1, one.lost) + 1, one.seq + 1)]


@given(SLICES)
def test_whatever_is_sent_each_line_is_stored_once_and_in_order(slices: list[tuple[int, int, bool]]) -> None:
    attempts = Attempts()
    stored: list[StoredLine] = []
    for first, count, gives_up in slices:
        sent = [line(seq) for seq in range(first, first + count)]
        if sent and gives_up:
            sent[0].lost = 1
        stored += attempts.take(sent, "d")
        assert covered([one.line for one in stored]) == list(range(1, attempts.next_seq(1)))
    # Another process learns as much from the lines, and from the note.
    seen, noted = Attempts(), Attempts()
    for one in stored:
        seen.saw(one)
    noted.read_note(seen.note())
    assert seen.next_seq(1) == noted.next_seq(1) == attempts.next_seq(1)
    # A reader sees the same, without marks of its own.
    continuity = Continuity(from_start=True)
    assert [out for one in stored for out in continuity.check(one)] == [one.line for one in stored]


@given(SLICES)
def test_whatever_is_in_the_stream_a_reader_gets_each_line_once_or_a_mark(slices: list[tuple[int, int, bool]]) -> None:
    continuity = Continuity(from_start=True)
    given_lines = [line(seq) for first, count, _ in slices for seq in range(first, first + count)]
    found: list[log_pb2.LogLine] = []
    for one in decode_lines(
        "logs.r.s", join([encode_line(StoredLine(one)) for one in given_lines]) if given_lines else b"[]"
    ):
        found += continuity.check(one)
    assert covered(found) == list(range(1, max((one.seq for one in given_lines), default=0) + 1))


@given(st.integers(0, 3), st.integers(1, 5))
def test_a_line_that_was_stored_in_part_goes_on_with_the_next_part(whole_lines: int, parts_stored: int) -> None:
    text = "x" * (256 * 1024 * 5 + 1)
    long_line = log_pb2.LogLine(run="r", step="s", attempt=1, seq=whole_lines + 1, text=text)
    sent = [line(seq) for seq in range(1, whole_lines + 1)] + [long_line]
    stored = Attempts().take(sent, "d")[: whole_lines + parts_stored]
    again = Attempts()
    for one in stored:
        again.saw(one)
    stored += again.take(sent, "d")
    continuity = Continuity(from_start=True)
    # The first batch came once more, as when an answer was lost.
    found = [out for one in [*stored[: whole_lines + 2], *stored] for out in continuity.check(one)]
    assert "".join(one.text for one in found[whole_lines:]) == text
    assert not any(one.lost for one in found)


def test_lines_that_were_given_up_are_marked_before_the_next() -> None:
    attempts = Attempts()
    attempts.take([line(0)], "d")
    attempts.owe(1, 2)
    stored = attempts.take([line(0), line(0)], "d")
    assert [(one.line.seq, one.line.lost) for one in stored] == [(3, 2), (4, 0), (5, 0)]
