"""Low-shot linear SVMs on frozen features: PCL's Table 1, on VOC07 (mAP) and Places205 (accuracy).

Examples:

    python evaluate/lowshot.py --ckpt moco_v1_200ep.pth.tar --data /data/VOCdevkit
    python evaluate/lowshot.py --ckpt pcl_v2.pth.tar --data /data/places205 --dataset places205
    python evaluate/lowshot.py --ckpt resnet50.pth  # bundled synthetic data
    python evaluate/lowshot.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit --protocol goyal
    python evaluate/lowshot.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit --draw-order released \
        --rule-2020-07  # PCL's own draws, by both rules of its script

Two protocols go by the name of "VOC07 low-shot"; their numbers are not comparable:

  pcl    (PCL's code as released today, the default) pools k images of each class and trains every
         class's SVM on the whole pool with all its labels, so frequent classes see more than k
         positives; C = 0.5; difficult images are negatives.
  goyal  (Goyal et al., ICCV 2019) gives each class k positives and 19 k negatives of its own; 26
         costs, of which the best on the *test* set is reported per k; difficult images are left
         out of the test; 8192-D features of warped images.

PCL's script had another rule when it was first released, on 2020-07-15 (commit af7287d): costs 0.1,
0.5 and 1, each with 5 draws of its own, of which the best mean *on the test set* is reported per k.
C = 0.5 came on 2020-08-09 (5c8b722); its README has printed the same numbers since July. So July's
rule probably made the paper's numbers, and it cannot be told. ``--rule-2020-07`` scores by it as
well. On made features, of no encoder, it was 2.3 points higher at k = 2, 0.8 at k = 4 and within
0.2 elsewhere; choosing the best of three raises a mean by its noise.

Both protocols: LIBLINEAR, squared hinge, positives weighted 2, features divided by their norm +
1e-5, 5 draws. Places205 (code by the same authors): one-vs-rest, C = 0.5, unweighted, top-1
accuracy; CIFAR-10, which the paper does not have, likewise.

A grid of costs on VOC07 is solved by Newton's method (svm/newton.py): the same optimum up to
rounding, at 2048 dimensions forty times as fast as calling LIBLINEAR for each class and cost. The
mAP differs by thousandths of a point from LIBLINEAR's, which stops at a tolerance of 1e-4."""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from evaluate import chance
from evaluate.evaluation import (
    CONVOLUTIONAL_MAP,
    Context,
    EvalConfig,
    Evaluation,
    Metric,
    Scores,
    Wanted,
)
from evaluate.svm import liblinear, newton
from evaluate.svm.average_precision import average_precision
from evaluate.svm.support_sets import (
    RELEASED_DRAWS,
    RELEASED_SHOTS,
    SupportSet,
    all_support_sets,
    released_support_sets,
)
from protobench.data.image_list import ImageList
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

if TYPE_CHECKING:
    from protobench.features import Pooling


