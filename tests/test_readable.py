"""Every unreadable image is found, once, whatever was found before; and it is left out only where
that is asked for."""

import os
import shutil
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from evaluate import fullsvm
from protobench import __main__ as main
from protobench import commands, records
from protobench.data import decoding, image_list, imagenet, verify
from protobench.data.datasets import DATASETS
from protobench.runtime.errors import UserError


@pytest.fixture
def root(world, tmp_path):
    """A copy of the tiny world that may be spoilt."""
    shutil.copytree(world, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:400])


def _voc(root):
    return root / "VOCdevkit" / "VOC2007"


def test_truncated_empty_foreign_and_missing_files_are_found(root):
    train = imagenet.read(root, "train")
    spoilt = {
        3: _truncate,
        50: lambda path: path.write_bytes(b""),
        120: lambda path: path.write_text("<html>"),
        199: lambda path: path.unlink(),
    }
    for i, spoil in spoilt.items():
        spoil(train.root / train.paths[i])
    found = decoding.check(train, workers=3)
    assert list(found.bad) == list(spoilt)
    assert "truncated" in found.bad[3].lower()
    assert "not found" in found.bad[199]
    assert np.flatnonzero(found.digests == 0).tolist() == list(spoilt)
    assert len(np.unique(found.digests)) == 197


class Killed(BaseException):
    pass


@pytest.mark.parametrize("workers", [1, 4])
def test_a_stopped_check_goes_on_and_changed_files_are_read_again(root, monkeypatch, workers):
    monkeypatch.setattr(decoding, "CHUNK", 16)
    train = imagenet.read(root, "train")
    real, seen, alive = image_list.ImageList.read, [], [True]

    def stop_late(self, index):
        seen.append(index)
        if len(seen) >= 100 and alive:
            raise Killed
        return real(self, index)

    monkeypatch.setattr(image_list.ImageList, "read", stop_late)
    with pytest.raises(Killed):
        decoding.check(train, workers)
    (kept,) = (root.parent / "cache" / "readable").glob("*.jsonl")
    lines = kept.read_text()
    assert lines.count("\n") >= 2
    kept.write_text(lines + "\n" + lines[1:40])  # a line cut short by the kill
    seen.clear()
    alive.clear()
    whole = decoding.check(train, workers)
    assert len(seen) == 200 - 16 * lines.count("\n")
    seen.clear()
    np.testing.assert_array_equal(decoding.check(train, workers).digests, whole.digests)
    assert not seen
    good = (train.root / train.paths[40]).read_bytes()
    _truncate(train.root / train.paths[40])
    assert list(decoding.check(train, workers).bad) == [40]
    assert sorted(seen) == [*range(32, 48)]
    seen.clear()
    (train.root / train.paths[40]).write_bytes(good)
    os.utime(
        train.root / train.paths[40], (0, 0)
    )  # the size is as it was at first, the time is not
    assert not decoding.check(train, workers).bad
    assert sorted(seen) == [*range(32, 48)]


