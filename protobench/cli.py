"""How every script of the suite starts and ends: flags by tyro, errors in one form, exit codes in one place."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from protobench.errors import UserError

SAME, DIFFERS, TROUBLE, INCOMPLETE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""Exit codes, after diff(1). 75: stopped by SIGTERM, 130: by Ctrl-C; everything finished until then is kept."""

T = TypeVar("T")


class Terminated(BaseException):
    """SIGTERM, as schedulers send it."""


def _terminated(*_) -> None:
    raise Terminated


def parse(config: Callable[..., T], description: str, args: Sequence[str] | None = None) -> T:
    """Reads the command line into ``config``, a dataclass; unknown flags are refused with the nearest known one."""
    import tyro

    return tyro.cli(
        config,
        description=description + "\n\n--debug, anywhere, shows the traceback of an error.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs),
    )


def scored(config: Callable[..., T], description: str, evaluate: Callable[[T], Path | None],
           report: Callable[[dict[str, Any]], str]) -> int:
    """The command line of an evaluation: reads ``config``, evaluates, prints a report of the record and its path."""
    from protobench import records

    if path := evaluate(parse(config, description)):
        print(report(records.read(path)))
        print(f"record: {path}")
    return SAME


def run(main: Callable[[], int | None]) -> None:
    """Runs ``main`` and exits: its return value, 2 with a plain message on UserError, 130 on Ctrl-C.

    ``--debug`` anywhere on the command line shows the traceback of a user's mistake too.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main() or SAME
    except UserError as mistake:
        if debug:
            traceback.print_exc()
        print(mistake, file=sys.stderr)
        code = TROUBLE
    except BrokenPipeError:  # the reader, head for example, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left is flushed there at exit)
        code = SAME
    except (KeyboardInterrupt, Terminated) as stop:
        print("\nstopped; what was finished is kept, the same command continues", file=sys.stderr)
        code = STOPPED if isinstance(stop, Terminated) else INTERRUPTED
    except Exception as surprise:
        if debug:
            traceback.print_exc()
        print(f"error: {type(surprise).__name__}: {surprise}\n  hint: --debug shows where", file=sys.stderr)
        code = TROUBLE
    sys.stdout.flush()
    sys.exit(code)


def choose(what: str, name: str, known: Sequence[str]) -> str:
    """``name`` if it is known, otherwise a UserError with "did you mean"."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}", hint=f"{hint}known: {', '.join(known)}")
