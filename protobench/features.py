"""The features of a data set, extracted once per (weights, data, input, pooling) and cached as
memory-mapped arrays."""

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import PIL
import torch

from protobench.checkpoints import input_check
from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.load_report import Bf16Agreement
from protobench.checkpoints.resnet import ResNet, fuse_batchnorm
from protobench.data import crop_cache
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches, normaliser
from protobench.data.transforms import EvalInput
from protobench.runtime import cache_use, distributed, files, precision
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

Pooling = Literal["average", "2x2", "embedding"]
"""average: the backbone's feature; a ResNet's is its global average pool (2048-D for a ResNet-50),
a vision transformer's what --vit-feature says. 2x2: conv5 pooled to 2x2 (8192-D), as Goyal et al.
use it, of a ResNet only. embedding: the projection head's output (128-D in MoCo and PCL)."""

VERSION = 2
"""Raise when features change for equal inputs."""

SYNC_SECONDS = 60.0
"""How much of an extraction is lost at most when it is killed."""


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
    """Return features float32 [N, D] in the order of ``images``, memory-mapped from the cache;
    compute them first if they are not there.

    Batches are written as they are computed, so memory does not limit the size of the data and a
    stopped extraction resumes where it was. Under torchrun the ranks share the batches, and each
    returns all features. In bf16 the difference from fp32 is added to ``encoder.report``. Raises
    UserError if an image cannot be read, if features are not finite or all equal (a collapsed
    encoder), or if the disk is too small."""
    (x_ND,) = extract_together(
        [(encoder, pooling)],
        images,
        warp=warp,
        device=device,
        workers=workers,
        batch_size=batch_size,
        cache=cache,
    )
    return x_ND


def extract_together(
    wanted: Sequence[tuple[Encoder, Pooling]],
    images: ImageList,
    *,
    warp: bool = False,
    device: str = "cpu",
    workers: int = 0,
    batch_size: int = 256,
    cache: Path | None = None,
) -> list[np.ndarray]:
    """Return what ``extract`` returns for each of several encoders and poolings, to the same bits.
    Every image is read and decoded once for all of them, and passes each network once.

    Raises ValueError for encoders that expect different inputs. Of several that fail, the first
    raises its UserError; the others' features are kept."""
    (input_,) = {replace(encoder.input, warp=warp) for encoder, _ in wanted}
    started, entries = time.perf_counter(), list[_Entry]()
    for encoder, pooling in wanted:
        if encoder.precision == "bf16" and encoder.report.bf16 is None:
            encoder.report.bf16 = agreement(encoder, images, input_, pooling, device)
        input_check.verify(encoder, images, input_)
        identity = {
            "version": VERSION,
            "weights": _weights(encoder),
            "data": images.cache_key,
            "input": asdict(input_),
            "pooling": pooling,
            "device": torch.device(device).type,
            "batch_size": batch_size,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
        }
        if torch.device(device).type == "cuda" or encoder.precision != "fp32":
            identity["precision"] = encoder.precision
        path = (cache or files.cache_dir() / "features") / f"{files.sha256(identity)}.npy"
        entries.append(_Entry(path, encoder, pooling, _description(encoder, images, pooling, warp)))
    with contextlib.ExitStack() as in_use:
        for entry in entries:
            in_use.enter_context(cache_use.using(entry.path, **entry.what))
        missing = _missing(entries)
        if missing:
            with contextlib.ExitStack() as locks:
                # in one order, or two processes could wait for each other
                for entry in sorted(missing, key=lambda entry: entry.path):
                    if distributed.is_main():
                        lock = files.exclusive_lock(entry.path.with_suffix(".lock"))
                        locks.enter_context(lock)
                # another evaluation may have written them while this one waited for the locks
                if missing := _missing(entries):
                    _write(missing, images, input_, device, workers, batch_size)
                    if distributed.is_main():
                        _finish(missing, images)
                    distributed.barrier()
        found = []
        for entry in entries:
            if not _is_complete(entry.path):
                raise UserError(
                    "this process cannot see the features that rank 0 has written",
                    at=entry.path,
                    hint=(
                        "PROTOBENCH_CACHE must name a folder on a file system that all machines"
                        " share"
                    ),
                )
            x_ND: np.ndarray = np.load(entry.path, mmap_mode="r")
            # the base is the mapping, which every view of the features keeps alive
            cache_use.use_while_alive(x_ND.base, entry.path, **entry.what)
            how = "taken from the cache"
            if entry.path in [one.path for one in missing]:
                how = f"{time.perf_counter() - started:.1f} s"
            print(f"features of {images.name}: {x_ND.shape[0]} x {x_ND.shape[1]}, {how}")
            found.append(x_ND)
    return found


