"""Object detection: Faster R-CNN on a frozen backbone (PCL's Table 5), or Mask R-CNN fine-tuned on
COCO (Table 6).

Examples:

    python evaluate/detection.py --ckpt pcl_v1.pth.tar --data /data/VOCdevkit
    python evaluate/detection.py --ckpt pcl_v1.pth.tar --data /data/VOCdevkit --train voc07+12
    # at least 45 GiB on each GPU (computed)
    torchrun --nproc_per_node 2 evaluate/detection.py --ckpt pcl_v1.pth.tar --data /data/coco --task coco
    python evaluate/detection.py --ckpt encoder.safetensors  # bundled synthetic data

VOC, appendix E: MMDetection's Faster R-CNN R50-FPN; every layer of the backbone frozen, BatchNorm
fixed; SGD, batches of 8, momentum 0.9, weight decay 1e-4, learning rate 0.05 for 15 epochs, x 0.1
after 12; three trainings. Scored on VOC07's test images: mAP at IoU 0.5 over 11 recalls, difficult
objects ignored. COCO, as in MoCo and so in the paper's appendix D: Mask R-CNN R50-C4, everything
trains, 180 000 batches of 16, learning rate 0.02, x 0.1 at 120 000 and 160 000. Where the paper
leaves a choice:

  rate     0.05 is ten times what MMDetection's own configuration gives for batches of 8. It is
           kept, and reached over 500 steps of warm-up (--warmup 0 is the letter of the paper); a
           training that diverges is reported and not recorded, and no rate is lowered.
  epochs   Plain passes over the list. MMDetection's VOC configuration repeats the list three times
           within each of its epochs.
  images   Shorter side 600, at most 1000 (COCO: 640 to 800 drawn in steps of 32, 800 in the test;
           at most 1333), flips.
  small    MMDetection's present VOC configuration does not train on boxes under 32 pixels; the
           paper says nothing of the kind. Here they are targets.
  COCO     BatchNorm of backbone and conv5 trains without weight decay, another one follows conv5,
           and the statistics are set from 200 batches at the end, as in MoCo's configuration.
           Unlike there, mask targets come from bitmaps, not polygons; images are resized by OpenCV
           without antialiasing and padded to multiples of 32. 16 images on one GPU take at least
           90 GiB in float32, 66 with --precision bf16 (computed): torchrun shares them.
  bf16     --precision bf16 computes the backbone in bf16, and COCO's conv5; boxes, heads and losses
           stay in float32. The record notes it; its effect on the scores was not measured."""  # noqa: E501 (examples are one line each)

import base64
import io
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from evaluate.evaluation import Context, EvalConfig, Evaluation, Metric, Scores
from evaluate.mmdet_adapter import gpu_memory
from protobench import keyed
from protobench.data.boxes import BoxList
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled, scenes
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError, printable

if TYPE_CHECKING:
    from protobench.checkpoints.encoders import Encoder
    from protobench.runtime.run_state import RunState

SAVE_SECONDS = 60.0
"""How much of a training a kill can lose, beside the steps under way."""

SHOWN, LEAST_SCORE = 6, 0.3
"""Test images kept in a record, with the detections of at least this score."""

VOC = {
    "lr": 0.05,
    "warmup": 500,
    "epochs": 15,
    "iterations": 0,
    "drops": [0.8],
    "batch_size": 8,
    "scales": [[1000, 600]],
    "test_scale": [1000, 600],
    "precise_bn": 0,
}
COCO = {
    "lr": 0.02,
    "warmup": 1000,
    "epochs": 0,
    "iterations": 180_000,
    "drops": [2 / 3, 8 / 9],
    "batch_size": 16,
    "scales": [[1333, side] for side in range(640, 801, 32)],
    "test_scale": [1333, 800],
    "precise_bn": 200,
}
"""The papers' protocols."""
BUNDLED = {"scales": [[128, 96]], "test_scale": [128, 96], "warmup": 50, "batch_size": 8}
VOC_BUNDLED = VOC | BUNDLED | {"lr": 0.02, "warmup": 150, "epochs": 6}
COCO_BUNDLED = COCO | BUNDLED | {"lr": 0.05, "iterations": 200, "precise_bn": 20}
"""On the bundled scenes. They keep their size, so that objects have the scale that encoders know.
The rates are those of 0.005, 0.02 and 0.05 that left Random and Supervised (seed 1) the lowest
training loss: on VOC 2.17, 1.79, 2.04 and 1.51, 1.35, diverged; on COCO, where the least sum
decided, 2.62, 2.59, 2.22 and 1.78, 2.30, 1.84. With 50 steps of warm-up Random with seed 3 diverged
on VOC07+12; with 150 it does not."""


