"""PCL, Figure 3: how balanced the clusters are, and what they tell of the classes."""

from typing import Any

import numpy as np

from tables.engine import histories, margins
from tables.engine.claims import of_seeds
from tables.engine.encoders import MOCO, PCL, PCL_FIXED
from tables.engine.pages import pictures
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow
from tables.pcl import PAPER

NEGLIGIBLE_SD = 0.5
"""Images by which the sd of cluster sizes may differ: one part in fifty of a bundled cluster."""
BALANCE = ("mean", "sd", "max", "empty", "gini")
BINS = 30


def draw(found: RecordsByRow) -> Drawing:
    """(a) from the last probes of both PCLs, (b) from all probes of MoCo and PCL."""
    picture, ((left, right),) = pictures.axes(2)
    k = histories.numbers(found["pcl"])[1]  # the paper's 50 000 of 25 000, 50 000 and 100 000
    return Drawing(
        picture, histories.HEADER, _sizes(left, found, k) + _information(right, found, k)
    )


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges text and caption on the last probes, the increase on the first as well."""
    k = histories.numbers(found["pcl"])[1]
    sd, prototypes, features = (
        histories.of_clusters(k, "sd"),
        histories.of_clusters(k, "mi"),
        histories.of_features,
    )

    def at(row: str, quantity: histories.Value, probe: int = -1) -> dict[int, float]:
        return {
            seed: list(of.values())[probe]
            for seed, of in histories.by_seed(found[row], quantity).items()
        }

    caption, text = "caption of Figure 3(a)", "section 3.4"
    return (
        of_seeds(
            "estimated concentration yields more balanced clusters",
            at("pcl-fixed", sd),
            at("pcl", sd),
            caption,
            "sd of sizes, fixed - estimated",
            delta=NEGLIGIBLE_SD,
            unit="images per cluster",
            rows=("pcl", "pcl-fixed"),
            primary=True,
        ),
        of_seeds(
            "... which leads to better representation learning: prototypes",
            at("pcl", prototypes),
            at("pcl-fixed", prototypes),
            caption,
            "MI of prototypes, estimated - fixed, nats",
            delta=margins.NEGLIGIBLE_UNIT,
            unit="nats",
            rows=("pcl", "pcl-fixed"),
        ),
        of_seeds(
            "... and features",
            at("pcl", features),
            at("pcl-fixed", features),
            caption,
            "MI of features, estimated - fixed, nats",
            delta=margins.NEGLIGIBLE_UNIT,
            unit="nats",
            rows=("pcl", "pcl-fixed"),
        ),
        of_seeds(
            "compared with InfoNCE, ProtoNCE learns better prototypes",
            at("pcl", prototypes),
            at("moco", prototypes),
            text,
            "MI of prototypes, PCL - MoCo, nats",
            delta=margins.NEGLIGIBLE_UNIT,
            unit="nats",
            rows=("pcl", "moco"),
        ),
        of_seeds(
            "the MI of prototypes increases as training with ProtoNCE proceeds",
            at("pcl", prototypes),
            at("pcl", prototypes, 0),
            text,
            "last - first probe, nats",
            delta=margins.NEGLIGIBLE_UNIT,
            unit="nats",
            rows=("pcl",),
        ),
        _overhead(found),
        ClaimResult(
            "prototypes have a larger MI with the class than instance features",
            "not-run",
            (
                "not judged: the two are measured by different estimators, and what is a function"
                " of the features cannot in truth tell more than they do"
            ),
            text,
        ),
    )


def _overhead(found: RecordsByRow) -> ClaimResult:
    """Tells what trainings took; seconds of the clock depend on what else the machine did."""
    seconds = {
        row: [seconds for of in found[row] if (seconds := of.get("cost", {}).get("seconds"))]
        for row in ("moco", "pcl")
    }
    told = "not judged: seconds of the clock depend on what else the machine does, and k-means of"
    told += " few and tiny images weighs otherwise"
    if all(seconds.values()):
        ratio = np.mean(seconds["pcl"]) / np.mean(seconds["moco"])
        told += f"; here a training of PCL took {ratio:.1f} times one of MoCo"
    return ClaimResult(
        "PCL takes about a third more time than MoCo",
        "not-run",
        told,
        'appendix A: "~1/3 computational overhead compared to MoCo"',
    )


def _sizes(axis: Any, found: RecordsByRow, k: str) -> list[list[str]]:
    """Histograms of the cluster sizes after the last epoch, means over the seeds; returns the
    numbers behind them."""
    rows = (("pcl-fixed", "fixed"), ("pcl", "estimated"))
    last = {
        row: {r["subject"]["seed"]: r["probes"][-1]["clusters"][k] for r in found[row]}
        for row, _ in rows
    }
    every = np.sort(
        np.concatenate(
            [
                np.repeat(
                    [int(size) for size in sizes["histogram"]], list(sizes["histogram"].values())
                )
                for of in last.values()
                for sizes in of.values()
            ]
        )
    )
    top = min(
        int(every[-1]), 2 * int(every[int(0.99 * (len(every) - 1))])
    )  # a few giants would squeeze all others into one bar
    width = -(-(top + 1) // BINS)  # whole numbers, or bins would hold different numbers of sizes
    edges = np.arange(0, top + width + 1, width) - 0.5
    data = []
    for i, (row, title) in enumerate(rows):
        counts = np.mean(
            [
                np.histogram(
                    np.minimum([int(size) for size in sizes["histogram"]], top),
                    edges,
                    weights=list(sizes["histogram"].values()),
                )[0]
                for sizes in last[row].values()
            ],
            axis=0,
        )
        values = {what: [float(sizes[what]) for sizes in last[row].values()] for what in BALANCE}
        mean = {what: np.mean(of) for what, of in values.items()}
        spread = f" ±{np.std(values['sd'], ddof=1):.1f}" if len(values["sd"]) > 1 else ""
        filled = i == 0
        axis.stairs(
            counts,
            edges,
            fill=filled,
            color=pictures.COLOURS[1 - i],
            alpha=0.6 if filled else 1,
            linewidth=1.8,
            hatch=pictures.HATCHES[1] if filled else None,
            label=(
                f"{title}: mean {mean['mean']:.0f}, sd {mean['sd']:.1f}{spread}, max"
                f" {mean['max']:.0f}, empty {mean['empty']:.1f}, Gini {mean['gini']:.3f}"
            ),
        )
        for seed, sizes in sorted(last[row].items()):
            data += [[row, str(seed), "", k, what, f"{sizes[what]:g}"] for what in BALANCE]
            data += [
                [row, str(seed), "", k, f"clusters of size {size}", str(count)]
                for size, count in sorted(sizes["histogram"].items(), key=lambda item: int(item[0]))
            ]
    beyond = f"; the last bar: {top} and more" if top < every[-1] else ""
    axis.set(
        title=f"(a) Cluster sizes, K = {k}",
        xlabel=f"images in a cluster{beyond}",
        ylabel="clusters (mean over seeds)",
    )
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # room for the legend
    axis.legend(title="concentration (means over seeds)", loc="upper right", fontsize=7)
    return data


def _information(axis: Any, found: RecordsByRow, k: str) -> list[list[str]]:
    """Mutual information over the epochs; returns the numbers behind the lines."""
    data = []
    for i, (row, title) in enumerate((("moco", "InfoNCE (MoCo)"), ("pcl", "ProtoNCE (PCL)"))):
        for j, (what, quantity) in enumerate(
            (("prototypes", histories.of_clusters(k, "mi")), ("features", histories.of_features))
        ):
            histories.curve(
                axis,
                found[row],
                quantity,
                label=f"{title}, {what}",
                colour=pictures.COLOURS[i],
                dash=pictures.DASHES[j],
                marker=pictures.MARKERS[2 * i + j],
            )
            data += histories.lines(
                row, found[row], quantity, k if j == 0 else "", f"mutual information of {what}"
            )
    bound = found["pcl"][0]["probes"][0]["upper_bound"]
    axis.set(
        title="(b) Mutual information with the class",
        xlabel="epochs of pretraining",
        ylabel="nats",
        ylim=(0, bound * 1.05),
    )
    axis.axhline(bound, color="#555", linewidth=0.8)
    axis.annotate(
        "entropy of the classes",
        (0, bound),
        xytext=(0, -9),
        textcoords="offset points",
        fontsize=7.5,
        color="#555",
    )
    axis.legend(loc="lower right", fontsize=7.5)
    return data


FIGURE = Figure(
    name="figure3",
    title="Cluster sizes and mutual information",
    paper=PAPER,
    where="Figure 3 (curves alone: the paper prints no values)",
    caption=(
        "(a) Sizes of the k-means clusters at the end of pretraining, with the concentration phi of"
        " Eq. 12 and with a fixed one. (b) Mutual information with the class, in nats: of the"
        " momentum embedding by Ross's nearest-neighbour estimator (k = 3, unit vectors, at most"
        " 100 000 images; the paper's reference [31]), of the assigned prototypes by the plug-in"
        " estimator, since Ross's breaks down where points coincide. The two differ in bias (the"
        " plug-in one is too large where clusters are small): lines of one kind can be compared, a"
        " line of features with one of prototypes hardly, and a good part of a prototype line is"
        " chance where K is large. A prototype is a function of the features, so its true"
        " information cannot exceed theirs (data processing inequality): where the paper's curve"
        " lies above, that is the estimator's doing. Lines are means over pretraining seeds, bands"
        " reach from the least to the greatest."
    ),
    alternative=(
        "Left, a histogram of cluster sizes for a fixed and an estimated concentration; right, four"
        " curves of mutual information over the epochs, for features and prototypes of MoCo and"
        " PCL. The numbers are in the CSV."
    ),
    rows=(MOCO, PCL, PCL_FIXED),
    records_of=(("course", "imagenet"),),
    draw=draw,
    claims=claims,
)
