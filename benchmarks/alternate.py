"""Two ways of doing the same, timed in turn in one process, so that a machine's mood hits both."""

import statistics
import time
from collections.abc import Callable


def alternate(published: Callable[[], object], ours: Callable[[], object], repeats: int = 7) -> tuple[list[float], list[float]]:
    """CPU seconds of each call (process time, so that other programs count less)."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, spent in zip((published, ours), times, strict=True):
            started = time.process_time()
            way()
            spent.append(time.process_time() - started)
    return times


def report(name: str, times: tuple[list[float], list[float]], agreement: str) -> None:
    """One line: both medians, the ratio's median and range, and how far the results agree."""
    published, ours = times
    ratios = sorted(a / b for a, b in zip(published, ours, strict=True))
    print(f"{name:<46} {1e3 * statistics.median(published):10.2f} ms {1e3 * statistics.median(ours):10.2f} ms   "
          f"{statistics.median(ratios):7.1f}x ({ratios[0]:.1f}-{ratios[-1]:.1f})   {agreement}")


def heading() -> None:
    """The columns' names."""
    print(f"{'':<46} {'published way':>13} {'ours':>13}   ratio (min-max)   agreement")
