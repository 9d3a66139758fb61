"""Chooses the learning rate and the temperature of every method of the mini tier, with one budget
and one rule for all, on data that no result uses.

Examples:

    python pretrain/tuning.py --plan  # the grid; trains nothing
    python pretrain/tuning.py         # about 20 minutes on two cores
    python pretrain/tuning.py --runs /tmp/again/runs --results /tmp/again  # repeats it

**Budget.** Four rates, the same for all methods, by three temperatures: 12 trainings per method,
of the recipe's full length, with one seed. Supervised has no temperature: four. The rates are
those in use when the grid was written, 0.06 and 0.12, and one factor of 2 beyond either. The
temperatures are those of the papers: 0.07 (MoCo v1), 0.1 (PCL) and 0.2 (MoCo v2, PCL v2) for the
methods that learn from a queue, 0.1 and 0.5 (SimCLR on ImageNet and on CIFAR-10, SPCL's code) and
0.2 between them for those that learn from the batch. Nothing else is tuned: these two are what all
contrastive methods share. Queue, momentum of the key encoder, number of clusters and views stay as
pretrain/recipes gives them.

**Data.** Of the 4000 training images of world 0, 3000 are trained on and 1000, a quarter of each
class, are held out. No table or figure uses that world: seed s of a result is trained and scored
in world s, from 1. The held-out images are new images of the same sprites; the images that results
are scored on show sprites that no training saw.

**Score.** The share of the held-out images that their k = 20 nearest neighbours among the 3000
classify rightly, by majority: cosine of the pooled backbone feature of the centre crop, for every
method alike. A binomial standard error is 1.5 points at most, so neighbouring cells are often equal
within noise: the choice is equal for all methods rather than exact for one.

**Rule.** The highest accuracy; of equal ones the smaller rate, then the smaller temperature. A
training whose loss is not finite, or whose features collapse, counts as 0. Methods are never
compared. The log is committed, a test holds the recipes against it, and this program does not
overwrite it: the choice is made once.

Written are ``tuning.csv``, one line per training, and ``tuning.md``, the same to read. A stopped
run continues where it was."""

if __name__ == "__main__":
    from pretrain import tuning
    from protobench.runtime import cli

    cli.run(tuning.main)

import contextlib
import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.recipes import moco, pcl, simclr, spcl, supervised
from pretrain.recipes.common import Recipe, run_key
from protobench import keyed
from protobench.data.image_list import ImageList
from protobench.runtime import cli, files, processes
from protobench.runtime.cores import usable
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

WORLD = 0
"""The bundled world that this is done in."""
SEED = 0
"""Of the trainings."""
RATES = (0.03, 0.06, 0.12, 0.24)
QUEUE_TEMPERATURES, BATCH_TEMPERATURES = (0.07, 0.1, 0.2), (0.1, 0.2, 0.5)
METHODS: dict[str, tuple[Recipe, tuple[float | None, ...]]] = {
    "moco": (moco.MINI, QUEUE_TEMPERATURES),
    "pcl": (pcl.MINI, QUEUE_TEMPERATURES),
    "pcl-v2": (pcl.MINI_V2, QUEUE_TEMPERATURES),
    "simclr": (simclr.MINI, BATCH_TEMPERATURES),
    "spcl": (spcl.MINI, BATCH_TEMPERATURES),
    "supervised": (supervised.MINI, (None,)),
}
"""The recipe of each method, whose own rate and temperature do not count, and its temperatures."""
K = 20
"""Neighbours that vote."""
HELD_OUT = 4
"""One of this many images of each class is held out."""
COLLAPSED = 1e-6
"""Features that differ by less than this part of the largest one are all the same."""


@dataclass(frozen=True)
class Cell:
    """One training of the grid: a method and its recipe with a rate and a temperature, if it has
    one."""

    method: str
    recipe: Recipe

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self.recipe.train.lr

    @property
    def temperature(self) -> float | None:
        """The temperature; None for a method without one."""
        return getattr(self.recipe, "temperature", None)

    def __str__(self) -> str:
        return f"{self.method}: {_values(self.lr, self.temperature)}"


