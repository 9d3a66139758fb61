import shutil

import pytest

from protobench.data import imagenet
from protobench.runtime.errors import UserError


def _says(complaint, call, *args):
    with pytest.raises(UserError, match=complaint) as error:
        call(*args)
    return str(error.value)


def test_the_folder_itself_or_the_one_that_holds_it(world):
    assert imagenet.folder(world) == imagenet.folder(world / "imagenet") == world / "imagenet"
    train, val = imagenet.DATASET.read_both(world)
    assert (len(train), len(val), len(train.classes)) == (200, 40, 20)


def test_what_was_looked_for_is_told(tmp_path):
    assert str(tmp_path / "imagenet") in _says("no ImageNet here", imagenet.folder, tmp_path)
    _says("no such folder", imagenet.folder, tmp_path / "absent")
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    assert "torchvision.datasets.ImageNet" in _says(
        "lies here as archives", imagenet.folder, tmp_path
    )


def test_a_flat_val_folder_and_other_classes_are_told(world, tmp_path):
    shutil.copytree(world / "imagenet", tmp_path / "imagenet")
    first, *_ = sorted((tmp_path / "imagenet" / "val").iterdir())
    first.rename(first.with_name("n99999999"))
    _says(
        "imagenet-train and imagenet-val have different classes: .*n99999999",
        imagenet.DATASET.read_both,
        tmp_path,
    )
    for path in sorted((tmp_path / "imagenet" / "val").rglob("*.*")):
        path.rename(tmp_path / "imagenet" / "val" / f"{path.parent.name}_{path.name}")
    for folder in [path for path in (tmp_path / "imagenet" / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    _says("images lie flat", imagenet.DATASET.read_both, tmp_path)
