"""The centre crops of a data set kept decoded, so that no pass over it decodes them again: PCL
makes one in every epoch after the warm-up, and an evaluation makes one for every checkpoint.

Crops are the same in every pass, unlike the random views. They lie in one memory-mapped file for a
list of images and a transform: N x crop x crop x 3 bytes, 193 GB for ImageNet's training images
at 224 pixels. So the file is written only when asked for (``keep``); where it is complete,
``centre_crops`` reads it, and what it gives are the very bytes that decoding gives."""

import io
import mmap
import os
import time
from pathlib import Path

import numpy as np
import PIL.features
import torch
from torch import Tensor

from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches
from protobench.data.transforms import EvalInput
from protobench.runtime import cache_use, cores, files
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when the crop of an image changes."""
SYNC_SECONDS = 60.0
"""How much decoding a kill can lose."""
BATCH = 256
"""How many crops are decoded and written at a time."""
COMPARED = 16
"""How many images, spread over the list, are decoded again whenever the file is opened."""
SPARE = 0.05
"""Part of the file's size that must be left free on its disk."""


class KeptCrops:
    """The crops by number: uint8 [crop, crop, 3], views of the mapped file. UserError for a damaged
    file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.crops_NHWC: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as failure:
            raise _damaged(path) from failure
        # read ahead: a file larger than memory comes from the disk in every pass, page by page else
        if isinstance(mapping := self.crops_NHWC.base, mmap.mmap) and hasattr(mapping, "madvise"):
            mapping.madvise(mmap.MADV_SEQUENTIAL)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # a worker maps the file itself; NumPy would send it every byte
        return KeptCrops, (self.path,)

    def __len__(self) -> int:
        return len(self.crops_NHWC)

    def __getitem__(self, index: int) -> np.ndarray:
        crop: np.ndarray = self.crops_NHWC[index]
        return crop


def centre_crops(images: ImageList, input_: EvalInput) -> CentreCrops:
    """The evaluation input of every image, from the kept crops where there are any."""
    return CentreCrops(images, input_, find(images, input_))


def find(images: ImageList, input_: EvalInput) -> KeptCrops | None:
    """The kept crops of these images; None where there are none.

    They are found by the list's ``cache_key``, so a file changed in place is noticed. UserError
    where they differ from what decoding gives now."""
    if images.pixels is not None or not _folder().is_dir():
        return None
    path = path_of(images, input_)
    if not path.exists():
        return None
    with cache_use.using(path, **_description(images, input_)):
        if not path.exists():  # trimmed meanwhile
            return None
        print(f"centre crops of {images.name}: kept decoded in {path}")
        return _opened(path, images, input_)


def keep(images: ImageList, input_: EvalInput) -> KeptCrops | None:
    """The kept crops, decoded by all usable cores where they are missing; None for a list whose
    images are in memory. A stopped run resumes where it was; a second process waits.

    UserError for an image that cannot be read, and where the disk is too small."""
    if images.pixels is not None:
        return None
    path = path_of(images, input_)
    with cache_use.using(path, **_description(images, input_)):
        if not path.exists():
            with files.exclusive_lock(path.with_suffix(".lock")):
                if not path.exists():
                    _write(path, images, input_)
        return _opened(path, images, input_)


def size_of(images: ImageList, input_: EvalInput) -> int:
    """How many bytes the crops of these images take."""
    return len(images) * input_.crop**2 * 3


def path_of(images: ImageList, input_: EvalInput) -> Path:
    """Where the crops of these images are kept. The key holds all that decides their bytes: the
    list, the transform, and the versions of the decoder and of what resizes."""
    transform = [input_.resize, input_.crop, input_.warp]
    jpeg = PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")
    key = files.sha256([VERSION, transform, PIL.__version__, jpeg, images.cache_key])
    return _folder() / f"{key[:32]}.npy"


def _folder() -> Path:
    return files.cache_dir() / "crops"


def _damaged(path: Path) -> UserError:
    return UserError(
        "the centre crops kept here are damaged", at=path, hint="delete it; it is only a cache"
    )


def _opened(path: Path, images: ImageList, input_: EvalInput) -> KeptCrops:
    """UserError unless the crops are those of the images, as far as a sample shows."""
    kept = KeptCrops(path)
    if kept.crops_NHWC.shape != (len(images), input_.crop, input_.crop, 3):
        raise _damaged(kept.path)
    for index in np.unique(np.linspace(0, len(images) - 1, COMPARED).astype(int)).tolist():
        if not np.array_equal(kept[index], input_.pixels(images.read(index))):
            raise UserError(
                f"{images.name}: the kept centre crop of image {index} is not what decoding"
                f" {images.root / images.paths[index]} gives",
                at=kept.path,
                hint="delete it; it is only a cache",
            )
    cache_use.use_while_alive(kept, path, **_description(images, input_))
    return kept


def _write(path: Path, images: ImageList, input_: EvalInput) -> None:
    """Writes the crops to .partial, an .npy file, resuming after those that .rows counts as synced
    to the disk; the file gets its name when all are there."""
    growing, counter = path.with_suffix(".partial"), path.with_suffix(".rows")
    header = _header((len(images), input_.crop, input_.crop, 3))
    done, row_bytes = _rows_kept(growing, counter), input_.crop**2 * 3
    size = size_of(images, input_)
    print(f"keeping the centre crops of {images.name}: {size / 1e9:.3g} GB, in {path}")
    files.require_disk_space(
        path.parent,
        size - done * row_bytes + int(SPARE * size),
        f"the centre crops of {images.name}, and {SPARE:.0%} to spare,",
    )
    todo = [range(i, min(i + BATCH, len(images))) for i in range(done, len(images), BATCH)]
    loader = batches(
        CentreCrops(images, input_),
        workers=cores.usable(),
        device="cpu",
        stack=_stack,
        batch_sampler=todo,
    )
    synced = time.monotonic()
    with files.opened(growing, "r+b" if done else "wb") as file:
        with files.writing(path):
            file.write(header)
            file.seek(len(header) + done * row_bytes)
            file.truncate()
        bar = progress(
            zip(todo, loader, strict=True),
            desc=f"decoding {images.name}",
            unit=" batches",
            total=len(todo),
        )
        for part, crops_NHWC in bar:
            with files.writing(path):
                file.write(crops_NHWC.numpy().data)
                if part is todo[-1] or time.monotonic() - synced > SYNC_SECONDS:
                    files.sync(file)
                    files.write_text(counter, f"{part.stop} {file.tell()}")
                    synced = time.monotonic()
    with files.writing(path):
        os.replace(growing, path)
    counter.unlink(missing_ok=True)


def _rows_kept(growing: Path, counter: Path) -> int:
    """How many crops a stopped run left on the disk."""
    try:
        rows, size = map(int, counter.read_text().split())
        return rows if growing.stat().st_size >= size else 0
    except (OSError, ValueError):
        return 0


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file of uint8."""
    buffer = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


def _stack(crops: list[Tensor]) -> Tensor:
    """uint8 [N, H, W, 3] of crops [3, H, W]."""
    return torch.stack([crop.permute(1, 2, 0) for crop in crops])


def _description(images: ImageList, input_: EvalInput) -> dict[str, str]:
    """What ``protobench cache`` says of the file."""
    form = "warped" if input_.warp else f"of {input_.resize}"
    return {"data": images.name, "form": f"{input_.crop} pixels {form}"}
