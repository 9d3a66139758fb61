"""How a detector is trained and run: images with boxes as MMDetection takes them, batches, learning
rate, steps, predictions.

Every random choice (order, scale, flip, the anchors and regions that a step samples) is a function
of seed, draw and step, so on a CPU a training that was stopped goes on to the very same weights. On
a GPU the sums in RoIAlign's gradient have no fixed order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the synchronised one is no BatchNorm2d
from torch.utils.data import Dataset

from evaluate.mmdet_adapter import operators
from protobench import keyed
from protobench.data.boxes import BoxList, Objects
from protobench.data.loading import batches
from protobench.runtime import distributed
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

CHECKED = 20
"""Steps between two looks at the loss: each makes a GPU wait."""


class Samples(Dataset):
    """An image (uint8 [3, H, W], RGB, resized) and its objects as a DetDataSample. Indexed by
    (epoch, image); epoch None: as for a test, at the last scale and never flipped."""

    def __init__(self, images: BoxList, scales: list[list[int]], seed: int, *, masks: bool):
        self.images, self.scales, self.seed, self.masks = (
            images,
            [tuple(scale) for scale in scales],
            seed,
            masks,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: tuple[int | None, int]) -> tuple[Tensor, Any] | UserError:
        operators.provide()  # a spawned worker has not yet
        epoch, index = where
        try:
            found = _as_mmdet(
                self.images.sized(index), self.images.objects[index], index, masks=self.masks
            )
        except (
            UserError
        ) as mistake:  # handed over, not raised: a DataLoader would bury it in a worker's traceback
            return mistake
        scale, flip = self.scales[-1], False
        if epoch is not None:
            rng = keyed.generator(self.seed, "augment", epoch, index)
            scale, flip = self.scales[rng.integers(len(self.scales))], bool(rng.random() < 0.5)
        packed = _transform(scale, flip)(found)
        return packed["inputs"], packed["data_samples"]


@cache
def _transform(scale: tuple[int, int], flip: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """MMDetection's own, made in the process that uses them."""
    from mmcv.transforms import Compose
    from mmdet.datasets import transforms

    keys = ("img_id", "ori_shape", "img_shape", "scale_factor")
    return Compose(
        [
            transforms.Resize(scale=scale, keep_ratio=True),
            transforms.RandomFlip(prob=1.0 if flip else 0.0),
            transforms.PackDetInputs(meta_keys=keys),
        ]
    )


def _as_mmdet(pixels: np.ndarray, objects: Objects, index: int, *, masks: bool) -> dict[str, Any]:
    """What MMDetection's transforms take. ``masks`` become bitmaps, as by its default."""
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    found = {
        "img": pixels,
        "img_id": index,
        "img_shape": pixels.shape[:2],
        "ori_shape": pixels.shape[:2],
        "gt_bboxes": HorizontalBoxes(torch.from_numpy(objects.boxes_N4.copy())),
        "gt_bboxes_labels": objects.labels_N.copy(),
        "gt_ignore_flags": objects.ignored_N.copy(),
    }
    if masks:
        found["gt_masks"] = BitmapMasks(
            [bitmap(mask, objects) for mask in objects.masks], objects.height, objects.width
        )
    return found


def bitmap(mask: Any, objects: Objects) -> np.ndarray:
    """uint8 [H, W] of polygons or run lengths."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(run_lengths(mask, objects))


def run_lengths(mask: Any, objects: Objects) -> dict[str, Any]:
    """The mask in COCO's compressed form."""
    from pycocotools import mask as coco_mask

    if isinstance(mask, dict):
        return coco_mask.frPyObjects(mask, objects.height, objects.width)
    return coco_mask.merge(
        coco_mask.frPyObjects([part.tolist() for part in mask], objects.height, objects.width)
    )


# Batches and rates --------------------------------------------------------------------------------


