import os

import numpy as np
import pytest
from PIL import Image

from protobench.data import image_list, places, voc
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError


def test_folder_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        image_list.image_folder(tmp_path / "absent", "x")
    with pytest.raises(UserError, match="no images"):
        image_list.image_folder(tmp_path, "x")
    Image.new("RGB", (4, 4)).save(tmp_path / "flat.jpg")
    with pytest.raises(UserError, match="lie flat"):
        image_list.image_folder(tmp_path, "x")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="class 'cat' has no image"):
        image_list.image_folder(tmp_path, "x")


@pytest.mark.parametrize("damage", ["truncated", "empty", "not an image", "absent"])
def test_an_unreadable_image_is_named(tmp_path, damage):
    path = tmp_path / "photo of é.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        path
    )
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "not an image": b"<html>"}.get(
            damage, b""
        )
    )
    if damage == "absent":
        path.unlink()
    listed = ImageList("x", tmp_path, (path.name,), np.array([0]), ("c",))
    with pytest.raises(UserError, match="image") as error:
        listed.read(0)
    assert error.value.at == path


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (12, 12)).save(tmp_path / "big.png")
    listed = ImageList("x", tmp_path, ("big.png",), np.array([0]), ("c",))
    with pytest.raises(UserError, match="decompression bomb"):
        listed.read(0)


def test_sixteen_bits_are_refused_and_every_other_mode_becomes_rgb(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.tif")
    listed = ImageList(
        "x",
        tmp_path,
        ("deep.png", "L.tif", "P.tif", "RGBA.tif", "CMYK.tif", "1.tif"),
        np.zeros(6, int),
        ("c",),
    )
    with pytest.raises(UserError, match="more than 8 bits"):
        listed.read(0)
    assert {listed.read(i).mode for i in range(1, 6)} == {"RGB"}


def test_the_fingerprint_follows_names_labels_and_contents(tmp_path):
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    base = ImageList("x", tmp_path, ("a.png", "b.png"), np.array([0, 1]), ("c", "d"))
    relabelled = ImageList("x", tmp_path, ("a.png", "b.png"), np.array([1, 0]), ("c", "d"))
    before = base.fingerprint
    assert before != relabelled.fingerprint
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    assert before != base.subset(np.array([0, 1])).fingerprint


def _voc(root, labels="1 0 -1"):
    main = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "trainval.txt").write_text("000001\n000002\n000003\n")
    for title in ("kite", "lamp"):
        rows = zip(("000001", "000002", "000003"), labels.split(), strict=True)
        (main / f"{title}_trainval.txt").write_text(
            "".join(f"{name} {label:>2}\n" for name, label in rows)
        )
    return root


def test_voc_is_found_from_any_level_and_keeps_difficult_zeros(tmp_path):
    root = _voc(tmp_path)
    for level in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2007"):
        listed = voc.read(level, "trainval")
        assert listed.labels.tolist() == [[1, 1], [0, 0], [-1, -1]]
        assert listed.classes == ("kite", "lamp")


def test_voc_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        voc.read(tmp_path / "absent", "test")
    with pytest.raises(UserError, match="no VOCdevkit"):
        voc.read(tmp_path, "test")
    root = _voc(tmp_path)
    with pytest.raises(UserError, match="no test list") as error:
        voc.read(root, "test")
    assert "separate download" in str(error.value)
    labels = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "lamp_trainval.txt"
    labels.write_text("000001 2\n000002 1\n000003 1\n")
    with pytest.raises(UserError, match="not '2'"):
        voc.read(root, "trainval")
    labels.write_text("000001 1\n")
    with pytest.raises(UserError, match="does not list the images of its split"):
        voc.read(root, "trainval")


def test_a_real_voc_with_a_missing_class_is_refused(tmp_path):
    root = _voc(tmp_path)
    main = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "kite_trainval.txt").rename(main / "aeroplane_trainval.txt")
    with pytest.raises(UserError, match="no labels for bicycle"):
        voc.read(root, "trainval")


def test_places_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        places.read(tmp_path / "absent", "val")
    with pytest.raises(UserError, match="no Places205 list"):
        places.read(tmp_path, "val")
    listing = tmp_path / "trainvalsplit_places205" / "val_places205.csv"
    listing.parent.mkdir()
    listing.write_text("a/abbey/x.jpg 0\n")
    with pytest.raises(UserError, match="without images"):
        places.read(tmp_path, "val")
    (tmp_path / places.IMAGES).mkdir(parents=True)
    assert places.read(tmp_path, "val").classes == ("a/abbey",)
    listing.write_text("a/abbey/x.jpg 0\nno label here\n")
    with pytest.raises(UserError, match="line 2"):
        places.read(tmp_path, "val")
    listing.write_text("".join(f"a/abbey/x.jpg {label}\n" for label in range(365)))
    with pytest.raises(UserError, match="Places365"):
        places.read(tmp_path, "val")
    for text, complaint in (("a/abbey/x.jpg 99999999999\n", "without gaps"), ("", "empty")):
        listing.write_text(text)
        with pytest.raises(UserError, match=complaint):
            places.read(tmp_path, "val")
    listing.write_bytes(b"a/abb\xe9/x.jpg 0\n")
    with pytest.raises(UserError, match="not UTF-8"):
        places.read(tmp_path, "val")


def test_places_may_be_folders_but_not_imagenet_s(tmp_path):
    for scene in ("abbey", "alley"):
        for split in ("train", "val"):
            (tmp_path / "places205" / split / scene).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "places205" / split / scene / "x.jpg")
    train, val = places.DATASET.read_both(tmp_path)
    assert train.classes == val.classes == ("abbey", "alley")
    assert (train.name, val.name) == ("places205-train", "places205-val")
    for split in ("train", "val"):
        for scene, wnid in (("abbey", "n01440764"), ("alley", "n01443537")):
            (tmp_path / "places205" / split / scene).rename(tmp_path / "places205" / split / wnid)
    with pytest.raises(UserError, match="this is ImageNet, not Places205"):
        places.DATASET.read_both(tmp_path)


def test_names_that_are_not_utf_8_are_read_and_can_be_hashed(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"a\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    prints = []
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        path = tmp_path / os.fsdecode(b"a\xe9") / os.fsdecode(name)
        Image.new("RGB", (4, 4)).save(path)
        found = image_list.image_folder(tmp_path, "x")
        assert found.read(0).size == (4, 4)
        assert found.classes == (r"a\udce9",)
        prints.append(found.fingerprint)
        path.unlink()
    assert prints[0] != prints[1]


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    listing = ImageList("x", tmp_path, ("x.png",), np.array([0]), ("a",))
    monkeypatch.setattr(
        image_list.Image, "open", lambda _: (_ for _ in ()).throw(RuntimeError("Failed to decode"))
    )
    with pytest.raises(UserError, match="Failed to decode") as error:
        listing.read(0)
    assert error.value.at == tmp_path / "x.png"


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [0], [[1, 1], [0, 2]], [[1], [0]]])
def test_labels_that_do_not_fit_the_classes_are_refused(tmp_path, labels):
    with pytest.raises(UserError, match="2 images and 2 classes"):
        ImageList("x", tmp_path, ("a", "b"), np.array(labels), ("one", "two"))
