"""How every script of the suite starts and ends: flags by tyro, errors in one form, exit codes in one place."""

import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from protobench import failures
from protobench.errors import UserError
from protobench.notices import notice

SAME, DIFFERS, TROUBLE, INCOMPLETE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""Exit codes, after diff(1). 75: stopped by SIGTERM, 130: by Ctrl-C; everything finished until then is kept."""

PATIENCE = 5.0
"""Seconds after which a process of several tells an error that the first one has not had."""

T = TypeVar("T")


class Terminated(BaseException):
    """SIGTERM, as schedulers send it, or SIGUSR2, as submitit does before the time is over."""


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
    parsed: Any = parse(config, description)

    from protobench import ranks, records

    records.expect(parsed.results)
    if path := evaluate(parsed):
        record = records.read(path)
        print(report(record))
        for text in record.get("warnings", ()):
            notice(f"warning: {text}")
        print(f"record: {path}")
    ranks.leave()
    return SAME


def run(main: Callable[[], int | None]) -> None:
    """Runs ``main`` and exits: its return value, 2 with a plain message on UserError, 130 on Ctrl-C.

    ``--debug`` anywhere on the command line shows the traceback of a user's mistake too.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what cannot be printed; stderr does so anyway
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGUSR2, _terminated)
    try:
        code = main() or SAME
    except UserError as mistake:
        if debug:
            traceback.print_exc()
        _complain(str(mistake))
        code = TROUBLE
    except BrokenPipeError as failure:
        code = _without_reader(failure)
    except (KeyboardInterrupt, Terminated) as stop:
        if _rank() == 0:
            print("\nstopped; what was finished is kept, the same command continues", file=sys.stderr)
        code = STOPPED if isinstance(stop, Terminated) else INTERRUPTED
    except Exception as surprise:
        if debug:
            traceback.print_exc()
        known: Any = failures.explained(surprise)
        if "WORLD_SIZE" in os.environ and re.search("closed by peer|reset by peer", str(surprise)):
            known = "error: another process has failed; its message is above"
        _complain(str(known or f"error: {type(surprise).__name__}: {surprise}\n  hint: --debug shows where"))
        code = TROUBLE
    sys.stdout.flush()
    sys.exit(code)


def _without_reader(failure: BrokenPipeError) -> int:
    """The exit code where a pipe has broken: that to our reader, head for example, which has seen enough, or another."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left is flushed there at exit)
        return SAME
    _complain(f"error: a process that this one talks to has died: {failure}\n  hint: --debug shows where")
    return TROUBLE


def _complain(text: str) -> None:
    """Prints an error. Of several processes the first does so at once; torchrun then ends the others, which would repeat it."""
    if rank := _rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        text = f"process {rank}: {text}"
    print(text, file=sys.stderr)


def _rank() -> int:
    """Of this process in a torchrun."""
    return int(os.environ.get("RANK", "0"))


def choose(what: str, name: str, known: Sequence[str]) -> str:
    """``name`` if it is known, otherwise a UserError with "did you mean"."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}", hint=f"{hint}known: {', '.join(known)}")
