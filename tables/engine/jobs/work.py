"""What a plan's jobs do, wherever they run: pretrain an encoder, evaluate it."""

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pretrain import history
from pretrain.recipes import common
from protobench.data import rehearsal
from protobench.data.datasets import DATASETS
from protobench.runtime import files
from protobench.runtime.cores import default_workers
from protobench.runtime.errors import UserError
from tables.engine.jobs import plan
from tables.engine.jobs.plan import EvalTask, Job
from tables.engine.schema import TIERS, Tier


@dataclass(frozen=True)
class RunContext:
    """Data, folders and device of a table's jobs."""

    tier: Tier
    data: Path | None
    results: Path
    runs: Path
    device: str
    workers: int
    """image-reading processes per job"""
    skip_bad_images: int = 0

    @property
    def rehearses(self) -> bool:
        """Whether this is a rehearsal, in which jobs also measure."""
        return self.data is not None and rehearsal.source_of(self.data)[1] is not None


def log_folder(job: Job, context: RunContext) -> Path:
    """Where a job's output.log is written: beside its encoder, unless that was given."""
    if not job.given:
        return job.checkpoint.parent
    seed = f"-seed{job.seed}" if job.row.own else ""
    return context.runs / context.tier / f"{files.file_name(job.row.name)}-given{seed}"


def throughput_file(job: Job, context: RunContext) -> Path:
    """Where a job of a rehearsal keeps what it has measured."""
    return log_folder(job, context) / "throughput.json"


def workers_of(tier: Tier, requested: int | None, cores: int | None) -> int:
    """Image-reading processes of a job: as requested; else none in a tier for CPUs, whose images
    are small, and one for each of the ``cores`` that belong to the job (default: all usable ones),
    up to a limit."""
    if requested is not None:
        return requested
    return default_workers(cores) if TIERS[tier].on_gpu else 0


def train(job: Job, context: RunContext) -> None:
    """Pretrains the job's encoder, unless that is done or given; under torchrun, as one of several
    processes. In a rehearsal measures before."""
    from pretrain import loop
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    if context.rehearses:
        _measure(job, context)
    if job.given or job.encoder == "done":  # two rows may share an encoder: neither opens its run
        return
    if job.recipe is None:
        raise ValueError(f"{job.name} has no recipe")
    device, source = distributed.init(device_of(context.device)), None
    if job.recipe.train.epochs:
        with distributed.main_process_first():
            source = DATASETS[job.recipe.dataset].training_images(
                plan.root_of(context.data, job.world), context.skip_bad_images
            )
    loop.pretrain(
        job.recipe,
        source,
        job.checkpoint.parent,
        seed=job.seed,
        device=device,
        workers=context.workers,
        keep_every=common.KEEP_EVERY,
    )


def _measure(job: Job, context: RunContext) -> None:
    """Measures what the job's encoder costs on this machine, once; nothing for a row that is
    neither trained nor given."""
    from pretrain import measuring
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    device, path = distributed.init(device_of(context.device)), throughput_file(job, context)
    trains = job.recipe is not None and job.recipe.train.epochs > 0 and not job.given
    if not (trains or job.given) or distributed.broadcast_from_main(path.is_file):
        return
    root, skip = plan.root_of(context.data, None), context.skip_bad_images
    real, _ = rehearsal.source_of(root)
    with distributed.main_process_first():
        if trains and job.recipe:
            dataset = DATASETS[job.recipe.dataset]
            images, whole = dataset.training_images(root, skip), dataset.training_images(real)
            found = partial(measuring.of_training, job.recipe, images)
        else:
            encoder, task = encoders.load(job.checkpoint), job.tasks[0]
            whole = plan.load_data(task.evaluation, task.dataset, real, 0)[0]
            found = partial(measuring.of_scoring, encoder.backbone, encoder.input)
    measured = found(whole, device=device, workers=context.workers)
    if distributed.is_main():
        measured.write(path)


def evaluate(job: Job, task: EvalTask, context: RunContext) -> None:
    """Evaluates the job's encoder and writes the record."""
    records = context.results / context.tier / "records"
    if task.evaluation in history.KINDS:
        images = DATASETS[task.dataset].training_images(
            plan.root_of(context.data, job.world), context.skip_bad_images
        )
        history.write(task.evaluation, job.checkpoint, images, task.dataset, records, job.model())
        return
    config = plan.eval_config(
        job,
        task,
        data=context.data,
        device=context.device,
        workers=context.workers,
        skip_bad_images=context.skip_bad_images,
        results=records,
    )
    plan.evaluation(task.evaluation).execute(config, job.model())


def everything(job: Job, context: RunContext) -> None:
    """Pretrains the encoder and runs its evaluations, whatever of both is left to do. UserError as
    for ``evaluate_all``."""
    make_encoder(job, context)
    evaluate_all(job, job.tasks, context)


def make_encoder(job: Job, context: RunContext) -> None:
    """Pretrains the encoder if that is left to do; in a rehearsal also measures what it costs."""
    if job.trains or context.rehearses:
        train(job, context)


def evaluate_all(job: Job, tasks: Iterable[EvalTask], context: RunContext) -> None:
    """Runs those of the evaluations that are left to do. A failed one does not stop the rest; the
    first error is raised at the end, as UserError."""
    failures = []
    for task in tasks:
        if task.state == "to run":
            try:
                evaluate(job, task, context)
            except Exception as failure:
                explained = _explained(failure)
                print(f"{task.name}: {explained}")
                failures.append((task, explained))
    if failures:
        task, first = failures[0]
        more = f" (and {len(failures) - 1} more, in the log)" if len(failures) > 1 else ""
        raise UserError(f"{task.name}: {first.what}{more}", at=first.at, hint=first.hint)


def _explained(failure: Exception) -> UserError:
    """The failure as a UserError; re-raises one that has no explanation."""
    from protobench.runtime import resource_errors

    if isinstance(failure, UserError):
        return failure
    explained = resource_errors.explained(failure)
    if explained is None:
        raise failure
    traceback.print_exception(failure)  # for the log
    return explained
