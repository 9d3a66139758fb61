"""Images kept decoded, so that no epoch decodes them again: a memory-mapped file of pixels, and a
file of their sizes beside it.

An image is kept with its short side at 256 pixels, or as it is where that is shorter: about 330 GB
for ImageNet's training set."""

import contextlib
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from torch.utils.data import Dataset

from protobench.data.image_list import ImageList
from protobench.data.loading import batches
from protobench.runtime import cache_use, files
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when what is kept of an image changes."""

SIDE = 256
"""The short side of a kept image, pixels; shorter ones are kept as they are."""
SYNC_SECONDS = 60.0
"""How much decoding a kill can lose."""


class RawPictures:
    """The kept images by number: uint8 [H, W, 3], views of the mapped file. ``extent_I2`` holds
    their original widths and heights.

    UserError for damaged files."""

    def __init__(self, path: Path):
        self.path = path
        damaged = UserError(
            "the decoded images kept here are damaged",
            at=path,
            hint=f"delete it and {_sizes(path).name}; both are made again",
        )
        try:
            size_I4 = np.load(_sizes(path))
            self._bytes = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError, EOFError) as failure:
            raise damaged from failure
        self._size_I2, self.extent_I2 = size_I4[:, :2], size_I4[:, 2:]
        self._end_I = 3 * np.cumsum(self._size_I2.prod(1, dtype=np.int64))
        if len(self._bytes) != self._end_I[-1]:
            raise damaged

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # a worker maps the file itself; NumPy would send it every byte
        return RawPictures, (self.path,)

    def __len__(self) -> int:
        return len(self._end_I)

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self._size_I2[index].tolist()
        end = int(self._end_I[index])
        return np.asarray(self._bytes[end - 3 * height * width : end]).reshape(height, width, 3)


def keep(images: ImageList, workers: int) -> RawPictures:
    """The decoded images of the list from the cache, after decoding them into it where they are
    missing. A stopped run resumes where it was.

    The cache is keyed by the list's cache_key, so a file changed in place is noticed. UserError for
    an image that cannot be read, and where disk space does not suffice."""
    identity = [VERSION, SIDE, PIL.__version__, images.cache_key]
    path = files.cache_dir() / "raw" / f"{files.sha256(identity)[:32]}.u8"
    what = {"data": images.name}
    with cache_use.using(path, **what):
        if not path.exists():
            with files.exclusive_lock(path.with_suffix(".lock")):
                if not path.exists():
                    _write(path, images, workers)
        pictures = RawPictures(path)
        cache_use.use_while_alive(pictures, path, **what)
    return pictures


def small(image: Image.Image) -> np.ndarray:
    """The image, shrunk to a short side of ``SIDE`` where that is longer."""
    scale = SIDE / min(image.size)
    if scale < 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


def _sizes(path: Path) -> Path:
    return path.with_suffix(".npy")


def _write(path: Path, images: ImageList, workers: int, batch_size: int = 256) -> None:
    """Writes pixels first, then the sizes of those that are on the disk; the file gets its final
    name when all are there."""
    growing = path.with_suffix(".partial")
    sizes = _resumable(growing, path)
    if not sizes:
        _sizes(path).unlink(missing_ok=True)  # they belong to other pixels
    todo = [
        range(i, min(i + batch_size, len(images)))
        for i in range(len(sizes), len(images), batch_size)
    ]
    loader = batches(_Small(images), workers=workers, device="cpu", stack=list, batch_sampler=todo)
    synced = time.monotonic()
    with files.opened(growing, "r+b" if sizes else "wb") as file:
        file.seek(3 * sum(height * width for height, width, *_ in sizes))
        file.truncate()
        for step, decoded in enumerate(
            progress(loader, desc=f"decoding {images.name}", unit=" batches", total=len(todo))
        ):
            if step == 0:
                mean = math.ceil(sum(pixels.size for pixels, _ in decoded) / len(decoded))
                files.require_disk_space(
                    path.parent, mean * (len(images) - len(sizes)), "the decoded images"
                )
            with files.writing(path):
                file.writelines(pixels.tobytes() for pixels, _ in decoded)
                sizes += [(*pixels.shape[:2], *extent) for pixels, extent in decoded]
                if time.monotonic() - synced > SYNC_SECONDS or step == len(todo) - 1:
                    files.sync(file)
                    files.write_atomic(
                        _sizes(path), partial(np.save, arr=np.array(sizes, np.int32))
                    )
                    synced = time.monotonic()
    with files.writing(path):
        os.replace(growing, path)


def _resumable(growing: Path, path: Path) -> list[tuple[int, ...]]:
    """The sizes of the images that a stopped run left on the disk; none where the pixels do not fit
    them."""
    with contextlib.suppress(OSError, ValueError, EOFError, IndexError):
        size_I4 = np.load(_sizes(path))
        if growing.stat().st_size >= 3 * size_I4[:, :2].prod(1, dtype=np.int64).sum():
            return [tuple(size) for size in size_I4.tolist()]
    return []


class _Small(Dataset[tuple[np.ndarray, tuple[int, int]] | UserError]):
    def __init__(self, images: ImageList):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, int]] | UserError:
        try:
            image = self.images.read(index)
            return small(image), image.size
        except UserError as mistake:
            return mistake
