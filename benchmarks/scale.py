"""Measures what the true sizes of ImageNet, Places205, VOC and COCO cost beside the networks:
lists, hashes, orders, worker processes, annotations, records, features, locks.

    python benchmarks/scale.py                         # everything; writes results/scale.md
    python benchmarks/scale.py lists workers           # some stages, printed only
    python benchmarks/scale.py --tiny                  # a few files, as the tests do
    python benchmarks/scale.py --keep rows.json        # keeps the rows, for a later --before
    python benchmarks/scale.py --before rows.json      # puts an earlier run's values beside ours

The data are hard links to 2000 small JPEGs in a temporary folder (``--folder`` says where it is
made: about 4 million names and 12 GB of features), which is removed afterwards. Each stage runs in
a process of its own. Wall and CPU time are those of one run, memory is the growth of the resident
set to its peak. "Computed" values are a smaller measurement times the ratio of the sizes. Memory is
read from /proc and so known on Linux only.
"""

import argparse
import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import hard_links
import numpy as np
import torch
from hard_links import TINY, Counts
from tabulate import tabulate

from evaluate import knn, linear
from pretrain.augment import loader
from pretrain.pcl import concentration, draw_negatives
from pretrain.recipes import moco
from protobench import features, keyed, records
from protobench.data import coco, decoding, imagenet, places, voc, voc_boxes
from protobench.data.image_list import ImageList
from protobench.data.loading import batches
from protobench.features import unit_norm
from protobench.kmeans import kmeans
from protobench.runtime import files
from tables.engine import catalogue
from tables.engine.pages import publish

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
SPARE = 20e9
"""Bytes that stay free on the disk."""
ASKED = 16
"""Worker processes that a run on a large machine has; here their shares are taken in turn."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    step: str
    size: str
    wall: float | None = None
    """seconds"""
    cpu: float | None = None
    """seconds of this process and its finished children"""
    memory: float | None = None
    """bytes"""
    remark: str = ""

    def cells(self) -> list[str]:
        """Returns wall, CPU and memory as text."""
        return [_seconds(self.wall), _seconds(self.cpu), _bytes(self.memory)]


@dataclass(frozen=True)
class Place:
    """Where a stage finds its data, and how much there is."""

    root: Path
    counts: Counts = field(default_factory=Counts)

    @property
    def tiny(self) -> bool:
        """Whether this is the size of the tests."""
        return self.counts == TINY

    def at_most(self, number: int) -> int:
        """Returns ``number``, in the tiny size no more than 40."""
        return min(number, 40) if self.tiny else number


class Clock:
    """Wall and CPU time and memory of a block; ``row`` makes a measurement of them."""

    def __enter__(self) -> "Clock":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._memory, self._wall, self._cpu = _status("VmRSS"), time.perf_counter(), _cpu()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, _cpu() - self._cpu
        peak = _status("VmHWM")
        self.memory = None if peak is None or self._memory is None else peak - self._memory

    def row(self, step: str, size: str, remark: str = "", times: float = 1) -> Row:
        """Returns the row, with times extrapolated to ``times`` as much."""
        computed = f"computed from 1/{times:.0f}" if times > 1 else ""
        told = "; ".join(filter(None, (remark, computed)))
        return Row(step, size, self.wall * times, self.cpu * times, self.memory, told)


def _cpu() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def _status(name: str, process: str = "self", file: str = "status") -> float | None:
    """A field of /proc in bytes; None where there is no such file."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return None
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def own_memory() -> float | None:
    """Bytes of this process that it shares with no other."""
    parts = [_status(f"Private_{kind}", file="smaps_rollup") for kind in ("Clean", "Dirty")]
    return None if None in parts else sum(filter(None, parts))


# Lists --------------------------------------------------------------------------------------------


