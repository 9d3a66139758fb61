"""Folders of images as users have them: deeper than usual, with what systems leave there, and in
any of torchvision's formats."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from protobench.data import image_list, imagenet, places
from protobench.runtime.errors import UserError


def _image(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, format="PNG")


def _as_torchvision(root):
    return [(os.path.relpath(path, root), label) for path, label in ImageFolder(root).samples]


def _as_here(root):
    found = image_list.image_folder(root, "x")
    return list(zip(found.paths, found.labels.tolist(), strict=True))


def test_images_and_their_order_are_torchvision_s(tmp_path):
    for number, suffix in enumerate(
        (".jpg", ".JPEG", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".Tif")
    ):
        _image(tmp_path / ("cat" if number % 2 else "dog") / f"{9 - number}{suffix}")
    for place in (
        "cat/images/1.jpg",
        "cat/images/deep/0.jpg",
        "cat/a.jpg",
        "dog/z/b.png",
        "dog/z.png",
    ):
        _image(tmp_path / place)
    assert _as_here(tmp_path) == _as_torchvision(tmp_path)
    assert len(_as_here(tmp_path)) == 15


def test_what_systems_and_tools_leave_is_no_class_and_no_image(tmp_path, capsys):
    for title in ("cat", "dog"):
        _image(tmp_path / title / "1.jpg")
    image_list.image_folder(tmp_path, "x")
    assert capsys.readouterr().err == ""
    _image(tmp_path / ".ipynb_checkpoints" / "1-checkpoint.jpg")
    for name in ("lost+found", "@eaDir", "cat/@eaDir"):
        (tmp_path / name).mkdir()
    _image(tmp_path / "dog" / "._1.jpg")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    found = image_list.image_folder(tmp_path, "x")
    assert (found.classes, found.paths) == (("cat", "dog"), ("cat/1.jpg", "dog/1.jpg"))
    assert (
        "left out of x: 6 files or folders of systems and tools (.ipynb_checkpoints/, @eaDir/,"
        " lost+found/ and 3 more)" in capsys.readouterr().err
    )


def test_files_that_are_no_images_are_counted(tmp_path, capsys):
    for name in ("cat/1.jpg", "dog/1.jpg"):
        _image(tmp_path / name)
    for name in ("cat/1.heic", "cat/2.heic", "dog/notes.txt"):
        (tmp_path / name).write_text("x")
    assert len(image_list.image_folder(tmp_path, "x")) == 2
    told = capsys.readouterr().err
    assert (
        "left out of x: 3 files that are not images (2 with .heic, 1 with .txt; the first"
        " cat/1.heic)" in told
    )


@pytest.mark.parametrize(
    ("name", "complaint", "hint"),
    [
        (None, "class 'dog' has no image\n", "remove the empty folder"),
        ("1.heic", "class 'dog' has no image, but 1 .heic", "one of the suffixes"),
    ],
)
def test_a_class_without_images_is_refused_with_the_right_reason(tmp_path, name, complaint, hint):
    _image(tmp_path / "cat" / "1.jpg")
    (tmp_path / "dog").mkdir()
    if name:
        (tmp_path / "dog" / name).write_text("x")
    with pytest.raises(UserError, match=complaint) as error:
        image_list.image_folder(tmp_path, "x")
    assert hint in error.value.hint


def test_images_one_folder_deeper_are_read_aloud(tmp_path, capsys):
    for wnid in ("n01443537", "n01629819"):
        _image(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1\n")
    found = imagenet.read(tmp_path, "train")
    assert found.classes == ("n01443537", "n01629819")
    told = capsys.readouterr().err
    assert (
        "images lie in folders within the class folders (n01443537/images, n01629819/images)"
        in told
    )
    assert "2 classes, not 1000" in told


def test_places_in_folders_by_letter_has_its_scenes_as_classes(tmp_path):
    for split in ("train", "val"):
        for place in ("a/abbey", "a/apartment_building/outdoor", "b/bakery"):
            _image(tmp_path / "places205" / split / place / "1.jpg")
    train, val = places.DATASET.read_both(tmp_path)
    assert train.classes == val.classes == ("a/abbey", "a/apartment_building/outdoor", "b/bakery")
    assert val.labels.tolist() == [0, 1, 2]
    with pytest.raises(
        UserError, match="this is Places, whose classes lie one folder deeper, not ImageNet"
    ):
        imagenet.read(tmp_path / "places205", "train")


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path):
    _image(tmp_path / "cat" / "1.jpg")
    _image(tmp_path / "elsewhere" / "2.jpg")
    os.symlink(tmp_path / "cat", tmp_path / "cat" / "again")
    (tmp_path / "root").mkdir()
    for name, target in (("cat", "cat"), ("dog", "elsewhere")):
        os.symlink(tmp_path / target, tmp_path / "root" / name)
    assert image_list.image_folder(tmp_path / "root", "x").paths == ("cat/1.jpg", "dog/2.jpg")


def test_names_are_compared_as_text_however_they_are_composed(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, title in (("train", composed), ("val", decomposed)):
        for name in (title, "cafz"):  # between the two spellings in byte order
            _image(tmp_path / split / name / "1.jpg")
    train, val = imagenet.DATASET.read_both(tmp_path)
    assert train.classes == val.classes == tuple(sorted([composed, "cafz"]))
    assert [path.partition("/")[0] for path in val.paths] == ["cafz", decomposed]
    _image(tmp_path / "val" / composed / "2.jpg")
    with pytest.raises(UserError, match="composed in two ways"):
        imagenet.read(tmp_path, "val")


# What caches and records are known by -------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    for number in range(300):
        _image(tmp_path / "cat" / f"{number:03d}.png", (number % 256, 0, 0))
    return tmp_path


@pytest.mark.parametrize("large", [False, True])
def test_any_one_file_that_changes_is_noticed(many, monkeypatch, large):
    if large:
        monkeypatch.setattr(image_list, "HASHED_BYTES", 0)
    before = image_list.image_folder(many, "x")
    keys = {before.cache_key}
    for number in (0, 17, 131, 298, 299):
        victim = many / "cat" / f"{number:03d}.png"
        Image.new("RGB", (5, 5), "blue").save(victim)
        after = image_list.image_folder(many, "x")
        assert after.cache_key not in keys
        assert after.fingerprint != before.fingerprint
        keys.add(after.cache_key)


def test_a_file_of_the_same_size_is_noticed_too(many, monkeypatch):
    whole = image_list.image_folder(many, "x")
    monkeypatch.setattr(image_list, "HASHED_BYTES", 0)
    sampled = image_list.image_folder(many, "x")
    keys = whole.cache_key, sampled.cache_key
    for path in sorted((many / "cat").iterdir())[100:150]:
        state = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        if path.name == "149.png":
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert image_list.image_folder(many, "x").cache_key != keys[1]
    monkeypatch.undo()
    assert image_list.image_folder(many, "x").cache_key != keys[0]


def test_a_fingerprint_is_the_same_on_another_machine(many, monkeypatch):
    """Times of change and the folder's place belong to a machine; contents, names and sizes do
    not."""
    for limit in (2**30, 0):
        monkeypatch.setattr(image_list, "HASHED_BYTES", limit)
        before = image_list.image_folder(many, "x")
        fingerprint, cache_key = before.fingerprint, before.cache_key
        os.utime(many / "cat" / "007.png", (1, limit))
        assert image_list.image_folder(many, "x").fingerprint == fingerprint
        assert (image_list.image_folder(many, "x").cache_key == cache_key) == (limit > 0)


def test_pixels_in_memory_are_known_by_their_contents():
    pixels = np.zeros((2, 2, 2, 3), np.uint8)
    found = image_list.ImageList(
        "x", None, ("a", "b"), np.zeros(2, np.int64), ("c",), pixels=pixels
    )
    assert found.cache_key == found.fingerprint


def test_a_file_that_has_gone_is_named(many, monkeypatch):
    monkeypatch.setattr(image_list, "HASHED_BYTES", 0)
    found = image_list.image_folder(many, "x")
    (many / "cat" / "200.png").unlink()
    with pytest.raises(UserError, match="cannot read an image of the list: No such file") as error:
        _ = found.cache_key
    assert str(error.value.at).endswith("200.png")
