"""Features of a data set, extracted once per (weights, data, input, pooling) and kept as
memory-mapped arrays."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch

from protobench.checkpoints import input_check
from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.load_report import Bf16Agreement
from protobench.checkpoints.resnet import fuse_batchnorm
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches, normaliser
from protobench.data.transforms import EvalInput
from protobench.runtime import distributed, files
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

Pooling = Literal["average", "2x2", "embedding"]
"""average: global average pool (2048-D for a ResNet-50). 2x2: conv5 pooled to 2x2 (8192-D), as
Goyal et al. use it. embedding: the projection head's output (128-D in MoCo and PCL)."""

VERSION = 2
"""Raise when features change for equal inputs."""

SYNC_SECONDS = 60.0
"""How much of an extraction a kill can lose."""


def extract(
    encoder: Encoder,
    images: ImageList,
    *,
    pooling: Pooling = "average",
    warp: bool = False,
    device: str = "cpu",
    workers: int = 0,
    batch_size: int = 256,
    cache: Path | None = None,
) -> np.ndarray:
    """float32 [N, D] in the order of ``images``, mapped from the cache; computed first where it has
    not been.

    They are written there batch by batch, so the data's size does not matter to memory, and a
    stopped extraction goes on where it was. Under torchrun the processes share the batches, and
    each gets all features. In bf16 the difference from fp32 goes into ``encoder.report``. Raises
    UserError for unreadable images, for features that are not finite or all alike (a collapsed
    encoder), and where the disk has no room."""
    input_ = replace(encoder.input, warp=warp)
    weights = [encoder.report.sha256, encoder.report.prefix, encoder.report.arch]
    identity = {
        "version": VERSION,
        "weights": weights,
        "data": images.cache_key,
        "input": asdict(input_),
        "pooling": pooling,
        "device": torch.device(device).type,
        "batch_size": batch_size,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
    if encoder.precision == "bf16":
        identity["precision"] = "bf16"
        if encoder.report.bf16 is None:
            encoder.report.bf16 = agreement(encoder, images, input_, pooling, device)
    input_check.verify(encoder, images, input_)
    path = (cache or files.cache_dir() / "features") / f"{files.sha256(identity)}.npy"
    how, started = "taken from the cache", time.perf_counter()
    if not distributed.broadcast_from_main(lambda: _is_there(path)):
        with (
            files.exclusive_lock(path.with_suffix(".lock"))
            if distributed.is_main()
            else contextlib.nullcontext()
        ):
            if not distributed.broadcast_from_main(
                lambda: _is_there(path)
            ):  # two evaluations at once: the second waits for the first one's
                _write(
                    path,
                    images,
                    input_,
                    Forward(encoder, input_, pooling, device),
                    device,
                    workers,
                    batch_size,
                )
                if distributed.is_main():
                    _finish(path, images, encoder)
                distributed.barrier()
                how = f"{time.perf_counter() - started:.1f} s"
    if not _is_there(path):
        raise UserError(
            "the features that the first process has written are not to be seen by another",
            at=path,
            hint="PROTOBENCH_CACHE must name a folder on a file system that all machines share",
        )
    found: np.ndarray = np.load(path, mmap_mode="r")
    print(f"features of {images.name}: {found.shape[0]} x {found.shape[1]}, {how}")
    return found


def _is_there(path: Path) -> bool:
    """Whether the cache holds the file, and not one cut short."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return len(np.load(path, mmap_mode="r")) > 0
    return False


def _finish(path: Path, images: ImageList, encoder: Encoder) -> None:
    """Gives written features their name, if they are good."""
    partial, counter = path.with_suffix(".partial"), path.with_suffix(".rows")
    try:
        _check(np.load(partial, mmap_mode="r"), images, encoder.report.file)
    except UserError:
        partial.unlink()
        counter.unlink(missing_ok=True)
        raise
    with files.writing(path):
        os.replace(partial, path)
    counter.unlink(missing_ok=True)


def _write(
    path: Path,
    images: ImageList,
    input_: EvalInput,
    compute: Callable[[torch.Tensor], torch.Tensor],
    device: str,
    workers: int,
    batch_size: int,
) -> None:
    """Features to .partial, an .npy file; goes on behind the rows that its .rows counts as on the
    disk. Of several processes each computes every so-manyth batch, and the first writes them all in
    their order."""
    partial, counter = path.with_suffix(".partial"), path.with_suffix(".rows")
    done = distributed.broadcast_from_main(lambda: _rows_kept(partial, counter))
    parts = [
        range(i, min(i + batch_size, len(images))) for i in range(done, len(images), batch_size)
    ]
    if not parts:
        return
    rounds = [
        parts[i : i + distributed.world_size()]
        for i in range(0, len(parts), distributed.world_size())
    ]
    mine = iter(
        batches(
            CentreCrops(images, input_),
            workers=workers,
            device=device,
            batch_sampler=parts[distributed.rank() :: distributed.world_size()],
        )
    )
    synced = time.monotonic()
    with (
        files.opened(partial, "r+b" if done else "wb")
        if distributed.is_main()
        else contextlib.nullcontext()
    ) as file:
        for now in progress(
            rounds, desc=f"features {images.name}", unit=" batches", total=len(rounds)
        ):
            pixels = next(mine, None)
            found = None if pixels is None else compute(pixels).float().cpu()
            rows = distributed.gather_rows_to_main(
                found, [len(now[i]) if i < len(now) else 0 for i in range(distributed.world_size())]
            )
            if rows is None or file is None:
                continue
            with files.writing(path):
                if now is rounds[0]:
                    header = _header(len(images), rows.shape[1])
                    files.require_disk_space(
                        path.parent,
                        len(header) + rows.shape[1] * 4 * (len(images) - done),
                        "the features",
                    )
                    file.write(header)
                    file.seek(len(header) + done * rows.shape[1] * 4)
                    file.truncate()
                file.write(rows.numpy().tobytes())
                if now is rounds[-1] or time.monotonic() - synced > SYNC_SECONDS:
                    files.sync(file)
                    synced = time.monotonic()
                    files.write_text(counter, f"{now[-1].stop} {file.tell()}")


def _rows_kept(partial: Path, counter: Path) -> int:
    """How many rows an earlier, stopped extraction left on the disk; 0 where the file is not what
    its counter says."""
    try:
        rows, size = map(int, counter.read_text().split())
        return rows if partial.stat().st_size >= size else 0
    except (OSError, ValueError):
        return 0


def _header(rows: int, columns: int) -> bytes:
    """Of an .npy file of float32 [rows, columns]."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    )
    return buffer.getvalue()


class Forward:
    """Pixels uint8 [N, 3, H, W] to features [N, D] on ``device``: normalised, through the frozen
    backbone, pooled.

    ``backbone`` is a copy of the encoder's, its BatchNorms folded. UserError where an embedding is
    asked of a checkpoint without a projection head."""

    def __init__(self, encoder: Encoder, input_: EvalInput, pooling: Pooling, device: str):
        self.projection = (
            encoder.projection.to(device) if encoder.projection and pooling == "embedding" else None
        )
        if pooling == "embedding" and self.projection is None:
            raise UserError(
                f"{encoder.report.file} holds no projection head of a known shape, so there is"
                " no embedding",
                hint="evaluate the pooled feature instead: --feature pooled",
            )
        self.backbone = (
            fuse_batchnorm(encoder.backbone).to(device).to(memory_format=torch.channels_last)
        )
        self.pooling, self.normalise = pooling, normaliser(input_, device)
        self.precision = torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=encoder.precision == "bf16"
        )

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """The features."""
        with self.precision:
            return _pool(
                self.backbone.features(self.normalise(pixels)), self.pooling, self.projection
            ).float()


