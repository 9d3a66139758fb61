"""SPCL, Figure 2: accuracy by number of prototypes and batch size; TP and FN similarity by epoch
and temperature."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tables.engine import claims as claims_of
from tables.engine import margins
from tables.engine.claims import of_seeds
from tables.engine.pages import pictures
from tables.engine.runs import runs_of
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow, Row
from tables.spcl import PAPER
from tables.spcl.rows import BY_BATCH, BY_PROTOTYPES, SIMCLR_BY_TEMPERATURE, SPCL_BY_TEMPERATURE
from tables.spcl.table2 import TOP1

HEADER = ("row", "seed", "epochs", "temperature", "K", "batch", "quantity", "value")
MARGIN = 1.0
"""Points of top-1 that count as "not much change"; fixed before any run."""
SECTIONS = "section 4.3.1", "section 4.3.2"


def draw(found: RecordsByRow) -> Drawing:
    """Above (a), accuracies; below (b), SimCLR's similarities over SPCL's."""
    picture, axes = pictures.axes(2, rows=3, height=9.4)
    data = _accuracies(axes[0][0], found, BY_PROTOTYPES, "num_prototypes", "prototypes K")
    data += _accuracies(axes[0][1], found, BY_BATCH, "batch_size", "batch size")
    for line, (title, rows) in enumerate(
        (("SimCLR", SIMCLR_BY_TEMPERATURE), ("SPCL", SPCL_BY_TEMPERATURE)), 1
    ):
        for axis, what in zip(axes[line], ("tp", "fn"), strict=True):
            data += _similarities(axis, found, rows, what)
            axis.set(
                title=f"(b) {title}, {what.upper()}",
                xlabel="epochs of pretraining",
                ylabel="mean cosine after $g_c$",
            )
            axis.xaxis.get_major_locator().set_params(integer=True)
    for together in (axes[0], axes[1:, 0], axes[1:, 1]):  # to be compared with one another
        limits = [limit for axis in together for limit in axis.get_ylim()]
        for axis in together:
            axis.set_ylim(min(limits), max(limits))
    return Drawing(picture, HEADER, data)


def recipe_of(record: dict[str, Any]) -> dict[str, Any]:
    """How the encoder of a record was trained."""
    recipe: dict[str, Any] = record["checkpoint"]["trained"]["recipe"]
    return recipe


def accuracies(found: RecordsByRow, row: Row) -> dict[int, float]:
    """Pretraining seed -> top-1."""
    return {seed: value for (seed, _), value in runs_of(found[row.name], TOP1).items()}


def _setting(found: RecordsByRow, row: Row, what: str) -> float:
    recipe = recipe_of(found[row.name][0])
    if what == "batch_size":
        return float(recipe["train"]["batch_size"])
    return float(recipe["num_prototypes"][0])


def _accuracies(
    axis: Any, found: RecordsByRow, rows: tuple[Row, ...], what: str, label: str
) -> list[list[str]]:
    """Top-1 over a setting: the mean in a line, every pretraining as a point; returns the
    numbers."""
    settings = [_setting(found, row, what) for row in rows]
    scores = [accuracies(found, row) for row in rows]
    axis.plot(
        settings,
        [np.mean(list(of.values())) for of in scores],
        color=pictures.COLOURS[0],
        marker=pictures.MARKERS[0],
    )
    for setting, of in zip(settings, scores, strict=True):
        axis.plot(
            [setting] * len(of),
            list(of.values()),
            linestyle="",
            marker=".",
            markersize=5,
            color="#555",
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axis.minorticks_off()
    axis.set(title=f"(a) Accuracy by {label}", xlabel=label, ylabel="top-1 (%)")
    return [
        [
            row.name,
            str(seed),
            "",
            "",
            f"{setting:g}" if what == "num_prototypes" else "",
            f"{setting:g}" if what == "batch_size" else "",
            "top-1",
            f"{value:.4f}",
        ]
        for row, setting, of in zip(rows, settings, scores, strict=True)
        for seed, value in sorted(of.items())
    ]


def by_epoch(found: RecordsByRow, row: Row, what: str) -> dict[int, list[float]]:
    """Pretraining seed -> tp, fn, tp_release or fn_release (pretrain/similarity.py), epoch by
    epoch."""
    return {
        record["subject"]["seed"]: [run[what] for run in record["runs"]]
        for record in found[row.name]
        if record["unit"]["evaluation"] == "course"
    }


def _similarities(
    axis: Any, found: RecordsByRow, rows: tuple[Row, ...], what: str
) -> list[list[str]]:
    """A line per temperature, means over the seeds in a band from the least to the greatest;
    returns the numbers, with those of the released code's reading."""
    data = []
    for i, row in enumerate(rows):
        temperature, seeds = (
            recipe_of(found[row.name][0])["temperature"],
            by_epoch(found, row, what),
        )
        values_SE = np.array(list(seeds.values()))
        epochs = np.arange(1, values_SE.shape[1] + 1)
        axis.plot(
            epochs,
            values_SE.mean(0),
            color=pictures.COLOURS[i],
            linestyle=pictures.DASHES[i],
            marker="o" if len(epochs) == 1 else None,
            label=f"temperature {temperature:g}",
        )
        if len(seeds) > 1:
            axis.fill_between(
                epochs,
                values_SE.min(0),
                values_SE.max(0),
                color=pictures.COLOURS[i],
                alpha=0.15,
                linewidth=0,
            )
        data += [
            [
                row.name,
                str(seed),
                str(epoch),
                f"{temperature:g}",
                "",
                "",
                quantity,
                f"{value:.6f}",
            ]
            for quantity, of in (
                (what.upper(), seeds),
                (f"{what.upper()} as released", by_epoch(found, row, f"{what}_release")),
            )
            for seed, values in sorted(of.items())
            for epoch, value in enumerate(values, 1)
        ]
    axis.legend(fontsize=7.5)
    return data


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges section 4.3 on the last epoch, the rise of FN on the first as well, TP and FN by the
    text's reading."""

    def last(row: Row, what: str, epoch: int = -1) -> dict[int, float]:
        return {seed: values[epoch] for seed, values in by_epoch(found, row, what).items()}

    def spread(rows: tuple[Row, ...], what: str) -> dict[int, float]:
        each = [last(row, what) for row in rows]
        return {
            seed: float(np.ptp([of[seed] for of in each]))
            for seed in set.intersection(*map(set, each))
        }

    judged = [
        _unchanged(
            "accuracy hardly changes with the batch size, once it is sufficient (fewer steps are"
            " taken with larger ones)",
            found,
            BY_BATCH[1:],
            "batch_size",
            primary=True,
        ),
        _unchanged(
            '... nor with the number of prototypes ("more-or-less (although not significantly)'
            ' sensitive")',
            found,
            BY_PROTOTYPES,
            "num_prototypes",
        ),
    ]
    for what in ("tp", "fn"):
        judged.append(
            _by_both_readings(
                f"{what.upper()} is more robust to the temperature in SPCL than in SimCLR",
                what,
                partial(spread, SIMCLR_BY_TEMPERATURE),
                partial(spread, SPCL_BY_TEMPERATURE),
                f"range of {what.upper()} over the temperatures, SimCLR - SPCL",
                [row.name for row in (*SIMCLR_BY_TEMPERATURE, *SPCL_BY_TEMPERATURE)],
            )
        )
    lowest, highest = SIMCLR_BY_TEMPERATURE[0], SIMCLR_BY_TEMPERATURE[-1]
    judged.append(
        _by_both_readings(
            "in SimCLR, TP rises with the temperature",
            "tp",
            partial(last, highest),
            partial(last, lowest),
            "TP at the highest - at the lowest temperature",
            [lowest.name, highest.name],
        )
    )
    judged.append(
        _by_both_readings(
            "in SimCLR, FN falls as the temperature rises",
            "fn",
            partial(last, lowest),
            partial(last, highest),
            "FN at the lowest - at the highest temperature",
            [lowest.name, highest.name],
        )
    )
    for row in SIMCLR_BY_TEMPERATURE:
        judged.append(
            _by_both_readings(
                "in SimCLR, FN becomes larger with the epochs, at temperature"
                f" {recipe_of(found[row.name][0])['temperature']:g}",
                "fn",
                partial(last, row),
                partial(last, row, epoch=0),
                "FN in the last - in the first epoch",
                [row.name],
            )
        )
    for simclr, spcl in zip(SIMCLR_BY_TEMPERATURE, SPCL_BY_TEMPERATURE, strict=True):
        temperature = recipe_of(found[spcl.name][0])["temperature"]
        for what, lower, higher in (("fn", spcl, simclr), ("tp", simclr, spcl)):
            than = "lower" if what == "fn" else "higher"
            judged.append(
                _by_both_readings(
                    f"SPCL's {what.upper()} is {than} than SimCLR's at temperature {temperature:g}",
                    what,
                    partial(last, higher),
                    partial(last, lower),
                    f"{what.upper()}, {higher.title.split(',')[0]} - {lower.title.split(',')[0]}",
                    [simclr.name, spcl.name],
                )
            )
    return tuple(judged)