@dataclass(frozen=True)
class Detector:
    """What is trained, by which protocol, and how it is scored."""

    title: str
    build: str
    """the function of mmdet_adapter/models.py"""
    score: str
    """the function of mmdet_adapter/scoring.py"""
    metric: str
    headings: dict[str, str]
    """numbers of a run -> their headings in the report"""
    protocol: dict[str, Any]
    on_bundled: dict[str, Any]
    """the protocol on the bundled scenes"""
    draws: int
    """trainings on real data"""
    frozen: bool = False
    """whether the backbone is"""
    masks: bool = False
    difficult: bool = False
    """whether it is trained on VOC's difficult objects, too"""


FROZEN = Detector(
    "Faster R-CNN FPN, backbone frozen",
    "faster_rcnn",
    "voc",
    "mAP@0.5",
    {"value": "mAP@0.5, 11 recalls", "area": "under the curve"},
    VOC,
    VOC_BUNDLED,
    draws=3,
    frozen=True,
)
FINE_TUNED = Detector(
    "Mask R-CNN C4, everything trains",
    "mask_rcnn",
    "coco",
    "box AP",
    {
        "value": "AP box",
        "box50": "50",
        "box75": "75",
        "mask": "AP mask",
        "mask50": "50",
        "mask75": "75",
    },
    COCO,
    COCO_BUNDLED,
    draws=1,
    masks=True,
)


@dataclass(frozen=True)
class Config(EvalConfig):
    """Object detection on a backbone."""

    dataset: Annotated[
        Literal["voc07", "voc07+12", "coco"], tyro.conf.arg(aliases=["--train", "--task"])
    ] = "voc07"
    """voc07, voc07+12: what Faster R-CNN is trained on. coco: Mask R-CNN, fine-tuned"""
    draws: int | None = None
    """trainings, each from its own initial heads and in its own order; default 3 on VOC as in the
    paper, 1 on COCO and on the bundled scenes"""
    lr: float | None = None
    """default 0.05, for COCO 0.02; on the bundled scenes 0.02 and 0.05"""
    warmup: int | None = None
    """steps over which the rate rises from a thousandth; default 500, for COCO 1000, on the
    bundled scenes 50"""
    epochs: int | None = None
    """default 15 (COCO counts iterations), on the bundled scenes 6"""
    iterations: int | None = None
    """batches to train on, instead of epochs; default for COCO 180000, on the bundled scenes 200"""
    batch_size: int | None = None
    """default 8, for COCO 16, on the bundled scenes 8"""
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    """seed of initial heads, order, flips and sampled regions"""

    @property
    def detector(self) -> Detector:
        """What is trained."""
        return FINE_TUNED if self.dataset == "coco" else FROZEN

    @property
    def needs_resnet(self) -> str:
        """Why only a ResNet can be evaluated so."""
        return "detectors take its stages"

    def params(self) -> dict[str, Any]:
        """Return what determines the score of an encoder on given images."""
        on_bundled = bundled.is_used(self.data)
        params = dict(self.detector.on_bundled if on_bundled else self.detector.protocol)
        if self.epochs is not None and self.iterations is not None:
            raise UserError("--epochs and --iterations exclude one another")
        if self.epochs is not None or self.iterations is not None:
            params |= {"epochs": 0, "iterations": 0}
        given = {
            name: getattr(self, name)
            for name in ("lr", "warmup", "epochs", "iterations", "batch_size")
        }
        params |= {name: value for name, value in given.items() if value is not None}
        draws = 1 if on_bundled else self.detector.draws
        return params | {
            "draws": draws if self.draws is None else self.draws,
            "small": on_bundled,
            "seed": self.seed,
            "sgd_momentum": self.sgd_momentum,
            "weight_decay": self.weight_decay,
        }

    def check(self) -> None:
        """Raise UserError for flags that exclude one another or make no sense."""
        params = self.params()
        given = (self.draws, self.epochs, self.iterations, self.batch_size)
        if any(value is not None and value < 1 for value in given):
            raise UserError("--draws, --batch-size, --epochs and --iterations must be at least 1")
        if params["warmup"] < 0:
            raise UserError("--warmup must not be negative")
        if not 0 < params["lr"] < float("inf"):
            raise UserError("--lr must be positive")
        if not 0 <= params["sgd_momentum"] < 1 or not 0 <= params["weight_decay"] < float("inf"):
            raise UserError("--sgd-momentum must lie in [0, 1), --weight-decay in [0, inf)")
        if self.load_options.resize or self.load_options.crop:
            raise UserError("--resize and --crop mean nothing to a detector, it sees whole images")


