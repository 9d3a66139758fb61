"""The executor that fills the GPUs of one machine: one job on each, rows and seeds side by side.

A job is a process that sees its own GPU alone (CUDA_VISIBLE_DEVICES) and has its share of the
machine's cores. It pretrains an encoder and evaluates it. A pretraining or an evaluation whose
batch needs several GPUs (a detector's on COCO) gets as many, by torchrun; the other evaluations run
on one. No GPU is idle while a job waits that it would do for. Those that need many come first, then
the longest; where too few GPUs are free for them, smaller ones go ahead.

A job that fails leaves the others alone, and an evaluation that fails the others of its encoder.
Ctrl-C tells all to stop, which they do once they have saved (runtime/signals.py)."""

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

from pretrain import gpu_memory, history
from protobench.runtime.cores import SHARE, usable
from protobench.runtime.errors import UserError
from tables.engine.jobs import plan, work
from tables.engine.jobs.executor import JobsBar, jobs_bar
from tables.engine.jobs.gpus import Gpu, able_to_join, smallest_gib
from tables.engine.jobs.plan import EvalTask, Job
from tables.engine.jobs.work import RunContext, log_folder

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0
"""In which a job saves its state and ends when it is told to; then it is killed."""
PROGRAM = (sys.executable, "-m", "tables.engine.jobs.gpu_job")
"""The program of a job's process. It is given a folder with the part of the job in ``PART``; where
it fails, it writes why to a file ``FAILURE``, one per rank."""
PART, FAILURE = "part.pickle", "failure-{rank}"


@dataclass(frozen=True)
class Part:
    """What one process does of a job, or one torchrun where it has several GPUs."""

    job: Job
    gpus: int = 1
    encoder: bool = True
    """whether the encoder is made, if that is left to do"""
    tasks: tuple[EvalTask, ...] = ()
    """the evaluations that are made"""
    then: "Part | None" = None
    """what follows when this is done"""

    def run(self, context: RunContext) -> None:
        """Does it, as the process or as one of torchrun's."""
        if self.encoder:
            work.make_encoder(self.job, context)
        work.evaluate_all(self.job, self.tasks, context)


def part_of(job: Job, gpus: tuple[Gpu, ...], data: Path | None) -> Part:
    """How a job is run on these GPUs: in one part, or in a part for each number of GPUs that its
    pretraining and its evaluations need. UserError where a batch needs more GPUs than there are."""
    gib, together = smallest_gib(gpus), able_to_join(gpus)
    if gib is None:
        return Part(job, tasks=job.tasks)
    tasks: dict[int, tuple[EvalTask, ...]] = {}
    for task in job.tasks:
        if task.state == "to run":
            number = _for_evaluation(job, task, data, gib, together)
            tasks[number] = (*tasks.get(number, ()), task)
    training = _for_pretraining(job, gib, together)
    parts = [Part(job, number, encoder=False, tasks=tasks[number]) for number in sorted(tasks)]
    if job.trains and (training > 1 or [*tasks] != [1]):  # so that nothing follows if it fails
        parts.insert(0, Part(job, training))
    else:
        parts[0] = replace(parts[0], encoder=True)
    *before, part = parts
    for one in reversed(before):
        part = replace(one, then=part)
    return part


def _chain(part: Part | None) -> Iterator[Part]:
    """The part and all that follow it."""
    while part:
        yield part
        part = part.then


def _for_pretraining(job: Job, gib: float, together: int) -> int:
    """How many GPUs of ``gib`` GiB it takes, where ``together`` can share a job."""
    recipe = job.recipe
    if not job.trains or recipe is None:
        return 1
    needed, computed = gpu_memory.gpus_needed(recipe, gib), gpu_memory.peak_gib(recipe)
    if computed <= gib and (not needed or needed > together):
        return 1  # it is close, and the job itself warns
    batch = f"a batch of {recipe.train.batch_size} in {recipe.train.precision}"
    return _there(job, f"{batch} needs {computed:.1f} GiB", needed, gib, together)


def _for_evaluation(job: Job, task: EvalTask, data: Path | None, gib: float, together: int) -> int:
    """The same for one of its evaluations."""
    if task.evaluation in history.KINDS:
        return 1
    evaluation, config = plan.evaluation(task.evaluation), plan.eval_config(job, task, data=data)
    needs = f"a batch of {task.name} needs at least {evaluation.least_gib(config, 1):.0f} GiB"
    needed = evaluation.gpus_needed(config, gib)
    close = evaluation.gpus_needed(config, gib, room=1.0)
    if close and close <= together and (not needed or needed > together):
        return close  # and it warns itself
    return _there(job, needs, needed, gib, together)


def _there(job: Job, needs: str, needed: int | None, gib: float, together: int) -> int:
    """``needed``, if so many GPUs are there; else UserError."""
    if needed and needed <= together:
        return needed
    would_do = f"{needed} such GPUs would do" if needed else "no number of such GPUs would do"
    raise UserError(
        f"{job.row.name}: {needs} (computed), and the smallest GPU has {gib:.1f}; {would_do}, and"
        f" --gpus gives {together} that can work together",
        hint=f"give {'them' if needed else 'GPUs with more memory'}, or --rows without"
        f" {job.row.name}",
    )


def describe(jobs: list[Job], gpus: tuple[Gpu, ...], data: Path | None) -> str:
    """How the jobs will share the GPUs, for a plan. UserError as for ``part_of``."""
    running = [job for job in jobs if job.to_run]
    rows: dict[tuple[str, int], dict[str, None]] = {}  # of what takes several GPUs, and how many
    for job in running:
        for part in _chain(part_of(job, gpus, data)):
            for what in [task.name for task in part.tasks] or ["pretraining"]:
                if part.gpus > 1:
                    rows.setdefault((what, part.gpus), {})[job.row.name] = None
    told = [
        f"; {what} of {', '.join(of)} on {count} together" for (what, count), of in rows.items()
    ]
    models = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    return f"on {len(gpus)} GPUs ({models}), side by side: {len(running)} jobs{''.join(told)}"


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
        waiting = [part_of(job, self.gpus, self.context.data) for job in jobs]
        most = [max(part.gpus for part in _chain(part)) for part in waiting]
        at_once = min(len(self.gpus), sum(most))
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
                    if one.part.then and (not why or one.part.tasks):
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
