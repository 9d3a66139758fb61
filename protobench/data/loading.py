"""Batches of images read by worker processes. A broken file raises an error that names it."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from protobench import keyed
from protobench.data.image_list import ImageList
from protobench.data.transforms import EvalInput
from protobench.runtime import cores, resource_errors, signals
from protobench.runtime.errors import UserError

_OPEN = set[Iterator[Any]]()
"""Passes that have not ended: see _iterate."""


class Kept(Protocol):
    """Pixels kept decoded, by the number of the image: uint8 [H, W, 3]."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """The pixels of one image."""


class CentreCrops(Dataset[Tensor | UserError]):
    """The evaluation input of every image, uint8 [3, H, W]; taken from ``kept``, which gives the
    same pixels [H, W, 3] by number, where that is given (crop_cache.py)."""

    def __init__(self, images: ImageList, input_: EvalInput, kept: Kept | None = None):
        self.images, self.input, self.kept = images, input_, kept

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            if self.kept is None:
                pixels = self.input.pixels(self.images.read(index))
            else:
                pixels = self.kept[index]
            return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        except UserError as mistake:
            return mistake  # not raised: a DataLoader would bury it in a worker's traceback


class RandomCrops(Dataset[Tensor | UserError]):
    """A random crop of every image, uint8 [3, H, W], indexed by (epoch, image); a function of
    (seed, epoch, image) alone."""

    def __init__(self, images: ImageList, input_: EvalInput, seed: int):
        self.images, self.input, self.seed = images, input_, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: tuple[int, int]) -> Tensor | UserError:
        epoch, index = where
        try:
            rng = keyed.generator(self.seed, "crop", epoch, index)
            return torch.from_numpy(
                self.input.random_pixels(self.images.read(index), rng).copy()
            ).permute(2, 0, 1)
        except UserError as mistake:
            return mistake


def normaliser(input_: EvalInput, device: str) -> Callable[[Tensor], Tensor]:
    """A function from pixels, uint8 [N, 3, H, W], to a network's input on ``device``: minus the
    mean, divided by the standard deviation, channels last."""
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) * 255
        for value in (input_.mean, input_.std)
    )

    def normalise(pixels: Tensor) -> Tensor:
        # in place: at 224 pixels one copy of 256 images in fp32 is 154 MB
        x = pixels.to(device, non_blocking=True).to(mean.dtype).sub_(mean).div_(std)
        return x.contiguous(memory_format=torch.channels_last)

    return normalise


def moved(values: np.ndarray, device: str) -> Tensor:
    """The values on ``device``, sent without making the host wait for it: from pinned memory, as
    torch waits for a copy from any other, and for an index given as a list."""
    tensor = torch.from_numpy(values)
    pinned = tensor if device == "cpu" else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def batches(
    dataset: Dataset[Any],
    *,
    workers: int,
    device: str,
    stack: Callable[[list[Any]], Any] = torch.stack,
    **how: Any,
) -> Iterator[Any]:
    """Batches of the items of ``dataset`` in order, combined by ``stack``, in pinned memory where
    they go to a GPU. There are at most as many workers as usable cores. Raises the UserError of an
    unreadable image, and a UserError where workers run out of memory, shared memory or open
    files."""
    workers, collate = min(workers, cores.usable()), partial(_collate, stack)
    loader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device != "cpu",
        worker_init_fn=_obey_parent_alone,
        **how,
    )
    try:
        for batch in _iterate(loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch
        return
    except (RuntimeError, OSError, MemoryError) as failure:
        if not (explained := resource_errors.explained(failure)):
            raise
        explained.add_note(traceback.format_exc())  # for --debug
        traceback.clear_frames(failure.__traceback__)
    # not "from failure": that would keep the workers alive, and freeing them takes ten seconds
    raise explained


def _iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches. Its iterator is held in _OPEN until the pass ends or is given up: were
    it found by the garbage collector, the threads by which it reaches its workers would be gone
    first, and torch would wait five seconds for each worker."""
    with signals.blocked():  # in the workers from their first moment
        reading = iter(loader)
    _OPEN.add(reading)
    try:
        yield from reading
    finally:
        _OPEN.remove(reading)
        del reading  # which ends the workers; a traceback may hold this frame


def _obey_parent_alone(worker: int) -> None:
    """Ends this worker by a SIGTERM of its parent, and by no other signal of ``signals.SIGNALS``:
    schedulers, torchrun and terminals send these to whole process groups, while the parent, which
    decides when to stop, may need the batches of the current step. (torch ends a worker whose
    parent is gone.)"""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # a fork server's child has them open
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()  # not getppid(), which may be a fork server
    while True:
        received = signal.sigwaitinfo(signals.SIGNALS)
        if parent and (received.si_signo, received.si_pid) == (signal.SIGTERM, parent.pid):
            os._exit(0)


def _collate(stack: Callable[[list[Any]], Any], batch: list[Any]) -> Any:
    return next((item for item in batch if isinstance(item, UserError)), None) or stack(batch)
