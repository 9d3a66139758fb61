"""Runs what a table still needs and compares it with the paper.

Examples (``tox -e reproduce-table1 -- FLAGS`` passes the flags on):

    python -m tables reproduce table1  # bundled synthetic data, 3 seeds, minutes on two cores
    python -m tables reproduce table1 --plan  # what would run; exit code 2 if nothing can
    python -m tables reproduce table1 --rows pcl moco --seeds 5
    python -m tables reproduce table1 --tier paper --data ROOT \\
        --slurm --slurm-partition gpu --slurm-gpus 4
    python -m tables reproduce table1 --tier paper --data ROOT \\
        --ckpt moco=moco_v1_200ep.pth.tar --ckpt pcl=pcl_v1.pth.tar

ROOT holds imagenet/, VOCdevkit/, places205/, coco/ and CIFAR's folders, whichever a table needs.
Rows without --ckpt are trained by the paper's recipe. A stopped run resumes when the same command
is given again: what is finished is kept, a training resumes from its last checkpoint."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from protobench.data.synthetic import bundled
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError
from tables.engine import plan, publish, work
from tables.engine.executor import Executor, LocalProcesses
from tables.engine.plan import Job
from tables.engine.schema import Exhibit, Tier
from tables.engine.slurm import Publication, Slurm, SlurmCluster
from tables.engine.work import RunContext


@dataclass(frozen=True)
class Reproduce:
    """What to run, and where."""

    table: tyro.conf.Positional[str]
    tier: Tier = "mini"
    """mini: bundled synthetic data. paper: real data at --data. quick: mini with one epoch, to test
    an installation"""
    data: Path | None = None
    """paper tier: folder with imagenet/, VOCdevkit/, places205/, coco/, cifar-10-batches-py/,
    cifar-100-python/"""
    ckpt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """paper tier: row=FILE, scores this checkpoint instead of training the row; may be repeated. A
    file that needs flags to be read (--normalisation, --weights, …) is exported first: python -m
    protobench export --layout protobench"""
    rows: tuple[str, ...] = ()
    """only these rows (short names); default all that are not cited"""
    seeds: int | None = None
    """pretraining seeds per row: 1, 2, …; default 3 for mini, else 1"""
    plan: bool = False
    """show what would be run and what it costs, run nothing"""
    strict: bool = False
    """exit 1 also for contradicted claims and for cells above the paper"""
    jobs: int | None = None
    """processes side by side; default one per core, one on a GPU"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None
    """image-reading processes per job; default none on synthetic data, else one per core"""
    skip_bad_images: int = 0
    """paper tier: leave out up to so many images of a data set that cannot be decoded; such cells
    are off protocol"""
    lr: float | None = None
    """paper tier of tables 5 and 6 and their figure: train all rows' detectors at this rate, where
    the paper's diverges; such cells are off protocol, and no table mixes rates"""
    cluster: Slurm = field(default_factory=Slurm)
    results: Path = Path("results")
    runs: Path = Path("runs")
    """checkpoints and logs"""


def reproduce(config: Reproduce, exhibit: Exhibit) -> int:
    """Plans, runs, compares, writes the table's files; returns the exit code."""
    given = _given(config)
    _check(config, exhibit)
    exhibit = _set(config, exhibit)
    jobs = plan.make_plan(
        exhibit,
        config.tier,
        data=config.data,
        given=given,
        rows=config.rows,
        seeds=_seeds(config),
        results=config.results,
        runs=config.runs,
        skip_bad_images=config.skip_bad_images,
    )
    _load_given(jobs)
    if config.plan:
        print(plan.describe(exhibit, config.tier, jobs, config.jobs or os.cpu_count() or 1))
    if why := plan.why_nothing(jobs):
        raise UserError(f"nothing of {exhibit.name} can be made: {why}")
    if config.plan:
        return cli.SAME
    requested_keys = frozenset(task.key for job in jobs for task in job.tasks if task.key)
    executor = _executor(config, exhibit, requested_keys)
    running = [job for job in jobs if job.to_run]
    failed: list[str] = []
    if running:
        with _locked(config):
            failed = executor.run(running)
        if not executor.waits:
            return cli.INCOMPLETE
    code = publish.publish(
        exhibit,
        config.tier,
        config.results,
        strict=config.strict,
        requested_keys=requested_keys,
    )
    for line in _impossible(jobs):
        print(f"not possible: {line}", file=sys.stderr)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(running)} encoders failed; the same command continues with"
            " them",
            file=sys.stderr,
        )
    return cli.TROUBLE if failed else code


def _seeds(config: Reproduce) -> int:
    return config.seeds if config.seeds is not None else 3 if config.tier == "mini" else 1


