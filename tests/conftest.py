"""Shared by all tests: a tiny bundled world, tiny encoders, and a way to run a command line in
this process."""

import os
import shutil
import sys

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: for this process, those it starts and those that run beside it

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import parallel
import pytest
import torch
from filelock import FileLock

from pretrain import loop
from pretrain.recipes import moco, untrained
from protobench.data import image_list
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled, scenes
from protobench.runtime import cli

TINY = {
    "imagenet-train": 200,
    "imagenet-val": 40,
    "voc-trainval": 200,
    "voc-test": 120,
    "places-train": 60,
    "places-val": 60,
}

SCENES = {
    "voc2007-trainval": 16,
    "voc2012-trainval": 8,
    "voc2007-test": 60,
    "coco-train": 16,
    "coco-val": 60,
}


def pytest_generate_tests(metafunc):
    """A test marked ``gpu`` runs on the GPU and, on every machine, on one that is only claimed."""
    if metafunc.definition.get_closest_marker("gpu"):
        there = torch.cuda.is_available()
        real = pytest.mark.skipif(not there, reason="needs a CUDA device")
        metafunc.parametrize("gpu", [pytest.param("real", marks=real), "claimed"], indirect=True)


@pytest.fixture(autouse=True)
def gpu(request):
    """What ``device="cuda"`` means in a test marked ``gpu``."""
    if getattr(request, "param", "real") == "real":
        yield
        return
    import claimed_device

    with claimed_device.device():
        yield


def pytest_sessionfinish():
    parallel.end()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder for what is made once in a run of the tests, also where pytest-xdist spreads them
    over several processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared) -> Callable[[str, Callable[[Path], Any]], Any]:
    """``once(name, make)``: what ``make(folder)`` returns, by one process after another: the later
    ones find it made."""

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        with FileLock(shared / f"{name}.lock"):
            return make(shared / name)

    return made


@pytest.fixture(scope="session", autouse=True)
def cache(shared) -> Path:
    """Caches go to a temporary folder, for child processes too."""
    folder = shared / "cache"
    os.environ["PROTOBENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def world(shared) -> Path:
    """A tiny bundled world: never write into it."""
    return bundled.ensure(shared / "world", TINY)


@pytest.fixture(scope="session")
def scene_data(shared) -> Path:
    """Tiny bundled scenes for detection: never write into them."""
    return scenes.ensure(shared / "scenes", SCENES)


@pytest.fixture(scope="session")
def mmdet() -> None:
    """Detection: skipped, visibly, where the extra that holds MMDetection is not installed."""
    pytest.importorskip("mmdet", reason="needs the extra detection")

    from evaluate.mmdet_adapter import operators

    operators.provide()


@pytest.fixture(scope="session")
def train_images(world) -> ImageList:
    return image_list.image_folder(world / "imagenet" / "train", "imagenet-train")


@pytest.fixture(scope="session")
def encoder_file(once) -> Path:
    """An untrained mini-tier encoder in our own format."""
    return once("encoder", lambda folder: loop.pretrain(untrained.MINI, None, folder, seed=0))


@pytest.fixture(scope="session")
def moco_file(once, train_images) -> Path:
    """A mini-tier MoCo after one epoch: it has a head and a momentum encoder."""
    recipe = replace(moco.MINI, train=replace(moco.MINI.train, epochs=1, batch_size=64), queue=64)
    return once("moco", lambda folder: loop.pretrain(recipe, train_images, folder, seed=0))


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a script's main with arguments: (exit code, stdout, stderr)."""

    def run(main: Callable[[], int | None], *args: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.run(main)
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def reproduce_table(command, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Runs ``python -m tables reproduce`` in the test's own folders ``results`` and ``runs``."""
    from tables import __main__ as tables_main

    def run(*flags: Any, table: str = "table1") -> tuple[int, str, str]:
        folders = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
        return command(tables_main.main, "reproduce", table, *folders, *flags)

    return run


@pytest.fixture(scope="module")
def browser():
    """Chromium, run by playwright: skipped, visibly, where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()
