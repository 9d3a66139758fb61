"""Where a plan's jobs run: in processes of this machine, here, or as jobs of a cluster
(engine/slurm.py)."""

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protobench.runtime import processes
from protobench.runtime.progress import progress
from tables.engine import plan, work
from tables.engine.plan import Job
from tables.engine.schema import TIERS
from tables.engine.work import RunContext


class Executor(Protocol):
    """Runs the jobs of a plan that have something left to do."""

    @property
    def waits(self) -> bool:
        """Whether ``run`` returns when all is done, and not while jobs are under way."""
        ...

    def run(self, jobs: list[Job]) -> list[str]:
        """Runs the jobs; returns what has failed, one text each. UserError where they cannot be
        started."""
        ...


@dataclass(frozen=True)
class LocalProcesses:
    """Processes of this machine, side by side, the longest job first."""

    context: RunContext
    parallel: int | None = None
    """how many at a time; default one per core, one on a GPU"""
    waits: bool = True

    def run(self, jobs: list[Job]) -> list[str]:
        """See Executor.run. On Ctrl-C ends the processes and re-raises."""
        context = self.context
        gpu = context.device == "cuda" or (context.device == "auto" and TIERS[context.tier].on_gpu)
        parallel = self.parallel or (1 if gpu else os.cpu_count() or 1)
        threads = 1 if parallel > 1 else 0
        failed = []
        records = context.results / context.tier / "records"
        with (
            _bar(jobs, records) as bar,
            processes.pool(min(parallel, len(jobs)), threads) as pool,
        ):
            pending: dict[Future[None], Job] = {
                pool.submit(run_job, job, context): job
                for job in sorted(jobs, key=plan.estimate, reverse=True)
            }
            while pending:
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = pending.pop(future)
                    if failure := future.exception():
                        log = log_folder(job, context) / "output.log"
                        failed.append(f"{job.name}: {processes.explained(failure)}\n  log: {log}")
                bar.show(pending.values())
        return failed


def log_folder(job: Job, context: RunContext) -> Path:
    """Where a job's output.log is written: beside its encoder, unless that was given."""
    given = context.runs / context.tier / f"{job.row.name}-given"
    return given if job.given else job.checkpoint.parent


def run_job(job: Job, context: RunContext) -> None:
    """Pretrains (unless done or given) and scores one encoder; what it prints goes to output.log in
    the job's log folder."""
    folder = log_folder(job, context)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "output.log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        work.everything(job, context)


@contextlib.contextmanager
def _bar(jobs: list[Job], records: Path) -> Iterator["_JobsBar"]:
    bar = _JobsBar(jobs, records)
    try:
        yield bar
    finally:
        bar.bar.close()


class _JobsBar:
    """One bar over all jobs, in estimated seconds of work. Reads the epochs done from the runs'
    logs, and the evaluations done from ``records``."""

    def __init__(self, jobs: list[Job], records: Path):
        self.jobs, self.records, self.started = jobs, records, time.time()
        self.bar = progress(
            desc=f"{len(jobs)} encoders",
            unit=" s of work",
            total=math.ceil(sum(map(plan.estimate, jobs))),
        )

    def show(self, pending: Iterable[Job]) -> None:
        under_way = {id(job) for job in pending}
        written = {
            path.name.rpartition("-")[0]
            for path in self.records.glob("*.json")
            if path.stat().st_mtime >= self.started
        }
        done, active = 0.0, []
        for job in self.jobs:
            if id(job) not in under_way:
                done += plan.estimate(job)
                continue
            scored = [
                task
                for task in job.tasks
                if task.state == "to run"
                and f"{job.row.name}-{job.seed}-{task.evaluation}-{task.dataset}" in written
            ]
            done += sum(map(plan.task_seconds, scored))
            if job.trains and job.recipe:
                log, epochs = job.checkpoint.parent / "log.jsonl", job.recipe.train.epochs
                finished = log.read_bytes().count(b"\n") if log.exists() else 0
                done += plan.training_seconds(job) * finished / max(epochs, 1)
                if 0 < finished < epochs:
                    active.append(f"{job.row.name}:{job.seed} {finished}/{epochs}")
        self.bar.set_postfix_str(", ".join(active[:4]), refresh=False)
        self.bar.update(done - self.bar.n)