def agreement(
    encoder: Encoder, images: ImageList, input_: EvalInput, pooling: Pooling, device: str
) -> Bf16Agreement:
    """How far bf16 features differ from fp32 ones: least and mean cosine over up to 64 images
    spread over a list."""
    sample = images.subset(np.unique(np.linspace(0, len(images) - 1, 64).astype(int)))
    (pixels,) = batches(
        CentreCrops(sample, input_), workers=0, device=device, batch_size=len(sample)
    )
    fast, exact = (
        Forward(replace(encoder, precision=precision), input_, pooling, device)(pixels)
        for precision in ("bf16", "fp32")
    )
    cosines = torch.nn.functional.cosine_similarity(fast, exact, dim=1)
    found = Bf16Agreement(
        images=len(sample),
        min_cosine=round(float(cosines.min()), 6),
        mean_cosine=round(float(cosines.mean()), 6),
    )
    print(
        f"bf16: cosine with fp32 features over {len(sample)} images: least {found.min_cosine},"
        f" mean {found.mean_cosine}"
    )
    return found


def unit_norm(x_ND: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; a zero row stays zero. float32 [N, D]."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def _pool(
    map_NCHW: torch.Tensor, pooling: Pooling, projection: torch.nn.Module | None
) -> torch.Tensor:
    if projection is not None:
        return projection(map_NCHW.mean((2, 3)))
    if pooling == "average":
        return map_NCHW.mean((2, 3))
    side = map_NCHW.shape[-1]
    return torch.nn.functional.avg_pool2d(map_NCHW, side - 1, stride=1).flatten(1)


def _check(features: np.ndarray, images: ImageList, file: str) -> None:
    low, high = np.full(features.shape[1], np.inf), np.full(features.shape[1], -np.inf)
    for start in range(0, len(features), 65_536):  # 0.5 GB of 2048-D features at a time
        part = features[start : start + 65_536]
        if not np.isfinite(part).all():
            raise UserError(
                f"the encoder gives NaN or infinite features on {images.name}",
                at=file,
                hint="training diverged, or the weights are damaged; nothing is scored",
            )
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    if len(features) > 1 and (high - low).max() < 1e-6 * max(
        np.abs(low).max(), np.abs(high).max(), 1e-12
    ):
        raise UserError(
            f"the encoder gives the same feature for every image of {images.name}: it has"
            " collapsed",
            at=file,
            hint="train again with a lower learning rate or another temperature; nothing is scored",
        )