@dataclass(frozen=True)
class Outcome:
    """A line of the log."""

    method: str
    lr: float
    temperature: float | None
    accuracy: float
    """percent of the held-out images; 0 where there is ``trouble``"""
    seconds: float
    """of the training's epochs"""
    trouble: str = ""
    """why the training counts as 0, if it does"""


def with_values(recipe: Recipe, lr: float, temperature: float | None) -> Recipe:
    """``recipe`` with this learning rate and, unless it is None, this temperature."""
    changes: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    return replace(recipe, train=replace(recipe.train, lr=lr), **changes)


def grid() -> list[Cell]:
    """All trainings. Methods take turns, so that the time left is well estimated."""
    columns = [
        [
            Cell(method, with_values(recipe, lr, temperature))
            for lr in RATES
            for temperature in temperatures
        ]
        for method, (recipe, temperatures) in METHODS.items()
    ]
    return [cell for row in zip_longest(*columns) for cell in row if cell]


def _values(lr: float, temperature: float | None) -> str:
    return f"rate {lr:g}" + ("" if temperature is None else f", temperature {temperature:g}")


def _place(line: Cell | Outcome) -> tuple[str, float, float]:
    return line.method, line.lr, line.temperature or 0.0


# Data and score -----------------------------------------------------------------------------------


def split(images: ImageList) -> tuple[ImageList, ImageList]:
    """The images to train on and those held out, one of ``HELD_OUT`` of each class."""
    held = np.zeros(len(images), bool)
    for label in range(len(images.classes)):
        own = np.flatnonzero(images.labels == label)
        chosen = keyed.generator(SEED, "held out for tuning", label).permutation(own)
        held[chosen[: len(own) // HELD_OUT]] = True
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))


def knn_accuracy(
    bank_ND: "Tensor", bank_labels: "Tensor", query_MD: "Tensor", labels: "Tensor", k: int
) -> float:
    """The percentage of queries whose k nearest rows of the bank, by cosine, vote for their label;
    labels are int64 [N] and [M]. A tie goes to the class whose voters are nearer."""
    from torch.nn.functional import normalize

    cosine_MN = normalize(query_MD) @ normalize(bank_ND).T
    cosine_MK, index_MK = cosine_MN.topk(k)
    # the cosines of two classes' voters add up to k at most, so this decides ties alone
    weight_MK = 1 + cosine_MK / (2 * k)
    vote_MC = weight_MK.new_zeros(len(labels), int(bank_labels.max()) + 1)
    vote_MC.scatter_add_(1, bank_labels[index_MK], weight_MK)
    return round(100 * float((vote_MC.argmax(1) == labels).double().mean()), 4)


def score(encoder: Path, train: ImageList, held_out: ImageList) -> tuple[float, str]:
    """The accuracy of an encoder on the held-out images, in percent, and what is wrong with its
    features, if anything; the accuracy is 0 then."""
    import torch

    from protobench.checkpoints import encoders
    from protobench.data.loading import CentreCrops, batches
    from protobench.features import Forward

    loaded = encoders.load(encoder)
    forward = Forward(loaded, loaded.input, "average", "cpu")
    bank_ND, query_MD = (
        torch.cat(
            [
                forward(pixels)
                for pixels in batches(
                    CentreCrops(images, loaded.input), workers=0, device="cpu", batch_size=256
                )
            ]
        )
        for images in (train, held_out)
    )
    x_ID = torch.cat([bank_ND, query_MD])
    if not torch.isfinite(x_ID).all():
        return 0.0, "features not finite"
    if (x_ID.amax(0) - x_ID.amin(0)).max() < COLLAPSED * x_ID.abs().max().clamp_min(1e-12):
        return 0.0, "collapsed"
    bank_labels, labels = (torch.from_numpy(images.labels) for images in (train, held_out))
    return knn_accuracy(bank_ND, bank_labels, query_MD, labels, K), ""


# Trainings ----------------------------------------------------------------------------------------


