"""Linear SVMs on all of VOC07's training images: the VOC07 column of PCL's Table 3.

Examples:

    python evaluate/fullsvm.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit
    python evaluate/fullsvm.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit --protocol goyal
    python evaluate/fullsvm.py --ckpt encoder.safetensors  # bundled synthetic data

One SVM per class on the 5011 trainval images, mAP on the 4952 test images. As for low-shot SVMs,
two protocols go by one name:

  pcl    (PCL's code as released today, the default) C = 0.5; difficult images are negatives, in
         training and in the test; 2048-D features of centre crops.
  goyal  (Goyal et al., ICCV 2019) C chosen per class among 26 values by 3-fold cross-validation,
         scored by scikit-learn's average precision as there; difficult images are negatives in
         training and left out of the test; 8192-D features of warped images. Takes hours on one
         core for a ResNet-50: 1580 SVMs.

PCL's script reported the best of the costs 0.1, 0.5 and 1 *on the test set* when it was first
released, in July 2020, as its README first printed the paper's numbers (see evaluate/lowshot.py):
which rule made them cannot be told. ``--rule-2020-07`` scores by July's as well.

Both: LIBLINEAR, squared hinge, positives weighted 2, features divided by their norm + 1e-5."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

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
from evaluate.svm import liblinear
from evaluate.svm.average_precision import average_precision
from protobench.data.image_list import ImageList
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

if TYPE_CHECKING:
    from protobench.features import Pooling

FOLDS = 3


@dataclass(frozen=True)
class Config(EvalConfig):
    """Linear SVMs on all training images."""

    dataset: Literal["voc07"] = "voc07"
    protocol: Literal["pcl", "goyal"] = "pcl"
    costs: tuple[float, ...] = ()
    """LIBLINEAR's C; several: chosen per class by cross-validation on the training images; none:
    the protocol's"""
    rule_2020_07: bool = False
    """score by the rule of the script's first release as well (see above): the run also gets
    value_2020_07 and cost_2020_07; protocol pcl only"""

    @property
    def grid(self) -> tuple[float, ...]:
        """The costs to try."""
        return self.costs or (
            liblinear.GOYAL_COSTS if self.protocol == "goyal" else (liblinear.PCL_COST,)
        )

    @property
    def needs_resnet(self) -> str:
        """Why only a ResNet can be evaluated so."""
        return CONVOLUTIONAL_MAP if self.protocol == "goyal" else ""

    def params(self) -> dict[str, Any]:
        """Return what determines the scores of given features."""
        return {
            "protocol": self.protocol,
            "costs": self.grid,
            **({"rule_2020_07": True} if self.rule_2020_07 else {}),
        }

    def check(self) -> None:
        """Raise UserError for costs that cannot be solved or exclude July's."""
        if self.rule_2020_07 and (self.protocol != "pcl" or self.costs):
            raise UserError(
                "--rule-2020-07 has costs of its own", hint="with --protocol pcl, without --costs"
            )
        liblinear.check_costs(self.costs)


def score(
    train_ND: np.ndarray,
    train_labels: np.ndarray,
    test_ND: np.ndarray,
    test_labels: np.ndarray,
    costs: tuple[float, ...],
    *,
    drop_difficult: bool = False,
) -> Run:
    """Return the run ``{"draw", "value", "per_class", "costs", "rank_z"}``, mAP in percent. Labels
    [N, C]: 1 present, -1 absent, 0 difficult."""
    train_ND, test_ND = liblinear.normalise(train_ND), liblinear.normalise(test_ND)
    problem, positive_NC = liblinear.Problem(train_ND), train_labels == 1
    chosen, weights = [], []
    classes = positive_NC.shape[1]
    for c in progress(range(classes), desc="SVMs", unit=" classes", total=classes):
        cost = costs[0] if len(costs) == 1 else _cross_validated(train_ND, positive_NC[:, c], costs)
        chosen.append(cost)
        weights.append(problem.fit(positive_NC[:, c], cost, 2.0))
    counted = test_labels != 0 if drop_difficult else None
    score_NC = liblinear.decision(test_ND, np.stack(weights))
    per_class = 100 * average_precision(score_NC, test_labels == 1, counted)
    return {
        "draw": 0,
        "value": round(float(per_class.mean()), 6),
        "per_class": [round(float(v), 2) for v in per_class],
        "costs": chosen,
        "rank_z": round(chance.rank_z(score_NC, test_labels == 1), 2),
    }


def _cross_validated(x_ND: np.ndarray, positive_N: np.ndarray, costs: tuple[float, ...]) -> float:
    """Return the cost with the best mean average precision over stratified folds in the order of
    the images; the smaller one of equals."""
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
        problem = liblinear.Problem(x_ND[fit_rows])
        for cost in costs:
            w = problem.fit(positive_N[fit_rows], cost, 2.0)
            total[cost] += average_precision_score(
                positive_N[held_rows], liblinear.decision(x_ND[held_rows], w[None])[:, 0]
            )
    return max(sorted(costs), key=lambda cost: total[cost])


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features of training and test images."""
    goyal = config.protocol == "goyal"
    pooling: Pooling = "2x2" if goyal else "average"
    return [Wanted(images, pooling, warp=goyal) for images in lists]


def run(config: Config, context: Context) -> Scores | None:
    """Train one SVM per class and rank the test images."""
    from protobench.runtime import distributed

    train, test = context.lists
    for title, positive_N in zip(train.classes, (train.labels == 1).T, strict=True):
        if positive_N.all() or not positive_N.any():
            raise UserError(
                f"{train.name}: {'every' if positive_N.all() else 'no'} image shows class"
                f" {title!r}; an SVM needs such images and others",
                at=train.root,
                hint="unpack the data set again",
            )
    goyal, (for_training, _) = config.protocol == "goyal", (both := wanted(config, context.lists))
    train_ND, test_ND = context.all_features(both)
    if not distributed.is_main():
        return None
    given = train_ND, train.labels, test_ND, test.labels
    found = score(*given, config.grid, drop_difficult=goyal)
    if config.rule_2020_07:
        tried = {cost: score(*given, (cost,))["value"] for cost in liblinear.PCL_COSTS_2020_07}
        best = max(tried, key=lambda cost: tried[cost])
        found |= {"value_2020_07": tried[best], "cost_2020_07": best}
    remark = chance.ranking_remark(found["rank_z"], len(test.classes), trained=context.trained)
    return Scores(
        [found],
        Metric("mAP", "%", len(test)),
        warnings=(remark,),
        data={"class_names": train.classes},
        details={"feature": {"dim": int(test_ND.shape[1]), "pooling": for_training.pooling}},
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    (run,), data, params = record["runs"], record["data"], record["unit"]["params"]
    several = len(params["costs"]) > 1
    classes = zip(data["class_names"], run["per_class"], run["costs"], strict=True)
    return [
        f"VOC07 linear SVMs on {data['train_images']} images, protocol {params['protocol']},"
        f" {record['metric']['test_images']} test images, average precision in %",
        ", ".join(
            f"{name} {value:.1f}{f' (C={cost:.2g})' if several else ''}"
            for name, value, cost in classes
        ),
        f"mAP {run['value']:.1f}",
        *(
            [
                f"by July 2020's rule {run['value_2020_07']:.1f} (C={run['cost_2020_07']:g}, the"
                " best on the test set)"
            ]
            if "value_2020_07" in run
            else []
        ),
    ]


EVALUATION = Evaluation(
    name="fullsvm",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    minutes={"voc07": 3},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
