"""Batches read by worker processes: how they end."""

import gc
import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import TensorDataset

from protobench.data.loading import batches
from protobench.runtime import cores

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch):
    """Two workers on a machine with one core, too."""
    monkeypatch.setattr(cores, "usable", lambda: 8)


class Images(TensorDataset):
    def __getitem__(self, index):
        return self.tensors[0][index]


def of_50_batches() -> Iterator[torch.Tensor]:
    return batches(Images(torch.zeros(100, 3)), workers=2, device="cpu", batch_size=2)


def workers() -> set[multiprocessing.Process]:
    return {child for child in multiprocessing.active_children() if child.daemon}


def test_a_program_that_fails_in_the_middle_of_a_pass_ends():
    program = """
        from test_loading import of_50_batches

        for batch in of_50_batches():
            raise ValueError("in the middle of a pass")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=__file__.rpartition("/")[0],
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: in the middle of a pass\n")


def test_workers_end_at_once_where_the_garbage_collector_ends_the_pass():
    """torch alone waits five seconds for each, because the queues' threads are gone before."""

    def fails():
        reading = of_50_batches()
        next(reading)
        raise ValueError

    before, kept = workers(), []
    with pytest.raises(ValueError) as caught:  # noqa: PT011, our own
        fails()
    kept += [caught, kept]  # a cycle
    assert len(workers()) == len(before) + 2
    start = time.monotonic()
    del kept, caught
    gc.collect()
    assert time.monotonic() - start < 8
    assert workers() == before


def test_workers_ignore_signals_unless_their_parent_ends_them():
    """torchrun, schedulers and terminals tell whole groups of processes; the step under way needs
    its images."""
    before, reading = workers(), of_50_batches()
    next(reading)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "nothing is blocked in this process"
    ours = workers() - before
    assert len(ours) == 2
    for name in ("TERM", "INT", "USR2"):
        pids = " ".join(str(worker.pid) for worker in ours)
        subprocess.run(["sh", "-c", f"kill -{name} {pids}"], check=True)
    assert len(list(reading)) == 49
    assert workers() == before

    reading = of_50_batches()
    next(reading)
    ours = workers() - before
    for worker in ours:
        worker.terminate()
        worker.join(60)
    assert [worker.exitcode for worker in ours] == [0, 0]
    reading.close()
