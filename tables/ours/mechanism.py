"""Do prototypes help because instance discrimination pushes images of one class apart? PCL's paper
says so; here the rate of such class collisions is a dial (pretrain/collisions.py).

The predictions H1 to H5 below were written before the first run of this experiment, after a pilot
with other seeds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import stats

from pretrain.recipes import moco, pcl
from pretrain.recipes.collisions import collision_rate, dial, without_prototypes
from pretrain.recipes.common import Recipe
from tables.engine.claims import of_seeds, unchanged
from tables.engine.encoders import MOCO, PCL
from tables.engine.pages import pictures
from tables.engine.runs import task_of
from tables.engine.schema import (
    TIERS,
    ClaimResult,
    Curve,
    Drawing,
    Figure,
    RecordsByRow,
    Row,
    TaskKey,
    Tier,
)
from tables.engine.sequential import EARLY_LOOKS
from tables.ours import PAPER

# Rows ---------------------------------------------------------------------------------------------

DOSES = (0.0, 1.0, 16.0)
"""Weights of negatives of the query's own class."""
BARE = without_prototypes(pcl.MINI)
"""MoCo with PCL's learning rate and temperature: arms differ in prototypes and collisions alone."""


def _row(of: Row, name: str, title: str, change: Callable[[pcl.PCL], Recipe]) -> Row:
    """A row whose recipes are those of PCL in every tier, changed alike."""
    return replace(
        of,
        name=name,
        title=title,
        mini=change(pcl.MINI),
        paper=None,
        small=change(pcl.SMALL),
        small_gpu=change(pcl.SMALL_GPU),
    )


def _moco(dose: float) -> Row:
    if dose == 1 and BARE == moco.MINI:
        return MOCO
    title = "MoCo at PCL's rate" if dose == 1 else f"MoCo, collisions x{dose:g}"

    def change(recipe: pcl.PCL) -> Recipe:
        bare = without_prototypes(recipe)
        return bare if dose == 1 else dial(bare, dose)

    return _row(MOCO, f"moco-w{dose:g}", title, change)


def _pcl(
    name: str,
    title: str,
    dose: float,
    prototypes: Literal["clusters", "permuted", "classes"] = "clusters",
) -> Row:
    return _row(PCL, name, title, lambda recipe: dial(recipe, dose, prototypes))


def _single(k: int) -> Row:
    title = f"PCL, K = {k} alone"
    return _row(PCL, f"pcl-k{k}", title, lambda recipe: replace(recipe, num_prototypes=(k,)))


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


@dataclass(frozen=True)
class Setting:
    """What the experiment is run on."""

    classes: int
    """all equally frequent"""
    dataset: str
    """that the encoders are trained on, and that AMI and kNN are of"""
    first: tuple[str, TaskKey]
    """the endpoint that the predictions are about, by the name of its unit"""
    what: str
    """the same, in words"""

    @property
    def rates(self) -> tuple[float, ...]:
        """The share of collisions among all negatives, by weight, at each dose."""
        return tuple(collision_rate(dose, self.classes) for dose in DOSES)

    @property
    def percent(self) -> dict[float, str]:
        """dose -> its rate, to be read."""
        return dict(zip(DOSES, (f"{100 * rate:.0f} %" for rate in self.rates), strict=True))

    @property
    def unit(self) -> str:
        """The name of the first endpoint."""
        return self.first[0]

    @property
    def endpoints(self) -> dict[str, tuple[TaskKey, Endpoint]]:
        """The first is what the predictions are about; the others are told beside it. All in
        points."""
        return {
            self.unit: (self.first[1], lambda record: float(record["runs"][0]["value"])),
            "AMI": (
                ("ami", self.dataset),
                lambda record: 100 * float(record["runs"][0]["value"]),
            ),
            "kNN": (
                ("knn", self.dataset),
                lambda record: next(
                    float(run["value"]) for run in record["runs"] if run["k"] == 20
                ),
            ),
        }


BUNDLED = Setting(20, "imagenet", ("mAP", ("fullsvm", "voc07")), "VOC07, linear SVMs")
"""0, 5 (the data as it is) and 46 % collisions."""
RATES = BUNDLED.rates


