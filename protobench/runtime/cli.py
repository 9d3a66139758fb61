"""How every script starts and ends: flags by tyro, errors in one format, exit codes in one
place."""

import contextlib
import io
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from protobench.runtime import resource_errors
from protobench.runtime.errors import Terminated, UserError, choose

SAME, DIFFERS, TROUBLE, INCOMPLETE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""Exit codes, after diff(1). 75: stopped by SIGTERM, 130: by Ctrl-C; what was finished is kept."""
UNREAD = 141
"""The exit code when the reader of our output, for example ``head``, has closed the pipe, as shells
show it for any tool. 0 would say that a table agrees with its paper, which may be undecided."""

PATIENCE = 5.0
"""Seconds before ranks other than 0 print their error, so that rank 0's comes first."""

T = TypeVar("T")


def _terminated(*_: Any) -> None:
    raise Terminated


def parse(config: Callable[..., T], description: str, args: Sequence[str] | None = None) -> T:
    """Reads the command line into ``config``, a dataclass. Refuses unknown flags, naming the
    nearest known one."""
    import tyro

    return tyro.cli(
        config,
        description=description + "\n\n--debug, anywhere, shows the traceback of an error.",
        args=args,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.CascadeSubcommandArgs,
        ),
    )


class Command(Protocol):
    """A subcommand: a dataclass whose fields are its flags."""

    def run(self) -> int | None:
        """Does the work and returns the exit code; None is 0."""


def dispatch(
    commands: Mapping[str, type[Command]], description: str, *, elsewhere: Sequence[str] = ()
) -> int:
    """Runs the subcommand that the command line names first and returns its exit code; without one,
    or for --help, prints ``description``.

    Raises UserError for an unknown name, which may also be meant for one that the caller handles
    ``elsewhere``."""
    name, args = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(description)
        return SAME
    command = commands[choose("command", name, (*commands, *elsewhere))]
    return parse(command, description, args).run() or SAME


def run(main: Callable[[], int | None]) -> None:
    """Runs ``main`` and exits with its return value; with 2 and a plain message on an error, 75 on
    SIGTERM, 130 on Ctrl-C, 141 if the reader of our output is gone.

    ``--debug`` anywhere on the command line also shows the traceback of an error."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # file names may hold what cannot be printed; stderr does this anyway
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGUSR2, _terminated)
    try:
        code = _called(main)
    except UserError as mistake:
        _complain(str(mistake), debug)
        code = TROUBLE
    except BrokenPipeError as failure:
        code = UNREAD if _unread() else TROUBLE
        if code == TROUBLE:
            _complain(
                f"error: a process that this one talks to has died: {failure}\n  hint: --debug"
                " shows where",
                debug,
            )
    except (KeyboardInterrupt, Terminated) as stop:
        if _rank() == 0:
            _say("\nstopped; what was finished is kept, the same command continues")
        code = STOPPED if isinstance(stop, Terminated) else INTERRUPTED
    except Exception as surprise:
        known: Any = resource_errors.explained(surprise)
        if "WORLD_SIZE" in os.environ and re.search("closed by peer|reset by peer", str(surprise)):
            known = "error: another process has failed; its message is above"
        _complain(
            str(
                known
                or f"error: {type(surprise).__name__}: {surprise}\n  hint: --debug shows where"
            ),
            debug,
        )
        code = TROUBLE
    _discard_unwritten()
    sys.exit(code)


def _called(main: Callable[[], int | None]) -> Any:
    """Returns the code that ``main`` returns, or exits with as the parser does after --help, once
    everything printed is written."""
    try:
        code: Any = main() or SAME
    except SystemExit as ending:
        code = ending.code
    if sys.stdout:
        sys.stdout.flush()
    return code


def _unread() -> bool:
    """Whether the reader of our output or messages is gone, so that the broken pipe is our own."""
    gone = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # no file, or none at all
            gone.register(stream.fileno(), 0)  # for no event, poll reports only errors
    return bool(gone.poll(0))


def _discard_unwritten() -> None:
    """Discards what could not be written: Python would try again at exit, and exit with its own
    message and code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str, debug: bool) -> None:
    """Prints an error. Rank 0 prints at once; torchrun then ends the others before they repeat
    it."""
    if debug:
        _say(traceback.format_exc().rstrip())
    if rank := _rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        text = f"process {rank}: {text}"
    _say(text)


def _say(text: str) -> None:
    """Prints a message, unless nobody reads it: the exit code says the same."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr)


def _rank() -> int:
    """The rank that torchrun gave this process."""
    return int(os.environ.get("RANK", "0"))
