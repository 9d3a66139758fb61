"""Shared by all tests: a tiny embedded world, tiny encoders, and a way to run a command line in this process."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import loop, recipes
from protobench import cli, images, mini, scenes
from protobench.images import ImageList

TINY = {"imagenet-train": 200, "imagenet-val": 40, "voc-trainval": 200, "voc-test": 120, "places-train": 60,
        "places-val": 60}

SCENES = {"voc2007-trainval": 16, "voc2012-trainval": 8, "voc2007-test": 60, "coco-train": 16, "coco-val": 60}

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """Caches go to a temporary folder, for child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PROTOBENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A tiny embedded world: never write into it."""
    return mini.ensure(tmp_path_factory.mktemp("world") / "data", TINY)


@pytest.fixture(scope="session")
def scene_data(tmp_path_factory) -> Path:
    """Tiny embedded scenes for detection: never write into them."""
    return scenes.ensure(tmp_path_factory.mktemp("scenes") / "data", SCENES)


@pytest.fixture(scope="session")
def mmdet() -> None:
    """Detection: skipped, visibly, where the extra that holds MMDetection is not installed."""
    pytest.importorskip("mmdet", reason="needs the extra detection")

    from evaluate import mmcv_operators

    mmcv_operators.provide()


@pytest.fixture(scope="session")
def train_images(world) -> ImageList:
    return images.image_folder(world / "imagenet" / "train", "imagenet-train")


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory, train_images) -> Path:
    """An untrained embedded-tier encoder in our own format."""
    return loop.pretrain(recipes.UNTRAINED_MINI, None, tmp_path_factory.mktemp("encoder"), seed=0)


@pytest.fixture(scope="session")
def moco_file(tmp_path_factory, train_images) -> Path:
    """An embedded-tier MoCo after one epoch: it has a head and a momentum encoder."""
    recipe = replace(recipes.MOCO_MINI, train=replace(recipes.MOCO_MINI.train, epochs=1, batch_size=64), queue=64)
    return loop.pretrain(recipe, train_images, tmp_path_factory.mktemp("moco"), seed=0)


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
