"""A plan as text: what is done, what would be run, and what that costs."""

from collections.abc import Iterator
from pathlib import Path

from pretrain import gpu_memory, history
from pretrain.recipes.common import Recipe
from tables.engine.jobs import costs
from tables.engine.jobs.plan import PAPER_SCORE_MINUTES, Job, estimate, eval_config, evaluation
from tables.engine.schema import TIERS, Exhibit, Tier

CARD_GIB = (24, 80)
"""Memory of usual GPUs."""


def describe(table: Exhibit, tier: Tier, jobs: list[Job], data: Path | None, workers: int) -> str:
    """The plan as text: a line per job, then time, disk and what cannot be done."""
    lines = [f"{table.name}, tier {tier}: {table.title}"]
    for row in table.rows:
        if row.cited:
            lines.append(f"  {row.name:<12} cited: {row.cited}")
        for job in (job for job in jobs if job.row is row):
            tasks = ", ".join(
                f"{task.name} {task.state}{f' ({task.why})' if task.why else ''}"
                for task in job.tasks
            )
            needed = job.to_run or job.encoder == "impossible"
            encoder = job.encoder if needed else "done" if job.encoder == "done" else "not needed"
            lines.append(
                f"  {job.name:<22} encoder {encoder}{f' ({job.why})' if job.why else ''}; {tasks}"
            )
    units = [job.encoder for job in jobs if job.trains or job.encoder != "to run"]
    units += [task.state for job in jobs for task in job.tasks]
    lines.append(
        f"units: {units.count('done')} cached, {units.count('to run')} to run,"
        f" {units.count('impossible')} impossible"
    )
    lines.append(_cost(tier, jobs, data, workers))
    return "\n".join(lines)


def _cost(tier: Tier, jobs: list[Job], data: Path | None, workers: int) -> str:
    running = [job for job in jobs if job.to_run]
    if not running:
        return "nothing to run"
    if not TIERS[tier].compared:
        return _rough_cost(tier, running, workers)
    training = [job for job in running if job.trains]
    lines = [
        f"in all: pretraining {sum(job.row.gpu_hours for job in training):,.0f} V100-hours, scoring"
        f" about {sum(map(_scoring_hours, running)):.1f} GPU-hours"
    ]
    if training:
        lines.append(_on_cards([job.recipe for job in training if job.recipe]))
    for row in dict.fromkeys(job.row for job in running):
        trained, hours = (
            sum(job.row is row for job in training),
            sum(_scoring_hours(job) for job in running if job.row is row),
        )
        pretraining = (
            f"pretraining {trained} x {row.gpu_hours:,.0f} V100-hours ({row.gpu_hours_source})"
            if trained and row.gpu_hours
            else "no pretraining"
        )
        lines.append(f"  {row.title}: {pretraining}, scoring about {hours:.1f} GPU-hours")
        if trained and (recipe := row.recipe(tier)) and recipe.train.epochs:
            lines.append(f"    {_on_cards([recipe] * trained)}")
            lines.append(f"    {_memory(recipe)}")
    lines += dict.fromkeys(line for job in running for line in _evaluations_memory(job, data))
    kept = sum(costs.training_bytes(job.recipe) for job in training if job.recipe)
    disk = kept + len(running) * 0.6e9
    lines.append(f"disk: about {disk / 1e9:.1f} GB (checkpoints, features)")
    return "\n".join(lines)


def _rough_cost(tier: Tier, running: list[Job], workers: int) -> str:
    traits = TIERS[tier]
    seconds = sum(map(estimate, running))
    megabytes = (200 if traits.on_gpu else 7) * sum(job.trains for job in running)
    if traits.on_gpu:
        return (
            f"about {seconds / 3600:.1f} hours on one recent GPU (computed, not measured); about"
            f" {megabytes} MB of disk"
        )
    worlds = ", and 130 for each world" if traits.bundled else ""
    return (
        f"about {max((seconds / workers + 15) / 60, 0.5):.1f} minutes with {workers} processes of"
        f" one thread; about {megabytes} MB of disk{worlds}"
    )


def _on_cards(recipes: list[Recipe]) -> str:
    """The least hours of these pretrainings on today's cards, one of each."""
    told = []
    for card in costs.CARDS:
        ieee, tf32 = (
            [costs.card_hours(recipe, card, arithmetic) for recipe in recipes]
            for arithmetic in ("ieee", "tf32")
        )
        if None in ieee:
            return "on A100 and H100: not computed for such a network or such data"
        hours = (sum(filter(None, of)) for of in (ieee, tf32))
        told.append(f"{card.name} {' / '.join(f'{value:,.0f}' for value in hours)}")
    return f"at least {', '.join(told)} hours in IEEE fp32 / TF32 (computed, not measured)"


def _memory(recipe: Recipe) -> str:
    """How much GPU memory a recipe's batch needs, and how many GPUs of two usual sizes hold it."""
    return (
        f"GPU memory: {gpu_memory.peak_gib(recipe):.1f} GiB for a batch of"
        f" {recipe.train.batch_size} in {recipe.train.precision} on one GPU (computed); GPUs that"
        f" would do: {_would_do([gpu_memory.gpus_needed(recipe, gib) for gib in CARD_GIB])}"
    )


def _evaluations_memory(job: Job, data: Path | None) -> Iterator[str]:
    """The same of evaluations whose batches need much of it."""
    for task in job.tasks:
        if task.state != "to run" or task.evaluation in history.KINDS:
            continue
        of, config = evaluation(task.evaluation), eval_config(job, task, data=data)
        if least := of.least_gib(config, 1):
            yield (
                f"{task.name}: GPU memory: at least {least:.0f} GiB for a batch on one GPU"
                " (computed); GPUs that would do:"
                f" {_would_do([of.gpus_needed(config, gib) for gib in CARD_GIB])}"
            )


def _would_do(numbers: list[int | None]) -> str:
    """``numbers`` of GPUs of the usual sizes."""
    told = [f"{n or 'no number'} of {gib} GiB" for n, gib in zip(numbers, CARD_GIB, strict=True)]
    return " or ".join(told)


def _scoring_hours(job: Job) -> float:
    """On one recent GPU, of what is left to score."""
    return (
        sum(
            evaluation(task.evaluation).minutes.get(task.dataset, PAPER_SCORE_MINUTES)
            for task in job.tasks
            if task.state == "to run" and task.evaluation not in history.KINDS
        )
        / 60
    )
