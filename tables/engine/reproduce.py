"""Runs what a table still needs and compares it with the paper.

Examples (``tox -e reproduce-table1 -- FLAGS`` passes the flags on):

    python -m tables reproduce table1  # embedded data, 3 seeds, minutes on two cores
    python -m tables reproduce table1 --plan  # what would run and what it costs; exit code 2 if nothing can
    python -m tables reproduce table1 --rows pcl moco --seeds 5
    python -m tables reproduce table1 --tier paper --data ROOT --slurm --slurm-partition gpu
    --slurm-gpus 8
    python -m tables reproduce table1 --tier paper --data ROOT --ckpt moco=moco_v1_200ep.pth.tar
    --ckpt pcl=pcl_v1.pth.tar

ROOT holds imagenet/, VOCdevkit/, places205/, coco/ and CIFAR's folders, whichever a table needs.
Rows without --ckpt are trained by the paper's recipe. A stopped run continues when the same command
is given again: what is finished is kept, a training goes on from its last checkpoint."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from protobench.data.synthetic import bundled
from protobench.runtime import cli, files, resource_errors
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress
from tables.engine import cluster, plan, publish, work
from tables.engine.cluster import Slurm
from tables.engine.plan import Job
from tables.engine.schema import Figure, Table, Tier
from tables.engine.work import RunContext


@dataclass(frozen=True)
class Reproduce:
    """What to run, and where."""

    table: tyro.conf.Positional[str]
    tier: Tier = "mini"
    """mini: embedded data. paper: real data at --data. quick: mini with one epoch, to test an
    installation"""
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
    """image-reading processes per job; default none on embedded data, else one per core"""
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


def reproduce(config: Reproduce, table: Table | Figure) -> int:
    """Plans, runs, compares, writes the table's files; returns the exit code."""
    given = _given(config)
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
                " below it"
            ),
        )
    if config.tier == "paper" and config.data is not None and bundled.is_embedded(config.data):
        for what, there in (
            ("CIFAR", any(dataset.startswith("cifar") for _, dataset in table.scores)),
            ("VOC and COCO", any(name == "detection" for name, _ in table.scores)),
        ):
            if there:
                raise UserError(
                    f"this is the embedded data, which only stands in for {what}",
                    at=config.data,
                    hint="--tier mini uses it",
                )
    if config.tier != "paper" and config.data is not None:
        raise UserError(
            f"--data belongs to the paper tier, the {config.tier} tier makes its own",
            hint="add --tier paper",
        )
    seeds = config.seeds if config.seeds is not None else 3 if config.tier == "mini" else 1
    if config.skip_bad_images and config.tier != "paper":
        raise UserError(
            "--skip-bad-images belongs to the paper tier: embedded data is verified whenever it is"
            " used"
        )
    if config.skip_bad_images < 0:
        raise UserError("--skip-bad-images is at least 0")
    if seeds < 1 or (config.jobs is not None and config.jobs < 1):
        raise UserError("--seeds and --jobs are at least 1")
    table = _set(config, table)
    jobs = plan.make_plan(
        table,
        config.tier,
        data=config.data,
        given=given,
        rows=config.rows,
        seeds=seeds,
        results=config.results,
        runs=config.runs,
        skip_bad_images=config.skip_bad_images,
    )
    for job in jobs:
        if job.given and any(score.state != "done" for score in job.scores):
            from protobench.checkpoints import encoders

            print(
                encoders.load(job.checkpoint).summary()
            )  # refused now, not after days of training the other rows
    running = [job for job in jobs if job.to_run]
    if config.plan:
        print(plan.describe(table, config.tier, jobs, config.jobs or os.cpu_count() or 1))
    if why := plan.why_nothing(jobs):
        raise UserError(f"nothing of {table.name} can be made: {why}")
    if config.plan:
        return cli.SAME
    failed: list[str] = []
    asked = {score.key for job in jobs for score in job.scores if score.key}
    where = RunContext(
        config.tier,
        config.data,
        config.results,
        config.runs,
        config.device,
        work.workers_of(
            config.tier, config.workers, config.cluster.slurm_cpus if config.cluster.slurm else None
        ),
        config.skip_bad_images,
    )
    if running:
        hint = "wait for it, or give --results (and --runs) another folder"
        with (
            files.exclusive_folder(config.results, hint),
            files.exclusive_folder(config.runs / config.tier, hint),
        ):
            if config.cluster.slurm:
                last = cluster.Publication(table, where, config.strict, frozenset(asked))
                failed = cluster.submit(running, config.cluster, where, last)
            else:
                failed = _run(running, config, where)
        if config.cluster.slurm and config.cluster.slurm_cluster == "slurm":
            return cli.INCOMPLETE
    impossible = [f"{job.name}: {job.why}" for job in jobs if job.encoder == "impossible"]
    impossible += [
        f"{job.name}, {score.name}: {score.why}"
        for job in jobs
        for score in job.scores
        if score.state == "impossible" and job.encoder != "impossible"
    ]
    code = publish.publish(table, config.tier, config.results, strict=config.strict, asked=asked)
    for line in impossible:
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


