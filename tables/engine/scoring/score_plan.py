"""What scoring some checkpoints needs: which evaluations the data allow, which records exist, which
passes over the images give the features of the others, and what each costs."""

import pkgutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import evaluate
from evaluate.evaluation import EvalConfig, Evaluation, Wanted, home_world
from protobench import records
from protobench.checkpoints.layouts import Copy, LoadOptions
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo, Record
from protobench.runtime.errors import UserError, choose, printable
from tables.engine import catalogue
from tables.engine.jobs.plan import BUNDLED_SCORE_SECONDS, PAPER_SCORE_MINUTES
from tables.engine.schema import Table, TaskKey, Tier

if TYPE_CHECKING:
    from protobench.checkpoints.encoders import Encoder
    from protobench.features import Pooling

State = Literal["done", "to run", "left out", "impossible"]
LONG = 300.0
"""Seconds. On the bundled data an evaluation that passes images through the network again and again
is left out where that takes longer, unless it is named."""
TIMED, PASSES = 4, 5
"""Images by which a network is timed, and passes at most: other work slows single ones down."""
BUNDLED_TIERS: tuple[Tier, ...] = ("mini",)
REAL_TIERS: tuple[Tier, ...] = ("paper", "small-gpu", "small")


@dataclass(frozen=True)
class Where:
    """Data, device and results of all evaluations; fields as in EvalConfig."""

    data: Path | None = None
    world: int | None = None
    device: str = "cpu"
    workers: int | None = None
    skip_bad_images: int = 0
    results: Path = Path("results/scores")
    load_options: LoadOptions = field(default_factory=LoadOptions)

    @property
    def bundled(self) -> bool:
        """Whether the scores are those on the bundled synthetic data."""
        return bundled.is_used(self.data)


# What is chosen -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An evaluation on a data set, and whether the user has named it."""

    evaluation: Evaluation[Any]
    dataset: str
    named: bool


@cache
def evaluations() -> dict[str, Evaluation[Any]]:
    """Every evaluation by name: a file in evaluate/ that ends in ``EVALUATION = …``."""
    found = [
        getattr(import_module(f"evaluate.{module.name}"), "EVALUATION", None)
        for module in pkgutil.iter_modules(evaluate.__path__)
        if not module.ispkg
    ]
    return {one.name: one for one in found if one is not None}


def datasets_of(evaluation: Evaluation[Any]) -> tuple[str, ...]:
    """The data sets that an evaluation's protocol names; its default where it takes any."""
    default = next(of.default for of in fields(evaluation.Config) if of.name == "dataset")
    return get_args(get_type_hints(evaluation.Config)["dataset"]) or (str(default),)


def of_tables(tiers: Sequence[Tier]) -> frozenset[TaskKey]:
    """What the columns of the papers' tables are about, in any of these tiers."""
    forms = [table.form(tier) for table in catalogue.tables().values() for tier in tiers]
    return frozenset(task for form in forms if isinstance(form, Table) for task in form.tasks)


def chosen(
    only: Sequence[str], skip: Sequence[str], datasets: Sequence[str], *, on_bundled: bool
) -> list[Choice]:
    """The evaluations and data sets to look for. By default those that a paper's table has a column
    of; others, and parts of a data set, where they are named. UserError for an unknown name."""
    known = evaluations()
    every = dict.fromkeys(name for one in known.values() for name in datasets_of(one))
    for name in (*only, *skip):
        choose("evaluation", name, [*known])
    for name in datasets:
        choose("data set", name, [*every])
    printed = of_tables(BUNDLED_TIERS if on_bundled else REAL_TIERS)
    found = []
    for name, evaluation in known.items():
        own = datasets_of(evaluation)
        usual = [one for one in own if (name, one) in printed]
        if name in skip or (only and name not in only) or not (usual or only):
            continue
        whole = [one for one in usual or own if one not in DATASETS or not DATASETS[one].part_of]
        wanted = [one for one in own if one in datasets] if datasets else whole
        found += [Choice(evaluation, one, name in only) for one in wanted]
    if not found:
        raise UserError(
            "nothing is left to score: no evaluation of those has one of these data sets",
            hint="; ".join(f"{name}: {', '.join(datasets_of(one))}" for name, one in known.items()),
        )
    return found