def epoch_batches(landscape_N: np.ndarray, batch_size: int, *key: int | str) -> list[list[int]]:
    """One epoch's batches in the order that ``key`` draws. Landscapes and portraits apart, as
    MMDetection groups them, so that little of a batch is padding; what is left of both fills the
    last batches, of which one may be smaller."""
    waiting: dict[bool, list[int]] = {True: [], False: []}
    found = []
    for index in keyed.generator(*key).permutation(len(landscape_N)).tolist():
        group = waiting[bool(landscape_N[index])]
        group.append(index)
        if len(group) == batch_size:
            found.append(group.copy())
            group.clear()
    left = waiting[True] + waiting[False]
    return found + [left[start : start + batch_size] for start in range(0, len(left), batch_size)]


@dataclass(frozen=True)
class Schedule:
    """When which batch is trained on, and at what rate."""

    landscape_N: np.ndarray
    """bool, of the training images"""
    params: dict[str, Any]
    draw: int

    @property
    def per_epoch(self) -> int:
        """Batches."""
        size, wide = self.params["batch_size"], int(self.landscape_N.sum())
        tall = len(self.landscape_N) - wide
        return wide // size + tall // size + -(-(wide % size + tall % size) // size)

    @property
    def steps(self) -> int:
        """Of the whole training: its iterations, or its epochs' batches."""
        return self.params["iterations"] or self.params["epochs"] * self.per_epoch

    def where(self, first: int) -> Iterator[list[tuple[int, int]]]:
        """From step ``first`` on, each batch as (epoch, image)."""
        for epoch in range(first // self.per_epoch, -(-self.steps // self.per_epoch)):
            every = epoch_batches(
                self.landscape_N,
                self.params["batch_size"],
                self.params["seed"],
                "order",
                self.draw,
                epoch,
            )
            skipped = max(first - epoch * self.per_epoch, 0)
            for batch in every[skipped : self.steps - epoch * self.per_epoch]:
                yield [(epoch, index) for index in batch]

    def rate(self, step: int) -> float:
        """The learning rate: risen linearly over ``warmup`` steps from a thousandth, x 0.1 at each
        share of ``drops``."""
        risen = (
            1.0 if step >= self.params["warmup"] else 0.001 + 0.999 * step / self.params["warmup"]
        )
        return (
            self.params["lr"]
            * risen
            * 0.1 ** sum(step >= round(share * self.steps) for share in self.params["drops"])
        )


# Training -----------------------------------------------------------------------------------------


def optimizer_of(detector: nn.Module, params: dict[str, Any]) -> torch.optim.Optimizer:
    """SGD over what trains. BatchNorm's weights and biases do not decay, as in Detectron2; on VOC
    none trains."""
    norms = {
        id(parameter)
        for module in detector.modules()
        if isinstance(module, _BatchNorm)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in norms]},
        {
            "params": [parameter for parameter in trained if id(parameter) in norms],
            "weight_decay": 0.0,
        },
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
    """Trains from step ``CHECKED * len(losses)`` on. Appends the mean loss of every CHECKED steps
    (and of the last ones) to ``losses`` and then calls ``after``. UserError where a loss is not
    finite: nothing is lowered silently.

    Under torchrun the processes share each batch, as MMDetection's do: BatchNorm where it trains
    sees all of it, each draws its own regions and normalises its losses by their number, and
    gradients are averaged."""
    first, seed = (
        min(CHECKED * len(losses), schedule.steps),
        (schedule.params["seed"], "step", schedule.draw),
    )
    detector.train()
    summed = distributed.data_parallel(Losses(detector), unused=True)
    seed = (*seed, *([distributed.rank()] if distributed.rank() else []))
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=map(_own, schedule.where(first)),
    )
    recent: list[Tensor] = []
    for step, batch in enumerate(
        progress(loader, desc=desc, unit=" steps", total=schedule.steps - first), start=first
    ):
        torch.manual_seed(keyed.seed(*seed, step))
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        recent.append(loss_of(summed, batch, optimizer))
        if len(recent) == CHECKED or step + 1 == schedule.steps:
            mean = float(distributed.all_reduce_mean(torch.stack(recent).mean()))
            if not np.isfinite(mean) or (step + 1 == schedule.steps and not is_finite(detector)):
                raise UserError(
                    f"detection training diverged by step {step + 1} of {schedule.steps}: the loss"
                    " or a weight is not finite",
                    hint=(
                        f"a lower --lr (it is {schedule.params['lr']:g}) or a longer --warmup (it"
                        f" is {schedule.params['warmup']} steps); nothing is recorded"
                    ),
                )
            losses.append(round(mean, 5))
            recent.clear()
            after()