def test_what_was_bad_is_read_again_as_a_disk_may_recover(root, monkeypatch):
    train = imagenet.read(root, "train")
    real = image_list.ImageList.read

    def fails(self, index):
        if index == 5:
            raise UserError("Input/output error")
        return real(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(image_list.ImageList, "read", fails)
        assert list(decoding.check(train, 2).bad) == [5]
    assert not decoding.check(train, 2).bad


def test_too_large_images_are_found_by_every_thread(root, monkeypatch):
    monkeypatch.setattr(image_list.Image, "MAX_IMAGE_PIXELS", 100)
    train = imagenet.read(root, "train")
    assert len(decoding.check(train, 8).bad) == 200


def test_nothing_is_left_out_unless_asked_and_never_more_than_asked(root):
    lists = imagenet.DATASET.read_both(root)
    for images_, i in ((lists[0], 7), (lists[0], 8), (lists[1], 1)):
        _truncate(images_.root / images_.paths[i])
    assert decoding.leave_out(lists, 0) is lists
    with pytest.raises(
        UserError, match="3 images cannot be decoded, more than --skip-bad-images 2"
    ) as error:
        decoding.leave_out(lists, 2)
    assert lists[1].paths[1] in str(error.value)
    train, val = decoding.leave_out(lists, 3)
    assert (len(train), len(val)) == (198, 39)
    assert train.unreadable == lists[0].paths[7:9]
    assert train.paths == lists[0].paths[:7] + lists[0].paths[9:]
    assert train.labels.tolist() == np.delete(lists[0].labels, [7, 8]).tolist()
    assert train.fingerprint != lists[0].fingerprint
    with pytest.raises(UserError, match="at least 0"):
        decoding.leave_out(lists, -1)
    for path in val.paths[:2]:
        _truncate(val.root / path)
    with pytest.raises(
        UserError, match=r"imagenet-val has no image of .* once the unreadable ones are left out"
    ):
        decoding.leave_out((lists[0], lists[1]), 9)
    for path in lists[0].paths[:10]:
        _truncate(lists[0].root / path)
    with pytest.raises(UserError, match="imagenet-train has no image of c00-zero"):
        decoding.leave_out((lists[0],), 20)


def test_an_evaluation_fails_by_default_and_records_what_it_left_out(
    command, encoder_file, root, tmp_path
):
    victim = sorted((_voc(root) / "JPEGImages").iterdir())[0]
    _truncate(victim)
    args = (
        "--ckpt",
        encoder_file,
        "--data",
        root,
        "--workers",
        0,
        "--results",
        tmp_path / "results",
    )
    code, _, err = command(fullsvm.EVALUATION.main, *args)
    assert code == 2
    assert str(victim) in err
    code, out, err = command(fullsvm.EVALUATION.main, *args, "--skip-bad-images", 1)
    assert code == 0, err
    assert f"left out: {victim}" in out
    (record,) = records.read_all(tmp_path / "results").values()
    assert record["data"]["unreadable"]["count"] == 1


# check-data ---------------------------------------------------------------------------------------


def test_the_bundled_data_is_whole_and_claims_to_be_nothing_else(command, root, monkeypatch):
    monkeypatch.setattr(verify.bundled, "ensure", lambda **_: root)
    code, out, _ = command(main.main, "check-data")
    assert code == 0
    assert "200 images, 20 classes" in out
    assert out.count(" 0 unreadable") == 3
    assert "as published" not in out


def _as_published(monkeypatch, class_hash):
    """Sets what is published of ImageNet to the size of the world at hand."""
    dataset = DATASETS["imagenet"]
    splits = tuple(
        replace(split, images=count, classes=20, class_hash=class_hash)
        for split, count in zip(dataset.splits, (200, 40), strict=True)
    )
    monkeypatch.setitem(DATASETS, "imagenet", replace(dataset, splits=splits))


def test_data_given_is_held_against_what_was_published(command, root, monkeypatch):
    for folder in sorted((root / "imagenet").glob("*/c*")):
        folder.rename(folder.with_name(f"n{folder.name[1:3]:0>8}"))
    code, out, _ = command(main.main, "check-data", root, "--dataset", "imagenet")
    assert code == 1
    assert "not as published: imagenet-val has 40 images, not 50000" in out
    assert "not as published: 20 classes, not 1000" in out
    _as_published(monkeypatch, class_hash="0" * 64)
    code, out, _ = command(main.main, "check-data", root, "--dataset", "imagenet")
    assert code == 1
    assert "labels mean something else" in out
    _as_published(monkeypatch, class_hash="")
    code, out, _ = command(main.main, "check-data", root, "--dataset", "imagenet")
    assert code == 0
    assert "as published: counts and number of classes" in out
    assert "fingerprints" in out


def test_bundled_data_is_known_wherever_it_lies(command, root):
    (root / "manifest.json").unlink()
    code, out, err = command(main.main, "check-data", root / "imagenet")
    assert code == 0
    assert "imagenet at " in out
    assert "bundled synthetic data" in out
    assert "as published" not in out + err


def test_every_data_set_can_be_chosen():
    (choices,) = get_args(get_type_hints(commands.CheckData)["dataset"])[:1]
    assert set(get_args(choices)) == {*DATASETS}


def test_bad_files_duplicates_and_absent_data_are_told(command, root, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "SHOWN", 1)
    train, val = imagenet.DATASET.read_both(root)
    for i in (0, 1):
        _truncate(train.root / train.paths[i])
    shutil.copy(train.root / train.paths[9], val.root / val.paths[0])
    shutil.copy(train.root / train.paths[9], train.root / train.paths[10])
    shutil.rmtree(root / "places205")
    shutil.rmtree(root / "VOCdevkit")
    code, out, _ = command(main.main, "check-data", root)
    assert code == 2
    assert "2 unreadable" in out
    assert out.count("    unreadable: ") == 1
    listing = tmp_path / "cache" / "readable" / "imagenet-unreadable.txt"
    assert len(listing.read_text().splitlines()) == 2
    assert "1 files occur in both" in out
    assert "1 files of imagenet-train repeat another" in out
    assert "places205: not here" in out
    code, out, _ = command(main.main, "check-data", root, "--dataset", "places205")
    assert code == 2
    assert "no Places205 list here" in out
    code, _, err = command(main.main, "check-data", root / "absent")
    assert code == 2
    assert "no such folder" in err


def test_half_a_data_set_is_trouble_and_nothing_at_all_too(command, root, tmp_path):
    (_voc(root) / "ImageSets" / "Main" / "test.txt").unlink()
    code, out, _ = command(main.main, "check-data", root)
    assert code == 2
    assert "separate download" in out
    (tmp_path / "empty").mkdir()
    code, _, err = command(main.main, "check-data", tmp_path / "empty")
    assert code == 2
    assert "none of the data sets is here" in err


def test_one_data_set_s_own_folder_is_taken_for_no_other(command, tmp_path):
    for data, names in (("imagenet", ("n01440764", "n01443537")), ("places", ("abbey", "alley"))):
        for split in ("train", "val"):
            for name in names:
                (tmp_path / data / split / name).mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(tmp_path / data / split / name / "x.png")
    _, out, _ = command(main.main, "check-data", tmp_path / "imagenet")
    assert "imagenet at" in out
    assert "places205: not here" in out
    _, out, _ = command(main.main, "check-data", tmp_path / "places")
    assert "places205 at" in out
    assert "imagenet: not here" in out


def test_places_is_not_scored_as_imagenet(tmp_path):
    for name in range(205):
        (tmp_path / "train" / f"scene{name}").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "train" / f"scene{name}" / "x.png")
    with pytest.raises(UserError, match="this is Places205, not ImageNet"):
        imagenet.read(tmp_path, "train")
