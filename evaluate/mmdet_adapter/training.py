"""Training and running a detector: images with boxes as MMDetection takes them, batches, learning
rate, steps, predictions.

Every random choice (order, scale, flip, the anchors and regions that a step samples) is a function
of seed, draw and step. On a CPU a resumed training therefore ends with exactly the same weights as
an uninterrupted one; on a GPU the sums in RoIAlign's gradient have no fixed order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # SyncBatchNorm is no BatchNorm2d
from torch.utils.data import Dataset

from evaluate.mmdet_adapter import operators
from protobench import keyed
from protobench.data.boxes import BoxList, Objects
from protobench.data.loading import batches
from protobench.runtime import distributed
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

CHECKED = 20
"""Steps between two checks of the loss, as each check makes the GPU wait."""


class Samples(Dataset[tuple[Tensor, Any] | UserError]):
    """Images (uint8 [3, H, W], RGB, resized), each with its objects as a DetDataSample.

    Indexed by (epoch, image). Scale and flip are random; for epoch None the image is prepared as
    for testing, at the last scale and unflipped. An image that cannot be read gives the UserError
    itself: raised in a worker, it would be buried in the DataLoader's traceback."""

    def __init__(self, images: BoxList, scales: list[list[int]], seed: int, *, masks: bool):
        self.images, self.seed, self.masks = images, seed, masks
        self.scales = [(longer, shorter) for longer, shorter in scales]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: tuple[int | None, int]) -> tuple[Tensor, Any] | UserError:
        operators.provide()  # needed in spawned workers
        epoch, index = where
        try:
            pixels = self.images.sized(index)
        except UserError as mistake:
            return mistake
        sample = _as_mmdet(pixels, self.images.objects[index], index, masks=self.masks)
        scale, flip = self.scales[-1], False
        if epoch is not None:
            rng = keyed.generator(self.seed, "augment", epoch, index)
            scale, flip = self.scales[rng.integers(len(self.scales))], bool(rng.random() < 0.5)
        packed = _transform(scale, flip)(sample)
        return packed["inputs"], packed["data_samples"]


@cache
def _transform(scale: tuple[int, int], flip: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return MMDetection's own transforms; made lazily, in the process that uses them."""
    from mmcv.transforms import Compose
    from mmdet.datasets import transforms

    keys = ("img_id", "ori_shape", "img_shape", "scale_factor")
    composed: Callable[[dict[str, Any]], dict[str, Any]] = Compose(
        [
            transforms.Resize(scale=scale, keep_ratio=True),
            transforms.RandomFlip(prob=1.0 if flip else 0.0),
            transforms.PackDetInputs(meta_keys=keys),
        ]
    )
    return composed


def _as_mmdet(pixels: np.ndarray, objects: Objects, index: int, *, masks: bool) -> dict[str, Any]:
    """Return the input of MMDetection's transforms. ``masks`` become bitmaps, its default."""
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    sample = {
        "img": pixels,
        "img_id": index,
        "img_shape": pixels.shape[:2],
        "ori_shape": pixels.shape[:2],
        "gt_bboxes": HorizontalBoxes(torch.from_numpy(objects.boxes_N4.copy())),
        "gt_bboxes_labels": objects.labels_N.copy(),
        "gt_ignore_flags": objects.ignored_N.copy(),
    }
    if masks:
        bitmaps = [bitmap(mask, objects) for mask in objects.masks]
        sample["gt_masks"] = BitmapMasks(bitmaps, objects.height, objects.width)
    return sample


def bitmap(mask: Any, objects: Objects) -> np.ndarray:
    """Return polygons or run lengths as a bitmap, uint8 [H, W]."""
    from pycocotools import mask as coco_mask

    bitmap_HW: np.ndarray = coco_mask.decode(run_lengths(mask, objects))
    return bitmap_HW


def run_lengths(mask: Any, objects: Objects) -> dict[str, Any]:
    """Return the mask as run lengths in COCO's compressed form."""
    from pycocotools import mask as coco_mask

    encoded: Any
    if isinstance(mask, dict):
        encoded = coco_mask.frPyObjects(mask, objects.height, objects.width)
    else:
        polygons = [polygon.tolist() for polygon in mask]
        encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, objects.height, objects.width))
    return dict(encoded)


# Batches and rates --------------------------------------------------------------------------------