@dataclass(frozen=True)
class _Entry:
    """Features in the cache, or to be written there."""

    path: Path
    encoder: Encoder
    pooling: Pooling
    what: dict[str, str]
    """they are, for people"""

    @property
    def partial(self) -> Path:
        """The file while it is written."""
        return self.path.with_suffix(".partial")

    @property
    def counter(self) -> Path:
        """How much of it is on the disk."""
        return self.path.with_suffix(".rows")


def _weights(encoder: Encoder) -> list[str]:
    """What tells the network of one encoder from another's."""
    report = encoder.report
    return [
        report.sha256,
        report.prefix,
        report.arch,
        *([report.feature] if report.feature else []),
    ]


def _missing(entries: list[_Entry]) -> list[_Entry]:
    """Return those that are not complete on the main process's disk, each path once."""
    by_path = {entry.path: entry for entry in entries}
    missing = distributed.broadcast_from_main(
        lambda: [path for path in by_path if not _is_complete(path)]
    )
    return [by_path[path] for path in missing]


def _description(
    encoder: Encoder, images: ImageList, pooling: Pooling, warp: bool
) -> dict[str, str]:
    """What ``protobench cache`` says of these features."""
    report, trained = encoder.report, encoder.report.trained or {}
    # of a file that export has written, only what it was exported from is known
    is_known = "method" in trained and "seed" in trained
    origin = f"{trained['method']} seed {trained['seed']}" if is_known else report.origin
    return {
        "checkpoint": f"{report.file} {report.sha256[:8]} ({origin})",
        "data": images.name,
        "form": f"{pooling}, {encoder.precision}{', warped' if warp else ''}",
    }


