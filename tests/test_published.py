"""Data that is not what its flag says is known by what it is."""

import numpy as np
import pytest
from PIL import Image

from protobench import records
from protobench.data import cifar, coco, imagenet, published, voc
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError

WNIDS = tuple(f"n{number:08d}" for number in range(10))


def _list(name, classes, paths=("a.jpg",), pixels=None):
    return ImageList(name, None, paths, np.zeros(len(paths), np.int64), classes, pixels=pixels)


@pytest.mark.parametrize(
    ("name", "classes", "path", "what"),
    [
        ("imagenet-val", cifar.CIFAR10, "cat/1.png", "this is CIFAR-10, not ImageNet"),
        ("imagenet-val", cifar.CIFAR100, "apple/1.png", "this is CIFAR-100, not ImageNet"),
        (
            "imagenet-train",
            tuple(f"scene{i}" for i in range(365)),
            "x.jpg",
            "this is Places365, not ImageNet",
        ),
        (
            "imagenet-train",
            tuple("abcde"),
            "a/abbey/x.jpg",
            "this is Places, whose classes lie one folder deeper, not ImageNet",
        ),
        ("places205-val", WNIDS, "x.JPEG", "this is ImageNet, not Places205"),
        ("cifar10-test", cifar.CIFAR100, "apple/1.png", "this is CIFAR-100, not CIFAR-10"),
        ("cifar100-test", cifar.CIFAR10, "cat/1.png", "this is CIFAR-10, not CIFAR-100"),
        (
            "voc07-test",
            voc.CLASSES,
            "JPEGImages/2008_000001.jpg",
            "this is VOC2008 or a later year's, not VOC2007",
        ),
        (
            "voc07-test-boxes",
            voc.CLASSES,
            "VOC2007/JPEGImages/2011_000001.jpg",
            "this is VOC2011",
        ),
        (
            "voc12-trainval-boxes",
            voc.CLASSES,
            "VOC2012/JPEGImages/000005.jpg",
            "this is VOC2007, not VOC2012",
        ),
        (
            "coco-val2017",
            ("person",),
            "val2017/COCO_val2014_000000000042.jpg",
            "this is COCO 2014, not COCO 2017",
        ),
    ],
)
def test_another_known_data_set_is_refused(name, classes, path, what):
    with pytest.raises(UserError, match=what):
        published.check(_list(name, classes, (path,)))


@pytest.mark.parametrize(
    ("name", "classes", "paths", "told"),
    [
        (
            "imagenet-val",
            WNIDS,
            ("x.JPEG",),
            "imagenet-val has 1 images, not 50000; 10 classes, not 1000",
        ),
        (
            "imagenet-val",
            WNIDS,
            ("n01/n01440764_1.JPEG",),
            "by their names these are images of ImageNet's train split",
        ),
        (
            "imagenet-train",
            WNIDS,
            ("n01/ILSVRC2012_val_00000001.JPEG",),
            "by their names these are images of ImageNet's val split",
        ),
        ("cifar10-test", cifar.CIFAR10[::-1], ("a.png",), "labels mean something else"),
        (
            "cifar10-test",
            cifar.CIFAR10,
            ("a.png",),
            "the images are files, whose encoding may have changed pixels",
        ),
        (
            "coco-val2017",
            tuple(f"thing{i}" for i in range(80)),
            ("x.jpg",),
            "the classes are not the published ones",
        ),
    ],
)
def test_what_else_is_not_as_published_is_told_before_the_work(name, classes, paths, told, capsys):
    images = _list(name, classes, paths)
    assert published.check(images) is images
    assert told in capsys.readouterr().err


def test_data_as_published_is_passed_in_silence(capsys):
    pixels = np.zeros((10_000, 1, 1, 3), np.uint8)
    published.check(
        _list("cifar10-test", cifar.CIFAR10, tuple(f"test/{i:05d}" for i in range(10_000)), pixels)
    )
    published.check(_list("anything", ("a", "b")))
    assert capsys.readouterr().err == ""


def test_the_readers_ask(tmp_path, scene_data, world, capsys):
    assert "published" not in capsys.readouterr().err
    for read in (
        lambda: voc.read(world, "test"),
        lambda: coco.read(scene_data, "val"),
        lambda: imagenet.read(world, "val"),
    ):
        read()
    assert "not as published" not in capsys.readouterr().err
    for split in ("train", "test"):
        for title in cifar.CIFAR10:
            path = tmp_path / "cifar10" / split / title / "0001.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(path)
    train, test = DATASETS["cifar10"].read_both(tmp_path)
    assert (train.name, len(test), test.classes) == ("cifar10-train", 10, cifar.CIFAR10)
    assert capsys.readouterr().err.count("the images are files") == 2
    (told,) = records.data_of("cifar10", (train, test))["departures"]
    assert "not the published arrays" in told
    with pytest.raises(UserError, match="this is CIFAR-10, not ImageNet"):
        imagenet.read(tmp_path / "cifar10", "train")
    (tmp_path / "cifar10" / "train" / "cat").rename(tmp_path / "cifar10" / "train" / "lynx")
    with pytest.raises(
        UserError, match="not cifar10's 10 classes: cat, lynx are missing or unknown"
    ):
        cifar.read(tmp_path, "cifar10", "train")


def test_the_bundled_data_is_known_by_its_classes(world, scene_data, tmp_path):
    for root in (world, scene_data):
        for folder in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2007"):
            assert bundled.is_used(folder)
    for part in ("imagenet", "places205"):
        assert bundled.is_used(world / part)
    (tmp_path / "here").mkdir()
    for name, target in (
        ("imagenet", world / "imagenet"),
        ("coco", scene_data / "coco"),
        ("places205", world / "places205"),
    ):
        copy = tmp_path / name
        copy.mkdir()
        (copy / name).symlink_to(target)
        assert bundled.is_used(copy), "by what it holds, without its manifest"
        assert bundled.is_used(copy / name)
    assert not bundled.is_used(tmp_path / "here")
    assert not bundled.holds(())
    assert not bundled.holds(("zero", "cat"))
