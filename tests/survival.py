"""What is left when a run dies: at any moment, and at every operation on a file; and Table 1,
killed again and again.

    python tests/survival.py                    # all, about half an hour on two cores
    python tests/survival.py kills operations   # without Table 1
    python tests/survival.py table1 --kills 10

A child process dies (SIGKILL, or ``os._exit`` at the n-th operation on a file, a write being cut in
the middle), another goes on; the end must be, byte for byte, that of a run that nothing happened
to. tests/test_survival.py does a part of this."""

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_methods

from pretrain import loop
from protobench import records
from protobench.checkpoints import encoders
from protobench.data import imagenet
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo, ResultKey
from protobench.runtime import files, run_state

ROOT = Path(__file__).parent.parent
IMAGES = {
    "imagenet-train": 80,
    "imagenet-val": 20,
    "voc-trainval": 20,
    "voc-test": 20,
    "places-train": 20,
    "places-val": 20,
}


WRITES = 16
"""A checkpoint is written in hundreds of pieces, of which one in so many is an operation here; all
others are one each."""


def _short(recipe: Any, **changes: Any) -> Any:
    return replace(recipe, train=replace(recipe.train, epochs=2, batch_size=32), **changes)


METHODS = {
    name: recipe
    for name, recipe in tiny_methods().items()
    if name in ("moco", "pcl", "spcl")  # those with a state beyond their weights
}


# How to die ---------------------------------------------------------------------------------------


