"""Runs what a table still needs and compares it with the paper.

Examples (``tox -e reproduce-table1 -- FLAGS`` passes the flags on):

    python -m tables reproduce table1  # bundled synthetic data, minutes on two cores
    python -m tables reproduce table1 --plan  # what would run; exit 3 if not all can, 2 if nothing
    python -m tables reproduce table1 --max-seeds 12  # more pretrainings of what is undecided
    python -m tables reproduce table1 --rows pcl moco --seeds 5
    python -m tables reproduce table1 --tier paper --data ROOT --gpus all  # or --gpus 0,2
    python -m tables reproduce table1 --tier paper --data ROOT \\
        --slurm --slurm-partition gpu --slurm-gpus 4
    python -m tables reproduce table1 --tier paper --data ROOT --rehearse  # minutes: try all of it
    python -m tables reproduce table1 --tier paper --data ROOT \\
        --ckpt moco=moco_v1_200ep.pth.tar --ckpt pcl=pcl_v1.pth.tar
    python -m tables reproduce table1 --ckpt "My method"=a.pth  # in any tier: a row more

ROOT holds imagenet/, VOCdevkit/, places205/, coco/ and CIFAR's folders, whichever a table needs.
Rows without --ckpt are trained by the paper's recipe. A stopped run resumes when the same command
is given again: what is finished is kept, a training resumes from its last checkpoint.

On bundled data every row is pretrained with four seeds at first, and each seed in a world of its
own. Where claims are undecided then, their rows, and no others, are trained further: up to 6, 9 and
12 seeds, as far as --max-seeds allows. The levels of the tests allow for these looks
(engine/sequential.py), so asking for more until a claim holds does not make it hold by chance."""

import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from protobench import records
from protobench.data import cifar
from protobench.data.dataset import read_once
from protobench.data.synthetic import bundled
from protobench.runtime import cli, files
from protobench.runtime.cores import usable
from protobench.runtime.errors import UserError
from tables.engine import own_rows
from tables.engine.jobs import gpus, one_per_gpu, plan, plan_text, rehearsal, work
from tables.engine.jobs.executor import Executor, LocalProcesses
from tables.engine.jobs.one_per_gpu import OnePerGpu
from tables.engine.jobs.plan import Job
from tables.engine.jobs.rehearsal_report import Report
from tables.engine.jobs.slurm import Publication, Slurm, SlurmCluster
from tables.engine.jobs.work import RunContext
from tables.engine.pages import publish
from tables.engine.schema import TIERS, Exhibit, Tier


@dataclass(frozen=True)
class Reproduce:
    """What to run, and where."""

    table: tyro.conf.Positional[str]
    tier: Tier = "mini"
    """mini: bundled synthetic data. small: 10,000 real pictures of CIFAR-10, for a CPU. small-gpu:
    all of CIFAR-10 and a ResNet-18, for one GPU. paper: the papers' data at --data. quick: mini
    with one epoch, to test an installation"""
    data: Path | None = None
    """paper tier: folder with imagenet/, VOCdevkit/, places205/, coco/, cifar-10-batches-py/,
    cifar-100-python/; small tiers: with cifar-10-batches-py/ or cifar10/{train,test}/<class>/"""
    download: bool = False
    """small tiers, instead of --data: torchvision fetches CIFAR-10 (170 MB) into the cache, once"""
    ckpt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=FILE; may be repeated. Paper tier: where NAME is a row, the file is scored instead of
    training that row. Any tier: another NAME adds a row after the table's, of which several files
    are seeds. A file that needs flags to be read (--normalisation, --weights, …) is exported first:
    python -m protobench export --layout protobench"""
    rows: tuple[str, ...] = ()
    """only these rows (short names); default all that are not cited"""
    seeds: int | None = None
    """pretraining seeds per row, fixed: 1, 2, …; default 1 in the paper and quick tiers. Claims are
    decided from 4"""
    max_seeds: int | None = None
    """mini and small tiers: up to how many seeds the rows of undecided claims are trained; default
    by the table, 4 or more"""
    plan: bool = False
    """show what would be run and what it costs, run nothing"""
    rehearse: bool = False
    """paper tier: run the very path of the table with a few images and steps, in minutes, and tell
    what the full run will cost on this machine and what will stop it. Nothing of it enters a
    table"""
    strict: bool = False
    """exit 1 also for contradicted claims and for cells above the paper"""
    wide: bool = False
    """do not split what needs more than 100 columns"""
    jobs: int | None = None
    """processes side by side; default one per core, one on a GPU"""
    gpus: str | None = None
    """all, or numbers as nvidia-smi lists them (0,2): one job on each of these GPUs, side by
    side"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None
    """image-reading processes per job; default none on synthetic data, else one per core, of which
    a job on one of several --gpus has its share"""
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