@dataclass(frozen=True)
class Config(EvalConfig):
    """Low-shot linear SVMs."""

    dataset: Literal["voc07", "places205", "cifar10", "cifar10-10k"] = "voc07"
    protocol: Literal["pcl", "goyal"] = "pcl"
    """goyal is defined for voc07 only"""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """labelled images per class, k"""
    draws: int = 5
    """independent support sets per k"""
    seed: int = 0
    """seed of the support sets, which depend on (seed, k, draw) alone and are the same for every
    checkpoint"""
    draw_order: Literal["keyed", "released"] = "keyed"
    """released: the support sets that PCL's script draws with random.seed(0), which are k = 1, 2,
    4, 8, 16 with 5 draws each; pcl on voc07 only"""
    rule_2020_07: bool = False
    """score by the rule of the script's first release as well (see above): each run also gets
    value_2020_07 and cost_2020_07; with --draw-order released"""
    costs: tuple[float, ...] = ()
    """LIBLINEAR's C; several: the best on the test set is reported, per k; none: the protocol's"""
    solver: Literal["auto", "liblinear", "newton"] = "auto"
    """liblinear: the papers' own, to its tolerance; newton: to rounding, for many costs; auto:
    newton for several costs on voc07"""

    @property
    def grid(self) -> tuple[float, ...]:
        """The costs to try."""
        return self.costs or (
            liblinear.GOYAL_COSTS if self.protocol == "goyal" else (liblinear.PCL_COST,)
        )

    @property
    def exact(self) -> bool:
        """Whether Newton's method solves the SVMs."""
        several = len(self.grid) > 1 and self.dataset == "voc07"
        return self.solver == "newton" or (self.solver == "auto" and several)

    @property
    def needs_resnet(self) -> str:
        """Why only a ResNet can be evaluated so."""
        return CONVOLUTIONAL_MAP if self.protocol == "goyal" else ""

    def params(self) -> dict[str, Any]:
        """Return what determines the scores of given features."""
        return {
            "protocol": self.protocol,
            "shots": self.shots,
            "draws": self.draws,
            "seed": self.seed,
            "draw_order": self.draw_order,
            "costs": self.grid,
            **({"solver": "newton"} if self.exact else {}),
            **({"rule_2020_07": True} if self.rule_2020_07 else {}),
        }

    def check(self) -> None:
        """Raise UserError for flags that exclude one another or make no sense."""
        if self.protocol == "goyal" and self.dataset != "voc07":
            hint = "--protocol pcl scores the other data sets"
            raise UserError("the goyal protocol is defined for voc07", hint=hint)
        if self.draw_order == "released" and (self.protocol, self.dataset) != ("pcl", "voc07"):
            hint = "use --draw-order keyed"
            raise UserError("--draw-order released belongs to --protocol pcl on voc07", hint=hint)
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"--shots must be different numbers of at least 1, not {self.shots}")
        if self.draws < 1:
            raise UserError(f"--draws must be at least 1, not {self.draws}")
        if self.draw_order == "released" and not (
            set(self.shots) <= set(RELEASED_SHOTS) and self.draws <= RELEASED_DRAWS
        ):
            raise UserError(
                f"PCL's script draws k = {', '.join(map(str, RELEASED_SHOTS))}, {RELEASED_DRAWS}"
                " times each; --draw-order released has no others",
                hint="fewer --shots or --draws, or --draw-order keyed",
            )
        if self.rule_2020_07 and (self.draw_order != "released" or self.costs):
            raise UserError(
                "--rule-2020-07 has draws and costs of its own",
                hint="with --draw-order released, without --costs",
            )
        liblinear.check_costs(self.costs)


# Scores -------------------------------------------------------------------------------------------


def score(
    train_ND: np.ndarray,
    test_ND: np.ndarray,
    test_labels: np.ndarray,
    sets: list[SupportSet],
    costs: tuple[float, ...],
    *,
    drop_difficult: bool = False,
    positive_weight: float = 2.0,
    exact: bool = False,
    desc: str = "SVMs",
) -> list[Run]:
    """Return one run per support set and cost: ``{"k", "draw", "cost", "value", "per_class",
    "subset"}``, values in percent; where images have several classes, ``"rank_z"`` too (chance.py).

    Labels [N, C] (1, 0, -1) give mean average precision, labels [N] give top-1 accuracy (no
    weights: pass 1). ``exact``: by Newton's method instead of LIBLINEAR."""
    train_ND, test_ND = liblinear.normalise(train_ND), liblinear.normalise(test_ND)
    fit = _newton if exact else _liblinear
    runs: list[Run] = []
    for support in progress(sets, desc=desc, unit=" draws", total=len(sets)):
        decisions = [
            fit(
                train_ND[rows],
                [support.positive[c] for c in classes],
                test_ND,
                costs,
                positive_weight,
            )
            for rows, classes in _sharing_rows(support)
        ]
        for cost, score_NC in zip(costs, map(np.hstack, zip(*decisions, strict=True)), strict=True):
            per_class = _metric(score_NC, test_labels, drop_difficult)
            run: Run = {
                "k": support.k,
                "draw": support.draw,
                "cost": cost,
                "value": round(float(per_class.mean()), 6),
                "per_class": None,
                "subset": support.subset,
            }
            if test_labels.ndim == 2:
                run["per_class"] = [round(float(value), 2) for value in per_class]
                run["rank_z"] = round(chance.rank_z(score_NC, test_labels == 1), 2)
            runs.append(run)
    return runs