def lists(place: Place) -> Iterator[Row]:
    """Image lists, fingerprints, and the order of an epoch."""
    n, root = place.counts.train, place.root
    with Clock() as clock:
        train = imagenet.read(root, "train")
    yield clock.row("image list of ImageNet's train", _short(n))
    with Clock() as clock:
        train.fingerprint  # noqa: B018
    yield clock.row("its fingerprint", _short(n), "256 files' contents, all names and sizes")
    with Clock() as clock:
        both = imagenet.read(root, "train"), imagenet.read(root, "val")
    yield clock.row("lists of train and val", _short(sum(map(len, both))))
    del both
    batch = place.at_most(256)
    with Clock() as clock:
        chosen = loader.order(n, batch, 1, 0)
        keys = [row.tolist() for row in loader.numbered(chosen, n)]
    yield clock.row("an epoch's order, keys and batches", _short(n))
    del keys, chosen
    with Clock() as clock:
        scenes = places.read(root, "train")
    yield clock.row("image list of Places205's train", _short(len(scenes)))
    with Clock() as clock:
        ordered = linear.order(np.arange(len(scenes)), 1, 0)
        where = [[(0, int(i)) for i in part] for part in np.array_split(ordered, 1000)]
    yield clock.row("the order of a linear probe's epoch on Places205", _short(len(scenes)))
    del where
    with Clock() as clock:
        found = [voc.read(root, split) for split in ("trainval", "test")]
    yield clock.row("lists of VOC07", _short(sum(map(len, found))))
    with Clock() as clock:
        boxes = [voc_boxes.read_07_and_12(root), voc_boxes.read(root, 2007, "test")]
    yield clock.row("boxes of VOC07+12", f"{_short(sum(map(len, boxes)))} XMLs")


def checks(place: Place) -> Iterator[Row]:
    """check-data and its cache."""
    images = imagenet.read(place.root, "val")
    some = images.subset(np.arange(min(len(images), place.at_most(20_000))))
    total = place.counts.train + place.counts.val
    for how in ("all decoded", "again, from the cache"):
        with Clock() as clock:
            decoding.check(some, 1)
        step = f"check-data of ImageNet, {how}"
        yield clock.row(step, _short(total), "small JPEGs, one worker", total / len(some))


# Workers ------------------------------------------------------------------------------------------


class _Names(torch.utils.data.Dataset[Any]):
    """Looks an image up by its path, as a reader does before it decodes. Now and then it returns
    the bytes that only this process has."""

    def __init__(self, images: ImageList):
        self.images = images

    def __getitem__(self, number: tuple[int, int]) -> torch.Tensor:
        turn, index = number
        os.stat(self.images.root / self.images.paths[index])
        known = own_memory() if turn % 2000 == 0 else None
        return torch.tensor(np.nan if known is None else known)


