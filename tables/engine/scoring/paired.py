"""Two encoders compared image by image, on the outcomes that records of classification keep.

The differences are those of these two encoders over images like the test images. Another
pretraining of the same method gives another encoder, so nothing follows for the methods: that is
what the claims of the tables test, over pretraining seeds. Likewise the training of a probe, or the
subset that was fine-tuned on, is taken as given.

Of n images A alone is right on b and B alone on c.

  p         exact McNemar test: under "both are right equally often", b is binomial of b + c and
            1/2. Two-sided.
  interval  of the difference (b - c) / n: Wald's after adding 1/2 to b, c and the two other cells
            (Agresti and Min, Statistics in Medicine 2005). It is a formula, covers 95 % down to a
            few discordant images, where Wald's own has no width, and needs no random numbers as a
            bootstrap does; a simulation tests its coverage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from protobench import outcomes, records
from protobench.checkpoints import identity
from protobench.records import Record, Run
from protobench.runtime.errors import UserError, choose

CONFIDENCE = 0.95
SCOPE = (
    "about these two encoders and images like the test images; not about their methods, of which"
    " each is one pretraining: that is what the tables' claims are for"
)


@dataclass(frozen=True)
class Difference:
    """Of two encoders on the same images; in percent and points, A minus B."""

    images: int
    a: float
    b: float
    only_a: int
    """images that A alone classifies rightly"""
    only_b: int
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """One run of one evaluation of both encoders."""

    evaluation: str
    data: str
    seed: int | None
    """of pretraining, where both have the same"""
    run: str
    """which of the evaluation's runs, and which accuracy"""
    found: Difference


def difference(a_N: np.ndarray, b_N: np.ndarray) -> Difference:
    """Compare the outcomes of two encoders on the same images, bool [N] each; see above."""
    n, only_a, only_b = len(a_N), int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    middle = (only_a - only_b) / (n + 2)
    half = (
        stats.norm.ppf((1 + CONFIDENCE) / 2)
        * np.sqrt((only_a + only_b + 1) / (n + 2) - middle**2)
        / np.sqrt(n + 2)
    )
    return Difference(
        n,
        float(100 * a_N.mean()),
        float(100 * b_N.mean()),
        only_a,
        only_b,
        100 * (only_a - only_b) / n,
        float(100 * (middle - half)),
        float(100 * (middle + half)),
        p,
    )


def read(what: str, results: Path) -> list[Record]:
    """Return the records of an encoder: a record itself, a folder of records, or, among the records
    in ``results``, those of a checkpoint's file, of a table's row, of one pretraining of it
    (``pcl-1``), or of a checkpoint's name. Raises UserError where there are none, or where they are
    of several encoders."""
    path = Path(what)
    if path.is_file() and path.suffix == ".json":
        return [records.read(path)]
    if path.is_dir():
        results, found = path, _all(path)
    elif path.is_file():
        digest = identity.sha256_of(path)
        found = [record for record in _all(results) if record["checkpoint"]["sha256"] == digest]
        if not found:
            raise UserError(
                f"no record of this checkpoint in {results}",
                at=path,
                hint="score it, for example by evaluate/knn.py; --results names the folder",
            )
    else:
        by_name: dict[str, list[Record]] = {}
        for record in _all(results):
            for name in _names(record):
                by_name.setdefault(name, []).append(record)
        found = by_name[choose("row or checkpoint", what, sorted(by_name))]
    encoders = {
        (record["subject"]["row"], record["subject"]["seed"], record["checkpoint"]["sha256"])
        for record in found
    }
    if len(encoders) > len({seed for _, seed, _ in encoders}):
        rows = ", ".join(sorted({row for row, _, _ in encoders}))
        raise UserError(
            f"{what!r} holds records of {len(encoders)} encoders ({rows})",
            at=results,
            hint="name one: its checkpoint's file, or one record's file",
        )
    return found


def _all(folder: Path) -> list[Record]:
    """Return a folder's records, the oldest first."""
    if found := list(records.read_all(folder).values()):
        return found
    raise UserError(
        "no records in this folder", at=folder, hint="--results names the folder of the records"
    )


def _names(record: Record) -> set[str]:
    """Return what a user may call the encoder of a record."""
    row, seed = record["subject"]["row"], record["subject"]["seed"]
    return {row, record["subject"]["source"]} if seed is None else {row, f"{row}-{seed}"}


def compare(a: Sequence[Record], b: Sequence[Record]) -> tuple[list[Comparison], list[str]]:
    """Compare two encoders on every evaluation that both have, and say what could not be compared
    and why. Raises UserError where nothing could."""
    found: list[Comparison] = []
    left_out: list[str] = []
    for left, right in _pairs(a, b):
        name = f"{left['unit']['evaluation']} on {left['unit']['data_name']}"
        if right is None:
            left_out.append(f"{name}: B has no record of seed {left['subject']['seed']}")
        elif reason := _obstacle(left, right):
            left_out.append(f"{name}: {reason}")
        else:
            found += _comparisons(left, right)
    if not found:
        raise UserError(
            "nothing to compare: " + ("; ".join(left_out) or _without_common(a, b)),
            hint=(
                "both encoders need records of one evaluation with outcomes per image (knn, linear,"
                " semisup), on the same data with the same parameters"
            ),
        )
    return found, left_out