def read(root: Path, dataset: str, skip_bad_images: int) -> tuple[BoxList, BoxList]:
    """Return training and test images with their objects. Raises UserError if MMDetection is not
    installed."""
    from evaluate.mmdet_adapter import operators

    operators.check()
    return DATASETS[dataset].read_both_with_boxes(root, skip_bad_images)


def passes(config: Config, lists: tuple[ImageList, ...]) -> int:
    """Return how many images pass through the backbone."""
    (train, test), params = lists, config.params()
    seen = params["iterations"] * params["batch_size"] or params["epochs"] * len(train)
    return int(params["draws"] * (seen * (1 if config.detector.frozen else 3) + len(test)))


def least_gib(config: Config, gpus: int) -> float:
    """Return the GiB that a step needs at least on each of ``gpus``; 0 for a frozen backbone, which
    keeps nothing for a backward pass, and on the bundled scenes."""
    params = config.params()
    if config.detector.frozen or params["small"]:
        return 0.0
    return gpu_memory.least_gib(params["batch_size"], gpus, config.load_options.precision)


def run(config: Config, context: Context) -> Scores | None:
    """Train the detectors and score them on the test images."""
    import torch

    from evaluate.mmdet_adapter import operators
    from protobench.checkpoints import input_check
    from protobench.runtime import distributed

    params, encoder, detector = config.params(), context.encoder, config.detector
    train, test = context.lists
    assert isinstance(train, BoxList)
    assert isinstance(test, BoxList)
    # each batch waiting in a worker's queue holds open files, two per image, and COCO's bitmaps
    where: dict[str, Any] = {"device": context.device, "workers": min(context.workers, 8)}
    input_check.verify(encoder, test, encoder.input)
    provided, (longer, shorter) = operators.provide(), params["test_scale"]
    print(
        f"{detector.title}, operators of {provided}: {len(train)} training and {len(test)} test"
        f" images, resized to at most {longer} by {shorter}, backbone in {encoder.precision}"
    )
    state = _State.read(context.state)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # forget what this process did before
    for draw in range(len(state.runs), params["draws"]):
        state.runs.append(
            _train_and_score(encoder, train, test, params, draw, state, of=detector, **where)
        )
        state.losses, state.detector, state.optimizer = [], None, None
        state.write()
    if not distributed.is_main():
        return None
    curves, shown = ([run.pop(name) for run in state.runs] for name in ("curves", "shown"))
    per_step = fmean(run.pop("seconds") / run["steps"] for run in state.runs)
    gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return Scores(
        state.runs,
        Metric(detector.metric, "%", len(test)),
        cost={
            "seconds": round(state.total, 2),
            "seconds_per_step": round(per_step, 4),
            "images_per_second": round(params["batch_size"] / per_step, 2),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "peak_gpu_memory_gib": None if gpu_bytes is None else round(gpu_bytes / 2**30, 2),
        },
        details={
            "operators": provided,
            "precision": encoder.precision,
            "curves": curves[0],
            "shown": shown[0],
        },
    )


