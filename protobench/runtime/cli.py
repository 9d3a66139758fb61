"""How every script of the suite starts and ends: flags by tyro, errors in one form, exit codes in
one place."""

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
"""Exit codes, after diff(1). 75: stopped by SIGTERM, 130: by Ctrl-C; everything finished until then
is kept."""
UNREAD = 141
"""The reader of our output, ``head`` for example, has seen enough. Shells show it for any tool that
writes on into a closed pipe; 0 would say that a table agrees with its paper when the verdict may
not have been reached."""

PATIENCE = 5.0
"""Seconds after which a process of several tells an error that the first one has not had."""

T = TypeVar("T")


def _terminated(*_: Any) -> None:
    raise Terminated


def parse(config: Callable[..., T], description: str, args: Sequence[str] | None = None) -> T:
    """Reads the command line into ``config``, a dataclass; unknown flags are refused with the
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
    """Runs ``main`` and exits: its return value, 2 with a plain message on UserError, 130 on
    Ctrl-C, 141 where nobody reads on.

    ``--debug`` anywhere on the command line shows the traceback of a user's mistake too.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names of files may hold what cannot be printed; stderr does so anyway
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
    """The code that ``main`` returns or exits with, as the parser does after --help, when all that
    was printed is written."""
    try:
        code: Any = main() or SAME
    except SystemExit as ending:
        code = ending.code
    if sys.stdout:
        sys.stdout.flush()
    return code


def _unread() -> bool:
    """Whether the reader of our output or messages is gone, so that it is our own pipe that has
    broken."""
    gone = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # no file, or none at all
            gone.register(stream.fileno(), 0)  # asked for nothing, poll tells of errors alone
    return bool(gone.poll(0))


def _discard_unwritten() -> None:
    """Sends what could not be written to nowhere: Python would try again at exit, with a message
    and a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str, debug: bool) -> None:
    """Prints an error. Of several processes the first does so at once; torchrun then ends the
    others, which would repeat it."""
    if debug:
        _say(traceback.format_exc().rstrip())
    if rank := _rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        text = f"process {rank}: {text}"
    _say(text)


def _say(text: str) -> None:
    """Prints a message, if anybody reads it: the exit code tells the same."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr)


def _rank() -> int:
    """Of this process in a torchrun."""
    return int(os.environ.get("RANK", "0"))
