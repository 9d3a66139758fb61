"""Saves a long run every few minutes and before it stops, on all ranks after the same step."""

import contextlib
import time
from collections.abc import Callable, Iterator

from protobench.runtime import signals


class PeriodicSaver:
    """Calls ``save`` between two steps, every ``seconds`` and when the program is told to stop.

    All ranks call ``save`` after the same step, so it may communicate. ``RunState.write`` writes on
    the main process only.

        saver = PeriodicSaver(save, seconds=600)
        with saver.deferring_signals():
            for step in ...:
                ...
                saver.after_step()
    """

    def __init__(self, save: Callable[[], None], seconds: float):
        self._save, self._seconds = save, seconds
        self._saved_at = time.monotonic()
        self._request = signals.StopRequest()

    @contextlib.contextmanager
    def deferring_signals(self) -> Iterator[None]:
        """Makes signals wait for the next ``after_step`` or ``stop_if_requested``."""
        with signals.deferred() as self._request:
            yield

    def after_step(self, *, due: bool = False) -> None:
        """Saves if any rank was told to stop, if the time has come, or if a save is ``due`` anyway;
        then stops if any rank was told to. Collective."""
        elapsed = time.monotonic() - self._saved_at
        signal, due_anywhere = self._request.agreed(due or elapsed >= self._seconds)
        if signal or due_anywhere:
            self.save()
        if signal:
            self._request.obey(signal)

    def save(self) -> None:
        """Saves now."""
        self._save()
        self._saved_at = time.monotonic()

    def stop_if_requested(self) -> None:
        """Stops if any rank was told to. Collective."""
        (signal,) = self._request.agreed()
        if signal:
            self._request.obey(signal)
