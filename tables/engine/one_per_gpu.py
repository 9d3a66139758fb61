"""The executor that fills the GPUs of one machine: one job on each, rows and seeds side by side.

A job is a process that sees its own GPU alone (CUDA_VISIBLE_DEVICES) and has its share of the
machine's cores. It pretrains an encoder and evaluates it, which keeps the encoder's features at
hand. Where a pretraining needs several GPUs, torchrun gives it as many; its evaluations follow on
one. No GPU is idle while a job waits that it would do for; those that need many come first, so
that small ones never keep them waiting for long, then the longest.

A job that fails leaves the others alone. Ctrl-C tells all to stop, which they do once they have
saved (runtime/signals.py)."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretrain import gpu_memory
from protobench.runtime.cores import SHARE, usable
from protobench.runtime.errors import UserError
from tables.engine import plan, work
from tables.engine.executor import JobsBar, jobs_bar
from tables.engine.gpus import Gpu
from tables.engine.plan import Job
from tables.engine.work import RunContext, log_folder

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0
"""In which a job saves its state and ends when it is told to; then it is killed."""
PROGRAM = (sys.executable, "-m", "tables.engine.gpu_job")
"""The program of a job's process. It is given a folder with the part of the job in ``PART``; where
it fails, it writes why to a file ``FAILURE``, one per rank."""
PART, FAILURE = "part.pickle", "failure-{rank}"


@dataclass(frozen=True)
class Part:
    """What one process does of a job, or one torchrun where it has several GPUs."""

    job: Job
    gpus: int = 1
    then: "Part | None" = None
    """what follows when this is done"""

    def run(self, context: RunContext) -> None:
        """Does it, as the process or as one of torchrun's."""
        if self.then:
            work.train(self.job, context)
        else:
            work.everything(self.job, context)


def part_of(job: Job, gpus: tuple[Gpu, ...]) -> Part:
    """How a job is run on these GPUs: as one part, or as a pretraining on several GPUs and the
    evaluations on one. UserError where its batch needs more GPUs than there are."""
    recipe, sizes = job.recipe, [gpu.gib for gpu in gpus if gpu.gib is not None]
    if not job.trains or recipe is None or not sizes:
        return Part(job)
    gib, together = min(sizes), sum(gpu.joins_others for gpu in gpus) or 1
    needed = gpu_memory.gpus_needed(recipe, gib)
    if needed == 1 or (gpu_memory.peak_gib(recipe) <= gib and (not needed or needed > together)):
        return Part(job)  # where that is close, the job itself warns
    if needed and needed <= together:
        return Part(job, needed, then=Part(replace(job, encoder="done")))
    would_do = f"{needed} such GPUs would do" if needed else "no number of such GPUs would do"
    raise UserError(
        f"{job.row.name}: a batch of {recipe.train.batch_size} in {recipe.train.precision} needs"
        f" {gpu_memory.peak_gib(recipe):.1f} GiB (computed), and a GPU has {gib:.1f}; {would_do},"
        f" and --gpus gives {together} that can work together",
        hint=f"give {'them' if needed else 'GPUs with more memory'}, or --rows without"
        f" {job.row.name}",
    )


def describe(jobs: list[Job], gpus: tuple[Gpu, ...]) -> str:
    """How the jobs will share the GPUs, for a plan. UserError as for ``part_of``."""
    parts = [part_of(job, gpus) for job in jobs if job.to_run]
    models = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    several = {part.job.row.name: part.gpus for part in parts if part.gpus > 1}
    told = "".join(f"; {name} is trained on {count} together" for name, count in several.items())
    return f"on {len(gpus)} GPUs ({models}), side by side: {len(parts)} jobs{told}"


@dataclass
class _Running:
    part: Part
    gpus: list[Gpu]
    process: subprocess.Popen[bytes]
    folder: Path
    """what the process is given, and where it says why it failed"""

    @property
    def where(self) -> str:
        return f"GPU {'+'.join(str(gpu.number) for gpu in self.gpus)}"


