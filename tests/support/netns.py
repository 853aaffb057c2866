"""A network of its own for a process, joined to ours by a wire on which either direction can be made to lose all."""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import Self


class NoNamespaces(Exception):
    """Networks can't be made here; the text says why."""


class NetworkNamespace:
    """Made on entering, gone after leaving. Methods block, but briefly. Needs root, `ip` and `tc`.

    `ours` is our address on the wire, `theirs` that of whoever runs inside.
    """

    def __init__(self) -> None:
        name = secrets.token_hex(4)
        self.name = f"conveyor-{name}"
        self._our_end, self._their_end = f"cv{name}o", f"cv{name}t"
        # 198.18.0.0/15 is for tests of networks (RFC 2544): nobody routes it.
        high, low = secrets.randbelow(256), 4 * secrets.randbelow(64)
        self.ours, self.theirs = f"198.18.{high}.{low + 1}", f"198.18.{high}.{low + 2}"

    def __enter__(self) -> Self:
        try:
            self._make()
        except NoNamespaces:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def command(self, *command: str) -> list[str]:
        """The command, to be run inside; it has the process id of the process that is started."""
        return ["ip", "netns", "exec", self.name, *command]

    def lose_ours(self) -> None:
        """Nothing that we send arrives inside; what is sent there arrives here."""
        _run("tc", "qdisc", "replace", "dev", self._our_end, "root", "pfifo", "limit", "0")

    def lose_theirs(self) -> None:
        """Nothing that is sent inside arrives here; what we send arrives there."""
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", self._their_end, "root", "pfifo", "limit", "0")

    def heal(self) -> None:
        """Both directions pass again."""
        # A direction that passes has no discipline that could be deleted.
        _run("tc", "qdisc", "del", "dev", self._our_end, "root", check=False)
        _run("tc", "-n", self.name, "qdisc", "del", "dev", self._their_end, "root", check=False)

    def _make(self) -> None:
        if os.geteuid() != 0:
            raise NoNamespaces("not root")
        ours, theirs = self._our_end, self._their_end
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", self.name)
        _run("ip", "address", "add", f"{self.ours}/30", "dev", ours)
        _run("ip", "-n", self.name, "address", "add", f"{self.theirs}/30", "dev", theirs)
        _run("ip", "link", "set", ours, "up")
        _run("ip", "-n", self.name, "link", "set", theirs, "up")
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        # Who is asked for its hardware address has to answer: without these a loss one way soon is one both ways.
        hardware = [_run("cat", f"/sys/class/net/{ours}/address"), self._their_hardware()]
        _run("ip", "neighbour", "replace", self.theirs, "lladdr", hardware[1], "dev", ours, "nud", "permanent")
        _run("ip", "-n", self.name, "neighbour", "replace", self.ours, "lladdr", hardware[0], "dev", theirs)
        self.lose_ours()
        self.lose_theirs()
        self.heal()

    def _their_hardware(self) -> str:
        words = _run("ip", "-n", self.name, "-oneline", "link", "show", self._their_end).split()
        return words[words.index("link/ether") + 1]

    def _remove(self) -> None:
        """The wire goes with its inner end; a socket inside that lingers would keep it for a while otherwise."""
        _run("ip", "link", "del", self._our_end, check=False)
        _run("ip", "netns", "del", self.name, check=False)


def _run(*command: str, check: bool = True) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        if check:
            raise NoNamespaces(f"no {command[0]}") from error
        return ""
    if check and done.returncode:
        raise NoNamespaces(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()
