"""The end of a rehearsal: what ran, what the full run will cost on this machine, and what will stop
it."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import gpu_memory, history, throughput
from pretrain.recipes.common import Recipe
from pretrain.throughput import Throughput
from protobench import records
from protobench.runtime import cli, files
from tables.engine.jobs import costs, plan, work
from tables.engine.jobs.costs import EMBEDDING, WIDTH
from tables.engine.jobs.plan import EvalTask, Job
from tables.engine.jobs.rehearsal import Prepared
from tables.engine.jobs.work import RunContext

SHM, SCREEN = Path("/dev/shm"), 100
"""Where workers put batches; columns of a report's lines."""
WAITING = 2
"""Batches that wait for each worker."""
DRAWN_FROM = {"places205": 205}
"""Data sets of which low-shot SVMs read what is drawn alone, and their classes."""
LONG_DAYS = 60
"""From how many days on a row's cost is told among what will stop the run."""


@dataclass(frozen=True)
class Report:
    """Called when all jobs of a rehearsal have ended."""

    prepared: Prepared
    jobs: tuple[Job, ...]
    """of the rehearsal"""
    full: tuple[Job, ...]
    """the same of the full run"""
    context: RunContext
    """of the rehearsal"""
    data: Path
    """the real data"""

    @property
    def name(self) -> str:
        """The job's name in Slurm's logs."""
        return f"rehearsal-{self.prepared.exhibit.name}"

    @property
    def path(self) -> Path:
        """Where the report is kept. It is written last, so that it tells that all is done."""
        folder = self.context.results / self.context.tier
        return folder / f"{self.prepared.exhibit.name}.txt"

    def __call__(self) -> int:
        """Prints and keeps the report. Exit code 3 where the full run would not be complete."""
        have = records.read_all(self.context.results / self.context.tier / "records")
        rows = [self._row(few, full, have) for few, full in zip(self.jobs, self.full, strict=True)]
        stops = list(dict.fromkeys([*self.prepared.stops, *self._stops(rows)]))
        text = "\n".join([*self._done(have), *self._cost(rows), *_listed(stops)]) + "\n"
        print(text, end="")
        if all(task.key in have for job in self.jobs for task in _possible(job)):
            files.write_text(self.path, text)
            print(f"written: {self.path}")
        return cli.INCOMPLETE if stops else cli.SAME

    def checkpoint(self, *args: Any) -> Any:
        """See slurm.SlurmJob.checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    # What ran -------------------------------------------------------------------------------------

    def _done(self, have: Mapping[str, Any]) -> Iterator[str]:
        exhibit = self.prepared.exhibit
        tasks = [task for job in self.jobs for task in _possible(job)]
        made = sum(task.key in have for task in tasks)
        yield f"REHEARSAL of {exhibit.name}, tier {self.context.tier}, data {self.data}"
        yield f"{made} of {len(tasks)} records made; they are of no table"
        for line in self.prepared.less:
            yield f"  less: {line}"

    # What it costs --------------------------------------------------------------------------------

    def _row(self, few: Job, full: Job, have: Mapping[str, Any]) -> "_Row":
        found = throughput.read(work.throughput_file(few, self.context))
        recipe = full.recipe if found and found.trained and not full.given else None
        trained = None
        if recipe and found:
            trained = _training_hours(recipe, self.prepared.training[recipe.dataset], found)
        rates = found or self._rates_of_its_network(full)
        scored = [
            self._scoring_hours(full, task, few_task, rates, have)
            for task, few_task in zip(full.tasks, few.tasks, strict=True)
            if few_task.state != "impossible"
        ]
        return _Row(few, recipe, found, trained, scored)

    def _rates_of_its_network(self, job: Job) -> Throughput | None:
        """For an encoder that is not trained, and so not measured: the rates of another row with
        the same network."""
        if job.given or job.recipe is None or job.recipe.train.epochs:
            return None
        same = [of for of in self.jobs if of.recipe and of.recipe.arch == job.recipe.arch]
        measured = [throughput.read(work.throughput_file(of, self.context)) for of in same]
        return next(filter(None, measured), None)

    def _scoring_hours(
        self,
        full: Job,
        task: EvalTask,
        few: EvalTask,
        found: Throughput | None,
        have: Mapping[str, Any],
    ) -> float | None:
        """Hours of an evaluation on this machine, of its images and of the distances between their
        features (what else is computed on them, minutes, is left out); None where no rate was
        measured."""
        if task.evaluation in history.KINDS:
            return 0.0
        params = plan.eval_config(full, task, data=self.data).params()
        train, *rest = self.prepared.lists[task.evaluation, task.dataset]
        test = sum(rest)
        if plan.trains_detectors(task.evaluation):
            record = have.get(few.key)
            if record is None:
                return None
            steps = params["iterations"] or params["epochs"] * train // params["batch_size"]
            seconds = steps * params["batch_size"] / record["cost"]["images_per_second"]
            return float(params["draws"] * seconds / 3600)
        if found is None or found.embedded is None:
            return None
        seconds = (passes(task, params, train) + test) / _features_rate(found)
        seconds += costs.distance_flops(task.evaluation, params, train, test) / found.flops
        return float(seconds / 3600)

    def _cost(self, rows: list["_Row"]) -> Iterator[str]:
        measured = [row.found for row in rows if row.found]
        if not measured:
            yield "no rates were measured, as no encoder was trained or given"
        for machine in dict.fromkeys(
            f"{found.device}; processes that share a batch: {found.processes}; image-reading"
            f" workers of each: {found.workers}; cores: {found.cores}"
            for found in measured
        ):
            yield f"the full run on this machine: {machine}"
        yield (
            f"  {'images/s':<24}{'read, views':>12}{'steps':>9}{'features':>10}"
            f"{'GPU memory':>22}{'epoch, h':>10}{'training':>12}{'scoring':>14}"
        )
        for row in rows:
            yield row.line()
        for row in rows:
            if row.recipe and row.found:
                images = self.prepared.training[row.recipe.dataset]
                for told in (_input_bound(row.found), _crop_bound(row.recipe, images, row.found)):
                    if told:
                        yield f"  {row.few.row.title}: {told}"
        if told := _busy(measured):
            yield f"  {told}"
        yield f"  disk: {self._disk(rows)}"
        yield (
            "  rates were measured in seconds; hours are these rates times the full run's images"
            " and distances, the monitor's too; without SVMs, t-SNE and the like: minutes"
        )

    def _disk(self, rows: list["_Row"]) -> str:
        needed = self._disk_bytes(rows)
        free = shutil.disk_usage(_existing(self.context.runs)).free
        cache = shutil.disk_usage(_existing(files.cache_dir())).free
        return (
            f"{needed[0] / 1e9:.1f} GB of checkpoints and encoders ({free / 1e9:.0f} GB free),"
            f" {needed[1] / 1e9:.1f} GB of features in the cache ({cache / 1e9:.0f} GB free)"
        )

    def _disk_bytes(self, rows: list["_Row"]) -> tuple[float, float]:
        """Of checkpoints and encoders, and of features, computed."""
        trained = sum(costs.training_bytes(row.recipe) for row in rows if row.recipe)
        features = 0.0
        for job in self.full:
            for task in job.tasks:
                sizes = self.prepared.lists[task.evaluation, task.dataset]
                if task.evaluation in ("lowshot", "fullsvm"):
                    of_voc = sum(sizes) if task.dataset == "voc07" else sum(sizes[1:])
                    features += of_voc * WIDTH * 4
                elif task.evaluation in ("knn", "ami", "gallery"):
                    settings = dict(job.row.settings)
                    pooled = settings.get("feature") == "pooled"
                    features += sum(sizes) * (WIDTH if pooled else EMBEDDING) * 4
                elif task.evaluation == "linear":
                    features += sum(sizes[1:]) * WIDTH * 4
        return trained, features

    # What will stop it ----------------------------------------------------------------------------

    def _stops(self, rows: list["_Row"]) -> Iterator[str]:
        trained, features = self._disk_bytes(rows)
        for what, needed, folder in (
            ("checkpoints and encoders", trained, self.context.runs),
            ("features", features, files.cache_dir()),
        ):
            free = shutil.disk_usage(_existing(folder)).free
            if needed > free:
                yield (
                    f"disk: {what} need {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free at"
                    f" {folder}"
                )
        for row in rows:
            if row.found and row.recipe and SHM.is_dir():
                needed = _shared_bytes(row.recipe, row.found)
                free = shutil.disk_usage(SHM).free
                if needed > free:
                    yield (
                        f"{row.few.row.title}: /dev/shm: batches that wait need"
                        f" {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; enlarge it, or"
                        " lower --workers"
                    )
            for what, hours in (
                ("training", row.hours or 0.0),
                ("evaluation", sum(filter(None, row.scoring))),
            ):
                if hours > 24 * LONG_DAYS:
                    gpu = "" if row.found and row.found.on_gpu else ", which has no GPU in use"
                    yield f"{row.few.row.title}: {_time(hours)} of {what} on this machine{gpu}"
        if any(
            row.found and row.found.processes * row.found.workers > row.found.cores for row in rows
        ):
            yield "more workers than cores: lower --workers"


@dataclass(frozen=True)
class _Row:
    few: Job
    recipe: Recipe | None
    """of the full run; None where nothing is trained"""
    found: Throughput | None
    hours: float | None
    """of training"""
    scoring: list[float | None]

    def line(self) -> str:
        """The row's line of the report's table."""
        found, recipe = self.found, self.recipe
        rates = (found.views, found.trained, found.embedded) if found else (None, None, None)
        views, trained, embedded = map(_rate, rates)
        memory = epoch = "-"
        if found and recipe:
            computed = gpu_memory.peak_gib(recipe, found.processes)
            memory = f"{computed:.1f} GiB computed"
            if found.peak_gib is not None and found.batch == recipe.train.batch_size:
                memory = f"{found.peak_gib:.1f} GiB"
            if self.hours is not None:
                epoch = f"{self.hours / recipe.train.epochs:.2f}"
        scored = [hours for hours in self.scoring if hours is not None]
        unknown = "+?" if len(scored) < len(self.scoring) else ""
        return (
            f"  {self.few.row.title[:23]:<24}{views:>12}{trained:>9}{embedded:>10}{memory:>22}"
            f"{epoch:>10}{_time(self.hours):>12}"
            f"{(_time(sum(scored)) if scored else '?') + unknown:>14}"
        )


def passes(task: EvalTask, params: Mapping[str, Any], train: int) -> float:
    """How many training images an evaluation with these parameters passes through the network, of
    ``train``; a backward pass counts as two images."""
    if task.evaluation == "linear":
        return float(params["epochs"] * train)
    if task.evaluation == "semisup":
        return float(3 * params["epochs"] * train * params["percent"] / 100)
    if task.evaluation == "tsne":
        return float(min(train, params["classes"] * params["per_class"]))
    if task.evaluation == "lowshot" and task.dataset in DRAWN_FROM:
        drawn = DRAWN_FROM[task.dataset] * params["draws"] * sum(params["shots"])
        return float(min(train, drawn))
    return float(train)


def _training_hours(recipe: Recipe, images: int, found: Throughput) -> float:
    """Hours of a training on this machine by its measured rates, with its monitor's."""
    from pretrain import monitor  # imports torch, which plans do without

    assert found.trained
    flops, passed = found.flops, images / _features_rate(found)
    epoch = images / min(found.trained, found.views or found.trained)
    clustered = measured = 0.0
    if costs.clusterings(recipe):
        clustered = passed + costs.clustering_flops(recipe, images) / flops
    if dim := getattr(recipe, "dim", 0):  # a method without an embedding is not measured
        distances = 2.0 * images * sum(monitor.cluster_numbers(images)) * dim
        measured = passed + distances * (costs.KMEANS + 1) / flops
    epochs = recipe.train.epochs
    times = sum(monitor.due(done, epochs) for done in range(epochs + 1))
    seconds = epochs * epoch + costs.clusterings(recipe) * clustered + times * measured
    return seconds / 3600


