"""Low-shot linear SVMs on frozen features: PCL's Table 1, on VOC07 (mAP) and Places205 (accuracy).

Examples:

    python evaluate/lowshot.py --ckpt moco_v1_200ep.pth.tar --data /data/VOCdevkit
    python evaluate/lowshot.py --ckpt pcl_v2.pth.tar --data /data/places205 --dataset places205
    python evaluate/lowshot.py --ckpt resnet50.pth  # no data at hand: the embedded VOC
    python evaluate/lowshot.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit --protocol goyal

Two protocols go by the name of "VOC07 low-shot"; their numbers are not comparable:

  pcl    (PCL's released code, the default) pools k images of each class and trains every class's SVM on the whole pool
         with all its labels, so frequent classes see more than k positives; C = 0.5; difficult
         images are negatives.
  goyal  (Goyal et al., ICCV 2019) gives each class k positives and 19 k negatives of its own; 26
         costs, of which the best on the *test* set is reported per k; difficult images are left out
         of the test; 8192-D features of warped images.

Both: LIBLINEAR, squared hinge, positives weighted 2, features divided by their norm + 1e-5, 5
draws. Places205 (code by the same authors): one-vs-rest, C = 0.5, unweighted, top-1 accuracy.

A grid of costs on VOC07 is solved by Newton's method (newton.py): the same optimum to rounding, at
2048 dimensions forty times as fast as LIBLINEAR called for each class and cost; mAP differs from
LIBLINEAR's, which stops at a tolerance of 1e-4, by thousandths of a point."""

import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from threadpoolctl import threadpool_limits

from evaluate import chance
from evaluate.svm import newton
from evaluate.svm.average_precision import average_precision
from evaluate.svm.liblinear import GOYAL_COSTS, Problem, check_costs, decision, normalise
from evaluate.svm.support_sets import SupportSet, all_support_sets
from protobench import records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import decoding, places, voc
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when a score changes for equal features and parameters."""


@dataclass(frozen=True)
class Config:
    """Low-shot linear SVMs."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """VOCdevkit, or the folder of Places205's lists and images; without it the embedded data"""
    dataset: Literal["voc07", "places205"] = "voc07"
    protocol: Literal["pcl", "goyal"] = "pcl"
    """goyal is defined for voc07 only"""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """labelled images per class, k"""
    draws: int = 5
    """independent training sets per k"""
    seed: int = 0
    """of the draws, which depend on (seed, k, draw) alone and are the same for every checkpoint"""
    draw_order: Literal["keyed", "released"] = "keyed"
    """released: the very sequence of the released script (random.seed(0), all k in turn); pcl on
    voc07"""
    costs: tuple[float, ...] = ()
    """LIBLINEAR's C; several: the best on the test set is reported, per k. Empty: the protocol's"""
    solver: Literal["auto", "liblinear", "newton"] = "auto"
    """liblinear: the papers' own, to its tolerance; newton: to rounding, for many costs; auto:
    newton for several on voc07"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record, whose
    cell is off protocol"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """What determines the scores of given features."""
        return {
            "protocol": self.protocol,
            "shots": self.shots,
            "draws": self.draws,
            "seed": self.seed,
            "draw_order": self.draw_order,
            "costs": self.grid,
            **({"solver": "newton"} if self.exact else {}),
        }

    @property
    def grid(self) -> tuple[float, ...]:
        """The costs tried."""
        return self.costs or (GOYAL_COSTS if self.protocol == "goyal" else (0.5,))

    @property
    def exact(self) -> bool:
        """Whether Newton's method solves the SVMs."""
        return self.solver == "newton" or (
            self.solver == "auto" and len(self.grid) > 1 and self.dataset == "voc07"
        )


# Scores -------------------------------------------------------------------------------------------


