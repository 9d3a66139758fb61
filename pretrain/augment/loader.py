"""Batches for the loop: random views for training steps, centre crops or single random views for
feature extraction. Which views an image gets is a function of (seed, epoch, image, view)."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.augment import pillow, raw, tensor
from pretrain.augment.params import AugmentParams, ParamSampler
from pretrain.recipes.common import Augment, Recipe
from protobench import keyed
from protobench.data import crop_cache, raw_pictures
from protobench.data.image_list import ImageList
from protobench.data.loading import batches, normaliser
from protobench.data.raw_pictures import RawPictures
from protobench.runtime import distributed
from protobench.runtime.errors import UserError

IN_MEMORY_BYTES = 256 * 2**20
"""Data sets smaller than this (uint8) are held in memory and augmented a whole batch at a time."""
ONE_VIEW = "one"
"""Key of the views that are not trained on, which SPCL clusters."""


class Views(Protocol):
    """What the loop needs of its images."""

    def __len__(self) -> int:
        """The number of images."""

    def order(self, epoch: int) -> np.ndarray:
        """All images shuffled, int64 [steps, B], without the last short batch."""

    def batches(
        self, epoch: int, num_views: int, chosen: np.ndarray, first: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """For each row of ``chosen``, [steps, B], starting with row ``first``: this process's share
        of the normalised views, [b, 3, H, W] each, and the numbers of all images, int64 [B]. An
        image chosen again in the epoch is seen in other views."""

    def parts(self) -> list[np.ndarray]:
        """The numbers of all images in order, split into batches for feature extraction."""

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """One random view of every image of each part, [b, 3, H, W] each; not one of those that
        ``batches`` yields."""

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """The normalised centre crops of the images of each part, [b, 3, H, W] each."""


def order(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The image numbers of the epoch's batches, int64 [steps, batch_size], without the last short
    one."""
    steps = n // batch_size
    return (
        keyed.generator(seed, "order", epoch)
        .permutation(n)[: steps * batch_size]
        .reshape(steps, batch_size)
    )


