"""Two ways of doing the same, timed in turn in one process, so that a machine's mood hits both; and what the machine allows.

A stage's file yields rows and ends in ``show(rows())``; benchmarks/all.py runs them all and writes results/benchmarks.md.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """The published way beside ours."""

    stage: str
    published: float
    """median seconds; CPU time of the process, so that other programs count less"""
    ours: float
    ratio: tuple[float, float, float]
    """of the pairs timed in turn: median, smallest, largest"""
    agreement: str
    """how far the results differ"""
    target: float | None = None
    """the ratio asked for"""
    limit: float | None = None
    """seconds that this machine's arithmetic, or its memory, would take for our way at best"""

    def cells(self) -> list[str]:
        """Of the table."""
        middle, low, high = self.ratio
        asked = "" if self.target is None else f"≥ {self.target:g}×{'' if middle >= self.target else ' **short**'}"
        limit = "" if self.limit is None else _time(self.limit)
        return [self.stage, _time(self.published), _time(self.ours), f"{middle:.3g}× ({low:.3g}–{high:.3g})", asked,
                self.agreement, limit]


@dataclass(frozen=True)
class Figure:
    """A time, or a comparison, that has no published way beside it."""

    stage: str
    measured: str
    asked: str = ""

    def cells(self) -> list[str]:
        """Of the table."""
        return [self.stage, self.measured, self.asked]


HEADINGS = {Ratio: ["stage", "published way", "ours", "ratio (min–max)", "asked", "agreement", "limit"],
            Figure: ["stage", "measured", "asked"]}


def alternate(published: Callable[[], object], ours: Callable[[], object], repeats: int = 7, *,
              clock: Callable[[], float] = time.process_time) -> tuple[list[float], list[float]]:
    """Seconds of each call; ours is run once before, since a first call pays for what later ones find ready."""
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, spent in zip((published, ours), times, strict=True):
            started = clock()
            way()
            spent.append(clock() - started)
    return times


def ratio(stage: str, times: tuple[list[float], list[float]], agreement: str, *, target: float | None = None,
          flops: float = 0.0, bytes_moved: float = 0.0) -> Ratio:
    """The row of what ``alternate`` measured; the limit is computed from the work that our way cannot avoid."""
    pairs = sorted(a / b for a, b in zip(*times, strict=True))
    work = max(flops / peak_flops(), bytes_moved / peak_bytes()) if flops or bytes_moved else None
    return Ratio(stage, *map(statistics.median, times), (statistics.median(pairs), pairs[0], pairs[-1]), agreement, target, work)


def middle(values: Iterable[float], unit: str = "") -> str:
    """Median and range."""
    low, *_, high = found = sorted(values)
    return f"{statistics.median(found):.3g}{unit} ({low:.3g}–{high:.3g})"


@cache
def peak_flops() -> float:
    """Of one thread, by multiplying single-precision matrices of 1024."""
    a = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _fastest(lambda: a @ a)


@cache
def peak_bytes() -> float:
    """A second, read and written, by copying 256 MiB."""
    a = np.ones(2**25)
    b = np.empty_like(a)
    return 2 * a.nbytes / _fastest(lambda: np.copyto(b, a))


def _fastest(work: Callable[[], object]) -> float:
    return min(alternate(work, work, 8)[0])


def _time(seconds: float) -> str:
    return next(f"{seconds * scale:.3g} {unit}" for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs"))
                if seconds * scale >= 1 or unit == "µs")


def show(rows: Iterable[Ratio | Figure]) -> None:
    """Prints rows as they come; ``--rows FILE`` on the command line keeps them for benchmarks/all.py."""
    kept = Path(sys.argv[2]) if sys.argv[1:2] == ["--rows"] else None
    for row in rows:
        cells = [f"{head}: {cell}" for head, cell in zip(HEADINGS[type(row)][1:], row.cells()[1:], strict=True) if cell]
        print(f"{row.stage}\n    " + ";  ".join(cells), flush=True)
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps({"kind": type(row).__name__, **asdict(row)}) + "\n")
