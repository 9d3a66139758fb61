"""Features of a data set, extracted once per (weights, data, input, pooling) and kept as memory-mapped arrays."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch

from protobench import files
from protobench.checkpoints import Encoder
from protobench.errors import UserError
from protobench.images import ImageList
from protobench.loading import CentreCrops, batches
from protobench.progress import progress
from protobench.transforms import EvalInput

Pooling = Literal["average", "2x2", "embedding"]
"""average: global average pool (2048-D for a ResNet-50). 2x2: conv5 pooled to 2x2 (8192-D), as Goyal et al. use it.
embedding: the projection head's output (128-D in MoCo and PCL)."""

VERSION = 1
"""Raise when features change for equal inputs."""


def extract(encoder: Encoder, images: ImageList, *, pooling: Pooling = "average", warp: bool = False,
            device: str = "cpu", workers: int = 0, batch_size: int = 256, cache: Path | None = None) -> np.ndarray:
    """float32 [N, D] in the order of ``images``; read from the cache where the same extraction was done before.

    Raises UserError for unreadable images and for features that are not finite or all alike (a collapsed encoder).
    """
    input_ = replace(encoder.input, warp=warp)
    weights = [encoder.account[part] for part in ("sha256", "prefix", "arch")]
    identity = {"version": VERSION, "weights": weights, "data": images.fingerprint, "input": asdict(input_),
                "pooling": pooling, "device": torch.device(device).type, "batch_size": batch_size,
                "torch": torch.__version__, "pillow": PIL.__version__}
    path = (cache or files.cache_dir() / "features") / f"{files.sha256(identity)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or cut short by a full disk: extracted anew
        return np.load(path, mmap_mode="r")
    compute = forward(encoder, input_, pooling, device)
    loader = batches(CentreCrops(images, input_), workers=workers, device=device, batch_size=batch_size)
    parts = [compute(pixels).cpu() for pixels in progress(loader, desc=f"features {images.name}", unit=" batches",
                                                          total=math.ceil(len(images) / batch_size))]
    features = torch.cat(parts).numpy()
    _check(features, images)
    files.write_atomic(path, lambda file: np.save(file, features))
    return features


def forward(encoder: Encoder, input_: EvalInput, pooling: Pooling, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels uint8 [N, 3, H, W] to features [N, D] on ``device``: normalised, through the frozen backbone, pooled.

    UserError where an embedding is asked of a checkpoint without a projection head.
    """
    projection = encoder.projection.to(device) if encoder.projection and pooling == "embedding" else None
    if pooling == "embedding" and projection is None:
        raise UserError(f"{encoder.account['file']} holds no projection head of a known shape, so there is no embedding",
                        hint="evaluate the pooled feature instead: --feature pooled")
    backbone = encoder.backbone.to(device).to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) * 255 for value in (input_.mean, input_.std))

    @torch.inference_mode()
    def compute(pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.to(device, non_blocking=True).float() - mean) / std
        return _pool(backbone.features(x.contiguous(memory_format=torch.channels_last)), pooling, projection)

    return compute


def unit_norm(x_ND: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; a zero row stays zero. float32 [N, D]."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def _pool(map_NCHW: torch.Tensor, pooling: Pooling, projection: torch.nn.Module | None) -> torch.Tensor:
    if projection is not None:
        return projection(map_NCHW.mean((2, 3)))
    if pooling == "average":
        return map_NCHW.mean((2, 3))
    side = map_NCHW.shape[-1]
    return torch.nn.functional.avg_pool2d(map_NCHW, side - 1, stride=1).flatten(1)


def _check(features: np.ndarray, images: ImageList) -> None:
    if not np.isfinite(features).all():
        raise UserError(f"the encoder gives NaN or infinite features on {images.name}",
                        hint="training diverged, or the weights are damaged; nothing is scored")
    if len(features) > 1 and np.ptp(features, axis=0).max() < 1e-6 * max(np.abs(features).max(), 1e-12):
        raise UserError(f"the encoder gives the same feature for every image of {images.name}: it has collapsed",
                        hint="train again with a lower learning rate or another temperature; nothing is scored")