def of_cifar10(dataset: str) -> Setting:
    """0, 10 (the data as it is) and 64 % collisions. CIFAR-10 has one label an image, so a linear
    probe stands for the SVMs on VOC07; chosen before the first run."""
    return Setting(10, dataset, ("top-1", ("linear", dataset)), "Linear probe")


def scores(found: RecordsByRow, row: Row, endpoint: str = "", on: Setting = BUNDLED) -> BySeed:
    """seed -> an encoder's number; by default that of the first endpoint."""
    task, number = on.endpoints[endpoint or on.unit]
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


def lead(found: RecordsByRow, dose: float, endpoint: str = "", on: Setting = BUNDLED) -> BySeed:
    """How far PCL is ahead of MoCo at this weight of collisions."""
    return minus(
        scores(found, ARMS["PCL"][dose], endpoint, on),
        scores(found, ARMS["MoCo"][dose], endpoint, on),
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
"""Points of the first endpoint within which the placebo is to equal MoCo."""


def claims(found: RecordsByRow, on: Setting = BUNDLED) -> tuple[ClaimResult, ...]:
    """Judges H1 to H5 on paired differences of the first endpoint, and H2 on the secondary ones as
    well."""
    percent = on.percent
    arm = {
        (name, dose): scores(found, row, on=on)
        for name, rows in ARMS.items()
        for dose, row in rows.items()
    }

    def exceeds(text: str, left: tuple[str, float], right: tuple[str, float]) -> ClaimResult:
        return of_seeds(
            text,
            arm[left],
            arm[right],
            PREDICTED,
            " - ".join(f"{name} at {percent[dose]}" for name, dose in (left, right)),
            looks=EARLY_LOOKS,
            rows=[ARMS[name][dose].name for name, dose in (left, right)],
            decimals=1,
            unit="%",
        )

    def equals(text: str, dose: float) -> ClaimResult:
        pair = ("placebo", dose), ("MoCo", dose)
        return unchanged(
            text,
            [minus(arm[pair[0]], arm[pair[1]])],
            NEGLIGIBLE,
            PREDICTED,
            f"placebo - MoCo at {percent[dose]}",
            looks=EARLY_LOOKS,
            rows=[ARMS[name][dose].name for name, _ in pair],
            unit="%",
        )

    ceiling = exceeds(
        "H5: prototypes of one class each are better than PCL's", ("ceiling", 1.0), ("PCL", 1.0)
    )
    return (
        growth(found, on=on),
        exceeds("H1: MoCo gains when collisions are removed", ("MoCo", 0.0), ("MoCo", 1.0)),
        exceeds("H1: MoCo loses when they are frequent", ("MoCo", 1.0), ("MoCo", 16.0)),
        exceeds("H3: their meaning matters, PCL > PCL permuted", ("PCL", 1.0), ("placebo", 1.0)),
        exceeds("H3: ... where collisions are frequent", ("PCL", 16.0), ("placebo", 16.0)),
        equals("H4: PCL permuted equals MoCo within 1 point", 1.0),
        equals("H4: ... where collisions are frequent", 16.0),
        replace(ceiling, detail=f"{ceiling.detail}; {_share(found, on)}"),
        growth(found, "AMI", on),
        growth(found, "kNN", on),
    )


def growth(found: RecordsByRow, endpoint: str = "", on: Setting = BUNDLED) -> ClaimResult:
    """Judges H2, the headline: the lead with frequent collisions less that without any."""
    low, *_, high = DOSES
    primary = not endpoint
    return of_seeds(
        f"{'H2: ' if primary else ''}PCL's lead over MoCo grows with the rate of collisions"
        + ("" if primary else f", by {endpoint}"),
        lead(found, high, endpoint, on),
        lead(found, low, endpoint, on),
        PREDICTED if primary else SECONDARY,
        f"lead at {on.percent[high]} - lead at {on.percent[low]}",
        looks=EARLY_LOOKS,
        rows=[ARMS[name][dose].name for name in ("PCL", "MoCo") for dose in (low, high)],
        primary=primary,
        decimals=1,
        unit="%",
    )


def _share(found: RecordsByRow, on: Setting) -> str:
    """How much of what pure prototypes bring PCL brings."""
    rows = (ARMS["MoCo"][1.0], PCL, ARMS["ceiling"][1.0])
    none, some, whole = (mean(of) for of in common(scores(found, row, on=on) for row in rows))
    if not whole > none:
        return "they bring nothing over MoCo"
    share = 100 * (some - none) / (whole - none)
    return f"PCL goes {share:.0f} % of the way from MoCo to them"


CHANGES = {"holds": "grows", "reversed": "shrinks"}


def headline(found: RecordsByRow, on: Setting = BUNDLED) -> str:
    """H2 as a sentence; empty where no pretraining seed has all of its rows."""
    result, percent = growth(found, on=on), on.percent
    low, high = common([lead(found, DOSES[0], on=on), lead(found, DOSES[-1], on=on)])
    if not low:
        return ""
    return (
        f"PCL's lead over MoCo {CHANGES.get(result.verdict, 'goes')} from {mean(low):+.1f} to"
        f" {mean(high):+.1f} points of {on.unit} as class collisions go from {percent[DOSES[0]]} to"
        f" {percent[DOSES[-1]]} of the negatives ({result.verdict})."
    )


def curve(found: RecordsByRow, on: Setting = BUNDLED) -> Curve | None:
    """The lead by the rate of collisions; None where no pretraining seed has all of its rows."""
    of = common(lead(found, dose, on=on) for dose in DOSES)
    if not of[0]:
        return None
    return Curve(
        "PCL's lead over MoCo",
        f"points of {on.unit}",
        "class collisions among the negatives",
        tuple(
            (told, mean(one), half_width(one))
            for told, one in zip(on.percent.values(), of, strict=True)
        ),
    )


# The picture --------------------------------------------------------------------------------------

HEADER = ("quantity", "row", "collision rate", "K", "seed", "value")


def draw(found: RecordsByRow) -> Drawing:
    """The lead over the rate, the scores behind it, and PCL with one K alone."""
    picture, ((left, middle, right),) = pictures.axes(3, width=11.5, height=4.0)
    _leads(left, found, BUNDLED)
    _scores(middle, found, BUNDLED)
    _sweep(right, found)
    return Drawing(picture, HEADER, _lines(found, BUNDLED, SWEEP))


def draw_dial(found: RecordsByRow, on: Setting) -> Drawing:
    """The lead over the rate, and the scores behind it."""
    picture, ((left, right),) = pictures.axes(2, width=8.0, height=4.0)
    _leads(left, found, on)
    _scores(right, found, on)
    return Drawing(picture, HEADER, _lines(found, on, {}))


def _leads(axis: Any, found: RecordsByRow, on: Setting) -> None:
    of = common(lead(found, dose, on=on) for dose in DOSES)
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
    axis.set(title="PCL's lead over MoCo", ylabel=f"points of {on.unit}", xlim=(-0.3, 2.6))
    _doses(axis, on)


def _scores(axis: Any, found: RecordsByRow, on: Setting) -> None:
    every = iter(
        common(scores(found, row, on=on) for rows in ARMS.values() for row in rows.values())
    )
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
    axis.set(title=on.what, ylabel=f"{on.unit} (%)", xlim=(-0.3, 2.3))
    axis.set_ylim(axis.get_ylim()[0] - 0.3 * np.ptp(axis.get_ylim()))  # room for the legend
    axis.legend(fontsize=7, loc="lower left")
    _doses(axis, on)


def _doses(axis: Any, on: Setting) -> None:
    ticks = [told + "\n(as it is)" * (dose == 1) for dose, told in on.percent.items()]
    axis.set_xticks(range(len(DOSES)), ticks)
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
    axis.set(title=f"Number of prototypes, at {BUNDLED.percent[1.0]}", xlabel="K", ylabel="mAP (%)")
    axis.set_xticks(where, [str(k) for k in NUMBERS])
    axis.set_ylim(axis.get_ylim()[0] - 0.25 * np.ptp(axis.get_ylim()))
    axis.legend(fontsize=7, loc="lower left")


def _lines(found: RecordsByRow, on: Setting, sweep: Mapping[int, Row]) -> list[list[str]]:
    """The numbers behind the picture and those of the secondary endpoints, for the CSV."""
    data = []
    placed = [
        (row, f"{collision_rate(dose, on.classes):.4f}", _prototypes(row, on))
        for rows in ARMS.values()
        for dose, row in rows.items()
    ] + [(row, f"{on.rates[1]:.4f}", str(k)) for k, row in sweep.items()]
    for endpoint in on.endpoints:
        for row, rate, k in placed:
            data += [
                [endpoint, row.name, rate, k, str(seed), f"{value:.4f}"]
                for seed, value in sorted(scores(found, row, endpoint, on).items())
            ]
        of_doses = common(lead(found, dose, endpoint, on) for dose in DOSES)
        for rate_, of in zip(on.rates, of_doses, strict=True):
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


def _prototypes(row: Row, on: Setting) -> str:
    """K of the recipe that is trained on this data."""
    recipe = next(
        one for one in (row.mini, row.small, row.small_gpu) if one and one.dataset == on.dataset
    )
    return "+".join(map(str, getattr(recipe, "num_prototypes", ())))


COLLISION = (
    "A class collision is a negative of the query's own class. The weight of these in InfoNCE's sum"
    f" is a dial, set to {', '.join(f'{dose:g}' for dose in DOSES)}"
)


def _on_cifar10(tier: Tier) -> Figure:
    """The same predictions on the tier's part of CIFAR-10; without the numbers of prototypes."""
    on = of_cifar10(TIERS[tier].dataset)
    percent = on.percent
    return replace(
        FIGURE,
        title=f"{FIGURE.title}, on CIFAR-10",
        bundled_only="",
        claimed_by="this suite, written before the first run on CIFAR-10",
        caption=(
            f"{COLLISION}: with {on.classes} equally frequent classes, {percent[0.0]},"
            f" {percent[1.0]} (the data as it is) and {percent[16.0]} of the negatives. Arms and"
            " predictions are those of the experiment on bundled data, which had been seen; recipes"
            " were not tuned. Left: mean of the paired differences with its 95 % t-interval, a grey"
            " line per pretraining seed. Right: means, a faint line per seed. All seeds share the"
            " pictures, so the intervals are about pretrainings on this data set. AMI (k-means of"
            " the training images) and kNN are in the CSV, in points."
        ),
        alternative=(
            "Left, PCL's lead over MoCo in points of top-1 accuracy at three rates of class"
            " collisions, with intervals; right, accuracy of MoCo, PCL, PCL with permuted"
            " prototypes and PCL with prototypes of one class each at these rates. The numbers are"
            " in the CSV."
        ),
        rows=tuple(row for rows in ARMS.values() for row in rows.values()),
        records_of=tuple(task for task, _ in on.endpoints.values()),
        draw=partial(draw_dial, on=on),
        claims=partial(claims, on=on),
        headline=partial(headline, on=on),
        curve=partial(curve, on=on),
    )


FIGURE = Figure(
    name="mechanism",
    title="PCL's lead over MoCo, as class collisions become more frequent",
    paper=PAPER,
    order=-1,
    where="",
    forms=_on_cifar10,
    bundled_only="the dial is set for 20 equally frequent classes",
    claimed_by="this suite, written before the first run",
    looks=EARLY_LOOKS,
    max_seeds=3,
    caption=(
        f"{COLLISION}: with {BUNDLED.classes} equally frequent classes, {BUNDLED.percent[0.0]},"
        f" {BUNDLED.percent[1.0]} (the data as it is) and {BUNDLED.percent[16.0]} of the negatives."
        " Images, evaluation and all else stay, and all arms"
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
    records_of=tuple(task for task, _ in BUNDLED.endpoints.values()),
    draw=draw,
    claims=claims,
    headline=headline,
    curve=curve,
)
