"""Do prototypes help because instance discrimination pushes images of one class apart? PCL's paper
says so; here the rate of such class collisions is a dial (pretrain/collisions.py).

The predictions H1 to H5 below were written before the first run of this experiment, after a pilot
with other seeds."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from pretrain.recipes import moco, pcl
from pretrain.recipes.collisions import collision_rate, dial, without_prototypes
from tables.engine import pictures
from tables.engine.claims import of_seeds, unchanged
from tables.engine.encoders import MOCO, PCL
from tables.engine.runs import task_of
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow, Row
from tables.engine.sequential import EARLY_LOOKS
from tables.ours import PAPER

# Rows ---------------------------------------------------------------------------------------------

CLASSES = 20
"""Of the bundled data, all equally frequent."""
DOSES = (0.0, 1.0, 16.0)
"""Weights of negatives of the query's own class."""
RATES = tuple(collision_rate(dose, CLASSES) for dose in DOSES)
"""0, 5 (the data as it is) and 46 % of all negatives, by weight."""
PERCENT = dict(zip(DOSES, (f"{100 * rate:.0f} %" for rate in RATES), strict=True))


BARE = without_prototypes(pcl.MINI)
"""MoCo with PCL's learning rate and temperature: arms differ in prototypes and collisions alone."""


def _moco(dose: float) -> Row:
    if dose == 1 and BARE == moco.MINI:
        return MOCO
    recipe = BARE if dose == 1 else dial(BARE, dose)
    title = "MoCo at PCL's rate" if dose == 1 else f"MoCo, collisions x{dose:g}"
    return replace(MOCO, name=f"moco-w{dose:g}", title=title, mini=recipe, paper=None)


def _pcl(
    name: str,
    title: str,
    dose: float,
    prototypes: Literal["clusters", "permuted", "classes"] = "clusters",
) -> Row:
    recipe = dial(pcl.MINI, dose, prototypes)
    return replace(PCL, name=name, title=title, mini=recipe, paper=None)


def _single(k: int) -> Row:
    recipe = replace(pcl.MINI, num_prototypes=(k,))
    return replace(PCL, name=f"pcl-k{k}", title=f"PCL, K = {k} alone", mini=recipe, paper=None)


NUMBERS = (20, 100, 400)
"""K: 1, 5 and 20 prototypes per class."""
SWEEP = {k: _single(k) for k in NUMBERS}
ARMS: dict[str, dict[float, Row]] = {
    "MoCo": {dose: _moco(dose) for dose in DOSES},
    "PCL": {
        0.0: _pcl("pcl-w0", "PCL, collisions x0", 0),
        1.0: PCL,
        16.0: _pcl("pcl-w16", "PCL, collisions x16", 16),
    },
    "placebo": {
        1.0: _pcl("pcl-permuted", "PCL, permuted prototypes", 1, "permuted"),
        16.0: _pcl("pcl-permuted-w16", "PCL, permuted prototypes, collisions x16", 16, "permuted"),
    },
    "ceiling": {1.0: _pcl("pcl-classes", "PCL, prototypes of one class each", 1, "classes")},
}
"""arm -> weight -> row. At weight 1 PCL is the row of the papers' tables, and so is MoCo if both
have the same rate and temperature there."""
WORDS = {
    "MoCo": "MoCo",
    "PCL": "PCL",
    "placebo": "PCL, images and prototypes permuted",
    "ceiling": "PCL, prototypes of one class each",
}

# Numbers ------------------------------------------------------------------------------------------

BySeed = dict[int, float]
Endpoint = Callable[[dict[str, Any]], float]
"""A number out of a record."""
ENDPOINTS: dict[str, tuple[tuple[str, str], Endpoint]] = {
    "mAP": (("fullsvm", "voc07"), lambda record: float(record["runs"][0]["value"])),
    "AMI": (("ami", "imagenet"), lambda record: 100 * float(record["runs"][0]["value"])),
    "kNN": (
        ("knn", "imagenet"),
        lambda record: next(float(run["value"]) for run in record["runs"] if run["k"] == 20),
    ),
}
"""The first is what the predictions are about; the others are told beside it. All in points."""


def scores(found: RecordsByRow, row: Row, endpoint: str = "mAP") -> BySeed:
    """seed -> an encoder's number."""
    task, number = ENDPOINTS[endpoint]
    return {
        record["subject"]["seed"]: number(record)
        for record in found[row.name]
        if task_of(record) == task
    }


