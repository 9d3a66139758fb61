"""Measures how much PCL's lead over MoCo varies between bundled worlds, and between pretraining
seeds within a world.

    python benchmarks/worlds.py                          # 4 worlds x 3 seeds, 18 min on two cores
    python benchmarks/worlds.py --worlds 2 --seeds 2 --epochs 3 --out /tmp/worlds.md     # a trial

(In its first epochs, the warm-up, PCL is MoCo: up to two epochs every lead is 0.)

Trains both methods by their mini recipes, with seeds that no table uses, and scores them by the
mean over k of low-shot VOC mAP (20 draws), by the SVMs on all of VOC's trainval, and by kNN. The
lead in world w with seed s is mean + a_w + e_ws; a one-way analysis of variance gives the variance
of a between worlds and that of e within, which includes the seed's. Intervals: 95 %, by chi-square
for e; by Tukey and Williams for a (at least 90 %). The last columns say what the choice of the
design is about, the standard error of the mean lead, as a statement about this kind of world, with
n trainings of each method: n seeds in one world, or n worlds with one seed each; and what the
former would believe its own to be. Finished trainings are kept in --runs."""

import argparse
import contextlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tabulate import tabulate

from evaluate import fullsvm, knn, lowshot
from pretrain import loop
from pretrain.recipes import moco, pcl
from protobench import keyed, records
from protobench.data import imagenet
from protobench.data.synthetic import bundled, manifest
from protobench.runtime.cores import usable

RECIPES = {"moco": moco.MINI, "pcl": pcl.MINI}
METRICS = ("VOC07 low-shot, mean over k", "VOC07, all images", "kNN")
TRAININGS = (4, 9)
"""n of the last columns."""


@dataclass(frozen=True)
class Unit:
    """Both methods in one world with one seed."""

    world: int
    seed: int
    epochs: int | None
    runs: Path


def leads(unit: Unit) -> list[float]:
    """Trains both methods and returns PCL's lead over MoCo, in points, in each of METRICS."""
    torch.set_num_threads(1)
    folder = unit.runs / f"world{unit.world}-seed{unit.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    images = imagenet.read(bundled.ensure(world=unit.world), "train")
    with open(folder / "output.log", "a") as log, contextlib.redirect_stdout(log):
        moco_scores, pcl_scores = (
            scores(unit, method, folder / method, images) for method in RECIPES
        )
    return [ours - theirs for ours, theirs in zip(pcl_scores, moco_scores, strict=True)]


def scores(unit: Unit, method: str, folder: Path, images: imagenet.ImageList) -> list[float]:
    """Trains one method, unless that is done, and returns its values in METRICS."""
    recipe = RECIPES[method]
    if unit.epochs is not None:
        recipe = replace(recipe, train=replace(recipe.train, epochs=unit.epochs))
        folder = folder.with_name(f"{folder.name}-{unit.epochs}-epochs")
    seed = keyed.seed("benchmarks/worlds", unit.world, unit.seed) % 2**31
    encoder = loop.pretrain(recipe, images, folder, seed=seed)
    values = []
    for evaluation, dataset, flags in (
        (lowshot.EVALUATION, "voc07", {"draws": 20}),
        (fullsvm.EVALUATION, "voc07", {}),
        (knn.EVALUATION, "imagenet", {}),
    ):
        config = evaluation.Config(
            encoder,
            dataset=dataset,
            world=unit.world,
            device="cpu",
            workers=0,
            results=folder / "records",
            **flags,
        )
        path = evaluation.execute(config)
        values.append(float(np.mean([run["value"] for run in records.read(path)["runs"]])))
    return values


@dataclass(frozen=True)
class Components:
    """Variances of the lead; intervals are (from, to)."""

    mean: float
    between: float
    """of the worlds; negative estimates are 0"""
    between_interval: tuple[float, float]
    within: float
    within_interval: tuple[float, float]


def components(lead_WS: np.ndarray) -> Components:
    """One-way random-effects analysis of variance of leads [W, S]: S seeds in each of W worlds."""
    worlds, seeds = lead_WS.shape
    dof, dof_within = worlds - 1, worlds * (seeds - 1)
    mean_W = lead_WS.mean(1)
    between = seeds * float(((mean_W - mean_W.mean()) ** 2).sum()) / dof
    within = float(((lead_WS - mean_W[:, None]) ** 2).sum()) / dof_within

    def bound(tail: float) -> float:
        """Searle, Casella and McCulloch, Variance Components (1992), section 3.6d-vi."""
        least = stats.f.ppf(tail, dof, dof_within)
        bound = dof * (between - least * within) / (seeds * stats.chi2.ppf(tail, dof))
        return max(float(bound), 0.0)

    return Components(
        float(lead_WS.mean()),
        max((between - within) / seeds, 0.0),
        (bound(0.975), bound(0.025)),
        within,
        (
            dof_within * within / float(stats.chi2.ppf(0.975, dof_within)),
            dof_within * within / float(stats.chi2.ppf(0.025, dof_within)),
        ),
    )


