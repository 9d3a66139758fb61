"""Batches for the loop: random views for the M-step, centre crops for the E-step, both in an order
the key decides."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.augment import opencv_views, pillow, tensor
from pretrain.augment.params import AugmentParams, Drawer
from pretrain.recipes import Augment, Recipe
from protobench import keyed
from protobench.data import raw_pictures
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches
from protobench.data.raw_pictures import RawPictures
from protobench.data.transforms import EvalInput
from protobench.runtime import distributed
from protobench.runtime.errors import UserError

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

    def batches(
        self, epoch: int, num_views: int, chosen: np.ndarray, first: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Of each row of ``chosen``, [steps, B], from the ``first`` on: this process's share of the
        normalised views, each [b, 3, H, W], and the numbers of all images, int64 [B]. An image
        chosen again in the epoch is seen in other views."""

    def parts(self) -> list[np.ndarray]:
        """The numbers of all images in order, cut for a pass without gradient."""

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """A random view of every image of each part, another than ``batches`` shows, [b, 3, H, W]
        each."""

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """Normalised centre crops of the images of each part, [b, 3, H, W] each."""


def order(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's batches as int64 [steps, batch_size], without the last short one."""
    steps = n // batch_size
    return (
        keyed.generator(seed, "order", epoch)
        .permutation(n)[: steps * batch_size]
        .reshape(steps, batch_size)
    )


def cut(n: int, size: int) -> list[np.ndarray]:
    """0 … n - 1 in parts of about, and at most, ``size``."""
    return np.array_split(np.arange(n), -(-n // size))


def numbered(chosen: np.ndarray, n: int) -> np.ndarray:
    """What the views of an epoch are drawn by: the image's number, and n more for each time that it
    came before."""
    flat = chosen.reshape(-1)
    by_image = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[by_image], flat[by_image])  # where each image's run begins
    again = np.empty_like(flat)
    again[by_image] = np.arange(len(flat)) - first
    return chosen + n * again.reshape(chosen.shape)


def open_views(
    recipe: Recipe, images: ImageList, seed: int, device: str, workers: int
) -> "TensorViews | FolderViews":
    """Small square images are held as one tensor, everything else is read from the files by
    workers.

    Raises UserError where the data set is smaller than one batch or than the queue, and for a
    profile of views from files where there are none."""
    if len(images) < recipe.train.batch_size:
        raise UserError(
            f"{images.name} has {len(images)} images, less than one batch of"
            f" {recipe.train.batch_size}",
            at=images.root,
            hint="lower --batch-size",
        )
    if (queue := getattr(recipe, "queue", 0)) > len(images):
        raise UserError(
            f"a queue of {queue} negatives for {images.name}'s {len(images)} images",
            at=images.root,
            hint="lower --queue: the same image would be in it several times",
        )
    first = images.read(0)
    if (
        first.width == first.height
        and len(images) * first.width * first.height * 3 <= IN_MEMORY_BYTES
    ):
        pictures = [images.read(i) for i in range(len(images))]
        if {picture.size for picture in pictures} == {first.size}:
            if recipe.augment.profile != "faithful":
                raise UserError(
                    f"{images.name} fits into memory, where views are made from whole batches:"
                    f" there is no profile {recipe.augment.profile}",
                    hint="leave out --profile",
                )
            return TensorViews(recipe, pictures, seed, device)
    return FolderViews(recipe, images, seed, device, workers)


class _Normaliser:
    def __init__(self, input_: EvalInput, device: str):
        self.mean, self.std = (
            torch.tensor(v, device=device).view(3, 1, 1) for v in (input_.mean, input_.std)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class TensorViews:
    """Square images of one size, in memory as one uint8 tensor."""

    def __init__(self, recipe: Recipe, pictures: list[Image.Image], seed: int, device: str):
        self.recipe, self.seed, self.device = recipe, seed, device
        self.pixels = torch.from_numpy(
            np.stack([np.asarray(picture) for picture in pictures])
        ).permute(0, 3, 1, 2)
        self.crops = torch.from_numpy(
            np.stack([recipe.input.pixels(picture) for picture in pictures])
        ).permute(0, 3, 1, 2)
        self.pixels, self.crops = (
            self.pixels.contiguous().to(device),
            self.crops.contiguous().to(device),
        )
        self.normalise = _Normaliser(recipe.input, device)

    def __len__(self) -> int:
        return len(self.pixels)

    def order(self, epoch: int) -> np.ndarray:
        """See ``Views``."""
        return order(len(self), self.recipe.train.batch_size, self.seed, epoch)

    def batches(
        self, epoch: int, num_views: int, chosen: np.ndarray, first: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """See ``Views``."""
        keys_SB = numbered(chosen, len(self))[first:]
        for keys, index in zip(
            keys_SB, torch.from_numpy(chosen[first:]).to(self.device), strict=True
        ):
            pixels = self.pixels[distributed.shard_of(index)]
            yield (
                [
                    self.normalise(
                        tensor.of_batch(
                            self.recipe.augment,
                            pixels,
                            distributed.shard_of(keys),
                            self.seed,
                            epoch,
                            view,
                        )
                    )
                    for view in range(num_views)
                ],
                index,
            )

    def parts(self) -> list[np.ndarray]:
        """See ``Views``."""
        return cut(len(self), 512)

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for part in parts:
            pixels = self.pixels[torch.from_numpy(part).to(self.device)]
            yield self.normalise(
                tensor.of_batch(self.recipe.augment, pixels, part, self.seed, epoch, ONE_VIEW)
            )

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for part in parts:
            yield self.normalise(self.crops[part[0] : part[-1] + 1].float() / 255)


class FolderViews:
    """Images read, and views made, by DataLoader workers; in the raw profile they only cut crops,
    and the device colours them."""

    def __init__(self, recipe: Recipe, images: ImageList, seed: int, device: str, workers: int):
        self.recipe, self.images, self.seed, self.device, self.workers = (
            recipe,
            images,
            seed,
            device,
            workers,
        )
        self.normalise = _Normaliser(recipe.input, device)
        self.raw = raw_pictures.keep(images, workers) if recipe.augment.profile == "raw" else None

    def __len__(self) -> int:
        return len(self.images)

    def order(self, epoch: int) -> np.ndarray:
        """See ``Views``."""
        return order(len(self), self.recipe.train.batch_size, self.seed, epoch)

    def batches(
        self, epoch: int, num_views: int, chosen: np.ndarray, first: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """See ``Views``."""
        keys = [distributed.shard_of(row) for row in numbered(chosen, len(self))[first:]]
        views = self._views(epoch, tuple(range(num_views)), keys)
        yield from zip(
            views, torch.from_numpy(chosen[first:]).to(self.device), strict=True
        )  # numbers are copied once an epoch

    def parts(self) -> list[np.ndarray]:
        """See ``Views``."""
        return cut(len(self), 256)

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for (view,) in self._views(epoch, (ONE_VIEW,), parts):
            yield view

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for crops in batches(
            CentreCrops(self.images, self.recipe.input),
            workers=self.workers,
            device=self.device,
            batch_sampler=[part.tolist() for part in parts],
        ):
            yield self.normalise(crops.to(self.device, non_blocking=True).float() / 255)

    def _views(
        self, epoch: int, names: tuple[int | str, ...], keys: list[np.ndarray]
    ) -> Iterator[list[Tensor]]:
        """Of each array of keys, the views of those names."""
        views = _RandomViews(self.images, self.recipe.augment, self.seed, epoch, names, self.raw)
        loader = batches(
            views,
            workers=self.workers,
            device=self.device,
            batch_sampler=[some.tolist() for some in keys],
        )
        for stacked_NVHWC, some in zip(loader, keys, strict=True):
            pixels = stacked_NVHWC.to(self.device, non_blocking=True).float() / 255
            found = [view.permute(0, 3, 1, 2) for view in pixels.unbind(1)]
            if self.raw:
                found = [
                    tensor.coloured(self.recipe.augment, view, some, self.seed, epoch, name)
                    for name, view in zip(names, found, strict=True)
                ]
            yield [self.normalise(view) for view in found]


class _RandomViews(Dataset):
    """Views of an image, uint8 [V, size, size, 3]; indexed as ``numbered`` gives them."""

    def __init__(
        self,
        images: ImageList,
        recipe: Augment,
        seed: int,
        epoch: int,
        names: tuple[int | str, ...],
        raw: RawPictures | None,
    ):
        self.images, self.recipe, self.seed, self.epoch, self.names, self.raw = (
            images,
            recipe,
            seed,
            epoch,
            names,
            raw,
        )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def drawer(self) -> Drawer:
        """Every worker's own."""
        cv2.setNumThreads(1)  # a worker is one thread
        return Drawer(self.recipe)

    def __getitem__(self, number: int) -> Tensor | UserError:
        try:
            render, extent = self._open(number % len(self.images))
        except UserError as mistake:
            return mistake
        size = self.recipe.size
        views = np.empty((len(self.names), size, size, 3), np.uint8)
        for view, name in zip(views, self.names, strict=True):
            view[:] = render(
                self.drawer(*extent, keyed.seed(self.seed, self.epoch, number, name)), size
            )
        return torch.from_numpy(views)

    def _open(
        self, index: int
    ) -> tuple[Callable[[AugmentParams, int], np.ndarray], tuple[int, int]]:
        """What makes views of a picture, and the width and height that they are drawn for."""
        if self.raw:
            width, height = self.raw.extent_I2[index].tolist()
            return partial(opencv_views.shrunk_crop, self.raw[index], (width, height)), (
                width,
                height,
            )
        picture = self.images.read(index)
        if self.recipe.profile == "fast":
            return partial(opencv_views.render, np.asarray(picture)), picture.size
        return partial(pillow.render, picture), picture.size
