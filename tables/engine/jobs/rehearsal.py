"""A rehearsal of the paper's tier: its very path, end to end, with few images and few steps.

The folders, readers, recipes, networks and evaluations are those of the full run. What is less:

- images: a few of each class, by name, the same for every row (protobench/data/rehearsal.py). On a
  GPU all classes are used, on a CPU the first few, because a ResNet-50 takes seconds a batch there;
- epochs: one per phase. PCL has a warm-up, a first clustering and a second one; SPCL clusters
  twice; other methods, and probes, have two epochs;
- what those images cannot fill: the batch, the queue, numbers of clusters, of neighbours, of shots.
  On a CPU batches are small whatever there is, because of time and memory.

Everything goes to folders of its own (``results/rehearsal``, ``runs/rehearsal``). Records and
encoders are stamped, have keys of their own, and no table takes them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate import gallery, subsets
from evaluate.evaluation import ROOM, Evaluation
from pretrain import gpu_memory, history
from pretrain.recipes.common import Recipe
from pretrain.recipes.pcl import PCL
from protobench.data import rehearsal
from protobench.data.image_list import ImageList
from protobench.data.rehearsal import Limits
from protobench.runtime import files
from protobench.runtime.errors import UserError
from tables.engine.jobs import plan
from tables.engine.jobs.plan import (
    NO_ENCODER,
    NO_RESNET,
    RESNET50_BYTES,
    AlreadyRead,
    Job,
    Settings,
)
from tables.engine.schema import Exhibit, TaskKey

FOLDER = "rehearsal"
"""Under results and runs."""


@dataclass(frozen=True)
class Size:
    """How much is rehearsed."""

    limits: Limits
    batch: int | None
    """the largest batch, unless BatchNorm's groups need more; None: the recipe's"""
    detection: tuple[tuple[str, Any], ...]
    """settings of detection"""


ON_CPU = Size(Limits(4, 4, 1), 8, (("iterations", 2), ("batch_size", 1), ("draws", 1)))
ON_GPU = Size(Limits(None, 16, 4), None, (("iterations", 20), ("draws", 1)))


@dataclass(frozen=True)
class Machine:
    """Where the full run is to be made."""

    on_gpu: bool
    gib: float | None
    """memory of each GPU; None on a CPU, and where it is not known before a job runs"""
    processes: int
    """that share a batch"""
    gpus: int = 1
    """that a pretraining gets where its batch needs several"""
    for_evaluation: int = 1
    """the same for an evaluation"""

    def holds(self, recipe: Recipe) -> bool:
        """Whether the GPUs' memory is large enough for the recipe's batch, as computed."""
        if self.gib is None or gpu_memory.fits(recipe, self.processes, self.gib):
            return True
        needed = gpu_memory.gpus_needed(recipe, self.gib)
        return needed is not None and needed <= self.gpus

    @property
    def size(self) -> Size:
        """How much is rehearsed on it."""
        return ON_GPU if self.on_gpu else ON_CPU


@dataclass(frozen=True)
class Prepared:
    """A table made smaller, and what is known of the full run before anything has run."""

    exhibit: Exhibit
    """with recipes and settings of a rehearsal"""
    lists: Mapping[TaskKey, tuple[int, ...]]
    """how many images the real lists of an evaluation hold, training images first"""
    training: Mapping[str, int]
    """the same of the data sets of pretraining"""
    stops: tuple[str, ...]
    """what will stop the full run, as far as the lists and recipes tell"""
    less: tuple[str, ...]
    """what was made smaller, for the report"""


def prepare(
    exhibit: Exhibit, jobs: list[Job], seen: AlreadyRead, data: Path, machine: Machine
) -> Prepared:
    """Makes a table smaller. ``jobs`` are its plan on the real data, ``seen`` the lists that this
    plan has read. Writes nothing. UserError where the data cannot be rehearsed."""
    _require_data(jobs)
    size = replace(machine.size, detection=_detection(jobs, data, machine))
    trained = [job for job in jobs if job.recipe and not job.given and job.recipe.train.epochs]
    names = sorted({job.recipe.dataset for job in trained if job.recipe})
    training = {name: seen.training[None, name][0] for name in names}
    lists = {task: seen.lists[None, task][0] for task in exhibit.tasks}
    few = {name: _few((images,), size)[0] for name, images in training.items()}
    few_lists = {task: _few(of_task, size) for task, of_task in lists.items()}
    smallest = min(len(of_task[0]) for of_task in few_lists.values())
    shots = min(
        (_fewest(of[0]) for (name, _), of in few_lists.items() if name == "lowshot"), default=0
    )
    settings = _settings(exhibit, smallest, shots, size)
    smaller = {
        job.row.name: few_recipe(job.recipe, len(few[job.recipe.dataset]), machine)
        for job in trained
        if job.recipe
    }
    rows = tuple(
        replace(row, paper=smaller.get(row.name, row.paper), settings=row.settings + settings)
        for row in exhibit.rows
    )
    return Prepared(
        replace(exhibit, rows=rows),
        {task: tuple(map(len, of_task)) for task, of_task in lists.items()},
        {name: len(images) for name, images in training.items()},
        tuple(_stops(trained, jobs, training, lists, data, machine)),
        tuple(_less(exhibit, trained, rows, training, lists, few, few_lists, size)),
    )


def write_folder(data: Path, machine: Machine, runs: Path) -> Path:
    """Writes the rehearsal folder, to be given as the data, under ``runs``; returns it."""
    limits = machine.size.limits
    content = files.sha256([str(data.absolute()), vars(limits)])
    folder = runs.absolute() / f"data-{content[:8]}"
    rehearsal.write(folder, data, limits)
    return folder


def require_space(jobs: Iterable[Job], runs: Path) -> None:
    """UserError where the disk has no space for the encoders and checkpoints of a rehearsal."""
    size = sum(6 * RESNET50_BYTES if job.trains else 0.01e9 for job in jobs)
    place = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    hint = "free some space, or name another folder: --runs"
    files.require_disk_space(place, int(size), "the encoders of this rehearsal", hint)


def few_recipe(recipe: Recipe, images: int, machine: Machine) -> Recipe:
    """``recipe`` for so many images: one epoch per phase; a batch, queue and clusters that they
    fill. UserError where they fill no batch."""
    batch = _batch(recipe, images, machine)
    phases = 3 if isinstance(recipe, PCL) else 2
    train = replace(
        recipe.train,
        epochs=min(recipe.train.epochs, phases),
        batch_size=batch,
        warmup_epochs=min(recipe.train.warmup_epochs, 1),
        milestones=(phases - 1,),
    )
    changes: dict[str, Any] = {"train": train}
    names = {field.name for field in fields(recipe)}
    given = {name: getattr(recipe, name) for name in names}
    if "queue" in names:
        changes["queue"] = min(given["queue"], images // batch * batch)
    if "warmup" in names:
        changes["warmup"] = min(given["warmup"], 1)
    if given.get("num_prototypes"):
        # with all clusters of the same share of the images as in the full run, or fewer
        share = min(1.0, images / 2 / max(given["num_prototypes"]))
        changes["num_prototypes"] = tuple(max(2, int(k * share)) for k in given["num_prototypes"])
        if "num_negatives" in names:
            changes["num_negatives"] = max(1, int(given["num_negatives"] * share))
    return replace(recipe, **changes)


def _batch(recipe: Recipe, images: int, machine: Machine) -> int:
    """The largest batch that the images fill, that splits over groups and processes, and that a
    GPU's memory holds (computed)."""
    full, most = recipe.train.batch_size, machine.size.batch
    groups = recipe.batch_norm_groups
    groups *= 2 if groups > 1 else 1  # of two images or more
    step = math.lcm(groups, machine.processes, 4)  # SPCL has quarters
    batch = min(full, images, max(most or full, step)) // step * step
    if batch < step:
        raise UserError(
            f"{recipe.method}: a rehearsal of {images} images fills no batch of {step}",
            hint="unpack the data set again: it has too few images, or too few classes",
        )

    def fits(size: int) -> bool:
        smaller = replace(recipe, train=replace(recipe.train, batch_size=size))
        return machine.holds(smaller)

    while batch > step and not fits(batch):
        batch = batch // 2 // step * step or step
    return batch