def _features_rate(found: Throughput) -> float:
    """Images/s of which features are made: the slower of reading and the network."""
    assert found.embedded
    return min(found.embedded, found.crops or found.embedded)


def _input_bound(found: Throughput) -> str:
    """By how much reading is slower than the steps; empty where it is not."""
    if not found.views or not found.trained or found.views >= found.trained:
        return ""
    ratio = found.trained / found.views
    readers = found.processes * max(found.workers, 1)
    return (
        f"input-bound: steps could take {ratio:.1f} times the images that are read; about"
        f" {readers * ratio:.0f} workers with a core each would do"
    )


def _crop_bound(recipe: Recipe, images: int, found: Throughput) -> str:
    """How long clusterings wait for centre crops to be decoded, if more than an hour in all."""
    if not found.crops or not found.embedded or found.crops >= found.embedded:
        return ""
    seconds = costs.clusterings(recipe) * images * (1 / found.crops - 1 / found.embedded)
    if seconds < 3600:
        return ""
    size = images * recipe.input.crop**2 * 3 / 1e9
    return (
        f"in {_time(seconds / 3600)} of the training clusterings wait for centre crops to be"
        f" decoded; python -m protobench keep-crops keeps them, {size:.0f} GB"
    )


def _busy(measured: list[Throughput]) -> str:
    """Whether other work ran beside the measurements; empty where it did not. Their own processes
    are one a core at most, and wait for one another."""
    busiest = max(measured, key=lambda found: (found.load or 0.0) / found.cores, default=None)
    if busiest is None or (busiest.load or 0.0) <= 2 * busiest.cores:
        return ""
    return (
        f"measured beside other work (load average {busiest.load:.0f} on {busiest.cores} cores): a"
        " free machine is faster"
    )


def _shared_bytes(recipe: Recipe, found: Throughput) -> float:
    """Of the batches that wait in shared memory, uint8, on a machine with all the processes."""
    if found.views is None:
        return 0.0
    views = recipe.trained_views + recipe.momentum_views
    image = 3 * recipe.augment.size**2
    return WAITING * found.workers * recipe.train.batch_size * views * image


def _possible(job: Job) -> list[EvalTask]:
    return [task for task in job.tasks if task.state != "impossible"]


def _listed(stops: list[str]) -> Iterator[str]:
    yield "what will stop the full run:" if stops else "nothing was found that will stop the run"
    for line in stops:
        yield f"  {line}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{hours / 24:,.{1 if hours < 2400 else 0}f} days"


def _existing(folder: Path) -> Path:
    return next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir()
    )
