"""What a table needs: which encoders and records exist, which are to be made, which cannot be."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from evaluate.evaluation import EvalConfig, Evaluation, home_world
from pretrain import history
from pretrain.recipes.common import Recipe, run_key
from protobench import records
from protobench.checkpoints import released
from protobench.checkpoints.identity import encoder_key, exported_key, sha256_of
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo
from protobench.runtime.errors import UserError, choose
from tables.engine import own_rows
from tables.engine.runs import is_released
from tables.engine.schema import TIERS, Exhibit, Figure, Row, Table, TaskKey, Tier

Settings = tuple[tuple[str, Any], ...]
State = Literal["done", "to run", "impossible"]
NO_ENCODER = "no encoder"
NO_RESNET = "needs a ResNet, not a vision transformer"
FETCHED = Path("checkpoints")
"""Where python -m protobench fetch puts files."""
RESNET50_BYTES = 0.1e9
COSTS = {traits.dataset: traits.cost for traits in TIERS.values() if traits.dataset}
"""Data set of a tier -> its ``cost``."""
PAPER_SCORE_MINUTES, BUNDLED_SCORE_SECONDS = 30.0, 3.0
"""The cost of one evaluation that does not tell its own: on the real data with one recent GPU,
and on the bundled data with one core of the reference machine."""


@dataclass(frozen=True)
class EvalTask:
    """One record to have: an encoder, an evaluation and a data set."""

    evaluation: str
    dataset: str
    state: State
    why: str = ""
    key: str = ""
    """of the record (records.key)"""
    settings: Settings = ()
    """fields of the evaluation's Config that differ for this encoder"""

    @property
    def name(self) -> str:
        """For plans and messages."""
        return f"{self.evaluation} {self.dataset}"


@dataclass(frozen=True)
class Job:
    """One encoder and its evaluations, which one process makes in one go."""

    row: Row
    seed: int
    recipe: Recipe | None
    """how the row is trained; None where it is a published file alone"""
    checkpoint: Path
    """the file given, or the one that pretraining writes"""
    given: bool
    source: str
    """"retrained", "released checkpoint …" (the paper's own encoder) or "checkpoint …" (any other
    file)"""
    identity: str
    """of the recipe or of the file; equal for what may be averaged"""
    encoder: State
    why: str
    tasks: tuple[EvalTask, ...]
    world: int | None = None
    """number of the bundled world where it is trained and scored; None on the real data"""

    @property
    def name(self) -> str:
        """For logs and progress."""
        if self.given:
            seed = f" seed {self.seed}," if self.row.own else ""
            return f"{self.row.name}{seed} {self.checkpoint.name}"
        return f"{self.row.name} seed {self.seed}" if self.recipe else self.row.name

    @property
    def to_run(self) -> bool:
        """Whether anything is left to do that can be done."""
        return self.encoder != "impossible" and any(task.state == "to run" for task in self.tasks)

    @property
    def trains(self) -> bool:
        """Whether pretraining is part of it."""
        return self.to_run and self.encoder == "to run"

    def model(self) -> ModelInfo:
        """Return what the records say of this encoder."""
        return ModelInfo(self.row.name, self.seed, self.source, self.identity)


def recipe_id(recipe: Recipe) -> str:
    """Equal for all seeds of a recipe."""
    return run_key(recipe, None, 0)[:16]


def quick(recipe: Recipe) -> Recipe:
    """The recipe with at most one epoch, for testing the plumbing."""
    return replace(recipe, train=replace(recipe.train, epochs=min(recipe.train.epochs, 1)))