def _pairs(a: Sequence[Record], b: Sequence[Record]) -> Iterator[tuple[Record, Record | None]]:
    """Yield the records of one evaluation and data set that belong together: of one pretraining
    seed (None where B lacks it) if both encoders have seeds in common, of equal parameters and
    images where there are such."""
    seeds = {record["subject"]["seed"] for record in a}
    for left in a:
        same = [
            right
            for right in b
            if all(left["unit"][of] == right["unit"][of] for of in ("evaluation", "data_name"))
        ]
        if not same:
            continue
        if any(right["subject"]["seed"] in seeds for right in same):
            same = [right for right in same if right["subject"]["seed"] == left["subject"]["seed"]]
        alike = [right for right in same if not _differing(left, right)]
        yield left, next(reversed(alike or same), None)  # the newest


def _obstacle(left: Record, right: Record) -> str:
    """Return why two records of one evaluation cannot be compared; empty if they can."""
    if differing := _differing(left, right):
        return f"the records differ in {'; '.join(differing)}"
    if left["unit"]["encoder"] == right["unit"]["encoder"]:
        return "both records are of the same encoder"
    if left["metric"]["name"] == "mAP":
        return "mAP ranks all images together, so no image has an outcome; compare the draws"
    for side, record in (("A", left), ("B", right)):
        if not any("right" in run for run in record["runs"]):
            return f"the record of {side} holds no outcomes per image"
    return ""


def _differing(left: Record, right: Record) -> list[str]:
    """Return in what the scores of two records differ apart from the encoder."""
    ours, theirs = left["unit"], right["unit"]
    told = [
        f"{what} ({ours[key]} and {theirs[key]})"
        for what, key in (
            ("evaluation", "evaluation"),
            ("data set", "data_name"),
            ("the evaluation's version", "version"),
        )
        if ours[key] != theirs[key]
    ]
    if not told and ours["data"] != theirs["data"]:
        told.append("their images (the fingerprints of the lists)")
    params = (ours["params"], theirs["params"])
    return told + [
        f"{name} ({params[0].get(name, 'default')} and {params[1].get(name, 'default')})"
        for name in sorted(params[0].keys() | params[1].keys())
        if params[0].get(name) != params[1].get(name)
    ]


def _comparisons(left: Record, right: Record) -> Iterator[Comparison]:
    """Yield the comparison of every run that both records have."""
    images = left["metric"]["test_images"]
    theirs = {_position(run): run for run in right["runs"]}
    seed = left["subject"]["seed"]
    several = len(left["runs"]) > len({run.get("k") for run in left["runs"]})
    for run in left["runs"]:
        if other := theirs.get(_position(run)):
            a, b = outcomes.of_run(run, images), outcomes.of_run(other, images)
            for accuracy in sorted(a.keys() & b.keys()):
                yield Comparison(
                    left["unit"]["evaluation"],
                    left["unit"]["data_name"],
                    seed if seed == right["subject"]["seed"] else None,
                    _title(run, accuracy, left["metric"]["name"], draw=several),
                    difference(a[accuracy], b[accuracy]),
                )


def _position(run: Run) -> tuple[Any, Any]:
    return run.get("k"), run["draw"]


def _title(run: Run, accuracy: str, metric: str, *, draw: bool) -> str:
    """Return which run it is, and which of its accuracies."""
    parts = [f"k={run['k']}"] if "k" in run else []
    parts += [f"draw {run['draw']}"] if draw else []
    return ", ".join([*parts, metric if accuracy == "value" else accuracy.replace("top", "top-")])


def _without_common(a: Sequence[Record], b: Sequence[Record]) -> str:
    def evaluations(of: Sequence[Record]) -> str:
        return ", ".join(
            sorted({f"{r['unit']['evaluation']} on {r['unit']['data_name']}" for r in of})
        )

    return f"A has {evaluations(a)}; B has {evaluations(b)}"


def table(found: Sequence[Comparison], names: tuple[str, str], left_out: Sequence[str]) -> str:
    """Return the comparisons as a table for the terminal, with what they are about."""
    seeds = any(comparison.seed is not None for comparison in found)
    rows = [
        {
            "evaluation": f"{comparison.evaluation}, {comparison.data}",
            **({"seed": comparison.seed} if seeds else {}),
            "accuracy (%)": comparison.run,
            "images": of.images,
            "A": f"{of.a:.2f}",
            "B": f"{of.b:.2f}",
            "A - B [95 % interval]": f"{of.difference:+.2f} [{of.low:+.2f}, {of.high:+.2f}]",
            "right: A alone": of.only_a,
            "B alone": of.only_b,
            "p": f"{of.p:.2g}",
        }
        for comparison in found
        for of in [comparison.found]
    ]
    lines = [
        f"A: {names[0]}\nB: {names[1]}\n",
        tabulate(rows, headers="keys", disable_numparse=True),
    ]
    lines += [f"left out: {reason}" for reason in left_out]
    if len(found) > 1:
        lines.append("each line alone: p and intervals are not corrected for their number")
    return "\n".join([*lines, SCOPE])
