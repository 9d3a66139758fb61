"""Images that change between two runs: nothing that was kept of the old ones is used for the new
ones."""

import shutil

import numpy as np
import pytest
from PIL import Image

from evaluate import knn, linear, semisup
from protobench import features, records
from protobench.checkpoints import encoders
from protobench.data import image_list, imagenet, raw_pictures
from protobench.data.synthetic import bundled


@pytest.fixture
def root(world, tmp_path, monkeypatch):
    """A copy of the tiny world, as a large data set is treated: of which not every file is
    hashed."""
    shutil.copytree(world / "imagenet", tmp_path / "data" / "imagenet")
    monkeypatch.setattr(image_list, "HASHED_BYTES", 0)
    monkeypatch.setattr(image_list, "SAMPLED_FILES", 4)
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def _overwrite(images):
    """Other pictures in the place of all that the fingerprint does not hash."""
    for path in images.paths:
        picture = Image.open(images.root / path).resize((44, 44)).rotate(90)
        picture.save(images.root / path, quality=80)


def test_features_are_extracted_anew(root, encoder_file, capsys):
    encoder, val = encoders.load(encoder_file), imagenet.read(root, "val")
    before = np.array(features.extract(encoder, val))
    features.extract(encoder, imagenet.read(root, "val"))
    assert capsys.readouterr().out.count("taken from the cache") == 1
    victim = val.root / val.paths[17]
    _overwrite(val.subset(np.array([17])))
    after = features.extract(encoder, imagenet.read(root, "val"))
    assert "taken from the cache" not in capsys.readouterr().out
    changed = np.flatnonzero((before != after).any(1))
    assert changed.tolist() == [17], f"{victim} alone was overwritten"


def test_a_second_score_is_that_of_the_new_images(root, moco_file, tmp_path, command):
    words = [
        "--ckpt",
        moco_file,
        "--data",
        root,
        "--feature",
        "pooled",
        "--k",
        5,
        "--workers",
        0,
        "--results",
        tmp_path / "r",
    ]
    assert command(knn.EVALUATION.main, *words)[0] == 0
    _overwrite(imagenet.read(root, "val"))
    code, out, _ = command(knn.EVALUATION.main, *words)
    assert code == 0
    assert out.count("taken from the cache") == 1, "the training images are as they were"
    first, second = sorted(
        map(records.read, (tmp_path / "r").glob("*.json")), key=lambda record: record["finished"]
    )
    assert first["unit"]["data"][0] == second["unit"]["data"][0]
    assert first["unit"]["data"][1] != second["unit"]["data"][1], "no table takes one for the other"


def test_decoded_pictures_are_decoded_anew(root):
    val = imagenet.read(root, "val")
    before = raw_pictures.keep(val, 0)[3].copy()
    _overwrite(val)
    after = raw_pictures.keep(imagenet.read(root, "val"), 0)[3]
    assert before.shape != after.shape


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (linear, ("--lr", 1, "--epochs", 3, "--batch-size", 20)),
        (semisup, ("--epochs", 2, "--draws", 1, "--batch-size", 2)),
    ],
)
def test_a_stopped_training_does_not_resume_on_other_images(
    root, encoder_file, tmp_path, command, monkeypatch, module, flags
):
    from protobench.runtime import run_state

    kept = []
    monkeypatch.setattr(run_state.RunState, "clear", lambda self, **how: kept.append(self.key))
    words = [
        "--ckpt",
        encoder_file,
        "--data",
        root,
        "--workers",
        0,
        "--results",
        tmp_path / "r",
        *flags,
    ]
    for change in (False, False, True):
        if change:
            _overwrite(imagenet.read(root, "train").subset(np.arange(5)))
        code, _, err = command(module.EVALUATION.main, *words)
        assert code == 0, err
    assert kept[0] == kept[1] != kept[2]


# The bundled data, given by its folder ------------------------------------------------------------


def test_the_bundled_folder_is_treated_as_no_folder_is(world, encoder_file, tmp_path, command):
    for place in (world, world / "imagenet"):
        words = [
            "--ckpt",
            encoder_file,
            "--data",
            place,
            "--feature",
            "pooled",
            "--k",
            5,
            "--workers",
            0,
        ]
        code, out, err = command(knn.EVALUATION.main, *words, "--results", tmp_path / "r")
        assert code == 0, err
        assert "BUNDLED SYNTHETIC DATA" in out
        assert "as published" not in err
    assert all(records.read(path)["data"]["embedded"] for path in (tmp_path / "r").glob("*.json"))
    assert linear.Config(encoder_file, world).params() == linear.Config(encoder_file).params()
    assert semisup.Config(encoder_file, world).params() == semisup.Config(encoder_file).params()
    assert not bundled.is_used(tmp_path)
