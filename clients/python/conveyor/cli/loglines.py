"""Prints log lines."""

import sys
from contextlib import suppress

from conveyor.cli.encode import encode
from conveyor.cli.output import print_line
from conveyor.cli.terminal import harmless, is_terminal, use_colour
from conveyor.v1.log_pb2 import LogLine


class LogPrinter:
    """Writes lines to standard output: with their steps before them, and harmless when that is a terminal."""

    def __init__(self, *, json: bool = False, timestamps: bool = False, raw: bool = False) -> None:
        self._json = json
        self._timestamps = timestamps
        self._raw = raw
        self._terminal = is_terminal(sys.stdout)
        self._colours = use_colour(sys.stdout)
        self._open: str | None = None
        """The prefix of the line that goes on, when the last one was a part."""
        self._unflushed = False

    def write(self, line: LogLine, way: str = "") -> bool:
        """Write a line; True when a flush is due that nobody was told of yet.

        `way` are the steps that lead to its run, from the one that was asked for.
        """
        if self._json:
            print_line(encode(line))
            return False
        prefix = self._prefix(line, way)
        if line.lost:
            self._put(self._ended() + self._start(line, prefix) + f"… {line.lost} lines were lost\n")
        else:
            start = "" if self._open == prefix else self._ended() + self._start(line, prefix)
            self._open = prefix if line.partial else None
            self._put(start + self._shown(line.text) + ("" if line.partial else "\n"))
        due, self._unflushed = not self._unflushed, True
        return due

    def flush(self) -> None:
        """Show what was written."""
        self._unflushed = False
        # Whoever watches the pipe ends the command.
        with suppress(BrokenPipeError):
            sys.stdout.flush()

    def close(self) -> None:
        """End a line that was to go on."""
        self._put(self._ended())
        sys.stdout.flush()

    def _put(self, text: str) -> None:
        if self._terminal:
            sys.stdout.write(text)
        else:
            # Exactly as it was sent, whatever the locale and the line ends of this system.
            sys.stdout.buffer.write(text.encode())

    def _ended(self) -> str:
        ended, self._open = "\n" if self._open is not None else "", None
        return ended

    def _start(self, line: LogLine, prefix: str) -> str:
        if self._timestamps and line.HasField("time"):
            return f"{line.time.ToJsonString()} {prefix}"
        return prefix

    def _prefix(self, line: LogLine, way: str) -> str:
        if self._raw:
            return ""
        name = way + (line.step or line.driver)
        if line.attempt > 1:
            name = f"{name}#{line.attempt}"
        return f"[{name}] " if name else ""

    def _shown(self, text: str) -> str:
        return harmless(text, colours=self._colours) if self._terminal and not self._raw else text
