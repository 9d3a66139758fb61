"""What a plan's jobs do, wherever they run: pretrain an encoder, evaluate it."""

import traceback
from dataclasses import dataclass
from pathlib import Path

from pretrain import history
from pretrain.recipes import common
from protobench.data.datasets import DATASETS
from protobench.runtime.cores import default_workers
from protobench.runtime.errors import UserError
from tables.engine import plan
from tables.engine.plan import EvalTask, Job
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


def workers_of(tier: Tier, requested: int | None, cores: int | None) -> int:
    """Image-reading processes of a job: as requested; else none in a tier for CPUs, whose images
    are small, and one for each of the ``cores`` that belong to the job (default: all usable ones),
    up to a limit."""
    if requested is not None:
        return requested
    return default_workers(cores) if TIERS[tier].on_gpu else 0


def train(job: Job, context: RunContext) -> None:
    """Pretrains the job's encoder, unless that is done; under torchrun, as one of several
    processes."""
    from pretrain import loop
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

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
    """Pretrains the encoder and runs its evaluations, whatever of both is left to do. A failed
    evaluation does not stop the rest; the first error is raised at the end, as UserError."""
    if job.trains:
        train(job, context)
    failures = []
    for task in job.tasks:
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