def minus(left: BySeed, right: BySeed) -> BySeed:
    """Paired differences."""
    return {seed: left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())}


def common(of: Iterable[BySeed]) -> list[BySeed]:
    """Each with the seeds alone that all have, or means would be of different worlds."""
    every = list(of)
    seeds = sorted(set.intersection(*map(set, every)))
    return [{seed: one[seed] for seed in seeds} for one in every]


def lead(found: RecordsByRow, dose: float, endpoint: str = "mAP") -> BySeed:
    """How far PCL is ahead of MoCo at this weight of collisions."""
    return minus(
        scores(found, ARMS["PCL"][dose], endpoint), scores(found, ARMS["MoCo"][dose], endpoint)
    )


def mean(values: BySeed) -> float:
    """Over seeds; NaN for none."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def half_width(values: BySeed) -> float:
    """Of the 95 % t-interval of the mean; NaN for a single seed."""
    if len(values) < 2:
        return float("nan")
    error = np.std(list(values.values()), ddof=1) / np.sqrt(len(values))
    return float(stats.t(len(values) - 1).ppf(0.975) * error)


# Predictions --------------------------------------------------------------------------------------

PREDICTED = "ours, written before the first run"
SECONDARY = "ours, another endpoint"
NEGLIGIBLE = 1.0
"""Points of mAP within which the placebo is to equal MoCo."""


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges H1 to H5 on paired differences of mAP, and H2 on the secondary endpoints as well."""
    arm = {
        (name, dose): scores(found, row)
        for name, rows in ARMS.items()
        for dose, row in rows.items()
    }

    def exceeds(text: str, left: tuple[str, float], right: tuple[str, float]) -> ClaimResult:
        return of_seeds(
            text,
            arm[left],
            arm[right],
            PREDICTED,
            " - ".join(f"{name} at {PERCENT[dose]}" for name, dose in (left, right)),
            looks=EARLY_LOOKS,
            rows=[ARMS[name][dose].name for name, dose in (left, right)],
            decimals=1,
        )

    def equals(text: str, dose: float) -> ClaimResult:
        pair = ("placebo", dose), ("MoCo", dose)
        return unchanged(
            text,
            [minus(arm[pair[0]], arm[pair[1]])],
            NEGLIGIBLE,
            PREDICTED,
            f"placebo - MoCo at {PERCENT[dose]}",
            looks=EARLY_LOOKS,
            rows=[ARMS[name][dose].name for name, _ in pair],
        )

    ceiling = exceeds(
        "H5: prototypes of one class each are better than PCL's", ("ceiling", 1.0), ("PCL", 1.0)
    )
    return (
        growth(found),
        exceeds("H1: MoCo gains when collisions are removed", ("MoCo", 0.0), ("MoCo", 1.0)),
        exceeds("H1: MoCo loses when they are frequent", ("MoCo", 1.0), ("MoCo", 16.0)),
        exceeds("H3: their meaning matters, PCL > PCL permuted", ("PCL", 1.0), ("placebo", 1.0)),
        exceeds("H3: ... where collisions are frequent", ("PCL", 16.0), ("placebo", 16.0)),
        equals("H4: PCL permuted equals MoCo within 1 point", 1.0),
        equals("H4: ... where collisions are frequent", 16.0),
        replace(ceiling, detail=f"{ceiling.detail}; {_share(found)}"),
        growth(found, "AMI"),
        growth(found, "kNN"),
    )


def growth(found: RecordsByRow, endpoint: str = "mAP") -> ClaimResult:
    """Judges H2, the headline: the lead with frequent collisions less that without any."""
    low, *_, high = DOSES
    primary = endpoint == "mAP"
    return of_seeds(
        f"{'H2: ' if primary else ''}PCL's lead over MoCo grows with the rate of collisions"
        + ("" if primary else f", by {endpoint}"),
        lead(found, high, endpoint),
        lead(found, low, endpoint),
        PREDICTED if primary else SECONDARY,
        f"lead at {PERCENT[high]} - lead at {PERCENT[low]}",
        looks=EARLY_LOOKS,
        rows=[ARMS[name][dose].name for name in ("PCL", "MoCo") for dose in (low, high)],
        primary=primary,
        decimals=1,
    )


