"""Batches for the loop: random views for the M-step, centre crops for the E-step, both in an order the key decides."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain import augment
from pretrain.recipes import Augment, Recipe
from protobench import keyed
from protobench.errors import UserError
from protobench.images import ImageList
from protobench.loading import CentreCrops, batches
from protobench.transforms import EvalInput

IN_MEMORY_BYTES = 256 * 2**20
"""Data sets below this (uint8) are held in memory and augmented a whole batch at a time."""
ONE_VIEW = "one"
"""Key of the views that are not trained on: SPCL clusters them."""


class Views(Protocol):
    """What the loop asks of a data source."""

    def __len__(self) -> int:
        """Images."""

    def order(self, epoch: int) -> np.ndarray:
        """All images shuffled, int64 [steps, B], without the last short batch."""

    def batches(self, epoch: int, num_views: int, chosen: np.ndarray) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Of each row of ``chosen``, [steps, B]: normalised views, each [B, 3, H, W], and the images' numbers int64 [B]. An image
        chosen again in the epoch is seen in other views."""

    def one_view(self, epoch: int) -> Iterator[Tensor]:
        """A random view of every image in order, another than ``batches`` shows, [b, 3, H, W] each."""

    def centre_crops(self) -> Iterator[Tensor]:
        """Normalised centre crops of all images in order, [b, 3, H, W] each."""


def order(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's batches as int64 [steps, batch_size], without the last short one."""
    steps = n // batch_size
    return keyed.generator(seed, "order", epoch).permutation(n)[: steps * batch_size].reshape(steps, batch_size)


def numbered(chosen: np.ndarray, n: int) -> np.ndarray:
    """What the views of an epoch are drawn by: the image's number, and n more for each time that it came before."""
    flat = chosen.reshape(-1)
    by_image = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[by_image], flat[by_image])  # where each image's run begins
    again = np.empty_like(flat)
    again[by_image] = np.arange(len(flat)) - first
    return chosen + n * again.reshape(chosen.shape)


def open_views(recipe: Recipe, images: ImageList, seed: int, device: str, workers: int) -> "TensorViews | FolderViews":
    """Small square images are held as one tensor, everything else is read from the files by workers.

    Raises UserError where the data set is smaller than one batch.
    """
    if len(images) < recipe.train.batch_size:
        raise UserError(f"{images.name} has {len(images)} images, less than one batch of {recipe.train.batch_size}",
                        at=images.root, hint="lower --batch-size")
    first = images.read(0)
    if first.width == first.height and len(images) * first.width * first.height * 3 <= IN_MEMORY_BYTES:
        pictures = [images.read(i) for i in range(len(images))]
        if {picture.size for picture in pictures} == {first.size}:
            return TensorViews(recipe, pictures, seed, device)
    return FolderViews(recipe, images, seed, device, workers)


class _Normaliser:
    def __init__(self, input_: EvalInput, device: str):
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (input_.mean, input_.std))

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class TensorViews:
    """Square images of one size, in memory as one uint8 tensor."""

    def __init__(self, recipe: Recipe, pictures: list[Image.Image], seed: int, device: str):
        self.recipe, self.seed, self.device = recipe, seed, device
        self.pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
        self.crops = torch.from_numpy(np.stack([recipe.input.pixels(picture) for picture in pictures])).permute(0, 3, 1, 2)
        self.pixels, self.crops = self.pixels.contiguous().to(device), self.crops.contiguous().to(device)
        self.normalise = _Normaliser(recipe.input, device)

    def __len__(self) -> int:
        return len(self.pixels)

    def order(self, epoch: int) -> np.ndarray:
        """See ``Views``."""
        return order(len(self), self.recipe.train.batch_size, self.seed, epoch)

    def batches(self, epoch: int, num_views: int, chosen: np.ndarray) -> Iterator[tuple[list[Tensor], Tensor]]:
        """See ``Views``."""
        for keys, index in zip(numbered(chosen, len(self)), torch.from_numpy(chosen).to(self.device), strict=True):
            pixels = self.pixels[index]
            yield [self.normalise(augment.of_batch(self.recipe.augment, pixels, keys, self.seed, epoch, view))
                   for view in range(num_views)], index

    def one_view(self, epoch: int) -> Iterator[Tensor]:
        """See ``Views``."""
        for chosen in np.array_split(np.arange(len(self)), -(-len(self) // 512)):
            pixels = self.pixels[torch.from_numpy(chosen).to(self.device)]
            yield self.normalise(augment.of_batch(self.recipe.augment, pixels, chosen, self.seed, epoch, ONE_VIEW))

    def centre_crops(self) -> Iterator[Tensor]:
        """See ``Views``."""
        for crops in self.crops.split(512):
            yield self.normalise(crops.float() / 255)


class FolderViews:
    """Images read, and views made, by DataLoader workers."""

    def __init__(self, recipe: Recipe, images: ImageList, seed: int, device: str, workers: int):
        self.recipe, self.images, self.seed, self.device, self.workers = recipe, images, seed, device, workers
        self.normalise = _Normaliser(recipe.input, device)

    def __len__(self) -> int:
        return len(self.images)

    def order(self, epoch: int) -> np.ndarray:
        """See ``Views``."""
        return order(len(self), self.recipe.train.batch_size, self.seed, epoch)

    def batches(self, epoch: int, num_views: int, chosen: np.ndarray) -> Iterator[tuple[list[Tensor], Tensor]]:
        """See ``Views``."""
        views = _RandomViews(self.images, self.recipe.augment, self.seed, epoch, tuple(range(num_views)))
        loader = batches(views, workers=self.workers, device=self.device, batch_sampler=numbered(chosen, len(self)).tolist())
        for stacked, index in zip(loader, torch.from_numpy(chosen).to(self.device), strict=True):  # one copy an epoch
            stacked = stacked.to(self.device, non_blocking=True).float() / 255
            yield [self.normalise(view) for view in stacked.unbind(1)], index

    def one_view(self, epoch: int) -> Iterator[Tensor]:
        """See ``Views``."""
        views = _RandomViews(self.images, self.recipe.augment, self.seed, epoch, (ONE_VIEW,))
        for stacked in batches(views, workers=self.workers, device=self.device, batch_size=256):
            yield self.normalise(stacked[:, 0].to(self.device, non_blocking=True).float() / 255)

    def centre_crops(self) -> Iterator[Tensor]:
        """See ``Views``."""
        for crops in batches(CentreCrops(self.images, self.recipe.input), workers=self.workers, device=self.device,
                             batch_size=256):
            yield self.normalise(crops.to(self.device, non_blocking=True).float() / 255)


class _RandomViews(Dataset):
    """Views of an image, uint8 [V, 3, size, size]; indexed as ``numbered`` gives them."""

    def __init__(self, images: ImageList, recipe: Augment, seed: int, epoch: int, views: tuple[int | str, ...]):
        self.images, self.seed, self.epoch, self.views = images, seed, epoch, views
        self.transform = augment.of_picture(recipe)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor | UserError:
        try:
            picture = self.images.read(number % len(self.images))
        except UserError as mistake:
            return mistake
        return torch.stack([augment.keyed_view(self.transform, picture, self.seed, self.epoch, number, view)
                            for view in self.views])
