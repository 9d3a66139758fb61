"""Times training steps of Faster R-CNN R50-FPN with a frozen backbone: MMDetection, as
evaluate/detection.py runs it, against torchvision's.

Both sample as is standard (2000 and 1000 proposals, 512 regions) and see the same images and boxes;
SGD is included."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from alternate import Figure, alternate, middle, show

from evaluate import detection
from evaluate.mmdet_adapter import models, training
from protobench import keyed
from protobench.checkpoints import resnet
from protobench.checkpoints.encoders import Encoder
from protobench.data.boxes import BoxList, Objects
from protobench.data.transforms import EvalInput


def encoder(precision: Any = "fp32") -> Encoder:
    """Returns a random ResNet-50 whose BatchNorm has seen random images, so that maps keep their
    scale."""
    torch.manual_seed(0)
    network = resnet.build("resnet50")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 128, 128))
    return Encoder(network.eval(), EvalInput(), "", {}, precision=precision)


def scene(width: int, height: int, key: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Returns noise with three boxes: pixels uint8 [3, H, W], boxes [3, 4], labels [3]."""
    rng = keyed.generator("benchmark", key)
    corner = rng.uniform(0, 0.5, (3, 2)) * (width, height)
    boxes = np.concatenate(
        [corner, corner + rng.uniform(0.2, 0.45, (3, 2)) * (width, height)], 1
    ).astype(np.float32)
    return (
        torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
        boxes,
        rng.integers(0, 20, 3),
    )


def ours(batch: list, device: str, precision: str = "fp32") -> Any:
    """Returns a function that takes a step with the suite's code."""
    detector = models.faster_rcnn(encoder(precision), 20, small=False).to(device).train()
    params = detection.VOC | {"sgd_momentum": 0.9, "weight_decay": 1e-4, "lr": 0.001}
    optimizer = training.optimizer_of(detector, params)
    for group in optimizer.param_groups:
        group["lr"] = params["lr"]
    height, width = batch[0][0].shape[1:]
    objects = tuple(
        Objects(width, height, boxes, labels, np.zeros(len(labels), bool))
        for _, boxes, labels in batch
    )
    images = BoxList(
        "noise",
        Path(),
        tuple(map(str, range(len(batch)))),
        np.ones((len(batch), 20), np.int64),
        tuple(map(str, range(20))),
        pixels=np.stack([pixels.permute(1, 2, 0).numpy() for pixels, _, _ in batch]),
        objects=objects,
    )
    samples = training.Samples(images, [[max(width, height), min(width, height)]], 0, masks=False)
    ready = [samples[None, index] for index in range(len(batch))]

    losses = training.Losses(detector)

    def step() -> None:
        torch.manual_seed(0)
        training.loss_of(losses, ready, optimizer)

    return step


def torchvisions(batch: list, device: str) -> Any:
    """Returns a function that takes a step with torchvision's own detector on the same backbone."""
    height, width = batch[0][0].shape[1:]
    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=21,
        trainable_backbone_layers=0,
        min_size=min(width, height),
        max_size=max(width, height),
        rpn_post_nms_top_n_train=1000,
    )
    known = detector.backbone.body.state_dict()
    weights = encoder().backbone.state_dict()
    detector.backbone.body.load_state_dict({name: weights[name] for name in known})
    detector.to(device).train()
    optimizer = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad],
        lr=0.001,
        momentum=0.9,
        weight_decay=1e-4,
        foreach=True,
    )
    targets = [
        {
            "boxes": torch.from_numpy(boxes).to(device),
            "labels": torch.from_numpy(labels).to(device) + 1,
        }
        for _, boxes, labels in batch
    ]

    def step() -> None:
        torch.manual_seed(0)
        loss = torch.stack(
            list(
                detector(
                    [pixels.to(device).float() / 255 for pixels, _, _ in batch], targets
                ).values()
            )
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def rows() -> Iterator[Figure]:
    """Yields the row for small images on one core; gpu.py measures 1000 x 600 on a GPU."""
    torch.set_num_threads(1)
    batch = [scene(160, 160, key) for key in range(2)]
    times = alternate(torchvisions(batch, "cpu"), ours(batch, "cpu"), 4)
    yield Figure(
        "a training step of Faster R-CNN R50-FPN, 2 images of 160 × 160, relative to torchvision",
        middle((b / a for a, b in zip(*times, strict=True)), "× its time"),
        "≤ 1.15×",
    )


if __name__ == "__main__":
    show(rows())