def _share(found: RecordsByRow) -> str:
    """How much of what pure prototypes bring PCL brings."""
    rows = (ARMS["MoCo"][1.0], PCL, ARMS["ceiling"][1.0])
    none, some, whole = (mean(of) for of in common(scores(found, row) for row in rows))
    if not whole > none:
        return "they bring nothing over MoCo"
    share = 100 * (some - none) / (whole - none)
    return f"PCL goes {share:.0f} % of the way from MoCo to them"


CHANGES = {"holds": "grows", "reversed": "shrinks"}


def headline(found: RecordsByRow) -> str:
    """H2 as a sentence; empty where no pretraining seed has all of its rows."""
    result = growth(found)
    low, high = common([lead(found, DOSES[0]), lead(found, DOSES[-1])])
    if not low:
        return ""
    return (
        f"PCL's lead over MoCo {CHANGES.get(result.verdict, 'goes')} from {mean(low):+.1f} to"
        f" {mean(high):+.1f} points of mAP as class collisions go from {PERCENT[DOSES[0]]} to"
        f" {PERCENT[DOSES[-1]]} of the negatives ({result.verdict})."
    )


# The picture --------------------------------------------------------------------------------------

HEADER = ("quantity", "row", "collision rate", "K", "seed", "value")
TICKS = [told + "\n(as it is)" * (dose == 1) for dose, told in PERCENT.items()]


def draw(found: RecordsByRow) -> Drawing:
    """The lead over the rate, the scores behind it, and PCL with one K alone."""
    picture, ((left, middle, right),) = pictures.axes(3, width=11.5, height=4.0)
    _leads(left, found)
    _scores(middle, found)
    _sweep(right, found)
    return Drawing(picture, HEADER, _lines(found))


