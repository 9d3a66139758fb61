"""Pictures kept decoded, so that no epoch decodes them again: one file of bytes that is mapped, and their sizes beside it.

A picture is kept with its short side at 256 pixels, or as it is where that is shorter: of ImageNet's training set about 330 GB.
"""

import contextlib
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset

from protobench import files
from protobench.errors import UserError
from protobench.features import SYNC_SECONDS
from protobench.images import ImageList
from protobench.loading import batches
from protobench.progress import progress

SIDE = 256


class RawPictures:
    """Read by number: uint8 [H, W, 3], a view of the mapped file."""

    def __init__(self, path: Path):
        size_I2 = np.load(_sizes(path))
        self._size_I2, self._end_I = size_I2, 3 * np.cumsum(size_I2.prod(1))
        self._bytes = np.memmap(path, np.uint8, "r")
        if len(self._bytes) != self._end_I[-1]:
            raise UserError(f"the pictures kept here have {len(self._bytes)} bytes, not {self._end_I[-1]}", at=path,
                            hint="delete the file; it is made again")

    def __len__(self) -> int:
        return len(self._end_I)

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self._size_I2[index].tolist()
        end = int(self._end_I[index])
        return np.asarray(self._bytes[end - 3 * height * width : end]).reshape(height, width, 3)


def keep(images: ImageList, workers: int) -> RawPictures:
    """Every picture of the list, from the cache; decoded into it first where it is not there. A stopped run goes on where it was.

    Raises UserError for an image that cannot be read, and where the disk has no room.
    """
    path = files.cache_dir() / "raw" / f"{files.sha256([images.fingerprint, SIDE])[:32]}.u8"
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _write(path, images, workers)
    return RawPictures(path)


def small(picture: Image.Image) -> np.ndarray:
    """The picture with its short side at ``SIDE`` at most."""
    scale = SIDE / min(picture.size)
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _sizes(path: Path) -> Path:
    return path.with_suffix(".npy")


def _write(path: Path, images: ImageList, workers: int, batch_size: int = 256) -> None:
    """Bytes first, then the sizes that count them as on the disk; the name says when all are there."""
    growing = path.with_suffix(".partial")
    sizes = _kept(growing, path)
    todo = [range(i, min(i + batch_size, len(images))) for i in range(len(sizes), len(images), batch_size)]
    loader = batches(_Small(images), workers=workers, device="cpu", stack=list, batch_sampler=todo)
    with files.writing(path):
        file = open(growing, "r+b" if sizes else "wb")  # noqa: SIM115 (closed below; only what writes may say "cannot write")
    synced = time.monotonic()
    with file:
        file.seek(3 * sum(height * width for height, width in sizes))
        file.truncate()
        for step, pictures in enumerate(progress(loader, desc=f"decoding {images.name}", unit=" batches", total=len(todo))):
            if step == 0:
                mean = math.ceil(sum(picture.size for picture in pictures) / len(pictures))
                files.need(path.parent, mean * (len(images) - len(sizes)), "the decoded pictures")
            with files.writing(path):
                file.writelines(picture.tobytes() for picture in pictures)
                sizes += [picture.shape[:2] for picture in pictures]
                if time.monotonic() - synced > SYNC_SECONDS or step == len(todo) - 1:
                    files.sync(file)
                    files.write_atomic(_sizes(path), partial(np.save, arr=np.array(sizes, np.int32)))
                    synced = time.monotonic()
    with files.writing(path):
        os.replace(growing, path)


def _kept(growing: Path, path: Path) -> list[tuple[int, int]]:
    """Sizes of the pictures that a stopped run left on the disk; none where the bytes are not what they count."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        size_I2 = np.load(_sizes(path))
        if growing.stat().st_size >= 3 * size_I2.prod(1).sum():
            return [(height, width) for height, width in size_I2.tolist()]
    return []


class _Small(Dataset):
    def __init__(self, images: ImageList):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | UserError:
        try:
            return small(self.images.read(index))
        except UserError as mistake:
            return mistake