def workers(place: Place) -> Iterator[Row]:
    """What a worker process costs: memory that it shares with no other, and what a start without
    fork sends it."""
    images = imagenet.read(place.root, "train")
    n, seen = len(images), max(len(images) // ASKED, place.at_most(4000))
    chosen = keyed.generator("scale").permutation(n)[:seen].tolist()
    parts = [list(part) for part in batched(enumerate(chosen), 100)]
    told = batches(_Names(images), workers=1, device="cpu", batch_sampler=parts)
    own = np.concatenate([part.numpy() for part in told])
    own = own[~np.isnan(own)]
    yield Row(
        "a forked worker's own memory after an epoch",
        f"{_short(seen)} of {_short(n)} paths",
        memory=float(own[-1]) if len(own) else None,
        remark=f"the share of one of {ASKED}, nothing decoded; at its start"
        f" {_bytes(float(own[0]) if len(own) else None)}",
    )
    with Clock() as clock:
        sent = bytes(ForkingPickler.dumps(images))
    yield clock.row(
        "a list pickled for a worker that is not forked", _short(n), f"{len(sent) / 1e6:.0f} MB"
    )
    with Clock() as clock:
        read = pickle.loads(sent)
    assert len(read) == n
    yield clock.row("… and read by it", _short(n), "each of the workers, at each epoch")


def batched(items: Any, size: int) -> Iterator[tuple[Any, ...]]:
    """The items in groups of ``size``; the last may be smaller."""
    items = iter(items)
    while group := tuple(islice(items, size)):
        yield group


def first_batch(place: Place) -> Iterator[Row]:
    """From the list to the first batch of two views, as a training starts."""
    images, asked = imagenet.read(place.root, "train"), 1 if place.tiny else ASKED
    recipe = moco.V2
    with Clock() as clock:
        views = loader.FolderViews(recipe, images, 1, "cpu", asked)
        chosen = loader.order(len(images), place.at_most(recipe.train.batch_size), 1, 0)
        begun = views.batches(0, 2, chosen)
        next(begun)
    yield clock.row(
        "until the first batch of two views", _short(len(images)), f"{asked} workers asked for"
    )


# Annotations, records -----------------------------------------------------------------------------


def annotations(place: Place) -> Iterator[Row]:
    """COCO's JSON."""
    before, size = (
        _status("VmRSS"),
        (place.root / "coco/annotations/instances_train2017.json").stat().st_size,
    )
    with Clock() as clock:
        images = coco.read(place.root, "train")
    objects = sum(map(len, images.objects))
    yield clock.row(
        "COCO's training annotations", f"{_short(objects)} objects, {size / 1e6:.0f} MB of JSON"
    )
    stays = (_status("VmRSS") or 0) - (before or 0)
    yield Row("… what stays in memory", f"{_short(objects)} objects", memory=stays)
    with Clock() as clock:
        images.fingerprint  # noqa: B018
    yield clock.row("… their fingerprint", f"{_short(objects)} objects")
    part = images.subset(np.arange(0, len(images), max(1, len(images) // 2000)))
    with Clock() as clock:
        pickled = len(ForkingPickler.dumps(part))
    times = len(images) / len(part)
    yield Row("… pickled for a worker", _short(objects), clock.wall * times, memory=pickled * times)


def many_records(place: Place) -> Iterator[Row]:
    """Ten thousand records: writing, reading with verification, finding one, all pages."""
    committed = sorted((RESULTS / "reference/mini/records").glob("*.json"))
    folder, wanted = place.root / "results/mini/records", place.at_most(10_000)
    folder.mkdir(parents=True)
    originals = [records.read(path) for path in committed[: place.at_most(len(committed))]]
    with Clock() as clock:
        for number in range(wanted):
            _, content = _copy(originals[number % len(originals)], number // len(originals))
            path = folder / f"{number:05d}-{content['unit']['evaluation']}-"
            path = path.with_name(f"{path.name}{content['unit']['data_name']}-x.json")
            path.write_text(json.dumps(content))
    bytes_ = sum(path.stat().st_size for path in folder.iterdir())
    size = f"{wanted} records, {bytes_ / 1e6:.0f} MB"
    with Clock() as clock:
        found = records.read_all(folder)
    yield clock.row("records read and verified", size)
    last = list(found.values())[-1]
    result = records.ResultKey(**last["unit"])
    with Clock() as clock:
        records.find(folder, result, records.ModelInfo("no such row"))
    yield clock.row("looking for one that is not there", size, result.evaluation)
    with Clock() as clock:
        publish.pages(place.root / "results", publish.read(place.root / "results"))
    pages = [path.stat().st_size for path in (place.root / "results").rglob("*.html")]
    html = f"{sum(pages) / 1e6:.1f} MB of HTML, {max(pages) / 1e6:.1f} the largest"
    yield clock.row("all pages", size, f"read again; {len(pages)} pages, {html}")


def _copy(record: dict[str, Any], copy: int) -> tuple[str, dict[str, Any]]:
    """The record as if another pretraining had given it."""
    content = {key: value for key, value in record.items() if key != "record_id"}
    seed = content["subject"]["seed"]
    content["subject"] = content["subject"] | {"seed": (seed or 0) + 100 * copy}
    content["unit"] = content["unit"] | {"encoder": f"{content['unit']['encoder']}-{copy}"}
    name = files.sha256(content)
    return name, {"record_id": name, **content}


# Arithmetic ---------------------------------------------------------------------------------------


def prototypes(place: Place) -> Iterator[Row]:
    """PCL's phi and its draw of negatives with an assignment that comes from clustering."""
    n, coarse = place.counts.train, place.at_most(316)
    coarse = min(coarse, 4) if place.tiny else coarse
    k, rng = coarse**2, np.random.default_rng(0)
    centre_KC = unit_norm(rng.normal(size=(max(2, k // 10), 32)).astype(np.float32))
    popular_I = (len(centre_KC) * rng.random(n) ** 2).astype(np.int64)
    x_IC = centre_KC[popular_I] + 0.15 * rng.normal(size=(n, 32)).astype(np.float32)
    assignment_I, distance_I = _clustered(unit_norm(x_IC), coarse)
    size_K = np.bincount(assignment_I, minlength=k)
    remark = (
        f"clusters of {size_K.min()} to {size_K.max()} images, {(size_K == 0).sum()} empty,"
        f" {(size_K == 1).sum()} singletons"
    )
    with Clock() as clock:
        phi_K = concentration(distance_I, assignment_I, k, temperature=0.1)
    assert np.isfinite(phi_K).all()
    yield clock.row("phi", f"{_short(n)} images, K = {_short(k)}", remark)
    prototype_I, wanted = torch.from_numpy(assignment_I), min(16_384, k // 2)
    generator = torch.Generator().manual_seed(0)
    with Clock() as clock:
        for step in range(100):
            positive_N = prototype_I[torch.arange(step, step + 8 * min(256, n // 8), 8) % n]
            draw_negatives(positive_N, k, wanted, generator)
    yield Row(
        "drawing the negative prototypes of a step",
        f"K = {_short(k)}, {wanted} negatives, batch 256",
        clock.wall / 100,
        clock.cpu / 100,
        clock.memory,
    )


def _clustered(x_IC: np.ndarray, coarse: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of clusters, ``coarse`` in each: real assignments at a thousandth of the cost of
    k-means with coarse² centres."""
    outer = kmeans(x_IC, coarse, seed=0, niter=3, nredo=1)
    assignment_I = np.empty(len(x_IC), np.int64)
    distance_I = np.empty(len(x_IC), np.float32)
    for c in range(coarse):
        members = np.flatnonzero(outer.assignment == c)
        count = min(coarse, len(members))
        if not count:
            continue
        inner = kmeans(x_IC[members], count, seed=0, niter=2, nredo=1)
        assignment_I[members] = c * coarse + inner.assignment
        distance_I[members] = inner.distance
    return assignment_I, distance_I


def mapped_features(place: Place) -> Iterator[Row]:
    """Features of ImageNet's train, 2048-D, as the cache holds them."""
    n, d = place.counts.train, place.at_most(2048)
    free = shutil.disk_usage(place.root).free - SPARE
    while n * d * 4 > free:
        d //= 2
    size, path = f"{_short(n)} x {d}, {n * d * 4 / 1e9:.2g} GB", place.root / "features.npy"
    rng, block = np.random.default_rng(0), place.at_most(8192)
    rows_BD = rng.random((block, d), np.float32)
    with Clock() as clock, open(path, "wb") as file:
        file.write(features._header(n, d))
        for start in range(0, n, block):
            file.write(rows_BD[: min(block, n - start)].tobytes())
        files.sync(file)
    yield clock.row("features written and synced", size)
    x_ND = np.load(path, mmap_mode="r")
    with Clock() as clock:
        features._is_complete(path)
    yield clock.row("… found in the cache and mapped", size)
    images = ImageList("none", place.root, ("a",), np.zeros(1, np.int64), ("a",))
    with Clock() as clock:
        features._check(x_ND, images, "none")
    yield clock.row("… checked once", size, "mapped pages count as memory, and can be dropped")
    picked = np.sort(rng.permutation(n)[: place.at_most(13_000)])
    with Clock() as clock:
        np.array(x_ND[picked])
    yield clock.row("… 1 % of the rows read", size)
    queries = rng.random((place.at_most(96), d), np.float32)
    with Clock() as clock:
        knn.nearest(x_ND, queries, 20, "cpu")
    yield clock.row(f"… nearest neighbours of {len(queries)}", size)
    path.unlink()


def neighbours(place: Place) -> Iterator[Row]:
    """kNN at ImageNet's size with 64-D features, by a sample of the queries."""
    n, m, rng = place.counts.train, place.at_most(1152), np.random.default_rng(0)
    bank_ND, query_MD = (rng.normal(size=(rows, 64)).astype(np.float32) for rows in (n, m))
    with Clock() as clock:
        knn.nearest(bank_ND, query_MD, min(200, n), "cpu")
    total = place.counts.val
    yield clock.row(
        "nearest neighbours of ImageNet's val in train, 64-D", f"{total} x {n}", "", total / m
    )


# Files --------------------------------------------------------------------------------------------


def hashing(place: Place) -> Iterator[Row]:
    """A fingerprint of all contents, beside the sampled one: files of ImageNet's mean size."""
    count, size = place.at_most(4000), 110_000
    paths = list(hard_links.content(place.root / "content", count, size))
    with Clock() as clock:
        for path in paths:
            files.sha256_file(path)
    rate, total = count * size / clock.cpu, place.counts.train
    yield clock.row(
        "SHA-256 of the contents of ImageNet's train",
        f"{_short(total)} files, {total * size / 1e9:.3g} GB",
        f"{rate / 1e9:.2f} GB per CPU second from memory; a disk adds its own time",
        total / count,
    )


def locks(place: Place) -> Iterator[Row]:
    """Locks and small files. Only this machine's own file system is known here; a network's adds a
    round trip to each operation."""
    folder, count = place.root / "locks", place.at_most(1000)
    with Clock() as clock:
        for number in range(count):
            with files.exclusive_lock(folder / f"{number}.lock"):
                pass
    yield clock.row("locks taken and released", f"{count} files")
    with Clock() as clock:
        for number in range(count):
            files.write_text(folder / f"{number}.json", "{}")
    yield clock.row("small files written to survive a power cut", f"{count} files")


def plans(place: Place) -> Iterator[Row]:
    """reproduce --tier paper --plan, for every table and figure."""
    for name in list(catalogue.exhibits())[: 1 if place.tiny else None]:
        command = [sys.executable, "-m", "tables", "reproduce", name, "--tier", "paper"]
        with Clock() as clock:
            done = subprocess.run(
                [*command, "--data", place.root, "--plan"],
                cwd=HERE.parent,
                capture_output=True,
                text=True,
            )
        told = (done.stdout if done.returncode in (0, 3) else done.stderr).strip().splitlines()
        units = next((line.strip() for line in told if line.strip().startswith("units:")), told[0])
        yield clock.row(f"plan of {name}", "all that it needs", f"exit {done.returncode}; {units}")


STAGES: dict[str, tuple[Callable[[Place], Iterator[Row]], tuple[str, ...]]] = {
    "lists": (lists, ("imagenet", "places", "voc")),
    "checks": (checks, ("imagenet",)),
    "workers": (workers, ("imagenet",)),
    "first_batch": (first_batch, ("imagenet",)),
    "annotations": (annotations, ("coco",)),
    "many_records": (many_records, ()),
    "prototypes": (prototypes, ()),
    "neighbours": (neighbours, ()),
    "mapped_features": (mapped_features, ()),
    "hashing": (hashing, ()),
    "locks": (locks, ()),
    "plans": (plans, ("imagenet", "places", "voc", "coco")),
}
"""name -> what is measured, and the data sets that it needs"""


# The page -----------------------------------------------------------------------------------------


def _short(number: float) -> str:
    """A count, such as 1.28 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f} s" if value < 6000 else f"{value / 3600:.1f} h"
    return f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.2g} ms"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{max(value, 0) / 1e6:.0f} MB"


HEADINGS = ("step", "size", "wall", "CPU", "memory")


def table(rows: list[Row], before: list[Row]) -> str:
    """Returns the rows in Markdown; where an earlier run has a row of the same name, its CPU time
    and its memory stand beside it."""
    earlier = {row.step: row for row in before}
    lines = []
    for row in rows:
        old = earlier.get(row.step)
        was = old.cells()[1:] if old else ["", ""]
        lines.append([row.step, row.size, *row.cells(), *(was if before else ()), row.remark])
    headings = [*HEADINGS, *(("CPU before", "memory before") if before else ()), "remarks"]
    return tabulate(lines, headings, tablefmt="pipe", disable_numparse=True)


def page(rows: list[Row], before: list[Row]) -> str:
    """Returns the page in Markdown."""
    from all import machine

    return (
        "# The true sizes, from hard links\n\n"
        "`python benchmarks/scale.py` writes this file: lists, orders, workers, annotations and"
        " files of the true counts and layouts, made of hard links to 2000 small JPEGs. One run of"
        " each, beside other work, so wall times are upper bounds. Memory is the growth of the"
        " resident set to its peak; forked workers' is what they share with no other process.\n\n"
        f"{machine()} Load average at the end: {os.getloadavg()[1]:.0f}.\n\n"
        f"{table(rows, before)}\n"
    )


def _run(stage: str, place: Place) -> list[Row]:
    """Runs a stage in a process of its own, which prints its rows as they come."""
    kept = place.root / "rows.jsonl"
    kept.unlink(missing_ok=True)
    command = [sys.executable, __file__, stage, "--inside", str(place.root)]
    done = subprocess.run(
        [*command, "--tiny"] if place.tiny else command,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PROTOBENCH_CACHE": str(place.root / "cache")}
        | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
    )
    if done.returncode:
        raise SystemExit(f"{stage} failed (exit {done.returncode})")
    return [Row(**json.loads(line)) for line in kept.read_text().splitlines()]


def _inside(stage: str, place: Place) -> None:
    """Runs a stage here, and keeps its rows."""
    for row in STAGES[stage][0](place):
        print(f"  {row.step}, {row.size}: {', '.join(filter(None, row.cells()))}; {row.remark}")
        sys.stdout.flush()
        with open(place.root / "rows.jsonl", "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--keep", type=Path, help="a file for the rows")
    parser.add_argument("--before", type=Path, help="rows of an earlier run")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    counts = TINY if given.tiny else Counts()
    if given.inside:
        _inside(given.stages[0], Place(given.inside, counts))
        return 0
    before = [Row(**row) for row in json.loads(given.before.read_text())] if given.before else []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="scale-", dir=given.folder) as folder:
        place, chosen = Place(Path(folder), counts), given.stages or list(STAGES)
        pictures = hard_links.Pictures(place.root / "pictures", place.at_most(hard_links.PICTURES))
        needed = dict.fromkeys(name for stage in chosen for name in STAGES[stage][1])
        for name in needed:
            started = time.perf_counter()
            getattr(hard_links, name)(place.root, pictures, counts)
            print(f"{name}: linked in {time.perf_counter() - started:.0f} s", flush=True)
        for stage in chosen:
            print(stage, flush=True)
            rows += _run(stage, place)
    if given.keep:
        given.keep.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if not given.stages and not given.tiny:
        files.write_text(RESULTS / "scale.md", page(rows, before))
        print(RESULTS / "scale.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