def _leads(axis: Any, found: RecordsByRow) -> None:
    of = common(lead(found, dose) for dose in DOSES)
    where = range(len(DOSES))
    axis.axhline(0, color="#555", linewidth=0.8)
    for seed in of[0]:
        axis.plot(where, [one[seed] for one in of], color="#999", linewidth=0.8, alpha=0.8)
    axis.errorbar(
        where,
        [mean(one) for one in of],
        yerr=[half_width(one) for one in of],
        color=pictures.COLOURS[0],
        marker=pictures.MARKERS[0],
        linewidth=2,
        capsize=5,
    )
    for x, one in zip(where, of, strict=True):
        axis.annotate(
            f"{mean(one):+.1f}",
            (x, mean(one)),
            xytext=(9, -4),
            textcoords="offset points",
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axis.set(title="PCL's lead over MoCo", ylabel="points of mAP", xlim=(-0.3, 2.6))
    _doses(axis)


def _scores(axis: Any, found: RecordsByRow) -> None:
    every = iter(common(scores(found, row) for rows in ARMS.values() for row in rows.values()))
    for i, (name, rows) in enumerate(ARMS.items()):
        where, of = [DOSES.index(dose) for dose in rows], [next(every) for _ in rows]
        how = {"color": pictures.COLOURS[i], "marker": pictures.MARKERS[i]}
        for seed in of[0]:
            values = [one[seed] for one in of]
            axis.plot(where, values, linewidth=0.7, markersize=2, alpha=0.4, **how)
        axis.plot(
            where,
            [mean(one) for one in of],
            linestyle=pictures.DASHES[i],
            linewidth=2,
            markersize=6,
            label=WORDS[name],
            **how,
        )
    axis.set(title="VOC07, linear SVMs", ylabel="mAP (%)", xlim=(-0.3, 2.3))
    axis.set_ylim(axis.get_ylim()[0] - 0.3 * np.ptp(axis.get_ylim()))  # room for the legend
    axis.legend(fontsize=7, loc="lower left")
    _doses(axis)


def _doses(axis: Any) -> None:
    axis.set_xticks(range(len(DOSES)), TICKS)
    axis.set_xlabel("class collisions among the negatives")


def _sweep(axis: Any, found: RecordsByRow) -> None:
    *of, base, whole = common(
        scores(found, row) for row in (*SWEEP.values(), ARMS["MoCo"][1.0], PCL)
    )
    where, how = range(len(NUMBERS)), {"color": pictures.COLOURS[1], "marker": pictures.MARKERS[1]}
    for seed in base:
        values = [one[seed] for one in of]
        axis.plot(where, values, linewidth=0.7, markersize=2, alpha=0.4, **how)
    axis.plot(where, [mean(one) for one in of], linewidth=2, label="PCL, this K alone", **how)
    many = ", ".join(map(str, pcl.MINI.num_prototypes))
    for i, one, title in ((1, whole, f"PCL, K = {many}"), (0, base, "MoCo")):
        axis.axhline(
            mean(one),
            color=pictures.COLOURS[i],
            linestyle=pictures.DASHES[2 + i],
            label=title,
        )
    axis.set(title=f"Number of prototypes, at {PERCENT[1.0]}", xlabel="K", ylabel="mAP (%)")
    axis.set_xticks(where, [str(k) for k in NUMBERS])
    axis.set_ylim(axis.get_ylim()[0] - 0.25 * np.ptp(axis.get_ylim()))
    axis.legend(fontsize=7, loc="lower left")


def _lines(found: RecordsByRow) -> list[list[str]]:
    """The numbers behind the picture and those of the secondary endpoints, for the CSV."""
    data = []
    placed = [
        (row, f"{collision_rate(dose, CLASSES):.4f}", "+".join(map(str, _prototypes(row))))
        for rows in ARMS.values()
        for dose, row in rows.items()
    ] + [(row, f"{RATES[1]:.4f}", str(k)) for k, row in SWEEP.items()]
    for endpoint in ENDPOINTS:
        for row, rate, k in placed:
            data += [
                [endpoint, row.name, rate, k, str(seed), f"{value:.4f}"]
                for seed, value in sorted(scores(found, row, endpoint).items())
            ]
        of_doses = common(lead(found, dose, endpoint) for dose in DOSES)
        for rate_, of in zip(RATES, of_doses, strict=True):
            told = {str(seed): value for seed, value in of.items()} | {"mean": mean(of)}
            if len(of) > 1:
                told |= {
                    "lower end of 95 %": mean(of) - half_width(of),
                    "upper end of 95 %": mean(of) + half_width(of),
                }
            data += [
                [f"{endpoint}, PCL - MoCo", "", f"{rate_:.4f}", "", who, f"{value:.4f}"]
                for who, value in told.items()
            ]
    return data


def _prototypes(row: Row) -> tuple[int, ...]:
    return getattr(row.mini, "num_prototypes", ())


FIGURE = Figure(
    name="mechanism",
    title="PCL's lead over MoCo, as class collisions become more frequent",
    paper=PAPER,
    order=-1,
    where="",
    bundled_only="the dial is set for 20 equally frequent classes",
    claimed_by="this suite, written before the first run",
    looks=EARLY_LOOKS,
    max_seeds=3,
    caption=(
        "A class collision is a negative of the query's own class. The weight of these in InfoNCE's"
        f" sum is a dial, set to {', '.join(f'{dose:g}' for dose in DOSES)}: with {CLASSES} equally"
        f" frequent classes, {PERCENT[0.0]}, {PERCENT[1.0]} (the data as it is) and"
        f" {PERCENT[16.0]} of the negatives. Images, evaluation and all else stay, and all arms"
        " have PCL's learning rate and temperature. Labels set the dial and nothing else, but for"
        " the prototypes of one class each, which show how far better clusters could bring PCL."
        " Permuted: every image has the prototype of another one, drawn anew every epoch; what"
        " remains is a second loss without meaning. Left: mean of the paired differences with its"
        " 95 % t-interval, a grey line per pretraining seed. Middle and right: means, a faint line"
        " per seed; every seed has a generated world of its own, so differences are known better"
        " than heights. Doses and K are spaced evenly. PCL no better than permuted, or a lead that"
        " does not grow, would refute the mechanism that PCL's paper gives (section 1). AMI"
        " (k-means of the training images) and kNN are in the CSV, in points."
    ),
    alternative=(
        "Left, PCL's lead over MoCo in points of mAP at three rates of class collisions, with"
        " intervals; middle, mAP of MoCo, PCL, PCL with permuted prototypes and PCL with prototypes"
        " of one class each at these rates; right, mAP of PCL with 20, 100 or 400 prototypes alone."
        " The numbers are in the CSV."
    ),
    rows=(*(row for rows in ARMS.values() for row in rows.values()), *SWEEP.values()),
    records_of=tuple(task for task, _ in ENDPOINTS.values()),
    draw=draw,
    claims=claims,
    headline=headline,
)