def _by_both_readings(
    text: str,
    what: str,
    left: Callable[[str], dict[int, float]],
    right: Callable[[str], dict[int, float]],
    difference: str,
    rows: list[str],
) -> ClaimResult:
    """Judges TP or FN as the paper's text defines it, and says what the released code's reading
    gives."""
    judged, release = (
        of_seeds(
            text,
            left(reading),
            right(reading),
            SECTIONS[1],
            difference,
            delta=margins.NEGLIGIBLE_UNIT,
            rows=rows,
            unit="cosine",
        )
        for reading in (what, f"{what}_release")
    )
    told = f"{judged.detail}; as the released code measures: {release.verdict}, {release.detail}"
    return replace(judged, detail=told)


def _unchanged(
    text: str,
    found: RecordsByRow,
    rows: tuple[Row, ...],
    what: str,
    *,
    primary: bool = False,
) -> ClaimResult:
    """Each row against the one of all other tables, which is among them."""
    usual = next(row for row in rows if row.name == "spcl")
    base, others = accuracies(found, usual), [row for row in rows if row is not usual]
    differences = [
        {seed: of[seed] - base[seed] for seed in sorted(of.keys() & base.keys())}
        for of in (accuracies(found, row) for row in others)
    ]
    return claims_of.unchanged(
        text,
        differences,
        MARGIN,
        SECTIONS[0],
        f"top-1 less that at {_setting(found, usual, what):g}",
        names=[f"{_setting(found, row, what):g}" for row in others],
        rows=[row.name for row in rows],
        primary=primary,
        unit="%",
    )


