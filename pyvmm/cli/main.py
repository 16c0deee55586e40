"""The `pyvmm` command: finds the verb, runs it, and turns what went wrong into one line and an exit status.

May import the verbs, each only when it is asked for, and what all of them share: errors and progress.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys

from pyvmm.cli.progress import log
from pyvmm.errors import STATUS_USAGE, STATUS_VMM_ERROR, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, Protocol

    class Verb(Protocol):
        """A module of this package."""

        HELP: str

        def main(self, argv: list[str]) -> int: ...


RUNNING = ("ps", "stop", "kill", "pause", "resume", "inspect", "stat", "logs", "attach")
"""Those of `pyvmm.cli.running`."""
VERBS = ("run", "doctor", "image", *RUNNING, "exec", "balloon", "net", "disk", "snapshot", "trace", "kconfig", "lesson")
STATUS_SIGINT = 128 + 2
STATUS_SIGPIPE = 128 + 13


leaving = False
"""Whether the process ends as soon as `main` returns: nothing then needs to be given back that the kernel takes."""


def process() -> NoReturn:
    """The command `pyvmm`, a process of its own: `main`, and the end of the process there and then.

    What the interpreter does at its end (taking every module apart, a last look for garbage) the kernel does better.
    """
    global leaving
    leaving = True
    if sys.argv[1:2] == ["run"]:
        gc.disable()  # of what a start makes nothing is garbage; `run` enables it when the guest runs
    status = main()
    atexit._run_exitfuncs()
    _drop_unwritten()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own); returns the exit status."""
    try:
        _open_standard_descriptors()
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        _flush()
        return status
    except KeyboardInterrupt:  # in a verb, or at an instant, that does not catch the signal
        return STATUS_SIGINT
    except BrokenPipeError:
        return STATUS_SIGPIPE
    except PyvmmError as error:
        log.error(str(error))
        _traceback()
        return error.exit_status
    except OSError as error:
        log.error(_about(error))
        _traceback()
        return STATUS_VMM_ERROR
    except Exception as error:
        hint = "" if log.debugging else " (PYVMM_TRACEBACK=1 shows where)"
        log.error(f"internal error: {type(error).__name__}: {error}{hint}")
        _traceback()
        return STATUS_VMM_ERROR
    finally:
        _drop_unwritten()


def _dispatch(argv: list[str]) -> int:
    if not argv:
        log.error(f"error: no verb given (expected {', '.join(VERBS)})")
        log.error("usage: pyvmm VERB ... (pyvmm --help explains)")
        return STATUS_USAGE
    verb, *rest = argv
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(version())
        return 0
    if verb not in VERBS:
        log.error(f"error: unknown verb {verb!r} (expected {', '.join(VERBS)})")
        return STATUS_USAGE
    if verb != "run":  # whose standard output is the guest's
        _write_any_text()
    return _load(verb).main(rest)


def version() -> str:
    """The line that `--version` shows."""
    from pyvmm import __version__

    return f"pyvmm {__version__}"


def _load(verb: str) -> Verb:
    if verb == "run":  # by name: importlib has a price that the run path need not pay
        from pyvmm.cli import run

        return run
    if verb in RUNNING:
        from pyvmm.cli import running

        return running.RUNNING[verb]
    from importlib import import_module

    module: Verb = import_module(f"pyvmm.cli.{verb}")
    return module


def _help() -> str:
    lines = ["usage: pyvmm VERB ...", "", "A KVM virtual machine monitor.", "", "verbs:"]
    lines += [f"  {verb:<10}{_load(verb).HELP}" for verb in VERBS]
    lines += ["", "pyvmm VERB --help explains each; pyvmm --version shows the version."]
    return "\n".join(lines)


def _open_standard_descriptors() -> None:
    """Give 0, 1 and 2 a meaning where the caller has closed them, lest the next file opened become one of them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Read-only for all three: writing to a closed output stays an error (EBADF).
            os.open("/dev/null", os.O_RDONLY)


def _write_any_text() -> None:
    """Have text that the terminal's encoding lacks shown as `?`, and names of files that are no text as they are."""
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        unicode = stream.encoding.lower().replace("-", "") == "utf8"
        stream.reconfigure(errors="surrogateescape" if unicode else "replace")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _about(error: OSError) -> str:
    """What failed, with the file or the stream that it was."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}; a process may have as many as `ulimit -n` says"
    if error.filename is None:
        try:
            _flush()
        except OSError as again:  # what could not be written waits for another attempt
            if again.errno == error.errno:
                return f"standard output cannot be written: {error.strerror}"
    return str(error)


def _drop_unwritten() -> None:
    """What could not be written by now shall not fail a second time when the interpreter ends."""
    try:
        _flush()
    except OSError:
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _traceback() -> None:
    if log.debugging:
        import traceback

        log.error(traceback.format_exc())
