"""What a plan's jobs do, wherever they run: pretrain an encoder, score it."""

import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain import history, recipes
from protobench.data import pretraining
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError
from tables.engine import plan
from tables.engine.plan import EvalTask, Job
from tables.engine.schema import Tier


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
    def source(self) -> Path | None:
        """The real data, where the tier uses it."""
        return self.data if self.tier == "paper" else None


def workers_of(tier: Tier, asked: int | None, cores: int | None) -> int:
    """Image-reading processes: none on embedded data, else one per core, of which a job may have
    its own number."""
    return asked if asked is not None else (cores or os.cpu_count() or 1) if tier == "paper" else 0


def train(job: Job, where: RunContext) -> None:
    """Pretrains the job's encoder, unless that is done; under torchrun, as one of several
    processes."""
    from pretrain import loop
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    device, source = distributed.init(device_of(where.device)), None
    if job.recipe.train.epochs:
        with distributed.main_process_first():
            source = pretraining.images(
                where.source or bundled.ensure(), job.recipe.dataset, where.skip_bad_images
            )
    loop.pretrain(
        job.recipe,
        source,
        job.checkpoint.parent,
        seed=job.seed,
        device=device,
        workers=where.workers,
        keep_every=recipes.KEEP_EVERY,
    )


def score(job: Job, score: EvalTask, where: RunContext) -> None:
    """Makes one score of the job's encoder."""
    if score.evaluation in history.KINDS:
        images = pretraining.images(
            where.source or bundled.ensure(), score.dataset, where.skip_bad_images
        )
        folder = where.results / where.tier / "records"
        history.write(score.evaluation, job.checkpoint, images, score.dataset, folder, job.model())
        return
    config = plan.score_config(
        job,
        score,
        data=where.source,
        device=where.device,
        workers=where.workers,
        skip_bad_images=where.skip_bad_images,
        results=where.results / where.tier / "records",
    )
    plan.evaluation(score.evaluation).execute(config, job.model())


def everything(job: Job, where: RunContext) -> None:
    """The encoder and all scores that are to run. A score that fails does not keep the others;
    UserError for the first one then."""
    from protobench.runtime import resource_errors

    if job.trains:
        train(job, where)
    mistakes = []
    for one in job.scores:
        if one.state == "to run":
            try:
                score(job, one, where)
            except Exception as failure:
                mistake: Any = (
                    failure
                    if isinstance(failure, UserError)
                    else resource_errors.explained(failure)
                )
                if mistake is None:
                    raise
                if mistake is not failure:
                    traceback.print_exc()  # for the log
                print(f"{one.name}: {mistake}")
                mistakes.append((one, mistake))
    if mistakes:
        one, first = mistakes[0]
        more = f" (and {len(mistakes) - 1} more, in the log)" if len(mistakes) > 1 else ""
        raise UserError(f"{one.name}: {first.what}{more}", at=first.at, hint=first.hint)