def score(
    train_ND: np.ndarray,
    test_ND: np.ndarray,
    test_labels: np.ndarray,
    draws: list[SupportSet],
    costs: tuple[float, ...],
    *,
    drop_difficult: bool = False,
    positive_weight: float = 2.0,
    exact: bool = False,
    desc: str = "SVMs",
) -> list[dict[str, Any]]:
    """One run per draw and cost: ``{"k", "draw", "cost", "value", "per_class", "subset"}``, values
    in percent; where images have several classes, ``"rank_z"`` too (chance.py).

    Labels [N, C] (1, 0, -1) give mean average precision, labels [N] give top-1 accuracy (no
    weights: pass 1). ``exact``: by Newton's method instead of LIBLINEAR."""
    train_ND, test_ND = normalise(train_ND), normalise(test_ND)
    fit = _newton if exact else _liblinear
    runs = []
    for draw in progress(draws, desc=desc, unit=" draws", total=len(draws)):
        decisions = [
            fit(
                train_ND[rows], [draw.positive[c] for c in classes], test_ND, costs, positive_weight
            )
            for rows, classes in _sharing_rows(draw)
        ]
        for cost, score_NC in zip(costs, map(np.hstack, zip(*decisions, strict=True)), strict=True):
            per_class = _metric(score_NC, test_labels, drop_difficult)
            runs.append(
                {
                    "k": draw.k,
                    "draw": draw.number,
                    "cost": cost,
                    "value": round(float(per_class.mean()), 6),
                    "per_class": (
                        [round(float(value), 2) for value in per_class]
                        if test_labels.ndim == 2
                        else None
                    ),
                    "subset": draw.subset,
                    **(
                        {"rank_z": round(chance.rank_z(score_NC, test_labels == 1), 2)}
                        if test_labels.ndim == 2
                        else {}
                    ),
                }
            )
    return runs


def _sharing_rows(draw: SupportSet) -> list[tuple[np.ndarray, list[int]]]:
    """The draw's training rows and the classes trained on them: all on one pool (pcl), or each on
    its own (goyal)."""
    groups = groupby(range(len(draw.rows)), key=lambda c: id(draw.rows[c]))
    return [(draw.rows[classes[0]], classes) for classes in (list(group) for _, group in groups)]


def _liblinear(
    x_ND: np.ndarray,
    positives: list[np.ndarray],
    test_MD: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float,
) -> list[np.ndarray]:
    """Per cost the decision values [M, C] of one SVM per class."""
    problem = Problem(x_ND)
    weights = [
        np.stack([problem.fit(positive, cost, positive_weight) for positive in positives])
        for cost in costs
    ]
    return [decision(test_MD, w_CD) for w_CD in weights]


def _newton(
    x_ND: np.ndarray,
    positives: list[np.ndarray],
    test_MD: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float,
) -> list[np.ndarray]:
    """As ``_liblinear``, by newton.py. Its systems are small: threads would wait for one another
    more than they compute."""
    with threadpool_limits(1, user_api="blas"):
        gram_NN = newton.gram(x_ND)
        b_CJN = np.stack(
            [newton.path(gram_NN, positive, costs, positive_weight) for positive in positives]
        )
    score_MW = newton.decision(test_MD, x_ND, b_CJN.reshape(-1, len(x_ND)))
    return list(score_MW.reshape(len(test_MD), len(positives), len(costs)).transpose(2, 0, 1))


def _metric(score_NC: np.ndarray, labels: np.ndarray, drop_difficult: bool) -> np.ndarray:
    """Percent: AP per class [C], or whether each image is right [N]."""
    if labels.ndim == 2:
        return 100 * average_precision(
            score_NC, labels == 1, labels != 0 if drop_difficult else None
        )
    return 100.0 * (score_NC.argmax(1) == labels)


def best_cost(runs: list[dict[str, Any]]) -> dict[int, float]:
    """k -> the cost with the best mean over draws *on the test set*, as both papers' code reports
    it."""
    chosen = {}
    for k in sorted({run["k"] for run in runs}):
        costs = sorted({run["cost"] for run in runs if run["k"] == k})
        chosen[k] = max(
            costs,
            key=lambda cost: np.mean(
                [r["value"] for r in runs if (r["k"], r["cost"]) == (k, cost)]
            ),
        )
    return chosen


# From checkpoint to record ------------------------------------------------------------------------


