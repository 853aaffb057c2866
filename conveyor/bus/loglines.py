"""Log lines as JSON, ours and those of older drivers. No I/O.

A body is one object or a list of them:
`{"driver","message","pipeline","runid","timestamp","step","attempt","seq","stream","time"}`, where older drivers send
the first five only. `partial`, `lost`, `part` and `parts` stand only where they say something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.bus import subjects, values
from conveyor.v1 import log_pb2

MAX_LINE_BYTES = 256 * 1024
"""Of text in UTF-8; longer lines are split."""
MAX_BODY_BYTES = 512 * 1024
"""Of a batch; a single line may need a little more."""
_MAX_ENCODED_BYTES = 384 * 1024
"""Of a line as JSON, where control characters take six bytes each."""

_NAMES = {
    log_pb2.LOG_STREAM_LOG: "log",
    log_pb2.LOG_STREAM_STDOUT: "stdout",
    log_pb2.LOG_STREAM_STDERR: "stderr",
}
_STREAMS = {name: stream for stream, name in _NAMES.items()}


class StoredLine(NamedTuple):
    """A line, or one of the `parts` that the server made of a longer one; they share its number."""

    line: log_pb2.LogLine
    part: int = 0
    parts: int = 1


def split_line(line: log_pb2.LogLine) -> list[StoredLine]:
    """The line in parts that are small enough; all but the last are marked as partial."""
    if len(line.text) <= MAX_LINE_BYTES // 4 or _fits(line.text):
        return [StoredLine(line)]
    texts = _pieces(line.text)
    parts = []
    for i, text in enumerate(texts):
        part = log_pb2.LogLine()
        part.CopyFrom(line)
        part.text = text
        part.partial = line.partial or i < len(texts) - 1
        parts.append(StoredLine(part, i, len(texts)))
    return parts


def encode_line(stored: StoredLine, *, pipeline: str = "") -> str:
    """One line as a JSON object."""
    line, part, parts = stored
    time = line.time
    body: dict[str, Any] = {
        "driver": line.driver,
        "message": line.text,
        "pipeline": pipeline,
        "runid": line.run,
        "timestamp": str(time.seconds),
        "step": line.step,
        "attempt": line.attempt,
        "seq": line.seq,
        "stream": _NAMES.get(line.stream, ""),
        "time": time.ToJsonString() if line.HasField("time") else "",
    }
    if line.partial:
        body["partial"] = True
    if line.lost:
        body["lost"] = line.lost
    if parts > 1:
        body["part"] = part
        body["parts"] = parts
    return values.dumps(body)


def join(lines: Sequence[str]) -> bytes:
    """The body that holds these encoded lines."""
    return (lines[0] if len(lines) == 1 else f"[{','.join(lines)}]").encode()


def decode_lines(subject: str, body: bytes) -> list[StoredLine]:
    """The lines in a message of stream `logs`. What is no JSON of ours becomes a line as it is: logs lose nothing."""
    where = subjects.parse_logs(subject)
    run, step = (where.run, where.step) if where else ("", "")
    try:
        items = values.loads(body)
    except ValueError:
        items = None
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        line = log_pb2.LogLine(run=run, step=step, text=body.decode(errors="replace"))
        return split_line(line)
    lines: list[StoredLine] = []
    for item in items:
        lines += _decode(item, run, step)
    return lines


def _decode(item: dict[str, Any], run: str, step: str) -> list[StoredLine]:
    text = item.get("message", "")
    line = log_pb2.LogLine(
        run=run,
        step=step or _text(item.get("step")),
        attempt=_number(item.get("attempt"), 32),
        seq=_number(item.get("seq"), 64),
        text=values.utf8(text) if isinstance(text, str) else values.dumps(text),
        stream=_STREAMS.get(_text(item.get("stream")), log_pb2.LOG_STREAM_LOG),
        partial=item.get("partial") is True,
        driver=_text(item.get("driver")),
        lost=_number(item.get("lost"), 64),
    )
    time = _time(item)
    if time is not None:
        line.time.CopyFrom(time)
    parts = _number(item.get("parts"), 32)
    if parts > 1:
        return [StoredLine(line, _number(item.get("part"), 32), parts)]
    return split_line(line)


def _time(item: dict[str, Any]) -> Timestamp | None:
    """`time` (RFC 3339), else `timestamp` (seconds)."""
    text = _text(item.get("time"))
    if text:
        try:
            moment = datetime.fromisoformat(text)
            seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
        except (ValueError, OverflowError):
            pass
        else:
            return Timestamp(seconds=seconds, nanos=_nanos(text))
    seconds = _number(item.get("timestamp"), 35)
    return Timestamp(seconds=seconds) if seconds else None


def _nanos(text: str) -> int:
    """The fraction of a second in a time text, which `datetime` would cut after microseconds."""
    _, point, rest = text.partition(".")
    digits = rest.rstrip("Zz").partition("+")[0].partition("-")[0]
    return int(digits[:9].ljust(9, "0")) if point and digits.isdigit() else 0


def _text(value: Any) -> str:
    return values.utf8(value) if isinstance(value, str) else ""


def _number(value: Any, bits: int) -> int:
    """A number that is not negative, given as a number or as its digits; 0 for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        return 0
    return value


def _fits(text: str) -> bool:
    return len(text.encode()) <= MAX_LINE_BYTES and len(json.dumps(text, ensure_ascii=False)) <= _MAX_ENCODED_BYTES


def _pieces(text: str) -> list[str]:
    """Cuts between characters, never within one."""
    pieces = []
    data = text.encode()
    start = 0
    while start < len(data):
        end = min(start + MAX_LINE_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(data[start:end].decode())
        start = end
    # Control characters grow: halve what is too long as JSON.
    fitting: list[str] = []
    while pieces:
        piece = pieces.pop(0)
        if _fits(piece) or len(piece) < 2:
            fitting.append(piece)
        else:
            middle = len(piece) // 2
            pieces[:0] = [piece[:middle], piece[middle:]]
    return fitting
