"""How long a training will still take.

Between its steps a training pauses: worker processes start, an E-step reads and clusters all
images, the monitor measures. Elapsed time over steps done would be wrong by far after each pause,
most of all in the first minutes, so steps and pauses are timed apart. Pauses that have not occurred
yet, such as the E-steps after a warm-up, are not foreseen."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Remaining:
    """Times steps, the pause before an epoch's first step, and measurements; estimates what is
    left."""

    epochs: int
    steps: int
    """of an epoch"""
    due: Callable[[int], bool]
    """whether a measurement is due after this many epochs"""
    now: Callable[[], float] = time.perf_counter
    epoch: int = 0
    step: int = 0
    """finished steps of the epoch"""
    step_seconds: float | None = None
    """mean of this epoch's, or of the last epoch's while this one has one step"""
    pause_seconds: float = 0.0
    """of the last pause, its first step included"""
    measurement_seconds: float = 0.0
    """of the last measurement"""
    _began: float = 0.0
    _first: tuple[float, int] | None = None

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Times a measurement."""
        started = self.now()
        yield
        self.measurement_seconds = self.now() - started

    def start_epoch(self, epoch: int, step: int) -> None:
        """Begins to time the pause before the next step of an epoch that has ``step`` of them."""
        self.epoch, self.step, self._began, self._first = epoch, step, self.now(), None

    def after_step(self) -> None:
        """Counts a finished step."""
        self.step += 1
        now = self.now()
        if self._first is None:
            self._first = now, self.step
            self.pause_seconds = now - self._began
        else:
            first, step = self._first
            self.step_seconds = (now - first) / (self.step - step)

    def seconds(self) -> float | None:
        """The estimate; None before two steps of an epoch are timed."""
        if self.step_seconds is None:
            return None
        more = self.epochs - self.epoch - 1
        steps = self.steps - self.step + more * (self.steps - 1)
        measurements = sum(map(self.due, range(self.epoch + 1, self.epochs + 1)))
        return (
            steps * self.step_seconds
            + more * self.pause_seconds
            + measurements * self.measurement_seconds
        )
