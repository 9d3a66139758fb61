"""Linear SVMs on all of VOC07's training images: the VOC07 column of PCL's Table 3.

Examples:

    python evaluate/fullsvm.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit
    python evaluate/fullsvm.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit --protocol goyal
    python evaluate/fullsvm.py --ckpt encoder.safetensors  # no data at hand: the embedded VOC

One SVM per class on the 5011 trainval images, mAP on the 4952 of test. As for low-shot SVMs, two
protocols go by one name:

  pcl    (PCL's released code, the default) C = 0.5; difficult images are negatives, in training and in the test;
         2048-D features of centre crops.
  goyal  (Goyal et al., ICCV 2019) C by 3-fold cross-validation per class over 26 values, scored by
         scikit-learn's average precision as there; difficult images are negatives in training and
         left out of the test; 8192-D features of warped images. Hours on one core for a ResNet-50:
         1580 SVMs.

Both: LIBLINEAR, squared hinge, positives weighted 2, features divided by their norm + 1e-5.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from evaluate import chance
from evaluate.svm.average_precision import average_precision
from evaluate.svm.liblinear import GOYAL_COSTS, Problem, check_costs, decision, normalise
from protobench import records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import decoding, voc
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when a score changes for equal features and parameters."""

FOLDS = 3


@dataclass(frozen=True)
class Config:
    """Linear SVMs on all training images."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """VOCdevkit; without it the embedded data"""
    protocol: Literal["pcl", "goyal"] = "pcl"
    costs: tuple[float, ...] = ()
    """LIBLINEAR's C; several: chosen per class by cross-validation on the training images. Empty:
    the protocol's"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record, whose
    cell is off protocol"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    @property
    def grid(self) -> tuple[float, ...]:
        """The costs tried."""
        return self.costs or (GOYAL_COSTS if self.protocol == "goyal" else (0.5,))

    def params(self) -> dict[str, Any]:
        """What determines the scores of given features."""
        return {"protocol": self.protocol, "costs": self.grid}


def score(
    train_ND: np.ndarray,
    train_labels: np.ndarray,
    test_ND: np.ndarray,
    test_labels: np.ndarray,
    costs: tuple[float, ...],
    *,
    drop_difficult: bool = False,
) -> dict[str, Any]:
    """The run: ``{"draw", "value", "per_class", "costs"}``, mAP in percent. Labels [N, C]: 1
    present, -1 absent, 0 difficult."""
    train_ND, test_ND = normalise(train_ND), normalise(test_ND)
    problem, positive_NC = Problem(train_ND), train_labels == 1
    chosen, weights = [], []
    classes = positive_NC.shape[1]
    for c in progress(range(classes), desc="SVMs", unit=" classes", total=classes):
        cost = costs[0] if len(costs) == 1 else _cross_validated(train_ND, positive_NC[:, c], costs)
        chosen.append(cost)
        weights.append(problem.fit(positive_NC[:, c], cost, 2.0))
    counted = test_labels != 0 if drop_difficult else None
    score_NC = decision(test_ND, np.stack(weights))
    per_class = 100 * average_precision(score_NC, test_labels == 1, counted)
    return {
        "draw": 0,
        "value": round(float(per_class.mean()), 6),
        "per_class": [round(float(v), 2) for v in per_class],
        "costs": chosen,
        "rank_z": round(chance.rank_z(score_NC, test_labels == 1), 2),
    }


def _cross_validated(x_ND: np.ndarray, positive_N: np.ndarray, costs: tuple[float, ...]) -> float:
    """The cost with the best mean average precision over stratified folds in the order of the
    images; the smaller of equals."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    if positive_N.sum() < FOLDS:
        raise UserError(
            f"a class with {int(positive_N.sum())} training images cannot be cross-validated in"
            f" {FOLDS} folds",
            hint="give one --costs value",
        )
    total = dict.fromkeys(costs, 0.0)
    for fit_rows, held_rows in StratifiedKFold(FOLDS).split(x_ND, positive_N):
        problem = Problem(x_ND[fit_rows])
        for cost in costs:
            w = problem.fit(positive_N[fit_rows], cost, 2.0)
            total[cost] += average_precision_score(
                positive_N[held_rows], decision(x_ND[held_rows], w[None])[:, 0]
            )
    return max(sorted(costs), key=lambda cost: total[cost])


def data_lists(
    data: Path | None, dataset: str = "voc07", skip_bad_images: int = 0
) -> tuple[ImageList, ImageList]:
    """Training and test images; the embedded ones where ``data`` is None. See Config for
    ``skip_bad_images``."""
    return decoding.leave_out(voc.read_both(data or bundled.ensure()), skip_bad_images)


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "fullsvm",
        "data_name": "voc07",
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Scores the checkpoint and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    check_costs(config.costs)
    started = time.perf_counter()
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading)
    print(encoder.summary())
    with distributed.main_process_first():
        train, test = data_lists(config.data, skip_bad_images=config.skip_bad_images)
    for title, positive_N in zip(train.classes, (train.labels == 1).T, strict=True):
        if positive_N.all() or not positive_N.any():
            raise UserError(
                f"{train.name}: {'every' if positive_N.all() else 'no'} image shows class"
                f" {title!r}; an SVM needs such images and others",
                at=train.root,
                hint="unpack the data set again",
            )
    goyal = config.protocol == "goyal"
    how: dict[str, Any] = {
        "pooling": "2x2" if goyal else "average",
        "warp": goyal,
        "device": device,
        "workers": config.workers,
    }
    train_ND, test_ND = (features.extract(encoder, images, **how) for images in (train, test))
    if not distributed.is_main():
        return None
    run = score(train_ND, train.labels, test_ND, test.labels, config.grid, drop_difficult=goyal)
    return records.write(
        config.results,
        unit(encoder.key, (train, test), config),
        [run],
        subject=subject or records.subject_of(config.ckpt),
        metric={"name": "mAP", "unit": "%", "higher_is_better": True, "test_images": len(test)},
        checkpoint=encoder.report.to_json(),
        feature={"dim": int(test_ND.shape[1]), "pooling": how["pooling"]},
        warnings=[
            chance.ranking_remark(
                run["rank_z"], len(test.classes), trained=not encoder.report.untouched
            )
        ],
        data=records.data_of("voc07", (train, test), class_names=train.classes),
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    (run,), data = record["runs"], record["data"]
    lines = [
        f"VOC07 linear SVMs on {data['train_images']} images, protocol"
        f" {record['unit']['params']['protocol']}, {record['metric']['test_images']} test images,"
        " average precision in %"
    ]
    if data["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    names = [
        f"{name} {value:.1f}"
        + (f" (C={cost:.2g})" if len(record["unit"]["params"]["costs"]) > 1 else "")
        for name, value, cost in zip(
            data["class_names"], run["per_class"], run["costs"], strict=True
        )
    ]
    return "\n".join([*lines, ", ".join(names), f"mAP {run['value']:.1f}"])


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