@dataclass
class OnePerGpu:
    """See Executor."""

    context: RunContext
    gpus: tuple[Gpu, ...]
    workers: int | None = None
    """image-reading processes per GPU; by default those of ``work.workers_of`` for its share of the
    cores"""
    program: tuple[str, ...] = PROGRAM
    waits: bool = True
    cores: int = field(default_factory=usable)
    look: str = ""
    """for the bar: what the jobs are for"""

    def run(self, jobs: list[Job]) -> list[str]:
        """See Executor.run. On Ctrl-C stops the jobs and re-raises."""
        waiting = [part_of(job, self.gpus) for job in jobs]
        at_once = min(len(self.gpus), sum(part.gpus for part in waiting))
        cores = max(self.cores // at_once, 1)
        workers = work.workers_of(self.context.tier, self.workers, cores)
        context = replace(self.context, workers=workers)
        free, running, failed = list(self.gpus), list[_Running](), list[str]()
        records = context.results / context.tier / "records"
        with (
            tempfile.TemporaryDirectory(prefix="protobench-") as folder,
            jobs_bar(jobs, records, self.look) as bar,
            _stopped_at_the_end(running),
        ):
            while waiting or running:
                for part in sorted(waiting, key=_urgency):
                    if own := _chosen(free, part.gpus):
                        waiting.remove(part)
                        free = [gpu for gpu in free if gpu not in own]
                        running.append(self._start(part, own, context, cores, Path(folder)))
                        _say(bar, f"{running[-1].where}: {part.job.name}")
                time.sleep(POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free = sorted([*free, *one.gpus], key=self.gpus.index)
                    if why := _failure(one):
                        log = log_folder(one.part.job, context) / "output.log"
                        failed.append(f"{one.part.job.name} on {one.where}: {why}\n  log: {log}")
                        _say(bar, f"{one.where}: {one.part.job.name} failed")
                    elif one.part.then:
                        waiting.append(one.part.then)
                bar.show(
                    [part.job for part in [*waiting, *(one.part for one in running)]],
                    {one.part.job.name: one.where for one in running},
                )
        return failed

    def _start(
        self, part: Part, gpus: list[Gpu], context: RunContext, cores: int, folder: Path
    ) -> _Running:
        own = Path(tempfile.mkdtemp(prefix=f"{part.job.row.name}-{part.job.seed}-", dir=folder))
        (own / PART).write_bytes(pickle.dumps((part, context)))
        log = log_folder(part.job, context)
        log.mkdir(parents=True, exist_ok=True)
        with open(log / "output.log", "a") as output:
            process = subprocess.Popen(
                [*self.program, str(own)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {
                    "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus),
                    "OMP_NUM_THREADS": str(cores),
                    SHARE: str(cores * part.gpus),  # k-means takes all that there are
                },
                start_new_session=True,  # a terminal's Ctrl-C reaches this program alone
            )
        return _Running(part, gpus, process, own)


def _urgency(part: Part) -> tuple[float, float]:
    return -part.gpus, -plan.estimate(part.job)


def _chosen(free: list[Gpu], count: int) -> list[Gpu]:
    """``count`` of the free GPUs; none where there are not that many that can work together."""
    able = free if count == 1 else [gpu for gpu in free if gpu.joins_others]
    return able[:count] if len(able) >= count else []


def _say(bar: JobsBar, text: str) -> None:
    bar.bar.write(text, file=sys.stderr)


def _failure(ended: _Running) -> str:
    """Why a process that has ended failed; empty if it did not."""
    code = ended.process.returncode
    if code == 0:
        return ""
    told = sorted(
        ended.folder.glob(FAILURE.format(rank="*")), key=lambda path: path.stat().st_mtime
    )
    if told:  # the first rank that failed; the others failed for it
        return told[0].read_text()
    if code == -signal.SIGKILL:
        return "its process was killed (the machine's memory ran out?)"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


@contextlib.contextmanager
def _stopped_at_the_end(running: list[_Running]) -> Iterator[None]:
    """If the block raises, as on Ctrl-C, stops what is running before the exception propagates. A
    second Ctrl-C, or one job that does not end in time, has them killed."""
    try:
        yield
    except BaseException:
        if running:
            print(f"\nstopping {len(running)} jobs; Ctrl-C again kills them", file=sys.stderr)
        try:
            _signal(running, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for one in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(max(deadline - time.monotonic(), 0))
        finally:
            _signal(running, signal.SIGKILL)
            for one in running:
                one.process.wait()
        raise


def _signal(running: Iterable[_Running], number: signal.Signals) -> None:
    """Sends a signal to the processes; SIGKILL to what they have started, too."""
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(one.process.pid, number)
            else:
                one.process.send_signal(number)