def _set(config: Reproduce, table: Table | Figure) -> Table | Figure:
    """The table with detectors trained at --lr, or, in the quick tier, in a few steps."""
    if config.lr is not None and (
        config.tier != "paper" or any(name != "detection" for name, _ in table.scores)
    ):
        raise UserError(
            "--lr belongs to the paper tier of tables 5 and 6 and their figure", hint="leave it out"
        )
    if config.lr is not None and not 0 < config.lr < math.inf:
        raise UserError("--lr is positive")
    settings: tuple[tuple[str, Any], ...] = () if config.lr is None else (("lr", config.lr),)
    if config.tier == "quick" and any(name == "detection" for name, _ in table.scores):
        settings = (("iterations", 20),)
    if not settings:
        return table
    return replace(
        table, rows=tuple(replace(row, settings=row.settings + settings) for row in table.rows)
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
                "--tier paper --data ROOT; or, on embedded data, python evaluate/lowshot.py --ckpt"
                " FILE"
            ),
        )
    return given


def _run(jobs: list[Job], config: Reproduce, where: RunContext) -> list[str]:
    """Runs the jobs in parallel processes, the longest first; returns what failed. On Ctrl-C ends
    them and re-raises."""
    gpu = config.device == "cuda" or (config.device == "auto" and config.tier == "paper")
    parallel = config.jobs or (1 if gpu else os.cpu_count() or 1)
    threads = 1 if parallel > 1 else 0
    failed = []
    with _bar(jobs, config.results / config.tier / "records") as bar, _threads_per_process(threads):
        pool = ProcessPoolExecutor(
            min(parallel, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(threads,),
        )
        try:
            pending: dict[Future, Job] = {
                pool.submit(run_job, job, _folder(job, config), where): job
                for job in sorted(jobs, key=plan.estimate, reverse=True)
            }
            while pending:
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = pending.pop(future)
                    if mistake := future.exception():
                        broken = (
                            "a process died (out of memory?)"
                            if isinstance(mistake, BrokenProcessPool)
                            else repr(mistake)
                        )
                        what = (
                            mistake
                            if isinstance(mistake, UserError)
                            else resource_errors.explained(mistake) or broken
                        )
                        failed.append(
                            f"{job.name}: {what}\n  log: {_folder(job, config) / 'output.log'}"
                        )
                bar.show(pending.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown()
            raise
        pool.shutdown()
    return failed


def _folder(job: Job, config: Reproduce) -> Path:
    return (
        config.runs / config.tier / f"{job.row.name}-given" if job.given else job.checkpoint.parent
    )


def run_job(job: Job, folder: Path, where: RunContext) -> None:
    """Pretrains (unless done or given) and scores one encoder; what it prints goes to the run
    folder's output.log."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "output.log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        work.everything(job, where)


def _start_worker(threads: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent ends its workers; their files are whole at any moment
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if threads:
        import torch

        torch.set_num_threads(threads)


def _end_with(parent: int) -> None:
    """Ends this worker when its parent is gone, killed for example: nobody would collect its
    results."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _threads_per_process(threads: int) -> Iterator[None]:
    """Sets OMP_NUM_THREADS for children: faiss and BLAS read it when they are loaded, before any
    code of ours runs."""
    before = os.environ.get("OMP_NUM_THREADS")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _bar(jobs: list[Job], records: Path) -> Iterator["_JobsBar"]:
    bar = _JobsBar(jobs, records)
    try:
        yield bar
    finally:
        bar.bar.close()


class _JobsBar:
    """One bar over all jobs, in estimated seconds of work; reads the epochs done from the runs'
    logs, the scores done from ``records``."""

    def __init__(self, jobs: list[Job], records: Path):
        self.jobs, self.records, self.started = jobs, records, time.time()
        self.bar = progress(
            desc=f"{len(jobs)} encoders",
            unit=" s of work",
            total=math.ceil(sum(map(plan.estimate, jobs))),
        )

    def show(self, pending) -> None:
        open_jobs = {id(job) for job in pending}
        written = {
            path.name.rpartition("-")[0]
            for path in self.records.glob("*.json")
            if path.stat().st_mtime >= self.started
        }
        done, active = 0.0, []
        for job in self.jobs:
            if id(job) not in open_jobs:
                done += plan.estimate(job)
                continue
            log = job.checkpoint.parent / "log.jsonl"
            epochs = log.read_bytes().count(b"\n") if job.trains and log.exists() else 0
            scored = [
                score
                for score in job.scores
                if score.state == "to run"
                and f"{job.row.name}-{job.seed}-{score.evaluation}-{score.dataset}" in written
            ]
            done += plan.training_seconds(job) * epochs / max(job.recipe.train.epochs, 1) + sum(
                map(plan.score_seconds, scored)
            )
            if epochs and epochs < job.recipe.train.epochs:
                active.append(f"{job.row.name}:{job.seed} {epochs}/{job.recipe.train.epochs}")
        self.bar.set_postfix_str(", ".join(active[:4]), refresh=False)
        self.bar.update(done - self.bar.n)