def make_plan(
    table: Exhibit,
    tier: Tier,
    *,
    data: Path | None,
    given: dict[str, Path],
    own: Mapping[str, tuple[Path, ...]] = MappingProxyType({}),
    rows: tuple[str, ...],
    seeds: int,
    more_seeds: Mapping[str, int] = MappingProxyType({}),
    results: Path,
    runs: Path,
    skip_bad_images: int = 0,
    seen: "AlreadyRead | None" = None,
) -> list[Job]:
    """All jobs of a table, in its row order, for ``seeds`` pretrainings of every row or, by name,
    for ``more_seeds`` of it. ``given`` are the files of rows of the paper, ``own`` those of own
    rows. Reads data lists and records, computes nothing, writes nothing but the
    bundled synthetic data. Raises UserError for unknown or cited rows and for given checkpoints
    that do not exist. ``seen`` keeps what is read for a later plan of the same table."""
    chosen = _chosen_rows(table, tier, rows, given)
    given = _fetched(table, chosen) | given
    seen = AlreadyRead() if seen is None else seen
    have = records.read_all(results / tier / "records")
    own_seeds = {name: own_rows.seeds(name, paths, have) for name, paths in own.items()}
    worlds = {*range(1, max([seeds, *more_seeds.values()]) + 1)}
    worlds |= {_world_of(path, n) for of in own_seeds.values() for n, path in of.items()}
    for world, root in _new_roots(tier, data, worlds, seen):
        for task in table.tasks:
            seen.lists[world, task] = _try(
                lambda root=root, task=task: load_data(
                    task[0], task[1], _need(root), skip_bad_images
                )
            )
        for name in {recipe.dataset for row in chosen if (recipe := row.recipe(tier))}:
            seen.training[world, name] = _try(
                lambda root=root, name=name: DATASETS[name].training_images(
                    _need(root), skip_bad_images
                )
            )
        seen.worlds.add(world)
    jobs = []
    for row in chosen:
        recipe = row.recipe(tier)
        recipe = quick(recipe) if recipe and tier == "quick" else recipe
        count = more_seeds.get(row.name, seeds)
        files: Mapping[int, Path | None] = own_seeds.get(row.name) or {0: given.get(row.name)}
        numbers = files if row.own or row.name in given or not recipe else range(1, count + 1)
        for seed in numbers:
            file = files.get(seed)
            home = _world_of(file, seed) if row.own and file else seed
            world = home if TIERS[tier].bundled else None
            images, why_not = seen.training[world, recipe.dataset] if recipe else (None, "")
            jobs.append(
                _job(
                    table,
                    row,
                    seed,
                    world,
                    recipe,
                    file,
                    images,
                    why_not,
                    {task: seen.lists[world, task] for task in table.tasks},
                    have,
                    runs / tier,
                    data,
                )
            )
    return jobs


@dataclass
class AlreadyRead:
    """What earlier plans of a run have read, so that its next look does not read it again: an entry
    is a list of images, or None and why it cannot be read. Keys begin with the number of a bundled
    world, None for the real data."""

    worlds: set[int | None] = field(default_factory=set)
    lists: dict[tuple[int | None, TaskKey], tuple[Any, str]] = field(default_factory=dict)
    training: dict[tuple[int | None, str], tuple[Any, str]] = field(default_factory=dict)


def _new_roots(
    tier: Tier, data: Path | None, worlds: set[int], seen: AlreadyRead
) -> Iterable[tuple[int | None, Path | None]]:
    """What no earlier plan has read, number and folder: those of the bundled ``worlds``, or the
    real data."""
    if not TIERS[tier].bundled:
        return [] if seen.worlds else [(None, data)]
    return bundled.ensure_all(worlds - seen.worlds).items()


def _world_of(path: Path, seed: int) -> int:
    """The bundled world in which an own row's file is scored: its home, or the one of its seed."""
    home = home_world(path)
    return seed if home is None else home


def _chosen_rows(
    table: Exhibit, tier: Tier, names: tuple[str, ...], given: dict[str, Path]
) -> list[Row]:
    """The rows to run, by default all that can be in this tier. UserError for those that cannot."""

    def runnable(name: str) -> Row:
        row = table.row(choose("row", name, [row.name for row in table.rows]))
        if row.cited:
            raise UserError(f"row {name!r} is cited, there is nothing to run", hint=row.cited)
        if row.absent(tier):
            raise UserError(
                f"row {name!r} is a published checkpoint, which the {tier} tier does not score",
                hint=f"--tier paper --data ROOT --ckpt {name}=FILE",
            )
        return row

    own = [row for row in table.rows if row.own]
    chosen = [runnable(name) for name in names]
    chosen += [row for row in own if row not in chosen] if chosen else []
    chosen = chosen or [row for row in table.rows if not row.cited and not row.absent(tier)]
    if not chosen:
        raise UserError(
            f"{table.name} has only published checkpoints, which the {tier} tier does not score",
            hint="--tier paper --data ROOT",
        )
    for name, path in given.items():
        if runnable(name) not in chosen:
            raise UserError(
                f"--ckpt names the row {name!r}, which --rows leaves out",
                hint=f"add {name} to --rows",
            )
        if not path.is_file():
            raise UserError("no such checkpoint", at=path)
    return chosen


def _published_as(table: Exhibit, row: Row) -> released.Released | None:
    """The published file that is this row's encoder, if there is one."""
    name = f"{table.name}/{row.name}"
    return next((one for one in released.catalogue().values() if name in one.rows), None)


def _fetched(table: Exhibit, rows: list[Row]) -> dict[str, Path]:
    """row -> its published file where that was fetched, for rows that are nothing else."""
    found = {}
    for row in rows:
        if row.paper is None and (known := _published_as(table, row)):
            path = FETCHED / known.kept_as
            if path.is_file():
                found[row.name] = path
    return found