# Checkpoints --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A file that can be scored."""

    path: Path
    name: str
    """the shortest end of its path that tells it from the others"""
    summary: str
    keys: dict[Copy | None, str]
    """of the encoder that is loaded where this copy is preferred"""
    has_head: bool
    seconds_per_image: float
    """of one pass through the network on this machine; 0 where it was not measured"""
    is_resnet: bool = True


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path, of whole names, that no other path ends in. UserError for a
    file given twice."""
    parts = [path.absolute().parts for path in paths]
    by_file: dict[Path, Path] = {}
    for path in paths:
        if (other := by_file.setdefault(path.resolve(), path)) is not path:
            raise UserError(
                f"this checkpoint is given twice: {other} and {path} are one file"
                if other != path
                else "this checkpoint is given twice",
                at=path,
                hint="leave one out",
            )

    def length(own: tuple[str, ...]) -> int:
        others = [other for other in parts if other is not own]
        return next(
            (
                n
                for n in range(1, len(own) + 1)
                if not any(other[-n:] == own[-n:] for other in others)
            ),
            len(own),
        )

    return ["/".join(own[-length(own) :]).replace("//", "/") for own in parts]


def load(path: Path, name: str, where: Where) -> Checkpoint:
    """What is known of a file. UserError where it cannot be loaded whole."""
    from protobench.checkpoints import encoders
    from protobench.checkpoints.resnet import ResNet

    usual = encoders.load(path, where.load_options)
    momentum = encoders.load(path, where.load_options, prefer="momentum")
    return Checkpoint(
        path,
        name,
        usual.summary(),
        {None: usual.key, "momentum": momentum.key},
        usual.projection is not None and momentum.projection is not None,
        _seconds_per_image(usual) if where.device == "cpu" else 0.0,
        isinstance(usual.backbone, ResNet),
    )


def _seconds_per_image(encoder: "Encoder") -> float:
    """The fastest of some passes through the network, which take about a second at most."""
    import torch

    from protobench.features import Forward

    forward = Forward(encoder, encoder.input, "average", "cpu")
    pixels = torch.zeros(TIMED, 3, encoder.input.crop, encoder.input.crop, dtype=torch.uint8)
    times = [time.perf_counter()]
    while len(times) <= 2 or (len(times) <= PASSES and times[-1] - times[0] < 1):
        forward(pixels)
        times.append(time.perf_counter())
    return min(after - before for before, after in pairwise(times)) / TIMED


# Tasks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One record to have."""

    checkpoint: Checkpoint
    choice: Choice
    state: State
    why: str = ""
    config: EvalConfig | None = None
    key: str = ""
    """of the record (records.key)"""
    seconds: float = 0.0
    """estimate of its own work, without the features"""
    wanted: tuple[Wanted, ...] = ()

    @property
    def name(self) -> str:
        """For the terminal."""
        return f"{self.choice.evaluation.name} {self.choice.dataset}"


@dataclass(frozen=True)
class Pass:
    """A pass over some images, which gives the features that several evaluations want of them."""

    images: ImageList
    warp: bool
    kinds: tuple[tuple[Copy | None, "Pooling"], ...]
    seconds: float

    def serves(self, task: Task) -> bool:
        """Whether a task wants any of it."""
        return any(_same_images(self, one) for one in task.wanted)


def make_plan(
    checkpoints: Sequence[Checkpoint],
    choices: Sequence[Choice],
    where: Where,
    have: dict[str, Record],
) -> list[Task]:
    """The tasks of every checkpoint, the shortest first; ``have`` are the records that exist, by
    their key. Reads lists of images, computes nothing."""
    tasks = []
    for checkpoint in checkpoints:
        own = [_task(checkpoint, choice, where, have) for choice in choices]
        tasks += sorted(own, key=lambda task: task.seconds)
    return tasks


def _task(checkpoint: Checkpoint, choice: Choice, where: Where, have: dict[str, Record]) -> Task:
    evaluation = choice.evaluation
    world = where.world
    if world is None and where.data is None:
        world = home_world(checkpoint.path)
    own: dict[str, Any] = {}
    if "feature" in [of.name for of in fields(evaluation.Config)] and not checkpoint.has_head:
        own = {"feature": "pooled"}
    config = evaluation.Config(
        checkpoint.path,
        **{of.name: getattr(where, of.name) for of in fields(where)}
        | {"dataset": choice.dataset, "world": world}
        | own,
    )
    try:
        config.check()
        if config.needs_resnet and not checkpoint.is_resnet:
            raise UserError(f"needs a ResNet, not a vision transformer: {config.needs_resnet}")
        lists = evaluation.load_data(where.data, choice.dataset, where.skip_bad_images, world)
        encoder_key = checkpoint.keys[config.copies[-1]]
        result = evaluation.result_key(encoder_key, lists, config)
        passes = evaluation.passes(config, lists)
        wanted = tuple(evaluation.wanted(config, lists))
    except UserError as mistake:
        return Task(checkpoint, choice, "impossible", one_line(mistake))
    key = records.key(result.to_json(), ModelInfo.of(checkpoint.path).to_json())
    seconds = _own_seconds(choice, passes * checkpoint.seconds_per_image, where)
    task = Task(checkpoint, choice, "to run", "", config, key, seconds, wanted)
    if key in have:
        return replace(task, state="done")
    try:
        evaluation.check_memory(config, where.device)
    except UserError as mistake:
        return replace(task, state="impossible", why=f"{mistake.what}; {mistake.hint}")
    if where.bundled and passes and seconds > LONG and not choice.named:
        why = f"about {minutes(seconds)}; --only {evaluation.name} runs it"
        return replace(task, state="left out", why=why)
    return task


