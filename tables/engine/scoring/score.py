"""Scores checkpoints by every evaluation that the data allow, and prints their report card.

Examples:

    python -m tables score encoder.safetensors  # bundled synthetic data, minutes for a ResNet-18
    python -m tables score a.pth b.pth --data ROOT --plan  # what would run, and what it costs
    python -m tables score a.pth b.pth --data ROOT --only lowshot knn
    python -m tables score a.pth --data ROOT --datasets cifar10-10k

ROOT holds imagenet/, VOCdevkit/, places205/, coco/ and CIFAR's folders, whichever there are. Every
evaluation that a paper's table has a column of runs by the paper's protocol, those of frozen
features first; linear probes, fine-tuning and detection last, as they take longest. On the bundled
data these are left out where they would take more than five minutes each, unless --only names them.
kNN and AMI take the projection head's output where a file has a head, else the pooled feature.

The images are read once for all evaluations that share their transform. Records are those that
evaluate/*.py writes; what has one is not computed again, so the same command resumes. The card
shows every number with its spread over draws, beside the papers' rows of the same column; several
checkpoints also side by side, and compared image by image. It is written to RESULTS/cards/ as text,
Markdown, JSON and CSV."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tyro

from protobench import records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data.dataset import read_once
from protobench.records import Record
from protobench.runtime import cli, files, progress
from protobench.runtime.errors import UserError, printable
from tables.engine.scoring import report_card, score_plan
from tables.engine.scoring.score_plan import Checkpoint, Pass, Task, Where

Failed = list[tuple[Task, str]]


@dataclass(frozen=True)
class Score:
    """What to score, and where."""

    ckpts: tyro.conf.Positional[tuple[Path, ...]]
    """checkpoints in any layout that `python -m protobench layouts` lists"""
    data: Path | None = None
    """folder with imagenet/, VOCdevkit/, places205/, coco/ or CIFAR's folders; without it the
    bundled synthetic data"""
    only: tuple[str, ...] = ()
    """only these evaluations, by the names of their files: lowshot, knn, …"""
    skip: tuple[str, ...] = ()
    """all evaluations but these"""
    datasets: tuple[str, ...] = ()
    """only these data sets, as the evaluations name them; default all that are whole"""
    world: int | None = None
    """number of the bundled world; default: the one that an encoder was trained in, or 1"""
    plan: bool = False
    """show what would be run and what it costs, run nothing"""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:N"""
    workers: int | None = None
    """processes that read images; default: the usable cores"""
    skip_bad_images: int = 0
    """leave out up to this many images of a data set that cannot be decoded"""
    results: Path = Path("results/scores")
    """folder of the records"""
    load_options: LoadOptions = field(default_factory=LoadOptions)


def score(config: Score) -> int:
    """Plan, score what has no record yet, print and write the card; return the exit code."""
    _check(config)
    records.require_writable(config.results)
    where = _where(config)
    choices = score_plan.chosen(config.only, config.skip, config.datasets, on_bundled=where.bundled)
    names = score_plan.short_names(config.ckpts)
    with read_once():
        checkpoints, unreadable = _loaded(config.ckpts, names, where)
        have = records.read_all(config.results)
        tasks = score_plan.make_plan(checkpoints, choices, where, have)
        _require_any(tasks, where)
        print(score_plan.describe(tasks, where))
        if config.plan:
            return cli.TROUBLE if unreadable else _completeness(tasks, config.datasets)
        failed = _run(tasks, where)
    have = records.read_all(config.results)
    card = _card(tasks, have, failed, unreadable, where)
    print("\n" + report_card.text(card))
    stem = _stem(checkpoints)
    for ending, content in report_card.forms(card).items():
        files.write_text(config.results / "cards" / f"{stem}.{ending}", content)
    print(f"written: {config.results / 'cards' / stem}.{{{','.join(report_card.forms(card))}}}")
    for task, why in failed:
        print(f"failed: {task.checkpoint.name}, {task.name}: {printable(why)}", file=sys.stderr)
    return cli.TROUBLE if unreadable or failed else _completeness(tasks, config.datasets)