FIGURE = Figure(
    name="spcl-figure2",
    title="Batch size, number of prototypes, TP and FN similarity",
    paper=PAPER,
    where="Figure 2 (curves alone: the paper prints no values)",
    caption=(
        "(a) Top-1 of a linear probe by the number of prototypes K and by the batch size (images"
        " per step; the learning rate goes with it and epochs are the same, so that large batches"
        " take fewer steps, and what differs may be due to either): the line is the mean, points"
        " are pretrainings. (b) Mean cosine after the projection head on the training batches of"
        " each epoch, at three temperatures, SimCLR above SPCL. TP: two views of an image. FN: two"
        " images of one true class (an anchor's drawn partner apart). Lines are means over"
        " pretraining seeds, bands reach from the least to the greatest. The released code measures"
        " otherwise: cosines divided by the temperature, and in SPCL's rows images of one cluster."
        " Claims are judged by the text's definition, which is drawn, and say what the other gives;"
        " the CSV has both. The paper ran (b) ten times (section 4.3.2) and does not say how"
        " often (a)."
    ),
    alternative=(
        "Six panels: above, accuracy by number of prototypes and by batch size; below, TP and FN"
        " similarity over the epochs for three temperatures, SimCLR, then SPCL. The numbers are in"
        " the CSV."
    ),
    rows=tuple(
        {
            row.name: row
            for row in (*BY_PROTOTYPES, *BY_BATCH, *SIMCLR_BY_TEMPERATURE, *SPCL_BY_TEMPERATURE)
        }.values()
    ),
    records_of=(("linear", "cifar10"), ("course", "cifar10")),
    draw=draw,
    shows=lambda record: (
        record["unit"]["evaluation"] != "course"
        or all({"fn", "fn_release"} <= run.keys() for run in record["runs"])
    ),
    claims=claims,
)