def _sharing_rows(support: SupportSet) -> list[tuple[np.ndarray, list[int]]]:
    """Return the training rows and the classes trained on them: all classes on one pool (pcl), or
    each on rows of its own (goyal)."""
    groups = groupby(range(len(support.rows)), key=lambda c: id(support.rows[c]))
    return [(support.rows[classes[0]], classes) for classes in (list(group) for _, group in groups)]


def _liblinear(
    x_ND: np.ndarray,
    positives: list[np.ndarray],
    test_MD: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float,
) -> list[np.ndarray]:
    """Return, per cost, the decision values [M, C] of one SVM per class."""
    problem = liblinear.Problem(x_ND)
    weights = [
        np.stack([problem.fit(positive, cost, positive_weight) for positive in positives])
        for cost in costs
    ]
    return [liblinear.decision(test_MD, w_CD) for w_CD in weights]


def _newton(
    x_ND: np.ndarray,
    positives: list[np.ndarray],
    test_MD: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float,
) -> list[np.ndarray]:
    """Do the same as ``_liblinear`` by newton.py. Its systems are small: threads would wait for one
    another more than they compute."""
    with threadpool_limits(1, user_api="blas"):
        gram_NN = newton.gram(x_ND)
        b_CJN = np.stack(
            [newton.path(gram_NN, positive, costs, positive_weight) for positive in positives]
        )
    score_MW = newton.decision(test_MD, x_ND, b_CJN.reshape(-1, len(x_ND)))
    return list(score_MW.reshape(len(test_MD), len(positives), len(costs)).transpose(2, 0, 1))


def _metric(score_NC: np.ndarray, labels: np.ndarray, drop_difficult: bool) -> np.ndarray:
    """Return percentages: AP per class [C], or 0 and 100 for each image [N]."""
    if labels.ndim == 2:
        counted = labels != 0 if drop_difficult else None
        return 100 * average_precision(score_NC, labels == 1, counted)
    right_N: np.ndarray = score_NC.argmax(1) == labels
    return 100.0 * right_N


def best_cost(runs: list[Run]) -> dict[int, float]:
    """Return k -> the cost with the best mean over draws *on the test set*, as both papers' code
    reports it."""
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


def with_rule_2020_07(runs: list[Run], by_cost: list[list[Run]]) -> list[Run]:
    """Return ``runs`` with ``value_2020_07`` and ``cost_2020_07``: the run of the same k and draw
    at that k's best cost, out of the runs of each cost on draws of its own."""
    tried = [run for of_cost in by_cost for run in of_cost]
    chosen = best_cost(tried)
    reported = {(run["k"], run["draw"]): run for run in tried if run["cost"] == chosen[run["k"]]}
    return [
        run
        | {
            "value_2020_07": reported[run["k"], run["draw"]]["value"],
            "cost_2020_07": chosen[run["k"]],
        }
        for run in runs
    ]


