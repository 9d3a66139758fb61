"""Real files, where the folder PROTOBENCH_REAL_INPUTS has them; each is skipped, visibly, where it
is not there:

augnet/model.pth       AugNet's ResNet-50 (arXiv 2106.06250), a self-supervised checkpoint:
                       pip download imgsim==0.1.2, unzip
cifar10-jpeg/          CIFAR-10's 60,000 pictures as train|test/<class>/NNNN.jpg
photos/                photographs of ImageNet as *.JPEG, one a class
"""

import os
from pathlib import Path

import numpy as np
import pytest

from evaluate import knn
from protobench import records
from protobench.checkpoints import encoders, input_check
from protobench.data import cifar, decoding, published
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList


def _real(name):
    path = Path(os.environ.get("PROTOBENCH_REAL_INPUTS", "/nonexistent")) / name
    if not path.exists():
        pytest.skip(f"no {name} in $PROTOBENCH_REAL_INPUTS")
    return path


@pytest.fixture(scope="module")
def augnet():
    return encoders.load(_real("augnet/model.pth"))


@pytest.fixture(scope="module")
def photos():
    root = _real("photos")
    paths = tuple(sorted(path.name for path in root.glob("*.JPEG")))
    return ImageList(
        "photos",
        root,
        paths,
        np.arange(len(paths)),
        tuple(path.rpartition(".")[0] for path in paths),
    )


def test_augnet_is_recognised_and_loaded_whole(augnet):
    report = augnet.report
    assert report.sha256.startswith("c2cb3cac82642c56")
    assert (report.origin, report.arch) == ("AugNet", "resnet50")
    assert report.matched == report.expected == 318
    assert report.dropped == ["pre.fc"]


def test_its_normalisation_fits_photographs_and_cifar(augnet, photos):
    for images in (photos, cifar.read(_real("cifar10-jpeg"), "cifar10", "test")):
        augnet.report.input_fit = None
        input_check.verify(augnet, images, augnet.input)
        assert 0.5 < augnet.report.input_fit.variance_ratio < 2


def test_cifar_10_as_pictures_is_whole(tmp_path):
    train, test = DATASETS["cifar10"].read_both(_real("cifar10-jpeg"))
    assert published.counts(train) == published.counts(test) == []
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert {images.read(i).size for images in (train, test) for i in (0, len(images) - 1)} == {
        (32, 32)
    }


def test_photographs_are_all_readable(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    assert decoding.check(photos, 2).bad == {}
    assert len(photos) == 200


def test_cifar_10_as_pictures_is_scored_off_protocol(tmp_path, encoder_file, command):
    source = _real("cifar10-jpeg")
    for split in ("train", "test"):
        for folder in (source / split).iterdir():
            target = tmp_path / "cifar10" / split / folder.name
            target.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:10]:
                (target / path.name).symlink_to(path)
    code, out, err = command(
        knn.EVALUATION.main,
        "--ckpt",
        encoder_file,
        "--data",
        tmp_path,
        "--dataset",
        "cifar10",
        "--feature",
        "pooled",
        "--k",
        5,
        "--workers",
        0,
        "--results",
        tmp_path / "r",
    )
    assert code == 0, err
    assert "100 queries" in out
    assert "BUNDLED" not in out
    (record,) = map(records.read, (tmp_path / "r").glob("*.json"))
    assert record["data"]["name"] == "cifar10"
    assert "not the published arrays" in record["data"]["departures"][0]