@dataclass(frozen=True)
class Given:
    """The checkpoints of --ckpt."""

    rows: dict[str, Path]
    """row of the paper -> its file"""
    own: dict[str, tuple[Path, ...]]
    """name of an own row -> its files"""


@read_once()
def reproduce(config: Reproduce, exhibit: Exhibit) -> int:
    """Plans, runs, compares, writes the table's files; returns the exit code."""
    given = _given(config, exhibit)
    _check(config, exhibit)
    exhibit = own_rows.added(exhibit, [own_rows.given(*one) for one in given.own.items()])
    own_gpus = () if config.gpus is None else gpus.selected(config.gpus)
    exhibit = _set(config, exhibit)
    if config.download:
        config = replace(config, data=cifar.download(files.cache_dir() / "cifar10"))
    if config.rehearse:
        return _rehearse(config, exhibit, given, own_gpus)
    at, seen = Pretrainings(_seeds(config, exhibit)), plan.AlreadyRead()
    jobs = _planned(config, exhibit, given, at, seen)
    _load_given(jobs)
    if config.plan:
        workers = config.jobs or usable()
        print(plan_text.describe(exhibit, config.tier, jobs, config.data, workers))
        if told := _looks_told(config, exhibit):
            print(told)
        if own_gpus:
            print(one_per_gpu.describe(jobs, own_gpus, config.data))
    if why := plan.why_nothing(jobs):
        raise UserError(f"nothing of {exhibit.name} can be made: {why}")
    if config.plan:
        return cli.INCOMPLETE if _impossible(jobs) else cli.SAME
    ran, failed = 0, list[str]()
    while True:
        context = _context(config)
        publication = Publication(exhibit, context, config.strict, _keys(jobs))
        executor = _executor(config, context, publication, own_gpus, _look(exhibit, at))
        if running := [job for job in jobs if job.to_run]:
            ran += len(running)
            with _locked(config):
                failed += executor.run(running)
            if not executor.waits:
                return cli.INCOMPLETE
        further = None if failed else _next_look(config, exhibit, at, _keys(jobs))
        if further is None:
            break
        at = further
        jobs = _planned(config, exhibit, given, at, seen)
    code = publish.publish(
        exhibit,
        config.tier,
        config.results,
        strict=config.strict,
        requested_keys=_keys(jobs),
        wide=config.wide,
    )
    for line in _impossible(jobs):
        print(f"not possible: {line}", file=sys.stderr)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} failed, of {ran} encoders and their evaluations; the same command"
            " continues with them",
            file=sys.stderr,
        )
    return cli.TROUBLE if failed else code


# Rehearsal ----------------------------------------------------------------------------------------