def _check(config: Reproduce, exhibit: Exhibit) -> None:
    """UserError where flags do not go together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this starts processes itself, and is not one of torchrun's",
            hint=(
                "python -m tables reproduce …; on several GPUs --slurm --slurm-gpus N, on one"
                " machine with --slurm-cluster local"
            ),
        )
    if not config.cluster.slurm and config.cluster != Slurm():
        raise UserError("--slurm-partition and the like belong to --slurm", hint="add --slurm")
    if config.tier == "paper" and config.data is None:
        raise UserError(
            "the paper tier needs the real data",
            hint=(
                "--data ROOT with imagenet/, VOCdevkit/, places205/, coco/ or CIFAR's folders"
                " under it"
            ),
        )
    if config.tier == "paper" and config.data is not None and bundled.is_root(config.data):
        for what, there in (
            ("CIFAR", any(dataset.startswith("cifar") for _, dataset in exhibit.tasks)),
            ("VOC and COCO", any(name == "detection" for name, _ in exhibit.tasks)),
        ):
            if there:
                raise UserError(
                    f"this is the bundled synthetic data, which only stands in for {what}",
                    at=config.data,
                    hint="--tier mini uses it",
                )
    if config.tier != "paper" and config.data is not None:
        raise UserError(
            f"--data belongs to the paper tier, the {config.tier} tier makes its own",
            hint="add --tier paper",
        )
    if config.skip_bad_images and config.tier != "paper":
        raise UserError(
            "--skip-bad-images belongs to the paper tier: bundled synthetic data is verified"
            " whenever it is used"
        )
    if config.skip_bad_images < 0:
        raise UserError("--skip-bad-images is at least 0")
    if _seeds(config) < 1 or (config.jobs is not None and config.jobs < 1):
        raise UserError("--seeds and --jobs are at least 1")


def _load_given(jobs: list[Job]) -> None:
    """Loads the given checkpoints that have anything left to score, and prints what they are: one
    that is refused is refused now, not after days of training the other rows."""
    from protobench.checkpoints import encoders

    for job in jobs:
        if job.given and any(task.state != "done" for task in job.tasks):
            print(encoders.load(job.checkpoint).summary())


def _executor(config: Reproduce, exhibit: Exhibit, requested_keys: frozenset[str]) -> Executor:
    cores = config.cluster.slurm_cpus if config.cluster.slurm else None
    context = RunContext(
        config.tier,
        config.data,
        config.results,
        config.runs,
        config.device,
        work.workers_of(config.tier, config.workers, cores),
        config.skip_bad_images,
    )
    if config.cluster.slurm:
        publication = Publication(exhibit, context, config.strict, requested_keys)
        return SlurmCluster(config.cluster, context, publication)
    return LocalProcesses(context, config.jobs)


@contextmanager
def _locked(config: Reproduce) -> Iterator[None]:
    """Keeps other runs out of the folders that this one writes."""
    hint = "wait for it, or give --results (and --runs) another folder"
    with (
        files.exclusive_folder(config.results, hint),
        files.exclusive_folder(config.runs / config.tier, hint),
    ):
        yield


def _impossible(jobs: list[Job]) -> list[str]:
    """What of the plan cannot be made, and why: encoders, then evaluations of others."""
    encoders = [job for job in jobs if job.encoder == "impossible"]
    return [f"{job.name}: {job.why}" for job in encoders] + [
        f"{job.name}, {task.name}: {task.why}"
        for job in jobs
        for task in job.tasks
        if task.state == "impossible" and job.encoder != "impossible"
    ]


def _set(config: Reproduce, exhibit: Exhibit) -> Exhibit:
    """The table with detectors trained at --lr, or, in the quick tier, in a few steps."""
    if config.lr is not None and (
        config.tier != "paper" or any(name != "detection" for name, _ in exhibit.tasks)
    ):
        raise UserError(
            "--lr belongs to the paper tier of tables 5 and 6 and their figure", hint="leave it out"
        )
    if config.lr is not None and not 0 < config.lr < math.inf:
        raise UserError("--lr is positive")
    settings: tuple[tuple[str, Any], ...] = () if config.lr is None else (("lr", config.lr),)
    if config.tier == "quick" and any(name == "detection" for name, _ in exhibit.tasks):
        settings = (("iterations", 20),)
    if not settings:
        return exhibit
    return replace(
        exhibit, rows=tuple(replace(row, settings=row.settings + settings) for row in exhibit.rows)
    )


def _given(config: Reproduce) -> dict[str, Path]:
    given = {}
    for word in config.ckpt:
        row, equals, path = word.partition("=")
        if not equals:
            raise UserError(
                f"--ckpt {word!r} is not row=FILE",
                hint="for example --ckpt moco=moco_v1_200ep.pth.tar",
            )
        if row in given:
            raise UserError(
                f"--ckpt names the row {row!r} twice",
                hint="one checkpoint a row; use another --results for another",
            )
        given[row] = Path(path)
    if given and config.tier != "paper":
        raise UserError(
            f"--ckpt belongs to the paper tier, not to {config.tier}",
            hint=(
                "--tier paper --data ROOT; or, on synthetic data, python evaluate/lowshot.py --ckpt"
                " FILE"
            ),
        )
    return given