def _train_and_score(
    encoder: "Encoder",
    train: BoxList,
    test: BoxList,
    params: dict[str, Any],
    draw: int,
    state: "_State",
    *,
    of: Detector,
    **where: Any,
) -> Run:
    """Resume or begin one training and score it. Return a run of the record, with ``curves``,
    ``shown`` and ``seconds`` beside."""
    import torch

    from evaluate.mmdet_adapter import models, scoring, training
    from evaluate.mmdet_adapter.training import Samples
    from protobench import batch_norm
    from protobench.runtime import distributed

    torch.manual_seed(keyed.seed(params["seed"], "heads", draw))
    build = getattr(models, of.build)
    detector: Any = build(encoder, len(train.classes), small=params["small"]).to(where["device"])
    if distributed.world_size() > 1 and not of.frozen:  # else no BatchNorm trains
        batch_norm.synchronise(detector, equal_shares=False)
    before = models.frozen(detector) if of.frozen else None
    targets = train.with_ignored() if of.difficult else train
    steps = _train(detector, targets, params, draw, state, masks=of.masks, **where)
    if before and models.frozen(detector) != before:
        raise RuntimeError("the frozen backbone changed in training")
    detections = training.predict(
        detector,
        Samples(test, [params["test_scale"]], 0, masks=False),
        batch_size=8 if of.frozen else 2,
        **where,
    )
    if not distributed.is_main():
        return {}
    scores = getattr(scoring, of.score)(detections, test)
    return {
        "draw": draw,
        **scores,
        "loss": state.losses[-1],
        "losses": state.losses,
        "steps": steps,
        "backbone": f"frozen, unchanged, sha256 {before[:16]}" if before else "fine-tuned",
        "detections": sum(len(image.scores_N) for image in detections),
        "seconds": state.trained,
        "shown": _shown(test, detections),
    }


def _train(
    detector: Any,
    train: BoxList,
    params: dict[str, Any],
    draw: int,
    state: "_State",
    *,
    masks: bool,
    **where: Any,
) -> int:
    """Train ``detector`` from where ``state`` left it, keeping ``state`` up to date, and return the
    number of steps of the whole training."""
    import numpy as np
    import torch

    from evaluate.mmdet_adapter import training
    from evaluate.mmdet_adapter.training import Samples, Schedule
    from protobench.runtime.periodic_saver import PeriodicSaver

    schedule = Schedule(
        np.array([objects.width >= objects.height for objects in train.objects]), params, draw
    )
    optimizer = training.optimizer_of(detector, params)
    if state.detector and state.optimizer:
        detector.load_state_dict(state.detector)
        optimizer.load_state_dict(state.optimizer)
        print(f"resuming from step {training.CHECKED * len(state.losses)} of {schedule.steps}")
    else:
        state.trained = 0.0
    begun, before = time.perf_counter(), state.trained

    def save() -> None:
        if training.is_finite(detector):
            state.detector, state.optimizer = detector.state_dict(), optimizer.state_dict()
            state.write()

    saver = PeriodicSaver(save, SAVE_SECONDS)

    def after_step() -> None:
        state.trained = before + time.perf_counter() - begun
        saver.after_step()

    samples = Samples(
        train, params["scales"], keyed.seed(params["seed"], "draw", draw), masks=masks
    )
    try:
        with saver.deferring_signals():
            training.train(
                detector,
                optimizer,
                samples,
                schedule,
                losses=state.losses,
                after=after_step,
                **where,
                desc=f"detector {draw + 1} of {params['draws']}",
            )
    except torch.OutOfMemoryError as failure:
        hint = "--precision bf16 needs less, and torchrun shares a batch among GPUs"
        raise UserError(
            f"the GPU's memory is too small for batches of {params['batch_size']}", hint=hint
        ) from failure
    if params["precise_bn"]:
        training.precise_batch_norm(detector, samples, schedule, params["precise_bn"], **where)
    return schedule.steps


