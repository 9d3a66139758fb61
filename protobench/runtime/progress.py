"""A progress bar with ETA on a terminal; in a log file one plain line a minute, none for work of
less than half a minute."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

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

    def write(self, text: str) -> None:
        if text := text.strip("\r\n \x1b[A"):
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: float) -> Any:
    """Returns tqdm over ``iterable``, or a bar to ``update`` by hand if that is None. Its
    ``estimate`` may be set to a function that knows the seconds left."""
    if os.environ.get("RANK", "0") != "0":  # one bar, not one per rank
        return _Bar(iterable, desc=desc, unit=unit, total=total, disable=True)
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
        file=_Lines(),
        mininterval=60,
        maxinterval=60,
        delay=30,
        bar_format="{desc}: {percentage:3.0f}% " + counts,
    )
