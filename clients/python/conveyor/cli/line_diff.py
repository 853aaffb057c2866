"""Unified diffs of long texts in short time.

Lines that stand once in both texts are matched first, as patience diff does: in YAML they are the lines that name
things. The matcher of the standard library is quadratic, and so it sees only what is between two of them.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher

# The standard library's matcher sees no more than so many pairs of lines.
_MAX_PAIRS = 250_000


def unified_diff(old: Sequence[str], new: Sequence[str], old_name: str, new_name: str) -> Iterator[str]:
    """The lines of a unified diff, without line ends; none when the texts are the same."""
    groups = list(_Matcher(old, new).get_grouped_opcodes()) if old != new else []
    if groups:
        yield f"--- {old_name}"
        yield f"+++ {new_name}"
    for group in groups:
        (_, old_from, _, new_from, _), (_, _, old_to, _, new_to) = group[0], group[-1]
        yield f"@@ -{_range(old_from, old_to)} +{_range(new_from, new_to)} @@"
        for kind, a, b, c, d in group:
            if kind == "equal":
                yield from (f" {line}" for line in old[a:b])
            else:
                yield from (f"-{line}" for line in old[a:b])
                yield from (f"+{line}" for line in new[c:d])


def _range(start: int, end: int) -> str:
    length = end - start
    # An empty range is named by the line before it.
    first = start + 1 if length else start
    return f"{first}" if length == 1 else f"{first},{length}"


class _Matcher(SequenceMatcher[str]):
    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new, autojunk=False)
        self._old = old
        self._new = new

    def get_matching_blocks(self) -> list[Match]:
        blocks: list[Match] = []
        for i, j in _pairs(self._old, self._new, 0, 0):
            if blocks and (i, j) == (blocks[-1].a + blocks[-1].size, blocks[-1].b + blocks[-1].size):
                blocks[-1] = blocks[-1]._replace(size=blocks[-1].size + 1)
            else:
                blocks.append(Match(i, j, 1))
        return [*blocks, Match(len(self._old), len(self._new), 0)]


def _pairs(old: Sequence[str], new: Sequence[str], i: int, j: int) -> Iterator[tuple[int, int]]:
    """The positions of lines that are the same in both, in order; the texts begin at `i` and `j` of the whole ones."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    yield from ((i + n, j + n) for n in range(head))
    yield from _inner(old[head : len(old) - tail], new[head : len(new) - tail], i + head, j + head)
    yield from ((i + len(old) - n, j + len(new) - n) for n in range(tail, 0, -1))


def _inner(old: Sequence[str], new: Sequence[str], i: int, j: int) -> Iterator[tuple[int, int]]:
    """The same for texts that neither begin nor end with the same line."""
    anchors = _anchors(old, new)
    if not anchors:
        if len(old) * len(new) <= _MAX_PAIRS:
            for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
                yield from ((i + block.a + n, j + block.b + n) for n in range(block.size))
        return
    a = b = 0
    for x, y in [*anchors, (len(old), len(new))]:
        yield from _pairs(old[a:x], new[b:y], i + a, j + b)
        if x < len(old):
            yield i + x, j + y
        a, b = x + 1, y + 1


def _anchors(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Where lines stand that both texts have once: the longest row of them that is in order in both."""
    counts = Counter(old), Counter(new)
    places = {line: y for y, line in enumerate(new) if counts[0][line] == counts[1][line] == 1}
    found = [(x, places[line]) for x, line in enumerate(old) if line in places]
    # Of all rows of one length, the end of the one that ends first, and what was before each.
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, (_, y) in enumerate(found):
        length = bisect(ends, y)
        ends[length : length + 1] = [y]
        last[length : length + 1] = [index]
        before.append(last[length - 1] if length else -1)
    row: list[tuple[int, int]] = []
    at = last[-1] if last else -1
    while at >= 0:
        row.append(found[at])
        at = before[at]
    return row[::-1]
