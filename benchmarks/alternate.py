"""Times two ways of doing the same alternately in one process, so that changes of the machine's
speed affect both, and measures what the machine allows.

A stage's file yields rows and ends in ``show(rows())``; benchmarks/all.py runs them all and writes
results/benchmarks.md."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Ratio:
    """The published way compared with ours."""

    stage: str
    published: float
    """median seconds of CPU time of the process, which other programs disturb less than wall
    time"""
    ours: float
    ratio: tuple[float, float, float]
    """median, smallest and largest ratio of the pairs timed in turn"""
    agreement: str
    """how far the results differ"""
    target: float | None = None
    """the smallest ratio that counts as fast enough"""
    limit: float | None = None
    """seconds that our way's arithmetic or unavoidable memory traffic takes at this machine's
    speed"""

    def cells(self) -> list[str]:
        """Returns the row of the table, a string per heading."""
        middle, low, high = self.ratio
        target = (
            ""
            if self.target is None
            else f"≥ {self.target:.3g}×{'' if middle >= self.target else ' **short**'}"
        )
        limit = "" if self.limit is None else _time(self.limit)
        return [
            self.stage,
            _time(self.published),
            _time(self.ours),
            f"{middle:.3g}× ({low:.3g}–{high:.3g})",
            target,
            self.agreement,
            limit,
        ]


@dataclass(frozen=True)
class Figure:
    """A measured time or comparison that has no published way beside it."""

    stage: str
    measured: str
    target: str = ""

    def cells(self) -> list[str]:
        """Returns the row of the table, a string per heading."""
        return [self.stage, self.measured, self.target]


HEADINGS = {
    Ratio: ["stage", "published way", "ours", "ratio (min–max)", "target", "agreement", "limit"],
    Figure: ["stage", "measured", "target"],
}


def alternate(
    published: Callable[[], object],
    ours: Callable[[], object],
    repeats: int = 7,
    *,
    clock: Callable[[], float] = time.process_time,
) -> tuple[list[float], list[float]]:
    """Calls both in turn and returns the seconds of every call: those of ``published`` and of
    ``ours``.

    ``ours`` is called once before, since a first call pays for what later ones find ready."""
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, spent in zip((published, ours), times, strict=True):
            started = clock()
            way()
            spent.append(clock() - started)
    return times


def ratio(
    stage: str,
    times: tuple[list[float], list[float]],
    agreement: str,
    *,
    target: float | None = None,
    flops: float = 0.0,
    bytes_moved: float = 0.0,
) -> Ratio:
    """Returns the row of what ``alternate`` measured; ``flops`` and ``bytes_moved`` are the work
    that our way cannot avoid, from which the limit is computed."""
    pairs = sorted(a / b for a, b in zip(*times, strict=True))
    work = max(flops / peak_flops(), bytes_moved / peak_bytes()) if flops or bytes_moved else None
    return Ratio(
        stage,
        *map(statistics.median, times),
        (statistics.median(pairs), pairs[0], pairs[-1]),
        agreement,
        target,
        work,
    )


def middle(values: Iterable[float], unit: str = "") -> str:
    """Formats the median and the range."""
    low, *_, high = found = sorted(values)
    return f"{statistics.median(found):.3g}{unit} ({low:.3g}–{high:.3g})"


@cache
def peak_flops() -> float:
    """Measures the operations per second in single precision: of NumPy's matrix product at size
    1024 or of torch's 1 x 1 convolution, whichever is faster. (A 3 x 3 convolution is not bound by
    it: it is computed with fewer operations than its definition has.)"""
    a = np.ones((1024, 1024), np.float32)
    images = torch.ones(16, 256, 56, 56).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(256, 256, 1, bias=False).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return max(
            2 * 1024**3 / _fastest(lambda: a @ a),
            2 * 16 * 56**2 * 256**2 / _fastest(lambda: layer(images)),
        )


@cache
def peak_bytes() -> float:
    """Measures the bytes read and written per second by adding one block of 128 MiB to another in
    place."""
    a, b = torch.ones(2**25), torch.ones(2**25)
    return 3 * 4 * 2**25 / _fastest(lambda: a.add_(b))


def _fastest(work: Callable[[], object]) -> float:
    return min(alternate(work, work, 8)[0])


def _time(seconds: float) -> str:
    return next(
        f"{seconds * scale:.3g} {unit}"
        for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs"))
        if seconds * scale >= 1 or unit == "µs"
    )


def show(rows: Iterable[Ratio | Figure]) -> None:
    """Prints rows as they come; ``--rows FILE`` on the command line also saves them for
    benchmarks/all.py."""
    kept = Path(sys.argv[2]) if sys.argv[1:2] == ["--rows"] else None
    for row in rows:
        cells = [
            f"{head}: {cell}"
            for head, cell in zip(HEADINGS[type(row)][1:], row.cells()[1:], strict=True)
            if cell
        ]
        print(f"{row.stage}\n    " + ";  ".join(cells), flush=True)
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps({"kind": type(row).__name__, **asdict(row)}) + "\n")