def measure(cell: Cell, train: ImageList, held_out: ImageList, folder: Path) -> None:
    """Trains and scores a cell in its ``folder``, where ``outcome.json`` is written last. What it
    prints goes to output.log."""
    from pretrain import loop

    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "output.log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            encoder = loop.pretrain(cell.recipe, train, folder, seed=SEED)
            accuracy, trouble = score(encoder, train, held_out)
        except loop.DivergedError:
            accuracy, trouble = 0.0, "loss not finite"
    epochs = folder / "log.jsonl"
    lines = epochs.read_text().splitlines() if epochs.exists() else []
    seconds = round(sum(json.loads(line)["seconds"] for line in lines), 1)
    outcome = Outcome(cell.method, cell.lr, cell.temperature, accuracy, seconds, trouble)
    files.write_text(folder / "outcome.json", json.dumps(asdict(outcome)) + "\n")


def run(
    cells: list[Cell], train: ImageList, held_out: ImageList, runs: Path, jobs: int
) -> list[Outcome]:
    """Measures the cells in ``jobs`` processes of one torch thread each and returns their outcomes;
    those that ``runs`` holds already are read. UserError if some failed, once the others are
    done."""
    folders = {
        cell: runs / f"{cell.method}-{run_key(cell.recipe, train, SEED)[:12]}" for cell in cells
    }
    left = [cell for cell in cells if not (folders[cell] / "outcome.json").exists()]
    failed = []
    if left:
        bar = progress(desc=f"{len(left)} trainings", unit=" done", total=len(left))
        with contextlib.closing(bar), processes.pool(min(jobs, len(left)), threads=1) as pool:
            pending = {
                pool.submit(measure, cell, train, held_out, folders[cell]): cell for cell in left
            }
            for future in as_completed(pending):
                if failure := future.exception():
                    cell = pending[future]
                    log = folders[cell] / "output.log"
                    failed.append(f"{cell}: {processes.explained(failure)}\n  log: {log}")
                bar.update()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} trainings failed:\n" + "\n".join(failed),
            at=runs,
            hint="the same command runs only what is left",
        )
    return [Outcome(**json.loads((folders[cell] / "outcome.json").read_text())) for cell in cells]


# The choice ---------------------------------------------------------------------------------------


def choose(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """The chosen outcome of every method, by the rule above. UserError for a method without one
    that counts."""
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.method, []).append(outcome)
    chosen = {method: min(own, key=_rank) for method, own in sorted(by_method.items())}
    for method, best in chosen.items():
        if not best.accuracy:
            raise UserError(f"no training of {method} counts", hint="widen the grid of all methods")
    return chosen


def _rank(outcome: Outcome) -> tuple[float, float, float]:
    return -outcome.accuracy, outcome.lr, outcome.temperature or 0.0


def on_edge(chosen: Outcome, outcomes: Iterable[Outcome]) -> list[str]:
    """Which of the chosen values, rate and temperature, are the smallest or the largest tried."""
    own = [outcome for outcome in outcomes if outcome.method == chosen.method]
    edges = []
    for title, field in (("rate", "lr"), ("temperature", "temperature")):
        tried = {getattr(outcome, field) for outcome in own}
        if len(tried) > 1 and getattr(chosen, field) in (min(tried), max(tried)):
            edges.append(title)
    return edges


# The log ------------------------------------------------------------------------------------------


def to_csv(outcomes: Iterable[Outcome]) -> str:
    """The log, one line per training, by method, rate and temperature."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Outcome)])
    for outcome in sorted(outcomes, key=_place):
        writer.writerow("" if value is None else value for value in asdict(outcome).values())
    return text.getvalue()


def read_csv(path: Path) -> list[Outcome]:
    """The log as ``to_csv`` wrote it. UserError for anything else."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [
                Outcome(
                    line["method"],
                    float(line["lr"]),
                    float(line["temperature"]) if line["temperature"] else None,
                    float(line["accuracy"]),
                    float(line["seconds"]),
                    line["trouble"],
                )
                for line in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise UserError(f"not a log of the tuning: {failure}", at=path) from failure