def epoch_batches(landscape_N: np.ndarray, batch_size: int, *key: int | str) -> list[list[int]]:
    """Return one epoch's batches in an order keyed by ``key``.

    Landscapes and portraits are kept apart, as in MMDetection, so that little of a batch is
    padding. The rest of both fills the last batches, the very last of which may be smaller."""
    waiting: dict[bool, list[int]] = {True: [], False: []}
    full = []
    for index in keyed.generator(*key).permutation(len(landscape_N)).tolist():
        group = waiting[bool(landscape_N[index])]
        group.append(index)
        if len(group) == batch_size:
            full.append(group.copy())
            group.clear()
    rest = waiting[True] + waiting[False]
    return full + [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]


@dataclass(frozen=True)
class Schedule:
    """Which batch is trained on at which step, and at which learning rate."""

    landscape_N: np.ndarray
    """bool: whether a training image is at least as wide as high"""
    params: dict[str, Any]
    """the evaluation's parameters, as recorded"""
    draw: int

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        size: int = self.params["batch_size"]
        wide = int(self.landscape_N.sum())
        tall = len(self.landscape_N) - wide
        return wide // size + tall // size + -(-(wide % size + tall % size) // size)

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        iterations: int = self.params["iterations"]
        epochs: int = self.params["epochs"]
        return iterations or epochs * self.per_epoch

    def where(self, first: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches from step ``first`` on, as lists of (epoch, image)."""
        size, seed = self.params["batch_size"], self.params["seed"]
        for epoch in range(first // self.per_epoch, -(-self.steps // self.per_epoch)):
            epoch_start = epoch * self.per_epoch
            every = epoch_batches(self.landscape_N, size, seed, "order", self.draw, epoch)
            for batch in every[max(first - epoch_start, 0) : self.steps - epoch_start]:
                yield [(epoch, index) for index in batch]

    def rate(self, step: int) -> float:
        """Return the learning rate: a linear warm-up from a thousandth of ``lr`` over ``warmup``
        steps, then a factor of 0.1 at each share of the training in ``drops``."""
        lr: float = self.params["lr"]
        warmup: int = self.params["warmup"]
        factor = 1.0 if step >= warmup else 0.001 + 0.999 * step / warmup
        drops = sum(step >= round(share * self.steps) for share in self.params["drops"])
        return float(lr * factor * 0.1**drops)


# Training -----------------------------------------------------------------------------------------


def optimizer_of(detector: nn.Module, params: dict[str, Any]) -> torch.optim.Optimizer:
    """Return SGD over the trainable parameters. As in Detectron2, BatchNorm's do not decay; on VOC
    no BatchNorm trains."""
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters()}
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if id(parameter) not in of_norms]
    undecayed = [parameter for parameter in trained if id(parameter) in of_norms]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.0,
        foreach=True,
        momentum=params["sgd_momentum"],
        weight_decay=params["weight_decay"],
    )


def train(
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    schedule: Schedule,
    *,
    losses: list[float],
    after: Callable[[], None],
    device: str,
    workers: int,
    desc: str,
) -> None:
    """Train from step ``CHECKED * len(losses)`` on, appending the mean loss of every CHECKED steps
    (and of the last ones) to ``losses`` and then calling ``after``. Raises UserError if a loss is
    not finite; the learning rate is never lowered silently.

    Under torchrun the ranks share each batch, as in MMDetection: a BatchNorm that trains sees all
    of it, each rank samples its own regions and normalises its losses by their number, and
    gradients are averaged."""
    first = min(CHECKED * len(losses), schedule.steps)
    rank = [distributed.rank()] if distributed.rank() else []
    key = (schedule.params["seed"], "step", schedule.draw, *rank)
    detector.train()
    summed = distributed.data_parallel(Losses(detector), unused=True)
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=map(_shard, schedule.where(first)),
    )
    steps = progress(loader, desc=desc, unit=" steps", total=schedule.steps - first)
    recent: list[Tensor] = []
    for step, batch in enumerate(steps, start=first):
        torch.manual_seed(keyed.seed(*key, step))
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        recent.append(loss_of(summed, batch, optimizer))
        is_last = step + 1 == schedule.steps
        if len(recent) == CHECKED or is_last:
            mean = float(distributed.all_reduce_mean(torch.stack(recent).mean()))
            if not np.isfinite(mean) or (is_last and not is_finite(detector)):
                raise _diverged(step + 1, schedule)
            losses.append(round(mean, 5))
            recent.clear()
            after()


def _diverged(step: int, schedule: Schedule) -> UserError:
    return UserError(
        f"detection training diverged by step {step} of {schedule.steps}: the loss or a weight is"
        " not finite",
        hint=(
            f"a lower --lr (it is {schedule.params['lr']:g}) or a longer --warmup (it is"
            f" {schedule.params['warmup']} steps); nothing is recorded"
        ),
    )


def is_finite(detector: nn.Module) -> bool:
    """Return whether all weights and statistics are finite. A detector of NaN raises no error: its
    score thresholds drop every detection."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in detector.state_dict().values())


class Losses(nn.Module):
    """The sum of a detector's losses as a forward pass, as DistributedDataParallel requires."""

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector

    def forward(self, batch: list[tuple[Tensor, Any]]) -> Tensor:
        """Return the loss of a batch of images and samples as Samples gives them."""
        losses = self.detector.loss(*_prepared(self.detector, batch, training=True))
        total: Tensor
        total, _ = self.detector.parse_losses(losses)
        return total


def _shard(batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return this rank's shard of a batch; a rank left without an image in an epoch's small last
    batch reuses one."""
    return distributed.shard_of(batch) or [batch[distributed.rank() % len(batch)]]


def loss_of(
    losses: nn.Module, batch: list[tuple[Tensor, Any]], optimizer: torch.optim.Optimizer
) -> Tensor:
    """Take one step on a batch and return its loss, still on the device. ``losses``: a ``Losses``,
    possibly wrapped in DistributedDataParallel."""
    loss: Tensor = losses(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _prepared(
    detector: Any, batch: list[tuple[Tensor, Any]], *, training: bool
) -> tuple[Tensor, list[Any]]:
    """Return the batch on the detector's device, normalised and padded, and its samples."""
    pixels, samples = zip(*batch, strict=True)
    data = {"inputs": list(pixels), "data_samples": list(samples)}
    prepared = detector.data_preprocessor(data, training)
    return prepared["inputs"], prepared["data_samples"]


def precise_batch_norm(
    detector: Any, samples: Samples, schedule: Schedule, count: int, *, device: str, workers: int
) -> None:
    """Set BatchNorm's running statistics to their plain means over ``count`` training batches, as
    MoCo's PRECISE_BN does. Raises UserError if they are not finite."""
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the plain mean
    torch.manual_seed(keyed.seed(schedule.params["seed"], "precise", schedule.draw))
    chosen = list(islice(schedule.where(0), min(count, schedule.steps)))
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=[_shard(batch) for batch in chosen],
    )
    bar = progress(loader, desc="BatchNorm statistics", unit=" batches", total=len(chosen))
    with torch.no_grad():
        for batch in bar:
            detector.loss(*_prepared(detector, batch, training=True))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if not is_finite(detector):
        raise UserError(
            "BatchNorm's statistics are not finite: the detection training diverged in its last"
            " steps",
            hint=f"a lower --lr (it is {schedule.params['lr']:g}); nothing is recorded",
        )


# Predictions --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects detected in one image, highest score first."""

    boxes_N4: np.ndarray
    """float32, (x1, y1, x2, y2) in pixels of the original image"""
    scores_N: np.ndarray
    labels_N: np.ndarray
    masks: tuple[dict[str, Any], ...] = ()
    """run lengths; empty without a mask head"""


def predict(
    detector: Any, samples: Samples, *, batch_size: int, device: str, workers: int
) -> list[Detections]:
    """Return the detections of every image in order, on rank 0; [] on the other ranks, which share
    the work.

    Only images of one size share a batch: none is padded more than it would be alone, so the batch
    size does not change the result."""
    of_size: dict[tuple[int, int], list[int]] = {}
    for index, objects in enumerate(samples.images.objects):
        of_size.setdefault((objects.width, objects.height), []).append(index)
    every = [
        group[start : start + batch_size]
        for group in of_size.values()
        for start in range(0, len(group), batch_size)
    ]
    mine = distributed.shard_of(every)
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=[[(None, index) for index in batch] for batch in mine],
    )
    detector.eval()
    detections: list[tuple[int, Detections]] = []
    with torch.no_grad():
        for batch in progress(loader, desc="detecting", unit=" batches", total=len(mine)):
            for sample in detector.predict(*_prepared(detector, batch, training=False)):
                detections.append((sample.img_id, _detections(sample.pred_instances.cpu())))
    by_image = dict(distributed.gather_to_main(detections))
    return [by_image[index] for index in range(len(samples))] if distributed.is_main() else []


def _detections(instances: Any) -> Detections:
    """Convert MMDetection's InstanceData, which is on the CPU."""
    from pycocotools import mask as coco_mask

    masks = []
    if "masks" in instances and len(instances):
        bitmaps_HWN = instances.masks.numpy().transpose(1, 2, 0).astype(np.uint8)
        masks = coco_mask.encode(np.asfortranarray(bitmaps_HWN))
    return Detections(
        instances.bboxes.numpy(), instances.scores.numpy(), instances.labels.numpy(), tuple(masks)
    )