def _rehearse(
    config: Reproduce, exhibit: Exhibit, given: Given, own_gpus: tuple[gpus.Gpu, ...]
) -> int:
    """Runs a few images through everything, in folders of its own, and reports; returns the exit
    code. What an interrupted rehearsal has finished is kept, a finished one is made anew."""
    assert config.data is not None
    seen, once = plan.AlreadyRead(), Pretrainings(1)
    # the real images are not all decoded to find bad ones, those of the rehearsal are
    full = _planned(replace(config, skip_bad_images=0), exhibit, given, once, seen)
    _load_given(full)
    machine = _machine(config, own_gpus)
    prepared = rehearsal.prepare(exhibit, full, seen, config.data, machine)
    if config.plan:
        print("\n".join([f"a rehearsal of {exhibit.name} would use", *prepared.less]))
        return cli.SAME
    results, runs = (path / rehearsal.FOLDER for path in (config.results, config.runs))
    rehearsal.require_space(full, runs)
    data = rehearsal.write_folder(config.data, machine, runs)
    own = replace(config, data=data, results=results, runs=runs)
    context, read = _context(own), plan.AlreadyRead()
    jobs = _planned(own, prepared.exhibit, given, once, read)
    report = Report(prepared, tuple(jobs), tuple(full), context, config.data)
    if report.path.exists():
        _remove(report, jobs)
        jobs = _planned(own, prepared.exhibit, given, once, read)
        report = replace(report, jobs=tuple(jobs))
    executor, failed = _executor(own, context, report, own_gpus), list[str]()
    if running := [job for job in jobs if job.to_run]:
        with _locked(own):
            failed = executor.run(running)
        if not executor.waits:
            return cli.INCOMPLETE
    code = report()
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return cli.TROUBLE if failed else code


def _machine(config: Reproduce, own_gpus: tuple[gpus.Gpu, ...]) -> rehearsal.Machine:
    """Where the full run is to be made. UserError for a GPU that is not there."""
    cluster = config.cluster
    processes = cluster.slurm_gpus * cluster.slurm_nodes if cluster.slurm else 1
    if cluster.slurm and cluster.slurm_cluster == "slurm" and config.device != "cpu":
        return rehearsal.Machine(on_gpu=True, gib=None, processes=processes)
    if own_gpus:
        together = gpus.able_to_join(own_gpus)
        return rehearsal.Machine(True, gpus.smallest_gib(own_gpus), 1, together, together)
    from protobench.runtime import devices

    device = devices.device_of(config.device)
    on_gpu = device != "cpu"
    gib = devices.memory_gib(device) if on_gpu else None
    for_evaluation = cluster.slurm_score_gpus if cluster.slurm else 1
    return rehearsal.Machine(on_gpu, gib, processes, for_evaluation=for_evaluation)


def _remove(report: Report, jobs: list[Job]) -> None:
    """Removes what a finished rehearsal of the same table left, the report first."""
    context, keys = report.context, _keys(jobs)
    with files.writing(report.path):
        report.path.unlink(missing_ok=True)
        for path in (context.results / context.tier / "records").glob("*.json"):
            record = records.read(path)
            if records.key(record["unit"], record["subject"]) in keys:
                path.unlink()
        for job in jobs:
            shutil.rmtree(work.log_folder(job, context), ignore_errors=True)


# Looks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretrainings:
    """How many pretrainings the rows have at a look."""

    of_all: int
    of_rows: Mapping[str, int] = field(default_factory=dict)
    """row -> more than that"""
    undecided: int = 0
    """claims that they are made for"""


def _seeds(config: Reproduce, exhibit: Exhibit) -> int:
    """Pretrainings of every row at the first look."""
    if config.seeds is not None:
        return config.seeds
    return exhibit.looks.first if TIERS[config.tier].grows else 1


def _most(config: Reproduce, exhibit: Exhibit) -> int:
    """Up to how many pretrainings undecided claims are looked at; none further with --seeds, and
    in the paper and quick tiers."""
    if config.seeds is not None or not TIERS[config.tier].grows:
        return _seeds(config, exhibit)
    return exhibit.max_seeds if config.max_seeds is None else config.max_seeds