def _few(lists: tuple[ImageList, ...], size: Size) -> tuple[ImageList, ...]:
    each = (size.limits.train, size.limits.test)
    return tuple(
        rehearsal.few(images, size.limits.classes, n)
        for images, n in zip(lists, each, strict=False)
    )


def _fewest(images: ImageList) -> int:
    """Images of the class that has the fewest."""
    if images.labels.ndim == 2:
        return int((images.labels == 1).sum(0).min())
    return int(np.bincount(images.labels, minlength=len(images.classes)).min())


def _settings(exhibit: Exhibit, images: int, shots: int, size: Size) -> Settings:
    """Fields of the evaluations' Config for so many training images, of which every class of
    low-shot data has ``shots``; detectors have those of ``size`` instead."""
    common = {
        "epochs": 2,
        "batch_size": min(size.batch or 256, images // 2),
        "k": tuple(dict.fromkeys((min(20, images), min(200, images)))),
        "num_clusters": (max(2, images // 4),),
        "fine": (fine := max(2, images // gallery.NEAREST)),  # so that a cluster has as many
        "coarse": fine // 2,
        "perplexity": float(min(30, images // 4)),
        "shots": tuple(k for k in (1, 2, 4, 8, 16) if k <= shots),
    }
    of_detectors = {"epochs": None, "batch_size": None} | dict(size.detection)
    for name in dict.fromkeys(name for name, _ in exhibit.tasks if plan.trains_detectors(name)):
        common |= {f"{name}.{field}": value for field, value in of_detectors.items()}
    return tuple(common.items())


# Before anything runs -----------------------------------------------------------------------------


def _require_data(jobs: list[Job]) -> None:
    """UserError where data is missing: a rehearsal without it would not be one. What only lacks an
    encoder (a published file that is not given), or a ResNet, is left out."""
    missing = [job.why for job in jobs if job.encoder == "impossible" and job.recipe]
    missing += [
        task.why
        for job in jobs
        for task in job.tasks
        if task.state == "impossible"
        and task.why != NO_ENCODER
        and not task.why.startswith(NO_RESNET)
        and not (job.given and task.evaluation in history.KINDS)
    ]
    if missing:
        raise UserError(
            f"this data cannot be rehearsed: {'; '.join(dict.fromkeys(missing))}",
            hint="unpack what is missing; python -m protobench check-data ROOT tells more",
        )


def _stops(
    trained: list[Job],
    jobs: list[Job],
    training: Mapping[str, ImageList],
    lists: Mapping[TaskKey, tuple[ImageList, ...]],
    data: Path,
    machine: Machine,
) -> Iterable[str]:
    """What will stop the full run, by its lists and recipes."""
    for job in trained:
        assert job.recipe
        images = training[job.recipe.dataset]
        prototypes = job.recipe.num_prototypes if isinstance(job.recipe, PCL) else ()
        try:
            job.recipe.check_images(images)
        except UserError as mistake:
            yield f"{job.row.title}: {mistake.what}"
        if max(prototypes, default=0) > len(images):
            yield f"{job.row.title}: {max(prototypes)} clusters of {len(images)} images"
        if machine.gib and not machine.holds(job.recipe):
            needed = gpu_memory.peak_gib(job.recipe, machine.processes)
            yield (
                f"{job.row.title}: GPU memory: a batch of {job.recipe.train.batch_size} needs"
                f" {needed:.1f} GiB on each GPU (computed), which has {machine.gib:.1f};"
                f" {gpu_memory.advice(job.recipe, machine.gib)}"
            )
    yield from dict.fromkeys(_too_large(jobs, data, machine))
    for (name, dataset), of_task in lists.items():
        if name == "lowshot" and (fewest := _fewest(of_task[0])) < 16:
            yield f"lowshot {dataset}: a class has {fewest} training images, fewer than 16 shots"
        if name not in ("semisup", "ami", "gallery"):
            continue
        config = _config(jobs, name, dataset, data)
        if name == "semisup":
            if listing := config.listing:
                try:
                    subsets.listed(of_task[0], listing, config.percent)
                except UserError as mistake:
                    yield f"semisup {dataset}: {mistake.what} ({listing})"
            continue
        params = config.params()
        most = max(*params.get("num_clusters", ()), params.get("fine", 0), 0)
        if most > len(of_task[0]):
            yield f"{name} {dataset}: {most} clusters of {len(of_task[0])} images"


def _config(jobs: list[Job], name: str, dataset: str, data: Path) -> Any:
    """How an evaluation of the full run is configured."""
    tasks = (task for job in jobs for task in job.tasks)
    task = next(task for task in tasks if (task.evaluation, task.dataset) == (name, dataset))
    return plan.eval_config(jobs[0], task, data=data)


def _too_large(jobs: list[Job], data: Path, machine: Machine) -> Iterable[str]:
    """The evaluations whose batches the GPUs cannot hold."""
    for name, of, config in _trainings(jobs, data):
        if machine.gib and of.least_gib(config, machine.for_evaluation) > machine.gib:
            needed = of.gpus_needed(config, machine.gib)
            yield (
                f"{name}: GPU memory: a batch needs at least {of.least_gib(config, 1):.0f} GiB on"
                f" one GPU (computed), which has {machine.gib:.1f};"
                f" {f'{needed} such GPUs' if needed else 'GPUs with more memory'} would do"
            )


def _trainings(jobs: list[Job], data: Path) -> Iterable[tuple[str, Evaluation[Any], Any]]:
    """The evaluations that will be made and whose batches need much memory."""
    for job in jobs:
        for task in job.tasks:
            if task.state == "to run" and task.evaluation not in history.KINDS:
                of = plan.evaluation(task.evaluation)
                config = plan.eval_config(job, task, data=data)
                if of.least_gib(config, 1):
                    yield task.name, of, config


def _detection(jobs: list[Job], data: Path, machine: Machine) -> Settings:
    """Settings of detectors: with a batch that the GPUs hold, where they do not hold the whole."""
    settings, gpus = machine.size.detection, machine.for_evaluation
    for _, of, config in _trainings(jobs, data):
        if machine.gib and of.least_gib(config, gpus) > machine.gib:
            whole = config.params()["batch_size"]
            smaller = [replace(config, batch_size=n) for n in range(1, whole)]
            held = [
                one.batch_size for one in smaller if ROOM * of.least_gib(one, gpus) <= machine.gib
            ]
            return (*settings, ("batch_size", max(held, default=1)))
    return settings


def _less(
    exhibit: Exhibit,
    trained: list[Job],
    rows: Iterable[Any],
    training: Mapping[str, ImageList],
    lists: Mapping[TaskKey, tuple[ImageList, ...]],
    few: Mapping[str, ImageList],
    few_lists: Mapping[TaskKey, tuple[ImageList, ...]],
    size: Size,
) -> Iterable[str]:
    """What was made smaller, a line each."""
    kept = {task[1]: (lists[task], few_lists[task]) for task in exhibit.tasks}
    kept |= {
        name: ((images,), (few[name],)) for name, images in training.items() if name not in kept
    }
    for name, (whole, part) in kept.items():
        yield (
            f"{name}: {' and '.join(f'{len(of):,}' for of in part)} of"
            f" {' and '.join(f'{len(of):,}' for of in whole)} images,"
            f" {len(part[0].classes)} of {len(whole[0].classes)} classes"
        )
    paper = {row.name: row.paper for row in rows}
    for job in trained:
        full, recipe = job.recipe, paper[job.row.name]
        assert full
        assert recipe
        told = [f"{recipe.train.epochs} of {full.train.epochs} epochs"]
        if recipe.train.batch_size != full.train.batch_size:
            told.append(f"batch {recipe.train.batch_size}, not {full.train.batch_size}")
        for name in ("queue", "num_prototypes"):
            if (was := getattr(full, name, None)) and (now := getattr(recipe, name)) != was:
                told.append(f"{name} {_listed(now)}, not {_listed(was)}")
        yield f"{job.row.title}: {'; '.join(told)}"
    if any(plan.trains_detectors(name) for name, _ in exhibit.tasks):
        yield f"detectors: {', '.join(f'{name} {value}' for name, value in size.detection)}"
    if size == ON_CPU:
        yield "few classes and small batches because this is a CPU: time and memory"


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
