"""Object detection: Faster R-CNN C4, fine-tuned on VOC (the tables of MoCo and of MoCo v2).

Examples:

    torchrun --nproc_per_node 8 evaluate/detection_c4.py --ckpt moco_v2.pth.tar --data /data/VOCdevkit
    python evaluate/detection_c4.py --ckpt encoder.safetensors  # bundled synthetic data

Trained on VOC07+12's trainval images as in MoCo's configuration (detection/ of its repository, by
Detectron2): conv5 is the head, another BatchNorm follows it, everything trains, BatchNorm included
and without weight decay; SGD, 24 000 batches of 16, momentum 0.9, weight decay 1e-4, learning rate
0.02 after 100 steps of warm-up, x 0.1 at 18 000 and 22 000; shorter side 480 to 800 drawn in steps
of 32, 800 in the test, at most 1333; flips; BatchNorm's statistics from 200 batches at the end.
Difficult objects are targets, too, as in Detectron2. Five trainings, as in MoCo v2's Table 1.

Scored on VOC07's test images as Detectron2 scores them: AP50 and AP75 are mAP over 11 recalls at
these IoUs, AP is the mean from 0.50 to 0.95; difficult objects are ignored. Departures:

  library  MMDetection's detector in place of Detectron2's: images are resized by OpenCV without
           antialiasing and padded to multiples of 32.
  memory   16 images on one GPU take at least 90 GiB in float32 (computed): torchrun shares them.
  bundled  Scenes of at most 128 pixels, a rate of 0.05, 200 batches of 8: what the bundled
           fine-tuning on COCO has (evaluate/detection.py), whose detector is the same but for its
           masks. One training per encoder."""  # noqa: E501 (examples are one line each)

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import tyro

from evaluate import detection
from evaluate.detection import COCO, COCO_BUNDLED, Detector
from protobench.runtime import cli

STEPS = {"iterations": 24_000, "warmup": 100, "drops": [18 / 24, 22 / 24]}
C4 = Detector(
    "Faster R-CNN C4, everything trains",
    "faster_rcnn_c4",
    "voc_over_ious",
    "AP50, 11 recalls",
    {"value": "AP50", "ap": "AP", "ap75": "AP75"},
    COCO | STEPS | {"scales": [[1333, side] for side in range(480, 801, 32)]},
    COCO_BUNDLED | {"drops": STEPS["drops"]},
    draws=5,
    difficult=True,
)


@dataclass(frozen=True)
class Config(detection.Config):
    """Faster R-CNN C4, fine-tuned on VOC."""

    dataset: Annotated[Literal["voc07", "voc07+12"], tyro.conf.arg(aliases=["--train"])] = (
        "voc07+12"
    )
    """what it is trained on"""
    draws: int | None = None
    """trainings, each from its own initial heads and in its own order; default 5, on the bundled
    scenes 1"""
    lr: float | None = None
    """default 0.02, on the bundled scenes 0.05"""
    warmup: int | None = None
    """steps over which the rate rises from a thousandth; default 100, on the bundled scenes 50"""
    epochs: int | None = None
    """passes over the training images, instead of iterations"""
    iterations: int | None = None
    """batches to train on; default 24000, on the bundled scenes 200"""
    batch_size: int | None = None
    """default 16, on the bundled scenes 8"""

    @property
    def detector(self) -> Detector:
        """What is trained."""
        return C4


EVALUATION = replace(
    detection.EVALUATION,
    name="detection_c4",
    Config=Config,
    report=partial(detection.report, of=C4),
    doc=__doc__,
    minutes={"voc07": 2000, "voc07+12": 2000},  # estimate: a batch as on COCO
    seconds={"voc07": 60, "voc07+12": 60},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