@dataclass
class _State:
    """What a stopped run resumes from: the finished trainings, and the losses, detector and
    optimiser of the one under way."""

    saved: "RunState"
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """taken by earlier processes"""
    runs: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    trained: float = 0.0
    """seconds of training behind ``losses``"""
    detector: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None

    @staticmethod
    def read(saved: "RunState") -> "_State":
        from protobench.runtime import distributed

        return _State(saved, **distributed.broadcast_from_main(saved.read) or {})

    @property
    def total(self) -> float:
        """Seconds so far, those of earlier processes included."""
        return self.seconds + time.perf_counter() - self.started

    def write(self) -> None:
        content = {
            name: getattr(self, name)
            for name in ("runs", "losses", "trained", "detector", "optimizer")
        }
        self.saved.write(content | {"seconds": self.total})


def _shown(test: BoxList, detections: list[Any]) -> list[dict[str, Any]]:
    """Return a few small test images, drawn by number, with their objects and the detections."""
    chosen = keyed.generator("shown", len(test)).permutation(len(test))[:SHOWN]
    return [
        {
            "path": printable(test.paths[image]),
            "jpeg": _small(test, image),
            "size": [of.width, of.height],
            "truth": [
                [printable(test.classes[label]), *map(float, box)]
                for label, box, ignored in zip(of.labels_N, of.boxes_N4, of.ignored_N, strict=True)
                if not ignored
            ],
            "found": [
                [
                    printable(test.classes[label]),
                    round(float(score), 3),
                    *(round(float(value), 1) for value in box),
                ]
                for label, score, box in zip(
                    seen.labels_N, seen.scores_N, seen.boxes_N4, strict=True
                )
                if score >= LEAST_SCORE
            ][:20],
        }
        for image in chosen.tolist()
        for of, seen in [(test.objects[image], detections[image])]
    ]


def _small(images: BoxList, index: int) -> str:
    picture, buffer = images.read(index), io.BytesIO()
    picture.thumbnail((320, 320))
    picture.save(buffer, format="JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()


def report(record: Record, of: Detector | None = None) -> list[str]:
    """Return the record as lines for the terminal; ``of``: what was trained, by default as the
    data set says."""
    runs, params, data, cost = (
        record["runs"],
        record["unit"]["params"],
        record["data"],
        record["cost"],
    )
    of = of or (FINE_TUNED if record["unit"]["data_name"] == "coco" else FROZEN)
    lines = [
        f"{of.title}: {data['train_images']} training images, {runs[0]['steps']} batches of"
        f" {params['batch_size']} at a rate of {params['lr']:g}, {cost['images_per_second']:.1f}"
        f" images/s; {record['metric']['test_images']} test images"
    ]
    titles = of.headings.values()
    lines.append(
        "draw" + "".join(f"{title:>{max(len(title), 6) + 3}}" for title in titles) + "   last loss"
    )
    lines += [
        f"{run['draw']:<4}"
        + "".join(f"{run[name]:{max(len(title), 6) + 3}.1f}" for name, title in of.headings.items())
        + f"{run['loss']:12.3f}"
        for run in runs
    ]
    if all(len(run["losses"]) > 1 and run["losses"][-1] >= run["losses"][0] for run in runs):
        lines.append(
            "warning: the loss did not fall; a lower --lr or a longer --warmup may be needed"
        )
    of_class = {title: fmean(run["classes"][title] for run in runs) for title in runs[0]["classes"]}
    best = ", ".join(
        f"{title} {value:.1f}"
        for title, value in sorted(of_class.items(), key=lambda item: -item[1])
    )
    lines.append(f"AP at IoU 0.5 by class: {best}")
    return lines


def _summary(encoder: "Encoder") -> str:
    """Return the encoder's summary without a classifier's input, which a detector does not use."""
    lines = encoder.summary().split("\n")
    return "\n".join(line for line in lines if not line.startswith("  input: "))


def plot(record: Record, path: Path) -> None:
    """Draw the detections and curves that the record holds."""
    from evaluate.mmdet_adapter import plots

    plots.save(record, path)


EVALUATION = Evaluation(
    name="detection",
    Config=Config,
    read=read,
    run=run,
    report=report,
    doc=__doc__,
    minutes={"voc07": 150, "voc07+12": 500, "coco": 3000},
    seconds={"voc07": 40, "voc07+12": 80, "coco": 80},
    root=scenes.root_of,
    summary=_summary,
    repeat=False,
    plot=plot,
    passes=passes,
    least_gib=least_gib,
    detector=True,
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
