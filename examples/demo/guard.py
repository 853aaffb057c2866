"""`guard.py COMMAND…`: runs a command for as long as whoever started this lives, and no longer.

Standard input is the rope between them. When its other end is closed, or goes because its holder was killed, the
command is asked to end, asked again, which most take as an order, and then ended.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

STAGES = ((signal.SIGTERM, 3), (signal.SIGTERM, 5), (signal.SIGKILL, None))


def main() -> None:
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_hold, args=(command,), daemon=True).start()
    status = command.wait()
    sys.exit(status if status >= 0 else 128 - status)


def _hold(command: "subprocess.Popen[bytes]") -> None:
    # Not sys.stdin: its lock must not be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    for number, patience in STAGES:
        command.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            command.wait(patience)
            return


if __name__ == "__main__":
    main()