def data_lists(
    data: Path | None, dataset: str, skip_bad_images: int = 0
) -> tuple[ImageList, ImageList]:
    """Training and test images of a data set; the embedded one where ``data`` is None. See Config
    for ``skip_bad_images``."""
    root = data or bundled.ensure()
    return decoding.leave_out(
        places.read_both(root) if dataset == "places205" else voc.read_both(root), skip_bad_images
    )


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "lowshot",
        "data_name": config.dataset,
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Scores the checkpoint and returns the path of the record written.

    ``subject`` says what the encoder is to a table (row, seed, source, recipe); it goes into the
    record as it is."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    _check(config)
    started = time.perf_counter()
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading)
    print(encoder.summary())
    with distributed.main_process_first():
        train, test = data_lists(config.data, config.dataset, config.skip_bad_images)
    draws = all_support_sets(
        train, config.protocol, config.shots, config.draws, config.seed, config.draw_order
    )
    goyal, is_voc = config.protocol == "goyal", config.dataset == "voc07"
    used = (
        np.arange(len(train))
        if is_voc
        else np.unique(np.concatenate([draw.rows[0] for draw in draws]))
    )
    how: dict[str, Any] = {
        "pooling": "2x2" if goyal else "average",
        "warp": goyal,
        "device": device,
        "workers": config.workers,
    }
    train_ND = features.extract(encoder, train.subset(used), **how)
    if not is_voc:  # of Places205's 2.4 million training images only those drawn are read
        place_of = np.zeros(len(train), dtype=np.int64)
        place_of[used] = np.arange(len(used))
        draws = [replace(draw, rows=[place_of[draw.rows[0]]] * len(draw.rows)) for draw in draws]
    test_ND = features.extract(encoder, test, **how)
    runs = score(
        train_ND,
        test_ND,
        test.labels,
        distributed.shard_of(draws),
        config.grid,
        drop_difficult=goyal,
        positive_weight=2.0 if is_voc else 1.0,
        exact=config.exact,
        desc=f"SVMs {config.dataset}",
    )
    runs = distributed.gather_to_main(runs)
    if not distributed.is_main():
        return None
    return records.write(
        config.results,
        unit(encoder.key, (train, test), config),
        runs,
        subject=subject or records.subject_of(config.ckpt),
        metric={
            "name": "mAP" if is_voc else "top-1",
            "unit": "%",
            "higher_is_better": True,
            "test_images": len(test),
        },
        checkpoint=encoder.report.to_json(),
        feature={"dim": int(test_ND.shape[1]), "pooling": how["pooling"]},
        warnings=[_remark(runs, test.labels, trained=not encoder.report.untouched)],
        data=records.data_of(config.dataset, (train, test)),
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def _remark(runs: list[dict[str, Any]], labels: np.ndarray, *, trained: bool) -> str:
    """What chance.py finds odd about the runs with most images: their mean, as the draws share
    their test images."""
    most = [run for run in runs if run["k"] == max(run["k"] for run in runs)]
    if labels.ndim == 2:
        return chance.ranking_remark(
            float(np.mean([run["rank_z"] for run in most])), labels.shape[1], trained=trained
        )
    right = float(np.mean([run["value"] for run in most])) * len(labels) / 100
    return chance.accuracy_remark(round(right), labels, trained=trained)


def _check(config: Config) -> None:
    if config.protocol == "goyal" and config.dataset == "places205":
        raise UserError(
            "the goyal protocol is defined for voc07", hint="--protocol pcl scores Places205"
        )
    if config.draw_order == "released" and (config.protocol, config.dataset) != ("pcl", "voc07"):
        raise UserError(
            "--draw-order released belongs to --protocol pcl on voc07",
            hint="use --draw-order keyed",
        )
    if not config.shots or min(config.shots) < 1 or len(set(config.shots)) < len(config.shots):
        raise UserError(f"--shots must be different numbers of at least 1, not {config.shots}")
    if config.draws < 1:
        raise UserError(f"--draws must be at least 1, not {config.draws}")
    check_costs(config.costs)


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    params, runs = record["unit"]["params"], record["runs"]
    chosen = best_cost(runs)
    values = {
        k: [r["value"] for r in runs if (r["k"], r["cost"]) == (k, cost)]
        for k, cost in chosen.items()
    }
    data = record["data"]
    lines = [
        f"{data['name']} low-shot, protocol {params['protocol']}, {params['draws']} draws, "
        f"{record['metric']['test_images']} test images, {record['metric']['name']} in %"
        f"{', SVMs solved by Newton' if 'solver' in params else ''}"
    ]
    if data["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    lines.append("k     " + "".join(f"{k:>8}" for k in values))
    lines.append("mean  " + "".join(f"{np.mean(v):8.1f}" for v in values.values()))
    if params["draws"] > 1:
        lines.append("sd    " + "".join(f"{np.std(v, ddof=1):8.1f}" for v in values.values()))
    if len(params["costs"]) > 1:
        lines.append(
            "C     "
            + "".join(f"{cost:8.2g}" for cost in chosen.values())
            + "   (best on the test set, as published)"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