def _own_seconds(choice: Choice, of_passes: float, where: Where) -> float:
    """An evaluation's own cost: as stated on a GPU and on the bundled data, where the network is
    small; more where it passes images through a larger one on a CPU."""
    evaluation, dataset = choice.evaluation, choice.dataset
    if where.device != "cpu" and not where.bundled:
        return 60 * evaluation.minutes.get(dataset, PAPER_SCORE_MINUTES)
    return max(evaluation.seconds.get(dataset, BUNDLED_SCORE_SECONDS), of_passes)


def passes_of(checkpoint: Checkpoint, tasks: Sequence[Task]) -> list[Pass]:
    """The passes over images that the tasks to run of a checkpoint need: one for the images and
    the transform that they share, whatever poolings and copies they want."""
    found: list[Pass] = []
    for task in tasks:
        if task.state != "to run" or task.checkpoint is not checkpoint or task.config is None:
            continue
        for one in task.wanted:
            kind = task.config.copies[one.copy], one.pooling
            same = next((i for i, of in enumerate(found) if _same_images(of, one)), None)
            if same is None:
                found.append(_costed(checkpoint, Pass(one.images, one.warp, (kind,), 0.0)))
            elif kind not in found[same].kinds:
                more = replace(found[same], kinds=(*found[same].kinds, kind))
                found[same] = _costed(checkpoint, more)
    return found


def _same_images(a: Pass | Wanted, b: Pass | Wanted) -> bool:
    return a.warp == b.warp and (a.images is b.images or a.images.cache_key == b.images.cache_key)


def _costed(checkpoint: Checkpoint, one: Pass) -> Pass:
    networks = len({checkpoint.keys[copy] for copy, _ in one.kinds})
    return replace(one, seconds=len(one.images) * networks * checkpoint.seconds_per_image)


# As text ------------------------------------------------------------------------------------------


def describe(tasks: Sequence[Task], where: Where) -> str:
    """The plan as text: every checkpoint with its tasks, then what is not here, and the cost."""
    checkpoints = list({id(task.checkpoint): task.checkpoint for task in tasks}.values())
    lines = []
    for checkpoint in checkpoints:
        own = [task for task in tasks if task.checkpoint is checkpoint]
        apart = [printable(checkpoint.name)] if checkpoint.name != checkpoint.path.name else []
        lines += [*apart, checkpoint.summary, *_told(own, where)]
    lines += [f"not possible: {line}" for line in impossible(tasks)]
    running = [task for task in tasks if task.state == "to run"]
    if not running:
        return "\n".join([*lines, "nothing to run"])
    passes = [one for of in checkpoints for one in passes_of(of, tasks)]
    own_seconds, of_features = (sum(one.seconds for one in of) for of in (running, passes))
    images = sum(len(one.images) for one in passes)
    told = f"in all: {len(running)} evaluations, about {minutes(own_seconds)}"
    if of_features:
        told += f"; features of {images} images before them, about {minutes(of_features)}"
    on = "on this CPU" if where.device == "cpu" else "on one recent GPU, features included"
    return "\n".join([*lines, f"{told} ({on})"])


def _told(tasks: Sequence[Task], where: Where) -> Iterator[str]:
    for task in tasks:
        if task.state == "to run":
            yield f"  {task.name:<24} to run, about {minutes(task.seconds)}"
        elif task.state != "impossible":
            yield f"  {task.name:<24} {task.state}{f': {task.why}' if task.why else ''}"


def impossible(tasks: Sequence[Task]) -> list[str]:
    """What cannot be scored: each reason in one line, with the evaluations that it stops."""
    by_reason: dict[tuple[str, str], dict[str, None]] = {}
    for task in tasks:
        if task.state == "impossible":
            of = by_reason.setdefault((task.choice.dataset, task.why), {})
            of[task.choice.evaluation.name] = None
    return [f"{dataset} ({', '.join(names)}): {why}" for (dataset, why), names in by_reason.items()]


def one_line(mistake: UserError) -> str:
    """A mistake with its place in one line."""
    return f"{mistake.what} ({mistake.at})" if mistake.at is not None else mistake.what


def minutes(seconds: float) -> str:
    """A time that is only estimated, in its usual unit."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"