def is_finite(detector: nn.Module) -> bool:
    """Whether all weights and statistics are: a detector of NaN simply finds nothing, for its
    thresholds drop them."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in detector.state_dict().values())


class Losses(nn.Module):
    """The sum of all of a detector's losses as a forward pass, which DistributedDataParallel asks
    for."""

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector

    def forward(self, batch: list[tuple[Tensor, Any]]) -> Tensor:
        """Of images and samples as Samples gives them."""
        loss, _ = self.detector.parse_losses(
            self.detector.loss(*_prepared(self.detector, batch, training=True))
        )
        return loss


def _own(batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """This process's share of a batch; of an epoch's last one, where it is too small, an image that
    another has too."""
    return distributed.shard_of(batch) or [batch[distributed.rank() % len(batch)]]


def loss_of(
    losses: nn.Module, batch: list[tuple[Tensor, Any]], optimizer: torch.optim.Optimizer
) -> Tensor:
    """One step on a batch; its loss, still on the device. ``losses``: a ``Losses``, or what
    averages its gradients."""
    loss = losses(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _prepared(
    detector: Any, batch: list[tuple[Tensor, Any]], *, training: bool
) -> tuple[Tensor, list[Any]]:
    """The batch on the detector's device, normalised and padded, and its samples."""
    pixels, found = zip(*batch, strict=True)
    data = detector.data_preprocessor(
        {"inputs": list(pixels), "data_samples": list(found)}, training
    )
    return data["inputs"], data["data_samples"]


def precise_batch_norm(
    detector: Any, samples: Samples, schedule: Schedule, count: int, *, device: str, workers: int
) -> None:
    """BatchNorm's running statistics become their plain means over ``count`` training batches
    (MoCo's PRECISE_BN)."""
    norms = [
        module
        for module in detector.modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a plain mean
    torch.manual_seed(keyed.seed(schedule.params["seed"], "precise", schedule.draw))
    where = list(zip(range(min(count, schedule.steps)), schedule.where(0), strict=False))
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=[_own(batch) for _, batch in where],
    )
    with torch.no_grad():
        for batch in progress(
            loader, desc="BatchNorm statistics", unit=" batches", total=len(where)
        ):
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
    """What a detector found in one image, best first: boxes_N4 float32 in its pixels, scores_N,
    labels_N, masks (run lengths)."""

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    masks: tuple[dict[str, Any], ...] = ()


def predict(
    detector: Any, samples: Samples, *, batch_size: int, device: str, workers: int
) -> list[Detections]:
    """Of every image, in order. Only images of one size share a batch: nothing is padded beyond
    what a single image would be, so the batch size changes no result. Processes share the batches,
    and the first has all results."""
    from pycocotools import mask as coco_mask

    of_size: dict[tuple[int, int], list[int]] = {}
    for index, objects in enumerate(samples.images.objects):
        of_size.setdefault((objects.width, objects.height), []).append(index)
    every = [
        group[start : start + batch_size]
        for group in of_size.values()
        for start in range(0, len(group), batch_size)
    ]
    order = distributed.shard_of(every)
    loader = batches(
        samples,
        workers=workers,
        device=device,
        stack=list,
        batch_sampler=[[(None, index) for index in batch] for batch in order],
    )
    detector.eval()
    results: dict[int, Detections] = {}
    with torch.no_grad():
        for batch in progress(loader, desc="detecting", unit=" batches", total=len(order)):
            for sample in detector.predict(*_prepared(detector, batch, training=False)):
                of = sample.pred_instances.cpu()
                masks = (
                    coco_mask.encode(
                        np.asfortranarray(of.masks.numpy().transpose(1, 2, 0).astype(np.uint8))
                    )
                    if "masks" in of and len(of)
                    else ()
                )
                results[sample.img_id] = Detections(
                    of.bboxes.numpy(), of.scores.numpy(), of.labels.numpy(), tuple(masks)
                )
    found = dict(distributed.gather_to_main(list(results.items())))
    return [found[index] for index in range(len(samples))] if distributed.is_main() else []
