"""The waits between attempts."""

import random


class Backoff:
    """The waits between attempts: exponential, with full jitter in their upper half.

    Seconds; `reset` starts over. Not for use by several tasks or threads.
    """

    def __init__(self, first: float = 0.1, longest: float = 5.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """Forget the failures."""
        self._next = self._first

    def next(self) -> float:
        """The next wait."""
        wait = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._longest)
        return wait