def _check(config: Score) -> None:
    """Raise UserError where flags do not go together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this scores in one process, and is not one of torchrun's",
            hint="torchrun evaluate/linear.py …; its record is found here",
        )
    if not config.ckpts:
        raise UserError("no checkpoint is given", hint="python -m tables score FILE [FILE …]")
    if config.world is not None and config.data is not None:
        raise UserError("--world is one of the bundled data", hint="leave out --data or --world")
    if config.data is not None and not config.data.is_dir():
        raise UserError("no such folder", at=config.data, hint="--data ROOT")
    if config.skip_bad_images < 0:
        raise UserError("--skip-bad-images is at least 0")


def _where(config: Score) -> Where:
    from protobench.runtime import cores
    from protobench.runtime.devices import device_of

    return Where(
        config.data,
        config.world,
        device_of(config.device),
        cores.workers(config.workers),
        config.skip_bad_images,
        config.results,
        config.load_options,
    )


def _loaded(
    paths: Sequence[Path], names: Sequence[str], where: Where
) -> tuple[list[Checkpoint], list[tuple[str, str]]]:
    """The checkpoints that can be scored, and why the others cannot: by name. The first error is
    raised where none can, and where two files hold one encoder."""
    found: list[Checkpoint] = []
    unreadable: list[tuple[str, str]] = []
    mistakes = []
    for path, name in zip(paths, names, strict=True):
        try:
            checkpoint = score_plan.load(path, name, where)
        except UserError as mistake:
            unreadable.append((name, score_plan.one_line(mistake)))
            mistakes.append(mistake)
            continue
        if same := next((one for one in found if one.keys == checkpoint.keys), None):
            raise UserError(
                f"{same.name} and {name} hold the same encoder",
                at=path,
                hint="leave one out: every score would be given twice",
            )
        found.append(checkpoint)
    for told in mistakes if found else mistakes[1:]:
        print(told, file=sys.stderr)
    if not found:
        raise mistakes[0]
    return found, unreadable


def _require_any(tasks: Sequence[Task], where: Where) -> None:
    """Raise UserError where nothing can be scored."""
    if any(task.state != "impossible" for task in tasks):
        return
    raise UserError(
        "nothing can be scored:\n  " + "\n  ".join(score_plan.impossible(tasks)),
        at=where.data,
        hint="--data ROOT with imagenet/, VOCdevkit/, places205/, coco/ or CIFAR's folders",
    )


def _completeness(tasks: Sequence[Task], datasets: Sequence[str]) -> int:
    """Whether all evaluations that were named could be made, and any on each of the ``datasets``
    that were; says on which not."""
    missing = any(task.state == "impossible" and task.choice.named for task in tasks)
    possible = {task.choice.dataset for task in tasks if task.state != "impossible"}
    for name in datasets:
        if name not in possible:
            print(f"nothing can be scored on {name}, which was named", file=sys.stderr)
            missing = True
    return cli.INCOMPLETE if missing else cli.SAME


# Running ------------------------------------------------------------------------------------------


@dataclass
class Passes:
    """The passes over images that are left to make for a checkpoint, and those that failed."""

    left: list[Pass]
    failed: list[tuple[Pass, str]] = field(default_factory=list)

    def why_not(self, task: Task) -> str | None:
        """Why features that the task wants cannot be had, if that is known."""
        return next((why for one, why in self.failed if one.serves(task)), None)


def _run(tasks: Sequence[Task], where: Where) -> Failed:
    """Score what is to run; return what failed, and why. A failure stops nothing else."""
    running = [task for task in tasks if task.state == "to run"]
    passes = {
        id(task.checkpoint): Passes(score_plan.passes_of(task.checkpoint, tasks))
        for task in running
    }
    seconds = sum(task.seconds for task in running)
    seconds += sum(one.seconds for of in passes.values() for one in of.left)
    failed: Failed = []
    if not running:
        return failed
    log = where.results / "logs" / "score.log"
    with progress.whole(f"{len(running)} evaluations", seconds) as bar:
        for task in running:
            with _logged(log):
                _make_passes(task, passes[id(task.checkpoint)], where, bar)
                bad = passes[id(task.checkpoint)].why_not(task)
                if bad is None:
                    with bar.piece(f"{task.checkpoint.name} {task.name}", task.seconds):
                        bad = _tried(partial(_evaluate, task))
            if bad is not None:
                failed.append((task, f"{bad} (log: {log})"))
    return failed


def _evaluate(task: Task) -> None:
    assert task.config is not None, "a task to run can be"
    task.choice.evaluation.execute(task.config)


def _make_passes(task: Task, passes: Passes, where: Where, bar: progress.Whole) -> None:
    """Make the passes over images that the task needs, unless one of them has failed."""
    for one in [one for one in passes.left if one.serves(task)]:
        if passes.why_not(task):
            return
        passes.left.remove(one)
        with bar.piece(f"{task.checkpoint.name} {one.images.name}", one.seconds):
            bad = _tried(partial(_extract, task.checkpoint, one, where))
        # of several kinds the others may be fine: then each evaluation asks for its own
        if bad is not None and len(one.kinds) == 1:
            passes.failed.append((one, bad))


def _extract(checkpoint: Checkpoint, one: Pass, where: Where) -> None:
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import cores

    copies = {copy for copy, _ in one.kinds}
    loaded = {
        copy: encoders.load(checkpoint.path, where.load_options, prefer=copy) for copy in copies
    }
    features.extract_together(
        [(loaded[copy], pooling) for copy, pooling in one.kinds],
        one.images,
        warp=one.warp,
        device=where.device,
        workers=cores.workers(where.workers),
    )


def _tried(work: Callable[[], object]) -> str | None:
    """Do the work; return what went wrong in a line, or None. The log holds the whole error."""
    from protobench.runtime import resource_errors

    try:
        work()
    except UserError as mistake:
        print(mistake)
        return score_plan.one_line(mistake)
    except Exception as failure:
        traceback.print_exc(file=sys.stdout)
        explained = resource_errors.explained(failure)
        if explained is not None:
            return score_plan.one_line(explained)
        return f"{type(failure).__name__}: {failure}"
    return None


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    """What the evaluations print goes to a file; the bar stays on the terminal."""
    with files.writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    with file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


# The card -----------------------------------------------------------------------------------------


def _card(
    tasks: Sequence[Task],
    have: dict[str, Record],
    failed: Failed,
    unreadable: Sequence[tuple[str, str]],
    where: Where,
) -> report_card.Card:
    checkpoints = list({id(task.checkpoint): task.checkpoint for task in tasks}.values())
    scored = {
        checkpoint.name: [
            have[task.key] for task in tasks if task.checkpoint is checkpoint and task.key in have
        ]
        for checkpoint in checkpoints
    }
    left_out = [f"{name}: {why}" for name, why in unreadable]
    left_out += score_plan.impossible(tasks)
    left_out += [
        f"{task.checkpoint.name}, {task.name}: {task.why}"
        for task in tasks
        if task.state == "left out"
    ]
    left_out += [f"{task.checkpoint.name}, {task.name} failed: {why}" for task, why in failed]
    return report_card.card(scored, left_out)


def _stem(checkpoints: Sequence[Checkpoint]) -> str:
    """The card's name: that of the file, or how many there are, and a hash of what they hold."""
    digest = files.sha256([sorted(map(str, one.keys.values())) for one in checkpoints])[:8]
    names = [one.path.name.split(".")[0] for one in checkpoints]
    return files.file_name(f"{'-'.join(names[:3])}-{digest}")
