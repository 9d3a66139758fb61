"""A progress bar with ETA on a terminal; in a log file one plain line a minute, none for work of
less than half a minute. Of work in several pieces there is one bar (``whole``), which shows where
the bars of the pieces are."""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

# its own lock would be a semaphore shared by processes, which a stopped worker leaks
tqdm.set_lock(threading.RLock())


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar whose estimate may come from whoever knows more than how much is done."""

    estimate: Callable[[], float | None] | None = None
    """seconds that are left; None while that is unknown"""

    @property
    def format_dict(self) -> Any:
        """What is printed."""
        shown = super().format_dict
        if self.estimate and self.total:
            seconds = self.estimate()
            shown["rate"] = (self.total - self.n) / seconds if seconds else 0  # 0 is printed as ?
        return shown


class _Lines:
    """Turns tqdm's carriage returns into lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip("\r\n \x1b[A"):
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


class Whole:
    """One bar over several pieces of work, in estimated seconds. How fast the pieces before went
    corrects the estimate of those that follow."""

    def __init__(self, bar: Any, seconds: float):
        self.bar, self.seconds = bar, seconds
        self.estimated, self.spent = 0.0, 0.0
        """seconds of the pieces that have ended: as estimated, and as measured"""
        self.name, self.own, self.began = "", 0.0, 0.0
        bar.estimate = self._left

    @contextmanager
    def piece(self, name: str, seconds: float) -> Iterator[None]:
        """A piece of the work; ``seconds`` are those of its estimate."""
        self.name, self.own, self.began = name, seconds, time.monotonic()
        self.show(name)
        try:
            yield
        finally:
            self.spent += time.monotonic() - self.began
            self.estimated, self.own = self.estimated + seconds, 0.0
            self.show(name)

    def show(self, doing: str, left: float | None = None) -> None:
        """Shows what is being done and, if that is known, how many seconds it will take yet."""
        self.doing_left = left
        within = min((time.monotonic() - self.began) / self._pace(), 0.99 * self.own)
        self.bar.set_postfix_str(doing, refresh=False)
        self.bar.update(max(self.estimated + within - self.bar.n, 0))

    def _pace(self) -> float:
        """Measured seconds for an estimated one."""
        return self.spent / self.estimated if self.estimated and self.spent else 1.0

    def _left(self) -> float:
        own = self.own * self._pace() - (time.monotonic() - self.began) if self.own else 0.0
        rest = max(self.seconds - self.estimated - self.own, 0.0) * self._pace()
        return max(own, self.doing_left or 0.0, 0.0) + rest


class _Part(_Bar):
    """A bar that is not drawn: the one over the whole shows what it counts."""

    within: Whole

    def display(self, *_: Any, **__: Any) -> None:
        rate, total = self.format_dict["rate"], self.total or 0
        share = f" {100 * self.n / total:.0f} %" if total else ""
        left = (total - self.n) / rate if total and rate else None
        self.within.show(f"{self.within.name}: {self.desc}{share}", left)


_WHOLE: ContextVar[Whole | None] = ContextVar("the bar over all", default=None)


@contextmanager
def whole(desc: str, seconds: float) -> Iterator[Whole]:
    """One bar for all that is done in the block, of an estimated length; bars that are made
    meanwhile are shown within it. It is drawn where standard error is at the start."""
    bar = Whole(progress(desc=desc, unit=" s of work", total=seconds), seconds)
    before = _WHOLE.set(bar)
    try:
        yield bar
    finally:
        _WHOLE.reset(before)
        bar.bar.close()


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: float) -> Any:
    """Returns tqdm over ``iterable``, or a bar to ``update`` by hand if that is None. Its
    ``estimate`` may be set to a function that knows the seconds left."""
    if os.environ.get("RANK", "0") != "0":  # one bar, not one per rank
        return _Bar(iterable, desc=desc, unit=unit, total=total, disable=True)
    if within := _WHOLE.get():
        part = type("_Part", (_Part,), {"within": within})
        return part(iterable, desc=desc, unit=unit, total=total, file=io.StringIO(), leave=False)
    counts = "{n:.0f}/{total:.0f}{unit} {elapsed}<{remaining}{postfix}"
    if sys.stderr.isatty():
        return _Bar(
            iterable,
            desc=desc,
            unit=unit,
            total=total,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| " + counts,
        )
    return _Bar(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        file=_Lines(sys.stderr),
        mininterval=60,
        maxinterval=60,
        delay=30,
        bar_format="{desc}: {percentage:3.0f}% " + counts,
    )