def _next_look(
    config: Reproduce, exhibit: Exhibit, at: Pretrainings, requested_keys: frozenset[str]
) -> Pretrainings | None:
    """The pretrainings of the next look; None where every claim is decided, or no look is left.

    It depends on the records alone, so a run that was stopped between looks continues at the same
    one."""
    size = max([at.of_all, *at.of_rows.values()])
    following = exhibit.looks.after(size, _most(config, exhibit))
    if following is None:
        return None
    undecided = publish.undecided(exhibit, config.tier, config.results, requested_keys)
    trained = [row.name for row in exhibit.rows if row.recipe(config.tier)]
    if config.rows:
        trained = [name for name in trained if name in config.rows]
    rows = [name for name in trained if any(name in claim.rows for claim in undecided)]
    if not rows:
        return None
    print(f"undecided after {size} pretrainings: {len(undecided)} of the claims")
    print("\n".join(f"  {claim.text}" for claim in undecided))
    print(f"so {following} pretrainings of {', '.join(rows)}")
    return Pretrainings(at.of_all, {**at.of_rows, **dict.fromkeys(rows, following)}, len(undecided))


def _look(exhibit: Exhibit, at: Pretrainings) -> str:
    """Which look these pretrainings are for, and how many claims are open, for the progress bar;
    empty where they are none."""
    size, sizes = max([at.of_all, *at.of_rows.values()]), exhibit.looks.sizes
    if size not in sizes:
        return ""
    told = f"look {sizes.index(size) + 1} of {len(sizes)}, "
    return told + (f"{at.undecided} claims open, " if at.undecided else "")


def _looks_told(config: Reproduce, exhibit: Exhibit) -> str:
    """What may be trained beyond the first look; empty where nothing may."""
    first, most = _seeds(config, exhibit), _most(config, exhibit)
    sizes = [str(size) for size in exhibit.looks.sizes if first < size <= most]
    if not sizes:
        return ""
    return f"then, only of rows whose claims are undecided: {' and '.join(sizes)} pretrainings"


def _planned(
    config: Reproduce,
    exhibit: Exhibit,
    given: Given,
    at: Pretrainings,
    seen: plan.AlreadyRead,
) -> list[Job]:
    return plan.make_plan(
        exhibit,
        config.tier,
        data=config.data,
        given=given.rows,
        own=given.own,
        rows=config.rows,
        seeds=at.of_all,
        more_seeds=at.of_rows,
        results=config.results,
        runs=config.runs,
        skip_bad_images=config.skip_bad_images,
        seen=seen,
    )


def _keys(jobs: list[Job]) -> frozenset[str]:
    return frozenset(task.key for job in jobs for task in job.tasks if task.key)


# Flags --------------------------------------------------------------------------------------------