def row(metric: str, lead_WS: np.ndarray) -> list[str]:
    """A line of the table."""
    found = components(lead_WS)
    errors = [
        " / ".join(
            f"{np.sqrt(variance):.2f}"
            for variance in (
                found.between + found.within / n,
                found.within / n,
                (found.between + found.within) / n,
            )
        )
        for n in TRAININGS
    ]

    def told(variance: float, interval: tuple[float, float]) -> str:
        low, high = np.sqrt(interval)
        return f"{np.sqrt(variance):.2f} [{low:.2f}, {high:.2f}]"

    return [
        metric,
        f"{found.mean:+.2f}",
        told(found.between, found.between_interval),
        told(found.within, found.within_interval),
        *errors,
    ]


def cost(worlds: list[int]) -> str:
    """Makes the worlds that are missing and says what that, and verifying one, took."""
    identities = [bundled.identity(world, bundled.SPLITS) for world in worlds]
    missing = sum(not bundled.folder("mini", each).is_dir() for each in identities)
    started = time.perf_counter()
    root = next(iter(bundled.ensure_all(worlds).values()))
    made = time.perf_counter() - started
    started = time.perf_counter()
    manifest.verify(root)
    verified = time.perf_counter() - started
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    making = f"{missing} worlds made in {made:.0f} s; " if missing else ""
    return f"{making}one is verified in {verified:.2f} s and holds {size / 1e6:.0f} MB"


def main() -> None:
    """Trains, scores, analyses, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="in each world")
    parser.add_argument("--first", type=int, default=101, help="number of the first world")
    parser.add_argument("--epochs", type=int, help="default: the recipes'")
    parser.add_argument("--jobs", type=int, default=usable(), help="processes side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/worlds"))
    parser.add_argument("--out", type=Path, default=Path("results/worlds.md"))
    given = parser.parse_args()
    if given.worlds < 2 or given.seeds < 2:
        parser.error("an analysis of variance needs at least 2 worlds and 2 seeds")
    worlds = list(range(given.first, given.first + given.worlds))
    making = cost(worlds)
    units = [
        Unit(world, seed, given.epochs, given.runs)
        for world in worlds
        for seed in range(1, given.seeds + 1)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that start now
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = []
        for unit, lead in zip(units, pool.map(leads, units), strict=True):
            found.append(lead)
            told = ", ".join(f"{m} {v:+.2f}" for m, v in zip(METRICS, lead, strict=True))
            print(f"world {unit.world}, seed {unit.seed}: {told}", flush=True)
    lead_WSM = np.array(found).reshape(given.worlds, given.seeds, len(METRICS))
    table = tabulate(
        [row(metric, lead_WSM[..., m]) for m, metric in enumerate(METRICS)],
        [
            "PCL - MoCo, points",
            "mean",
            "sd between worlds",
            "sd within a world",
            *(f"n = {n}: one world / as it believes / n worlds" for n in TRAININGS),
        ],
        tablefmt="github",
        disable_numparse=True,
    )
    epochs = given.epochs or moco.MINI.train.epochs
    page = (
        f"# Between worlds and within\n\n{given.worlds} worlds, {given.seeds} seeds in each,"
        f" {epochs} epochs, world version {bundled.VERSION}; by `python benchmarks/worlds.py`.\n\n"
        f"{table}\n\nStandard errors of the mean lead with n trainings of each method: n seeds in"
        " one world; what they would believe it to be from their spread; n worlds with one seed"
        f" each.\n\nCost: {making}.\n\nLeads, a line per world and a column per seed:\n"
    )
    for m, metric in enumerate(METRICS):
        lines = [
            f"world {world}  " + "  ".join(f"{value:+6.2f}" for value in lead_WSM[w, :, m])
            for w, world in enumerate(worlds)
        ]
        page += f"\n```text\n{metric}\n" + "\n".join(lines) + "\n```\n"
    print(f"\n{page}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page)


if __name__ == "__main__":
    main()
