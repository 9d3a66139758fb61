"""Signals that ask a program to stop wait for a moment at which it can: the end of a step, when all
processes stop at the same one."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from protobench.runtime import cli, distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""What schedulers send to end a job, what submitit sends before (NCCL may catch USR1), and
Ctrl-C."""
AGAIN = 1.0
"""Seconds after which a Ctrl-C is a second one: a terminal and torchrun may both pass on the
first."""


class Stop:
    """What has been asked for so far."""

    def __init__(self) -> None:
        self.signal = 0
        self.heard = 0.0
        self.before: dict[int, Any] = {}

    def hear(self, number: int, frame: Any) -> None:
        """The handler: remembers, and quits at a second Ctrl-C."""
        if number == signal.SIGINT and self.signal and time.monotonic() - self.heard > AGAIN:
            self.restore()
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.heard = number, time.monotonic()
            if distributed.is_main():  # not print, which may be what was interrupted
                os.write(2, b"\nstopping after this step, to save it; Ctrl-C again quits at once\n")

    def agreed(self, *values: int) -> list[int]:
        """The signal that any process has heard (0: none) and the largest that any gives of each
        value."""
        return distributed.all_reduce_max(self.signal, *values)

    def now(self, number: int) -> NoReturn:
        """Passes the signal on to whoever listened before, when all processes are here, and ends
        the work."""
        distributed.barrier()
        self.restore()
        signal.raise_signal(number)
        raise cli.Terminated  # where nobody listened, or the listener leaves the rest to the first process

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(
                number, handler or signal.SIG_DFL
            )  # of one set outside Python nothing is known
        self.before = {}


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """Within, signals wait until they are asked for; one that is ignored stays so. (Only the main
    thread has any.)"""
    stop = Stop()
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        stop.before = {number: signal.signal(number, stop.hear) for number in heeded}
    try:
        yield stop
    finally:
        late = stop.signal if stop.before else 0
        stop.restore()
    if late:  # heard after the last question
        signal.raise_signal(late)