def _drawn(config: Config, train: ImageList) -> tuple[list[SupportSet], np.ndarray]:
    """Return the support sets, as rows among the training images used, and which those are."""
    sets = all_support_sets(
        train, config.protocol, config.shots, config.draws, config.seed, config.draw_order
    )
    used = np.arange(len(train))
    if config.dataset != "voc07":  # of Places205's 2.4 million images only those drawn are read
        used = np.unique(np.concatenate([support.rows[0] for support in sets]))
        row_of = np.zeros(len(train), dtype=np.int64)
        row_of[used] = np.arange(len(used))
        sets = [replace(s, rows=[row_of[s.rows[0]]] * len(s.rows)) for s in sets]
    return sets, used


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features of the training images that are used, and of the test images."""
    (train, test), goyal = lists, config.protocol == "goyal"
    pooling: Pooling = "2x2" if goyal else "average"
    _, used = _drawn(config, train)
    chosen = train if len(used) == len(train) else train.subset(used)
    return [Wanted(images, pooling, warp=goyal) for images in (chosen, test)]


def run(config: Config, context: Context) -> Scores | None:
    """Train SVMs on every support set and score them on the test images."""
    from protobench.runtime import distributed

    train, test = context.lists
    goyal, is_voc = config.protocol == "goyal", config.dataset == "voc07"
    sets, _ = _drawn(config, train)
    both = wanted(config, context.lists)
    train_ND, test_ND = context.all_features(both)
    runs = distributed.gather_to_main(
        score(
            train_ND,
            test_ND,
            test.labels,
            distributed.shard_of(sets),
            config.grid,
            drop_difficult=goyal,
            positive_weight=2.0 if is_voc else 1.0,
            exact=config.exact,
            desc=f"SVMs {config.dataset}",
        )
    )
    if config.rule_2020_07:
        by_cost = [
            distributed.gather_to_main(
                score(
                    train_ND,
                    test_ND,
                    test.labels,
                    distributed.shard_of(of_cost),
                    (cost,),
                    desc=f"SVMs {config.dataset}, C = {cost:g}",
                )
            )
            for cost, of_cost in zip(
                liblinear.PCL_COSTS_2020_07,
                released_support_sets(
                    train, config.shots, config.draws, len(liblinear.PCL_COSTS_2020_07)
                ),
                strict=True,
            )
        ]
        runs = with_rule_2020_07(runs, by_cost) if distributed.is_main() else runs
    if not distributed.is_main():
        return None
    return Scores(
        runs,
        Metric("mAP" if is_voc else "top-1", "%", len(test)),
        warnings=(_remark(runs, test.labels, trained=context.trained),),
        details={"feature": {"dim": int(test_ND.shape[1]), "pooling": both[0].pooling}},
    )


def _remark(runs: list[Run], labels: np.ndarray, *, trained: bool) -> str:
    """Return what chance.py finds odd about the runs with most images: about their mean, as all
    draws share the test images."""
    most = [run for run in runs if run["k"] == max(run["k"] for run in runs)]
    if labels.ndim == 2:
        z = float(np.mean([run["rank_z"] for run in most]))
        return chance.ranking_remark(z, labels.shape[1], trained=trained)
    right = float(np.mean([run["value"] for run in most])) * len(labels) / 100
    return chance.accuracy_remark(round(right), labels, trained=trained)


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    params, runs = record["unit"]["params"], record["runs"]
    chosen = best_cost(runs)
    values = [
        [run["value"] for run in runs if (run["k"], run["cost"]) == pair] for pair in chosen.items()
    ]
    lines = [
        f"{record['data']['name']} low-shot, protocol {params['protocol']}, {params['draws']}"
        f" draws, {record['metric']['test_images']} test images, {record['metric']['name']} in %"
        f"{', SVMs solved by Newton' if 'solver' in params else ''}",
        "k     " + "".join(f"{k:>8}" for k in chosen),
        "mean  " + "".join(f"{np.mean(v):8.1f}" for v in values),
    ]
    if params["draws"] > 1:
        lines.append("std   " + "".join(f"{np.std(v, ddof=1):8.1f}" for v in values))
    if params.get("rule_2020_07"):
        of_july = [
            [run["value_2020_07"] for run in runs if (run["k"], run["cost"]) == pair]
            for pair in chosen.items()
        ]
        lines.append("by July 2020's rule (best of three costs on the test set)")
        lines.append("mean  " + "".join(f"{np.mean(v):8.1f}" for v in of_july))
    if len(params["costs"]) > 1:
        costs = "".join(f"{cost:8.2g}" for cost in chosen.values())
        lines.append(f"C     {costs}   (best on the test set, as published)")
    return lines


EVALUATION = Evaluation(
    name="lowshot",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    minutes={"voc07": 2, "places205": 12},
    bundled={"draws": 20},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
