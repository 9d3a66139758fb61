"""Batches of images read by worker processes; a broken file comes back as an error that names
it."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from protobench import keyed
from protobench.data.image_list import ImageList
from protobench.data.transforms import EvalInput
from protobench.runtime import resource_errors, signals
from protobench.runtime.errors import UserError


class CentreCrops(Dataset):
    """The evaluation input of every image, uint8 [3, H, W]."""

    def __init__(self, images: ImageList, input_: EvalInput):
        self.images, self.input = images, input_

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            return torch.from_numpy(self.input.pixels(self.images.read(index)).copy()).permute(
                2, 0, 1
            )
        except (
            UserError
        ) as mistake:  # handed over, not raised: a DataLoader would bury it in a worker's traceback
            return mistake


class RandomCrops(Dataset):
    """A random crop of every image, uint8 [3, H, W]; a function of (seed, epoch, image) alone.
    Indexed by (epoch, image)."""

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
    """What takes pixels uint8 [N, 3, H, W] to a network's input on ``device``: less the mean, by
    the deviation, channels last."""
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) * 255
        for value in (input_.mean, input_.std)
    )

    def normalise(pixels: Tensor) -> Tensor:
        x = (pixels.to(device, non_blocking=True).float() - mean) / std
        return x.contiguous(memory_format=torch.channels_last)

    return normalise


def batches(
    dataset: Dataset,
    *,
    workers: int,
    device: str,
    stack: Callable[[list], Any] = torch.stack,
    **how: Any,
) -> Iterator[Any]:
    """Items in order, ``stack``ed, in pinned memory where they go to a GPU. Raises the UserError of
    an unreadable image, and where workers run out of memory, shared memory or open files."""
    workers, collate = min(workers, os.cpu_count() or 1), partial(_collate, stack)
    loader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device != "cpu",
        worker_init_fn=_deaf,
        **how,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
        return
    except (RuntimeError, OSError, MemoryError) as failure:
        if not (told := resource_errors.explained(failure)):
            raise
        told.add_note(traceback.format_exc())  # for --debug
        traceback.clear_frames(failure.__traceback__)
    raise told  # not from the failure: it would hold on to the workers, and whoever let go of it wait ten seconds for them


def _deaf(worker: int) -> None:
    """A worker leaves it to its parent to stop, which may want the rest of a step: schedulers,
    torchrun and terminals send their signals to whole groups of processes. (It ends with its
    parent, for which torch looks.)"""
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _collate(stack: Callable[[list], Any], batch: list) -> Any:
    return next((item for item in batch if isinstance(item, UserError)), None) or stack(batch)