def dies(
    work: Callable[[], Any], *, operation: int | None = None, after: float | None = None
) -> tuple[bool, int]:
    """Does ``work`` in a child that dies at the ``operation``-th operation on a file, or is killed
    ``after`` so many seconds.

    Returns whether it died, and how many operations it has come to.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads, which a child does not have
        child = os.fork()
    if not child:
        try:
            counted = _count(operation)
            work()
            os.write(writing, str(counted()).encode())
        except BaseException as failure:  # a child never returns
            os.write(2, f"{type(failure).__name__}: {failure}\n".encode())
            os._exit(3)
        os._exit(0)
    os.close(writing)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told = os.read(reading, 20)
    os.close(reading)
    assert os.waitstatus_to_exitcode(status) in (
        0,
        9,
        -signal.SIGKILL,
    ), f"the child failed: {os.waitstatus_to_exitcode(status)}"
    return status != 0, int(told or 0)


def _count(last: int | None) -> Callable[[], int]:
    """From now on every operation on a file is counted, and the ``last`` is not done: the process
    ends there."""
    seen, pieces, so_far = itertools.count(1), itertools.count(), 0

    def operation(half: Callable[[], Any] | None = None) -> None:
        nonlocal so_far
        so_far = next(seen)
        if so_far == last:
            if half:
                half()
            os._exit(9)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
            operation()

    def fsync(handle: int, real: Any = os.fsync) -> None:
        operation()
        real(handle)

    def hashed(self: Any, data: Any, real: Any = run_state._HashingWriter.write) -> int:
        def half() -> None:
            self.file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            self.file.flush()

        if next(pieces) % WRITES == 0:
            operation(half)
        return real(self, data)

    sys.addaudithook(audited)
    os.fsync, run_state._HashingWriter.write = fsync, hashed  # type: ignore[method-assign, assignment]
    return lambda: so_far


# Trainings ----------------------------------------------------------------------------------------


def pretrained(name: str, world: Path, folder: Path) -> Path:
    """A short training of a method, or what is left of it."""
    return loop.pretrain(METHODS[name], imagenet.read(world, "train"), folder, seed=1)


def ending(encoder: Path) -> str:
    """Everything that a training leaves, but for times."""
    course = json.loads((encoder.parent / "course.json").read_text())
    lines = [
        {key: value for key, value in line.items() if "seconds" not in key}
        for line in course["epochs"] + course["probes"]
    ]
    content = encoders.load(encoder).backbone.state_dict()
    left = sorted(path.name for path in encoder.parent.iterdir())
    assert left == [".lock", "course.json", "encoder.safetensors", "log.jsonl"], left
    return files.sha256([lines, encoders.digest_of(content)])


def operations(name: str, world: Path, folder: Path, *, every: int = 1) -> tuple[int, int]:
    """Dies at every operation of a training (or one in so many) and goes on; (operations, deaths).
    AssertionError where the end differs."""
    whole = ending(pretrained(name, world, folder / "whole"))
    _, count = dies(lambda: pretrained(name, world, folder / "counted"))
    deaths = 0
    for operation in range(1, count + 1, every):
        place = folder / "cut"
        died, _ = dies(lambda place=place: pretrained(name, world, place), operation=operation)  # type: ignore
        deaths += died
        assert ending(pretrained(name, world, place)) == whole, (
            f"{name}: another end after dying at operation {operation}"
        )
        shutil.rmtree(place)
    return count, deaths


def kills(name: str, world: Path, folder: Path, count: int, seed: int = 0) -> tuple[int, int]:
    """Kills a training at random moments until so many kills have hit it, and goes on after each;
    (kills, trainings)."""
    rng, hits, trainings = random.Random(seed), 0, 0
    started = time.perf_counter()
    whole = ending(pretrained(name, world, folder / "whole"))
    seconds = time.perf_counter() - started
    while hits < count:
        place = folder / f"killed-{trainings}"
        trainings += 1
        for _ in range(3):  # a training is hit several times
            died, _ = dies(
                lambda place=place: pretrained(name, world, place), after=rng.uniform(0, seconds)
            )  # type: ignore
            hits += died
        assert ending(pretrained(name, world, place)) == whole, f"{name}: another end after kills"
        shutil.rmtree(place)
    return hits, trainings


def record_operations(folder: Path) -> tuple[int, int]:
    """Dies at every operation of writing a record beside another; the first stays, and a second try
    makes the second."""
    model = ModelInfo("x", 1, "s")

    def write(number: int) -> Path:
        return records.write(
            folder,
            ResultKey("e", f"d{number}", 1, "x", (), {}),
            [{"value": number}],
            model=model,
        )

    def found() -> list[float]:
        return sorted(record["runs"][0]["value"] for record in records.read_all(folder).values())

    def remove_second() -> None:
        for path in folder.glob("*-d2-*"):  # with hyphens: the first one's hash may hold d2
            path.unlink()

    records.environment(), records._code()  # asked once a process, by other programs
    first = write(1)
    content = first.read_bytes()
    _, count = dies(lambda: write(2))
    remove_second()
    deaths = 0
    for operation in range(1, count + 1):
        died, _ = dies(lambda: write(2), operation=operation)
        deaths += died
        assert found() in ([1], [1, 2]), "no torn record is read"
        assert first.read_bytes() == content
        write(2)
        assert found() == [1, 2]
        remove_second()
    return count, deaths


# Table 1 ------------------------------------------------------------------------------------------


def table1(folder: Path, count: int, flags: list[str]) -> str:
    """The bundled Table 1 undisturbed, and killed at random moments of its time; what differs
    between the two sets of files."""

    def start(name: str) -> subprocess.Popen:
        words = [
            sys.executable,
            "-m",
            "tables",
            "reproduce",
            "table1",
            "--results",
            folder / name / "results",
            "--runs",
            folder / name / "runs",
            *flags,
        ]
        return subprocess.Popen(
            list(map(str, words)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    begun = time.perf_counter()
    assert start("whole").wait() in (0, 1, 3)
    seconds, rng, hits = time.perf_counter() - begun, random.Random(0), 0
    while True:
        process = start("killed")
        try:
            if hits == count:
                code = process.wait()
                break
            process.wait(rng.uniform(5, 2 * seconds / count))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
            torn = [
                path
                for path in (folder / "killed").rglob("*.json")
                if "records" in path.parts and not records.read(path)
            ]
            assert not torn
            time.sleep(1)  # its workers look twice a second whether it is there
        else:
            raise AssertionError(f"finished after {hits} kills: choose fewer")
    assert code in (0, 1, 3), code
    whole, killed = (_tables(folder / name) for name in ("whole", "killed"))
    assert whole == killed, f"differ: {[name for name in whole if whole[name] != killed.get(name)]}"
    places = sorted(folder.glob("*/results/*/records"))
    values = [
        sorted(
            json.dumps([record[part] for part in ("unit", "subject", "runs")])
            for record in records.read_all(place).values()
        )
        for place in places
    ]
    assert len(values) == 2
    assert values[0] == values[1], "the records' values differ"
    return (
        f"{seconds:.0f} s undisturbed; {hits} kills, then to the end: exit {code}, {len(whole)}"
        f" files of the table equal byte for byte, {len(values[0])} records of equal values"
    )


def _tables(folder: Path) -> dict[str, str]:
    """Hashes of the table's files, without the page, which names records by their hashes (they hold
    times)."""
    found = [
        path
        for path in (folder / "results").rglob("table1*")
        if path.suffix in (".csv", ".md", ".tex", ".txt", ".png")
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(found)
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="kills, operations, table1; default all")
    parser.add_argument("--kills", type=int, default=None, help="per method 20, of Table 1 10")
    parser.add_argument(
        "--flags",
        nargs=argparse.REMAINDER,
        default=[],
        help="for tables reproduce, as --flags --seeds 1",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="survival-"))
    world = bundled.ensure(folder / "data", IMAGES)
    for what in given.what or ("kills", "operations", "table1"):
        if what == "table1":
            print(
                f"table 1: {table1(folder / 'table1', given.kills or 10, given.flags)}", flush=True
            )
            continue
        for name in METHODS:
            started = time.perf_counter()
            if what == "kills":
                hits, trainings = kills(name, world, folder / f"kills-{name}", given.kills or 20)
                told = f"{hits} kills in {trainings} trainings"
            else:
                count, deaths = operations(name, world, folder / f"operations-{name}")
                told = f"{count} operations on files, {deaths} deaths"
            print(
                f"{name}: {told}, {time.perf_counter() - started:.0f} s; every end bit-identical,"
                " nothing lost",
                flush=True,
            )
        if what == "operations":
            (folder / "records").mkdir()
            count, deaths = record_operations(folder / "records")
            print(
                f"record: {count} operations, {deaths} deaths; never a torn record, nothing lost",
                flush=True,
            )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