def _check(config: Reproduce, exhibit: Exhibit) -> None:
    """UserError where flags do not go together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this starts processes itself, and is not one of torchrun's",
            hint=(
                "python -m tables reproduce …; on the GPUs of this machine --gpus all, on a cluster"
                " --slurm --slurm-gpus N"
            ),
        )
    if not config.cluster.slurm and config.cluster != Slurm():
        raise UserError("--slurm-partition and the like belong to --slurm", hint="add --slurm")
    if config.gpus is not None:
        _check_gpus(config)
    if config.tier == "paper" and exhibit.bundled_only:
        raise UserError(
            f"{exhibit.name} is made of bundled synthetic data alone: {exhibit.bundled_only}",
            hint="leave out --tier and --data",
        )
    if config.tier == "paper" and config.data is None:
        raise UserError(
            "the paper tier needs the real data",
            hint=(
                "--data ROOT with imagenet/, VOCdevkit/, places205/, coco/ or CIFAR's folders"
                " under it"
            ),
        )
    _check_data_of_tier(config)
    if config.tier == "paper" and config.data is not None and bundled.is_root(config.data):
        for what, there in (
            ("CIFAR", any(dataset.startswith("cifar") for _, dataset in exhibit.tasks)),
            ("VOC and COCO", any(plan.trains_detectors(name) for name, _ in exhibit.tasks)),
        ):
            if there:
                raise UserError(
                    f"this is the bundled synthetic data, which only stands in for {what}",
                    at=config.data,
                    hint="--tier mini uses it",
                )
    if TIERS[config.tier].bundled and config.data is not None:
        raise UserError(
            f"--data belongs to the paper tier, the {config.tier} tier makes its own",
            hint="add --tier paper",
        )
    if config.rehearse and config.tier != "paper":
        raise UserError(
            f"--rehearse belongs to the paper tier, not to {config.tier}",
            hint="--tier paper --data ROOT --rehearse",
        )
    if config.rehearse and config.seeds not in (None, 1):
        raise UserError("a rehearsal pretrains each row once", hint="leave out --seeds")
    if config.skip_bad_images and TIERS[config.tier].bundled:
        raise UserError(
            "--skip-bad-images belongs to the paper tier: bundled synthetic data is verified"
            " whenever it is used"
        )
    if config.skip_bad_images < 0:
        raise UserError("--skip-bad-images is at least 0")
    if _seeds(config, exhibit) < 1 or (config.jobs is not None and config.jobs < 1):
        raise UserError("--seeds and --jobs are at least 1")
    if config.max_seeds is not None:
        _check_max_seeds(config, config.max_seeds, exhibit.looks.first)


def _check_gpus(config: Reproduce) -> None:
    if config.cluster.slurm:
        raise UserError(
            "--gpus is for the GPUs of this machine, --slurm for those of a cluster",
            hint="with --slurm, --slurm-gpus N",
        )
    if config.jobs is not None:
        raise UserError("--gpus runs one job on each GPU", hint="leave out --jobs")
    if config.device == "cpu":
        raise UserError("--gpus and --device cpu contradict each other", hint="leave out one")


def _check_data_of_tier(config: Reproduce) -> None:
    """UserError where a tier with a data set of its own has none, or another has --download."""
    tier, has_own = config.tier, bool(TIERS[config.tier].dataset)
    if config.download and (config.data is not None or not has_own):
        why = "--data names its data" if has_own else f"the {tier} tier does not use it"
        raise UserError(
            f"--download fetches CIFAR-10, and {why}",
            hint="leave out --download" if has_own else "--tier small --download",
        )
    if has_own and config.data is None and not config.download:
        raise UserError(
            f"the {tier} tier needs CIFAR-10",
            hint=(
                "--data ROOT with cifar-10-batches-py/ or cifar10/{train,test}/<class>/ in it; or"
                " --download, which fetches it (170 MB)"
            ),
        )
    if has_own and config.data is not None and bundled.is_root(config.data):
        raise UserError(
            "this is the bundled synthetic data, and no pictures",
            at=config.data,
            hint="--tier mini uses it",
        )


def _check_max_seeds(config: Reproduce, most: int, first: int) -> None:
    if not TIERS[config.tier].grows:
        raise UserError(
            f"--max-seeds belongs to the mini tier and the small ones, not to {config.tier}",
            hint="--seeds N pretrains every row N times",
        )
    if config.seeds is not None:
        raise UserError(
            "--seeds fixes the number of pretrainings, --max-seeds lets it grow",
            hint="give one of them",
        )
    if most < first:
        raise UserError(
            f"--max-seeds {most} is below the first look at {first} pretrainings",
            hint=f"--max-seeds from {first}; or --seeds {most}, which decides no claim",
        )


def _load_given(jobs: list[Job]) -> None:
    """Loads the given checkpoints that have anything left to score, and prints what they are: one
    that is refused is refused now, not after days of training the other rows."""
    given = [job for job in jobs if job.given and any(task.state != "done" for task in job.tasks)]
    if given:
        # here, because it imports torchvision: seconds that most runs are spared
        from protobench.checkpoints import encoders

        for job in given:
            print(encoders.load(job.checkpoint).summary())


def _context(config: Reproduce) -> RunContext:
    cores = usable() // config.jobs if config.jobs else None
    cores = config.cluster.slurm_cpus if config.cluster.slurm else cores
    return RunContext(
        config.tier,
        config.data,
        config.results,
        config.runs,
        config.device,
        work.workers_of(config.tier, config.workers, cores),
        config.skip_bad_images,
    )


def _executor(
    config: Reproduce,
    context: RunContext,
    publication: Publication | Report,
    own_gpus: tuple[gpus.Gpu, ...],
    look: str = "",
) -> Executor:
    if config.cluster.slurm:
        return SlurmCluster(config.cluster, context, publication)
    if own_gpus:
        return OnePerGpu(replace(context, device="cuda"), own_gpus, config.workers, look=look)
    return LocalProcesses(context, config.jobs, look=look)


@contextmanager
def _locked(config: Reproduce) -> Iterator[None]:
    """Keeps other runs out of the folders that this one writes."""
    hint = "wait for it, or give --results (and --runs) another folder"
    with (
        files.exclusive_folder(config.results, hint),
        files.exclusive_folder(config.runs / config.tier, hint),
    ):
        yield


def _impossible(jobs: list[Job]) -> list[str]:
    """What of the plan cannot be made, and why: encoders, then evaluations of others."""
    encoders = [job for job in jobs if job.encoder == "impossible"]
    return [f"{job.name}: {job.why}" for job in encoders] + [
        f"{job.name}, {task.name}: {task.why}"
        for job in jobs
        for task in job.tasks
        if task.state == "impossible" and job.encoder != "impossible"
    ]


def _set(config: Reproduce, exhibit: Exhibit) -> Exhibit:
    """The table with detectors trained at --lr, or, in the quick tier, in a few steps."""
    if config.lr is not None and (
        config.tier != "paper" or not all(plan.trains_detectors(name) for name, _ in exhibit.tasks)
    ):
        raise UserError(
            "--lr belongs to the paper tier of tables 5 and 6 and their figure", hint="leave it out"
        )
    if config.lr is not None and not 0 < config.lr < math.inf:
        raise UserError("--lr is positive")
    settings: tuple[tuple[str, Any], ...] = () if config.lr is None else (("lr", config.lr),)
    if config.tier == "quick" and any(plan.trains_detectors(name) for name, _ in exhibit.tasks):
        settings = (("iterations", 20),)
    if not settings:
        return exhibit
    return replace(
        exhibit, rows=tuple(replace(row, settings=row.settings + settings) for row in exhibit.rows)
    )


def _given(config: Reproduce, exhibit: Exhibit) -> Given:
    """What --ckpt gives. UserError where it makes no sense for this table and tier."""
    rows: dict[str, Path] = {}
    own: dict[str, tuple[Path, ...]] = {}
    names = [row.name for row in exhibit.rows]
    for word in config.ckpt:
        name, equals, path = word.partition("=")
        if not equals:
            raise UserError(
                f"--ckpt {word!r} is not row=FILE",
                hint='for example --ckpt moco=moco_v1_200ep.pth.tar, or --ckpt "My method"=FILE',
            )
        if name not in names:
            own_rows.check_name(exhibit, name)
            own[name] = (*own.get(name, ()), Path(path))
            continue
        if exhibit.row(name).cited:
            raise UserError(
                f"row {name!r} is cited, there is nothing to run",
                hint=f"{exhibit.row(name).cited}; a row of yours needs another name",
            )
        if name in rows:
            raise UserError(
                f"--ckpt names the row {name!r} twice",
                hint="one checkpoint a row; use another --results for another",
            )
        rows[name] = Path(path)
    if rows and config.tier != "paper":
        name, file = next(iter(rows.items()))
        raise UserError(
            f"in the {config.tier} tier the row {name!r} is trained by its recipe, and claims are"
            " about its seeds: a given file is none of them",
            hint=f'--ckpt "my {name}"={file} scores it as a row of its own',
        )
    own_rows.require_different(
        [*rows.values(), *(path for paths in own.values() for path in paths)]
    )
    return Given(rows, own)