def _is_complete(path: Path) -> bool:
    """Return whether the file exists and is not truncated."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return len(np.load(path, mmap_mode="r")) > 0
    return False


def _finish(entries: list[_Entry], images: ImageList) -> None:
    """Check the written features and move them to their paths; delete those that are bad, and raise
    the UserError of the first of them."""
    mistakes = []
    for entry in entries:
        try:
            _check(np.load(entry.partial, mmap_mode="r"), images, entry.encoder.report.file)
        except UserError as mistake:
            entry.partial.unlink()
            mistakes.append(mistake)
        else:
            with files.writing(entry.path):
                os.replace(entry.partial, entry.path)
        entry.counter.unlink(missing_ok=True)
    if mistakes:
        raise mistakes[0]


def _write(
    entries: list[_Entry],
    images: ImageList,
    input_: EvalInput,
    device: str,
    workers: int,
    batch_size: int,
) -> None:
    """Write features to .partial, .npy files, resuming after the rows that every .rows counts as
    synced to the disk.

    Of W ranks, rank r computes batches r, r + W, …; rank 0 writes all rows in the order of the
    images."""
    compute = _computing(entries, input_, device)
    world_size, rank = distributed.world_size(), distributed.rank()
    done = distributed.broadcast_from_main(lambda: min(map(_rows_kept, entries)))
    starts = range(done, len(images), batch_size)
    parts = [range(start, min(start + batch_size, len(images))) for start in starts]
    if not parts:
        return
    # in each round every rank computes one batch, but for the last round
    rounds = [parts[i : i + world_size] for i in range(0, len(parts), world_size)]
    crops = crop_cache.centre_crops(images, input_)
    mine = iter(
        batches(crops, workers=workers, device=device, batch_sampler=parts[rank::world_size])
    )
    synced = time.monotonic()
    with contextlib.ExitStack() as opened:
        outputs = [
            opened.enter_context(files.opened(entry.partial, "r+b" if done else "wb"))
            for entry in (entries if distributed.is_main() else [])
        ]
        bar = progress(rounds, desc=f"features {images.name}", unit=" batches", total=len(rounds))
        for this_round in bar:
            pixels = next(mine, None)
            own: list[torch.Tensor | None] = [None] * len(entries)
            if pixels is not None:
                own = [*compute(pixels)]
            sizes = [len(part) for part in this_round]
            sizes += [0] * (world_size - len(sizes))
            gathered = [distributed.gather_rows_to_main(x_ND, sizes) for x_ND in own]
            rows = [x_ND for x_ND in gathered if x_ND is not None]
            if not outputs:
                continue
            with files.writing(entries[0].path):
                if this_round is rounds[0]:
                    _begin(outputs, rows, len(images), done, entries[0].path.parent)
                for file, x_ND in zip(outputs, rows, strict=True):
                    file.write(x_ND.numpy().tobytes())
                if this_round is rounds[-1] or time.monotonic() - synced > SYNC_SECONDS:
                    for file, entry in zip(outputs, entries, strict=True):
                        files.sync(file)
                        files.write_text(entry.counter, f"{this_round[-1].stop} {file.tell()}")
                    synced = time.monotonic()


def _begin(
    outputs: list[BinaryIO], rows: list[torch.Tensor], images: int, done: int, folder: Path
) -> None:
    """Write the headers, and cut each file off after the rows that are ``done``. Raises UserError
    where the disk has not the space for the others."""
    headers = [_header(images, x_ND.shape[1]) for x_ND in rows]
    row_bytes = [x_ND.shape[1] * 4 for x_ND in rows]
    needed = sum(map(len, headers)) + sum(row_bytes) * (images - done)
    files.require_disk_space(folder, needed, "the features")
    for file, header, size in zip(outputs, headers, row_bytes, strict=True):
        file.write(header)
        file.seek(len(header) + done * size)
        file.truncate()


def _computing(
    entries: list[_Entry], input_: EvalInput, device: str
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return a function from pixels to the features of all entries, on the CPU; the pixels pass
    each network once, however many poolings are wanted of it."""
    groups: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        groups.setdefault(files.sha256(_weights(entry.encoder)), []).append(i)
    forwards = [
        Forward(entries[group[0]].encoder, input_, [entries[i].pooling for i in group], device)
        for group in groups.values()
    ]

    def compute(pixels: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = [pixels] * len(entries)
        for group, forward in zip(groups.values(), forwards, strict=True):
            for i, x_ND in zip(group, forward.all(pixels), strict=True):
                found[i] = x_ND.float().cpu()
        return found

    return compute


def _rows_kept(entry: _Entry) -> int:
    """Return how many rows a stopped extraction left on the disk; 0 if the file is shorter than its
    counter says."""
    try:
        rows, size = map(int, entry.counter.read_text().split())
        return rows if entry.partial.stat().st_size >= size else 0
    except (OSError, ValueError):
        return 0


def _header(rows: int, columns: int) -> bytes:
    """Return the header of an .npy file of float32 [rows, columns]."""
    buffer = io.BytesIO()
    layout = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


class Forward:
    """From pixels uint8 [N, 3, H, W] to features float32 [N, D] on ``device``: normalised, passed
    through the frozen backbone and pooled.

    ``backbone`` is a copy of the encoder's with its BatchNorms fused into the convolutions. Raises
    UserError for an embedding if the checkpoint has no projection head, and for a 2x2 pool of a
    network without a map."""

    def __init__(
        self,
        encoder: Encoder,
        input_: EvalInput,
        pooling: Pooling | Sequence[Pooling],
        device: str,
    ):
        self.poolings = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.projection: torch.nn.Module | None = None
        if "embedding" in self.poolings:
            if encoder.projection is None:
                raise UserError(
                    f"{encoder.report.file} holds no projection head of a known shape, so there is"
                    " no embedding",
                    hint="evaluate the pooled feature instead: --feature pooled",
                )
            self.projection = encoder.projection.to(device)
        if "2x2" in self.poolings:
            encoder.resnet("the last convolutional map is pooled to 2x2")
        self.backbone = fuse_batchnorm(encoder.backbone).to(device)
        self.backbone.to(memory_format=torch.channels_last)
        self.normalise = normaliser(input_, device)
        self.precision, self.device = encoder.precision, device
        self.autocast = torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=encoder.precision == "bf16"
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features, by the first of several poolings."""
        return self.all(pixels)[0]

    @torch.inference_mode()
    def all(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the features by every pooling, of one pass through the network."""
        with precision.arithmetic(self.precision, self.device, fixed_shapes=True), self.autocast:
            x = self.normalise(pixels)
            if not isinstance(self.backbone, ResNet):  # it has one feature
                return [self.backbone(x).float()] * len(self.poolings)
            map_NCHW = self.backbone.features(x)
            return [_pool(map_NCHW, one, self.projection).float() for one in self.poolings]


def agreement(
    encoder: Encoder, images: ImageList, input_: EvalInput, pooling: Pooling, device: str
) -> Bf16Agreement:
    """Return how well bf16 features agree with fp32 ones: the lowest and the mean cosine similarity
    over up to 64 images spread evenly over ``images``."""
    sample = images.subset(np.unique(np.linspace(0, len(images) - 1, 64).astype(int)))
    crops = CentreCrops(sample, input_)
    (pixels,) = batches(crops, workers=0, device=device, batch_size=len(sample))
    fast, exact = (
        Forward(replace(encoder, precision=precision), input_, pooling, device)(pixels)
        for precision in ("bf16", "fp32")
    )
    cosines = torch.nn.functional.cosine_similarity(fast, exact, dim=1)
    measured = Bf16Agreement(
        images=len(sample),
        min_cosine=round(float(cosines.min()), 6),
        mean_cosine=round(float(cosines.mean()), 6),
    )
    print(
        f"bf16: cosine with fp32 features over {len(sample)} images: lowest {measured.min_cosine},"
        f" mean {measured.mean_cosine}"
    )
    return measured


def unit_norm(x_ND: np.ndarray) -> np.ndarray:
    """Return each row divided by its norm; a zero row stays zero."""
    unit_ND: np.ndarray = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def _pool(
    map_NCHW: torch.Tensor, pooling: Pooling, projection: torch.nn.Module | None
) -> torch.Tensor:
    """Return features [N, D] of the last stage's maps."""
    if pooling == "embedding" and projection is not None:
        embedding: torch.Tensor = projection(map_NCHW.mean((2, 3)))
        return embedding
    if pooling == "average":
        return map_NCHW.mean((2, 3))
    side = map_NCHW.shape[-1]
    return torch.nn.functional.avg_pool2d(map_NCHW, side - 1, stride=1).flatten(1)


def _check(features: np.ndarray, images: ImageList, file: str) -> None:
    """Raise UserError if features are not finite, or equal for all images."""
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
    largest = max(np.abs(low).max(), np.abs(high).max(), 1e-12)
    if len(features) > 1 and (high - low).max() < 1e-6 * largest:
        raise UserError(
            f"the encoder gives the same feature for every image of {images.name}: it has"
            " collapsed",
            at=file,
            hint="train again with a lower learning rate or another temperature; nothing is scored",
        )