def _how_to_give(table: Exhibit, row: Row) -> str:
    """Why a row without a recipe and without a file cannot be scored."""
    if known := _published_as(table, row):
        return (
            f"a published checkpoint: python -m protobench fetch {known.name}, or --ckpt"
            f" {row.name}=FILE"
        )
    return f"a published checkpoint: --ckpt {row.name}=FILE"


def evaluation(name: str) -> Evaluation[Any]:
    """Return an evaluation by the name of its file."""
    found: Evaluation[Any] = import_module(f"evaluate.{name}").EVALUATION
    return found


def trains_detectors(name: str) -> bool:
    """Whether an evaluation does, on images with boxes."""
    return name not in history.KINDS and evaluation(name).detector


def load_data(name: str, dataset: str, root: Path, skip_bad_images: int) -> tuple[ImageList, ...]:
    """Return the lists of images that a record is about: those of an evaluation, or the training
    images of a pretraining that records itself."""
    if name in history.KINDS:
        return (DATASETS[dataset].training_images(root, skip_bad_images),)
    return evaluation(name).load_data(root, dataset, skip_bad_images)


def root_of(data: Path | None, world: int | None) -> Path:
    """Return the folder of the bundled world, or of the real data where ``world`` is None."""
    return _need(data) if world is None else bundled.ensure(world=world)


def eval_config(job: Job, task: EvalTask, *, data: Path | None, **where: Any) -> Any:
    """How a cell's values are computed: the evaluation's defaults, which are the paper's protocol,
    what it changes on the bundled data, and the row's settings."""
    settings = job.row.settings + task.settings
    return _config(
        settings, job.checkpoint, task.evaluation, task.dataset, data, job.world, **where
    )


def _config(
    settings: Settings,
    checkpoint: Path,
    name: str,
    dataset: str,
    data: Path | None,
    world: int | None = None,
    **where: Any,
) -> Any:
    of = evaluation(name)
    fields = {field.name for field in dataclasses.fields(of.Config)}
    all_settings = dict(settings) if world is None else {**of.bundled, **dict(settings)}
    own = f"{name}."  # "knn.k" is the k of that evaluation alone
    for_it = {key[len(own) :]: value for key, value in settings if key.startswith(own)}
    chosen = {key: value for key, value in (all_settings | for_it).items() if key in fields}
    source = data if world is None else None
    return of.Config(checkpoint, source, **({"dataset": dataset} | chosen), world=world, **where)


def _need(root: Path | None) -> Path:
    if root is None:
        raise UserError(
            "no --data given",
            hint=(
                "--data ROOT with imagenet/, VOCdevkit/, places205/, coco/ and CIFAR's folders"
                " under it"
            ),
        )
    return root


def _try(read: Any) -> tuple[Any, str]:
    try:
        return read(), ""
    except UserError as mistake:
        return None, f"{mistake.what}{f' ({mistake.at})' if mistake.at else ''}"


def _job(
    table: Exhibit,
    row: Row,
    seed: int,
    world: int | None,
    recipe: Recipe | None,
    given: Path | None,
    images: ImageList | None,
    why_not: str,
    sources: dict[TaskKey, tuple[Any, str]],
    have: dict[str, Any],
    runs: Path,
    data: Path | None,
) -> Job:
    key: str | None
    state: State
    if given is not None:
        sha256 = sha256_of(given)
        identity, source = sha256[:16], ""
        if row.own:
            identity, source = own_rows.RECIPE, own_rows.source(given, sha256)
        else:
            source = _provenance(table, row, given, sha256)
        key, state, why, checkpoint = encoder_key(given), "done", source, given
    elif recipe is None:
        identity, source, checkpoint = "", "", Path(f"{row.name}.pth")
        key, state, why = None, "impossible", _how_to_give(table, row)
    else:
        identity, source = recipe_id(recipe), "retrained"
        checkpoint = runs / f"{row.name}-seed{seed}-{identity[:8]}" / "encoder.safetensors"
        if images is None and recipe.train.epochs > 0:
            key, state, why = None, "impossible", why_not
        else:
            key = run_key(recipe, images, seed)
            checkpoint = _finished(checkpoint, key)
            state, why = ("done", "") if exported_key(checkpoint) == key else ("to run", "")
    tasks = []
    for (name, dataset), (lists, missing) in sources.items():
        if name in row.lacks:
            continue
        if lists is None:
            tasks.append(EvalTask(name, dataset, "impossible", missing))
        elif key is None:
            tasks.append(EvalTask(name, dataset, "impossible", NO_ENCODER))
        elif given is not None and name in history.KINDS:
            tasks.append(
                EvalTask(
                    name,
                    dataset,
                    "impossible",
                    "only a pretraining of this suite leaves its training history",
                )
            )
        else:
            own = _as_paper(table, name, dataset) if is_released(source) else ()
            config = partial(_config, row.settings + own, checkpoint, name, dataset, data, world)
            result = (
                history.result_key(name, key, lists[0], dataset)
                if name in history.KINDS
                else evaluation(name).result_key(key, lists, config())
            )
            record = records.key(result.to_json(), {"row": row.name, "seed": seed})
            done: State = "done" if record in have else "to run"
            if given is not None and done == "to run" and (reason := _no_resnet(given, config())):
                tasks.append(EvalTask(name, dataset, "impossible", reason))
            else:
                tasks.append(EvalTask(name, dataset, done, key=record, settings=own))
    return Job(
        row,
        seed,
        recipe,
        checkpoint,
        given is not None,
        source,
        identity,
        state,
        why,
        tuple(tasks),
        world,
    )


