"""Where a plan's jobs run: in processes of this machine, here, one on each of its GPUs
(one_per_gpu.py), or as jobs of a cluster (slurm.py)."""

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from tqdm import tqdm

from protobench import records
from protobench.runtime import processes
from protobench.runtime.cores import usable
from protobench.runtime.progress import progress
from tables.engine.jobs import plan, work
from tables.engine.jobs.plan import Job
from tables.engine.jobs.work import RunContext, log_folder
from tables.engine.schema import TIERS


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
    look: str = ""
    """for the bar: what the jobs are for"""
    waits: bool = True

    def run(self, jobs: list[Job]) -> list[str]:
        """See Executor.run. On Ctrl-C ends the processes and re-raises."""
        context = self.context
        gpu = context.device == "cuda" or (context.device == "auto" and TIERS[context.tier].on_gpu)
        parallel = self.parallel or (1 if gpu else usable())
        threads = 1 if parallel > 1 else 0
        failed = []
        folder = context.results / context.tier / "records"
        with (
            jobs_bar(jobs, folder, self.look) as bar,
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
def jobs_bar(jobs: list[Job], records: Path, look: str = "") -> Iterator["JobsBar"]:
    """A bar for the jobs, closed at the end of the block."""
    bar = JobsBar(jobs, records, look)
    try:
        yield bar
    finally:
        bar.bar.close()


class JobsBar:
    """One bar over all jobs, in estimated seconds of work. Reads the epochs done from the runs'
    logs, and the evaluations done from ``records``."""

    def __init__(self, jobs: list[Job], records: Path, look: str = ""):
        self.jobs, self.records, self.started = jobs, records, time.time()
        self.bar = progress(
            desc=f"{look}{len(jobs)} encoders",
            unit=" s of work",
            total=math.ceil(sum(map(plan.estimate, jobs))),
        )

    def show(self, pending: Iterable[Job], where: Mapping[str, str] = MappingProxyType({})) -> None:
        """Counts what is done of the jobs, of which ``pending`` have not ended. ``where``: by the
        names of those that run, on which GPU each does; they are all shown then."""
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
                and records.stem(job.row.name, job.seed, task.evaluation, task.dataset) in written
            ]
            done += sum(map(plan.task_seconds, scored))
            finished, epochs, remaining = _epochs(job)
            done += plan.training_seconds(job) * finished / max(epochs, 1)
            name = f"{job.row.name}:{job.seed}"
            if where.get(job.name):
                doing = f"{finished}/{epochs}{remaining}" if finished < epochs else "evaluation"
                active.append(f"{where[job.name]} {name} {doing}")
            elif not where and 0 < finished < epochs:
                active.append(f"{name} {finished}/{epochs}")
        self.bar.set_postfix_str(", ".join(active if where else active[:4]), refresh=False)
        self.bar.update(done - self.bar.n)


def _epochs(job: Job) -> tuple[int, int, str]:
    """Epochs that a job's pretraining has finished, how many there are, and, as text, how long the
    rest takes; no epochs where nothing is trained."""
    if not job.trains or not job.recipe:
        return 0, 0, ""
    log, epochs = job.checkpoint.parent / "log.jsonl", job.recipe.train.epochs
    whole = log.read_bytes().rpartition(b"\n")[0] if log.exists() else b""
    lines = whole.splitlines()
    try:
        last = float(json.loads(lines[-1])["seconds"])
    except (IndexError, KeyError, ValueError):
        return len(lines), epochs, ""
    seconds = last * (epochs - len(lines))
    return len(lines), epochs, f", {tqdm.format_interval(seconds)} left" if seconds else ""