def split(n: int, size: int) -> list[np.ndarray]:
    """0 … n - 1 in parts of nearly equal size, at most ``size``."""
    return np.array_split(np.arange(n), -(-n // size))


def numbered(chosen: np.ndarray, n: int) -> np.ndarray:
    """The keys of an epoch's views: the image's number, plus ``n`` for each earlier occurrence of
    the image in the epoch."""
    flat = chosen.reshape(-1)
    by_image = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[by_image], flat[by_image])  # where each image's run begins
    earlier = np.empty_like(flat)
    earlier[by_image] = np.arange(len(flat)) - first
    keys: np.ndarray = chosen + n * earlier.reshape(chosen.shape)
    return keys


def open_views(
    recipe: Recipe, images: ImageList, seed: int, device: str, workers: int
) -> "TensorViews | FolderViews":
    """Holds small square images as one tensor; everything else is read from files by workers.

    UserError where the recipe needs more images, and for the raw profile where images are held in
    memory."""
    recipe.check_images(images)
    first = images.read(0)
    if (
        first.width == first.height
        and len(images) * first.width * first.height * 3 <= IN_MEMORY_BYTES
    ):
        decoded = [images.read(i) for i in range(len(images))]
        if {image.size for image in decoded} == {first.size}:
            if recipe.augment.profile != "faithful":
                raise UserError(
                    f"{images.name} fits into memory, where views are made from whole batches:"
                    f" there is no profile {recipe.augment.profile}",
                    hint="leave out --profile",
                )
            return TensorViews(recipe, decoded, seed, device)
    return FolderViews(recipe, images, seed, device, workers)


class TensorViews:
    """Square images of one size, in memory as one uint8 tensor."""

    def __init__(self, recipe: Recipe, images: list[Image.Image], seed: int, device: str):
        self.recipe, self.seed, self.device = recipe, seed, device
        self.pixels = self._tensor([np.asarray(image) for image in images])
        self.crops = self._tensor([recipe.input.pixels(image) for image in images])
        self.normalise = normaliser(recipe.input, device)

    def _tensor(self, images: list[np.ndarray]) -> Tensor:
        """uint8 [I, 3, H, W] on the device."""
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.device)

    def __len__(self) -> int:
        return len(self.pixels)

    def order(self, epoch: int) -> np.ndarray:
        """See ``Views``."""
        return order(len(self), self.recipe.train.batch_size, self.seed, epoch)

    def batches(
        self, epoch: int, num_views: int, chosen: np.ndarray, first: int = 0
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """See ``Views``."""
        recipe, index_SB = self.recipe, torch.from_numpy(chosen[first:]).to(self.device)
        share = distributed.shard(chosen.shape[1])
        keys_Sb = numbered(chosen, len(self))[first:, share.start : share.stop]
        # a whole epoch's at once: small operations cost as much as large ones
        drawn = [
            tensor.draw(recipe.augment, self.device, keys_Sb.ravel(), self.seed, epoch, view)
            for view in range(num_views)
        ]
        for step, index in enumerate(index_SB):
            pixels = self.pixels.index_select(0, distributed.shard_of(index))
            rows = slice(step * len(share), (step + 1) * len(share))
            yield (
                [tensor.render(recipe.augment, pixels, v.of(rows), recipe.input) for v in drawn],
                index,
            )

    def parts(self) -> list[np.ndarray]:
        """See ``Views``."""
        return split(len(self), 512)

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for part in parts:
            pixels = self.pixels.index_select(0, torch.from_numpy(part).to(self.device))
            drawn = tensor.draw(self.recipe.augment, self.device, part, self.seed, epoch, ONE_VIEW)
            yield tensor.render(self.recipe.augment, pixels, drawn, self.recipe.input)

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for part in parts:
            yield self.normalise(self.crops[part[0] : part[-1] + 1])


class FolderViews:
    """Images read, and views made, by DataLoader workers. In the raw profile the workers only cut
    crops, and the device makes colours and blur."""

    def __init__(self, recipe: Recipe, images: ImageList, seed: int, device: str, workers: int):
        self.recipe, self.images, self.seed = recipe, images, seed
        self.device, self.workers = device, workers
        self.normalise = normaliser(recipe.input, device)
        self.raw = raw_pictures.keep(images, workers) if recipe.augment.profile == "raw" else None
        self.crops = crop_cache.centre_crops(images, recipe.input)

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
        index_SB = torch.from_numpy(chosen[first:]).to(self.device)  # copied once an epoch
        yield from zip(views, index_SB, strict=True)

    def parts(self) -> list[np.ndarray]:
        """See ``Views``."""
        return split(len(self), 256)

    def one_view(self, epoch: int, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for (view,) in self._views(epoch, (ONE_VIEW,), parts):
            yield view

    def centre_crops(self, parts: list[np.ndarray]) -> Iterator[Tensor]:
        """See ``Views``."""
        for crops in batches(
            self.crops,
            workers=self.workers,
            device=self.device,
            batch_sampler=[part.tolist() for part in parts],
        ):
            yield self.normalise(crops)

    def _views(
        self, epoch: int, names: tuple[int | str, ...], keys: list[np.ndarray]
    ) -> Iterator[list[Tensor]]:
        """For each array of keys, the views of these names."""
        random_views = _RandomViews(
            self.images, self.recipe.augment, self.seed, epoch, names, self.raw
        )
        loader = batches(
            random_views,
            workers=self.workers,
            device=self.device,
            batch_sampler=[batch_keys.tolist() for batch_keys in keys],
        )
        for stacked_NVHWC, batch_keys in zip(loader, keys, strict=True):
            pixels_NVHWC = stacked_NVHWC.to(self.device, non_blocking=True)
            views = [view.permute(0, 3, 1, 2) for view in pixels_NVHWC.unbind(1)]
            if self.raw:
                recipe, device = self.recipe.augment, pixels_NVHWC.device
                drawn = [
                    tensor.draw(recipe, device, batch_keys, self.seed, epoch, name)
                    for name in names
                ]
                yield [
                    tensor.recolour(recipe, view, what, self.recipe.input)
                    for view, what in zip(views, drawn, strict=True)
                ]
            else:
                yield [self.normalise(view) for view in views]


class _RandomViews(Dataset[Tensor | UserError]):
    """The views of an image, uint8 [V, size, size, 3], by the keys of ``numbered``."""

    def __init__(
        self,
        images: ImageList,
        recipe: Augment,
        seed: int,
        epoch: int,
        names: tuple[int | str, ...],
        raw: RawPictures | None,
    ):
        self.images, self.recipe, self.raw = images, recipe, raw
        self.seed, self.epoch, self.names = seed, epoch, names

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sample(self) -> ParamSampler:
        """Each worker's own."""
        cv2.setNumThreads(1)  # a worker is one thread
        return ParamSampler(self.recipe)

    def __getitem__(self, key: int) -> Tensor | UserError:
        try:
            render, (width, height) = self._open(key % len(self.images))
        except UserError as mistake:
            return mistake
        size = self.recipe.size
        views = np.empty((len(self.names), size, size, 3), np.uint8)
        for view, name in zip(views, self.names, strict=True):
            params = self.sample(width, height, keyed.seed(self.seed, self.epoch, key, name))
            view[:] = render(params, size)
        return torch.from_numpy(views)

    def _open(
        self, index: int
    ) -> tuple[Callable[[AugmentParams, int], np.ndarray], tuple[int, int]]:
        """A function that renders views of an image, and the width and height for which their
        parameters are sampled."""
        if self.raw:
            width, height = self.raw.extent_I2[index].tolist()
            return partial(raw.crop, self.raw[index], (width, height)), (width, height)
        image = self.images.read(index)
        return partial(pillow.render, image), image.size
