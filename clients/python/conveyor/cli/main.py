"""The entry of the command `conveyor`: turns everything that can happen into an exit code and one clear line."""

import io
import os
import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    except KeyboardInterrupt:
        code = 130
    if code >= 128:
        # Somebody wants it to end now: what is buffered, and what gRPC still does, is left alone.
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    _warn_of_shadow()
    _set_encodings()
    try:
        from conveyor.cli.dispatch import dispatch

        return dispatch(sys.argv[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "ruamel"}:
            raise
        print(f"error: {error.name} is missing: pip install 'conveyor-client[cli]'", file=sys.stderr)
        return 1


def _set_encodings() -> None:
    """Print any text: to programs as UTF-8 whatever the locale, to a terminal as well as that can."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _warn_of_shadow() -> None:
    """Say so when another distribution owns `conveyor`, which is a namespace without a file of its own."""
    import conveyor

    path = getattr(conveyor, "__file__", None)
    if path is not None:
        print(
            f"warning: an older package named conveyor shadows this one ({path}): "
            "pip uninstall conveyor, then install conveyor-client[cli] (and the server) again",
            file=sys.stderr,
        )
