"""The estimate of a training's remaining time, by hand, and that the bar prints it."""

import re

from pretrain.remaining import Remaining
from protobench.runtime import progress as progress_module
from protobench.runtime.progress import progress


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def run(left, clock, epoch, pause, seconds, steps, done=0):
    """An epoch whose first step ends ``pause`` + ``seconds`` after its start."""
    left.start_epoch(epoch, done)
    clock.time += pause
    for _ in range(steps):
        clock.time += seconds
        left.after_step()


def test_steps_pauses_and_measurements_are_counted_apart():
    clock = Clock()
    left = Remaining(4, 10, {0, 2, 4}.__contains__, clock)
    assert left.seconds() is None
    with left.measuring():
        clock.time += 100
    run(left, clock, 0, pause=30, seconds=2, steps=1)
    assert left.seconds() is None, "a single step may be as slow as the start"
    left.after_step()
    clock = left.now = Clock()
    left = Remaining(4, 10, {0, 2, 4}.__contains__, clock)
    with left.measuring():
        clock.time += 100
    run(left, clock, 0, pause=30, seconds=2, steps=3)
    # 7 steps here; three epochs of a pause with its first step and 9 more; two measurements
    assert left.seconds() == 7 * 2 + 3 * (32 + 9 * 2) + 2 * 100
    run(left, clock, 1, pause=50, seconds=1, steps=1)
    assert left.seconds() == 9 * 2 + 2 * (51 + 9 * 2) + 2 * 100, "steps as in the last epoch"
    run(left, clock, 3, pause=50, seconds=1, steps=10)
    assert left.seconds() == 100, "the last measurement"


def test_a_resumed_epoch_counts_only_its_own_steps():
    clock = Clock()
    left = Remaining(1, 10, lambda _: False, clock)
    run(left, clock, 0, pause=30, seconds=2, steps=2, done=5)
    assert left.seconds() == 3 * 2


def test_the_bar_prints_the_estimate(monkeypatch, capsys):
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    told = iter([None, 3600.0, 3600.0, 0.0])
    bar = progress(desc="moco", unit=" steps", total=10)
    bar.estimate = lambda: next(told)
    for _ in range(4):
        bar.n += 1
        bar.refresh()
    bar.estimate = None
    bar.close()
    printed = re.findall(r"(\d)/10 steps \S*<([^\s\x1b]+)", capsys.readouterr().err)
    assert dict(printed) | {"0": ""} == {
        "0": "",
        "1": "?",
        "2": "1:00:00",
        "3": "1:00:00",
        "4": "?",
    }
