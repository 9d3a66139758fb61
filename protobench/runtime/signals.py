"""Signals that ask a program to stop wait until the end of a step, so that all ranks stop after the
same one."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from protobench.runtime import distributed
from protobench.runtime.errors import Terminated

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""What schedulers send to end a job, what submitit sends ahead of that (NCCL may use USR1 itself),
and Ctrl-C."""
AGAIN = 1.0
"""Seconds after which a Ctrl-C counts as a second one: a terminal and torchrun may both deliver the
first."""


class StopRequest:
    """The first signal that arrived while signals were deferred, if any."""

    def __init__(self) -> None:
        self.signal = 0
        self.received_at = 0.0
        self.previous: dict[int, Any] = {}
        """handlers that were installed before ours"""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: remembers the signal; a second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self.signal and time.monotonic() - self.received_at > AGAIN:
            self.restore_handlers()
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.received_at = number, time.monotonic()
            if distributed.is_main():  # print is not reentrant: it may be what was interrupted
                os.write(2, b"\nstopping after this step, to save it; Ctrl-C again quits at once\n")

    def agreed(self, *values: int) -> list[int]:
        """The signal that any rank received (0: none), and the maximum over all ranks of each
        value. Collective."""
        return distributed.all_reduce_max(self.signal, *values)

    def obey(self, number: int) -> NoReturn:
        """Waits for all ranks, passes the signal on to the previous handler, and ends the
        program."""
        distributed.barrier()
        self.restore_handlers()
        signal.raise_signal(number)
        raise Terminated  # there was no handler, or it leaves ending the program to rank 0

    def restore_handlers(self) -> None:
        """Reinstalls the previous handlers."""
        for number, handler in self.previous.items():
            # None: installed by C code, so unknown to Python
            signal.signal(number, handler or signal.SIG_DFL)
        self.previous = {}


@contextlib.contextmanager
def deferred() -> Iterator[StopRequest]:
    """Defers SIGNALS inside the block, except those that are ignored. Does nothing outside the main
    thread, which alone receives signals. One that nobody obeyed is raised again at the end."""
    request = StopRequest()
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        request.previous = {number: signal.signal(number, request.handle) for number in heeded}
    try:
        yield request
    finally:
        late = request.signal if request.previous else 0
        request.restore_handlers()
    if late:
        signal.raise_signal(late)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Lets SIGNALS wait until the end of the block. Processes that are forked in it have them
    blocked for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