def _finished(checkpoint: Path, key: str) -> Path:
    """The encoder of an equal training that was finished as another row, where its own is not:
    MoCo and the mechanism's "moco-w1" are one recipe in the small-gpu tier."""
    if exported_key(checkpoint) == key:
        return checkpoint
    _, _, training = checkpoint.parent.name.rpartition("-seed")
    equal = sorted(checkpoint.parent.parent.glob(f"*-seed{training}/{checkpoint.name}"))
    return next((other for other in equal if exported_key(other) == key), checkpoint)


def _no_resnet(given: Path, config: EvalConfig) -> str:
    """Why a given file cannot be scored so: it holds a vision transformer. Empty if it can."""
    if not config.needs_resnet or _is_resnet(given):
        return ""
    return f"{NO_RESNET}: {config.needs_resnet}"


@cache
def _is_resnet(path: Path) -> bool:
    from protobench.checkpoints import encoders, resnet  # they import torch

    return isinstance(encoders.load(path).backbone, resnet.ResNet)


def _as_paper(table: Exhibit, name: str, dataset: str) -> Settings:
    """How the paper's own encoder is scored on the very draws of the paper."""
    if not isinstance(table, Table):
        return ()
    return next((one.as_paper for one in table.columns if one.task == (name, dataset)), ())


def _provenance(table: Exhibit, row: Row, given: Path, sha256: str) -> str:
    """Whose encoder a given file is. UserError for a published file of another row."""
    known = released.identify(given, sha256)
    here = [
        name.partition("/")[2]
        for name in (known.rows if known else ())
        if isinstance(table, Figure) or name.startswith(f"{table.name}/")
    ]  # figures show the tables' encoders
    if known and row.name in here:
        return f"released checkpoint {known.file}: {known.title}, {known.proof}"
    if known and (others := [name for name in here if name in [row.name for row in table.rows]]):
        raise UserError(
            f"this is the published {known.title}: the row {others[0]}, not {row.name}",
            at=given,
            hint=f"--ckpt {others[0]}={given}",
        )
    return f"checkpoint {given.name}{f' ({known.title})' if known else ''}, sha256 {sha256[:12]}"


def why_nothing(jobs: list[Job]) -> str:
    """Why none of the records is there or can be made: every reason, once. Empty where any is or
    can."""
    tasks = [task for job in jobs for task in job.tasks]
    if not tasks or any(task.state != "impossible" for task in tasks):
        return ""
    reasons = [job.why for job in jobs if job.encoder == "impossible"]
    reasons += [
        task.why
        for job in jobs
        for task in job.tasks
        if job.encoder != "impossible" or task.why != NO_ENCODER
    ]
    return "; ".join(dict.fromkeys(reasons))


def estimate(job: Job) -> float:
    """Seconds of one core of the reference machine for a job of the bundled tier or of tier small,
    of one GPU for one of tier small-gpu; for order and progress only."""
    return training_seconds(job) + sum(
        task_seconds(task) for task in job.tasks if task.state == "to run"
    )


def task_seconds(task: EvalTask) -> float:
    """The same for one evaluation."""
    if task.evaluation in history.KINDS:
        return 0.5
    return evaluation(task.evaluation).seconds.get(task.dataset, BUNDLED_SCORE_SECONDS)


def training_seconds(job: Job) -> float:
    """The same for a job's pretraining; 0 where there is none."""
    full = job.row.recipe("mini")
    if not job.trains or job.recipe is None:
        return 0.0
    share = job.recipe.train.epochs / full.train.epochs if full and full.train.epochs else 1
    return job.row.mini_seconds * share * COSTS.get(job.recipe.dataset, 1.0)