def to_markdown(outcomes: list[Outcome], about: str) -> str:
    """The log to read: one table per method, rates by temperatures, with the chosen cell in bold;
    ``about`` says where and when it was made."""
    chosen = choose(outcomes)
    parts = [
        "# Rate and temperature of the mini tier",
        "kNN accuracy in % on held-out training images of a world that no result uses, one training"
        " per cell. **Bold**: chosen, by the rule that `pretrain/tuning.py` gave before the"
        " trainings: the highest accuracy; of equal ones the smaller rate, then the smaller"
        " temperature. Methods are not compared.",
        about,
    ]
    for method, best in chosen.items():
        own = {(o.lr, o.temperature): o for o in outcomes if o.method == method}
        parts += [f"## {method}", _table(own, best), _sentence(best, on_edge(best, outcomes))]
    return "\n\n".join(parts) + "\n"


def _table(own: Mapping[tuple[float, float | None], Outcome], best: Outcome) -> str:
    from tabulate import tabulate

    rates, temperatures = (sorted({key[i] or 0.0 for key in own}) for i in (0, 1))
    titles = [f"temperature {value:g}" if value else "accuracy" for value in temperatures]
    rows = [
        [f"{lr:g}", *(_shown(own[lr, temperature or None], best) for temperature in temperatures)]
        for lr in rates
    ]
    return tabulate(rows, ["rate", *titles], tablefmt="github", disable_numparse=True)


def _shown(outcome: Outcome, best: Outcome) -> str:
    text = f"{outcome.accuracy:.1f}"
    if outcome.trouble:
        return f"0 ({outcome.trouble})"
    return f"**{text}**" if outcome == best else text


def _sentence(best: Outcome, edges: list[str]) -> str:
    edge = f" (on the edge of the grid: {', '.join(edges)})" if edges else ""
    return f"Chosen: {_values(best.lr, best.temperature)}{edge}."


def _about(outcomes: list[Outcome]) -> str:
    from protobench import records

    environment = records.environment()
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "numpy", "faiss-gpu"))
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    return (
        f"World {WORLD}, seed {SEED}; {len(outcomes)} trainings, {minutes:.0f} minutes in all on"
        f" one core each of {environment['processor'] or platform.machine()}"
        f" ({environment['cpu_count']} cores); Python {environment['python']}, {versions}; commit"
        f" {records.commit()}; {datetime.now(UTC).date()}."
    )


# The command --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    """Where and how to run."""

    plan: bool = False
    """print the grid and train nothing"""
    jobs: int | None = None
    """trainings side by side, one torch thread each; default one per usable core"""
    runs: Path = Path("runs/tuning")
    """folder of the trainings; a finished one in it is not trained again"""
    results: Path = Path("results")
    """folder of tuning.csv and tuning.md, which are never overwritten"""


def main() -> int:
    """Runs ``python pretrain/tuning.py`` and returns its exit code."""
    flags = cli.parse(Flags, __doc__ or "")
    cells = grid()
    if flags.plan:
        print("\n".join(map(str, sorted(cells, key=_place))))
        print(f"{len(cells)} trainings")
        return cli.SAME
    jobs = usable() if flags.jobs is None else flags.jobs
    if jobs < 1:
        raise UserError(f"--jobs {jobs}", hint="at least 1")
    log = flags.results / "tuning.csv"
    if log.exists():
        raise UserError(
            "the choice is made, and not revisited",
            at=log,
            hint="--results with another folder repeats the trainings beside it",
        )
    outcomes = run(cells, *split(_images()), flags.runs, jobs)
    page = to_markdown(outcomes, _about(outcomes))
    files.write_text(flags.results / "tuning.md", page)
    files.write_text(log, to_csv(outcomes))
    print(page)
    return cli.SAME


def _images() -> ImageList:
    """The training images of the tuning's world; its other splits are not made."""
    from protobench.data import imagenet
    from protobench.data.synthetic import bundled

    counts = dict.fromkeys(bundled.SPLITS, 0) | {"imagenet-train": bundled.SPLITS["imagenet-train"]}
    return imagenet.read(bundled.ensure(counts=counts, world=WORLD), "train")
