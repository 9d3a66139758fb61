"""VOC's lists and label files as people's machines leave them, and what is refused of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from protobench.data import voc, voc_boxes
from protobench.runtime.errors import UserError

NAMES = ["000005", "000007", "000009"]


@pytest.fixture
def kit(tmp_path) -> Path:
    """VOC's 20 classes and three images in each split; the first image has every class, the others
    have none."""
    main = tmp_path / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (tmp_path / "VOC2007" / "JPEGImages").mkdir()
    for name in NAMES:
        (tmp_path / "VOC2007" / "JPEGImages" / f"{name}.jpg").write_bytes(name.encode())
    for split in ("trainval", "test"):
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name in NAMES))
        for title in voc.CLASSES:
            (main / f"{title}_{split}.txt").write_text("000005  1\n000007 -1\n000009 -1\n")
    return tmp_path / "VOC2007"


def main_of(kit: Path) -> Path:
    return kit / "ImageSets" / "Main"


LEFT = (
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._trainval.txt",
    "._aeroplane_trainval.txt",
    "aeroplane_trainval.txt~",
    "aeroplane_trainval (1).txt",
    "._train_trainval.txt",
)


def test_leftovers_are_no_classes_and_are_named(kit, capsys):
    before = voc.read(kit, "trainval")
    assert "left out" not in capsys.readouterr().err
    for folder in (main_of(kit), kit / "JPEGImages"):
        for name in LEFT:
            (folder / name).write_bytes(b"\0\5\26\7\0\2\0\0\xff")
        for name in (".ipynb_checkpoints", "@eaDir"):
            (folder / name).mkdir()
            (folder / name / "cat_trainval.txt").write_text("000005 1")
    after = voc.read(kit, "trainval")
    assert (after.classes, after.fingerprint) == (voc.CLASSES, before.fingerprint)
    assert (
        "left out of VOC2007 trainval: 4 files of systems or tools among its label files"
        " (._aeroplane_trainval.txt, ._train_trainval.txt, ._trainval.txt and 1 more)\n"
        in capsys.readouterr().err
    )


def test_leftovers_beside_annotations_and_images_are_no_data(scene_data, tmp_path):
    shutil.copytree(scene_data / "VOCdevkit", tmp_path / "VOCdevkit")
    before = voc_boxes.read(tmp_path, 2007, "test")
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        for name in (
            *LEFT,
            f"._{Path(before.paths[0]).stem}.xml",
            f"._{Path(before.paths[0]).name}",
        ):
            (tmp_path / "VOCdevkit" / "VOC2007" / folder / name).write_bytes(b"\0\5\26\7\xff")
    (tmp_path / "VOCdevkit" / "._VOC2007").write_bytes(b"\0")
    assert voc_boxes.read(tmp_path, 2007, "test").fingerprint == before.fingerprint


@pytest.mark.parametrize("title", ["aeroplane (1)", "aeroplane - Copy", "train2"])
def test_a_label_file_beside_the_20_is_refused(kit, title):
    (main_of(kit) / f"{title}_trainval.txt").write_text(
        (main_of(kit) / "cat_trainval.txt").read_text()
    )
    with pytest.raises(UserError, match="label files beside those of VOC's 20 classes") as mistake:
        voc.read(kit, "trainval")
    assert f"{title}_trainval.txt" in mistake.value.what
    assert "second copy" in str(mistake.value.hint)


@pytest.mark.parametrize(
    "written",
    [
        "000005  1\r\n000007 -1\r\n000009 -1\r\n",
        "\ufeff000005 1\n000007 -1\n000009 -1",
        "000005\t1  \n\n 000007 -1 \n000009 -1\n\n",
        "000009 -1\n000005  1\n000007 -1\n",
        "000005  1\r000007 -1\r000009 -1\r",
    ],
)
def test_lines_count_by_their_names_whatever_ends_and_orders_them(kit, written):
    before = voc.read(kit, "trainval")
    (main_of(kit) / "dog_trainval.txt").write_bytes(written.encode())
    (main_of(kit) / "trainval.txt").write_bytes(b"\xef\xbb\xbf000005 \r\n000007\r\n\r\n000009\r\n")
    after = voc.read(kit, "trainval")
    assert after.paths == before.paths
    np.testing.assert_array_equal(after.labels, before.labels)


def test_names_may_hold_spaces(kit):
    for path in main_of(kit).glob("*trainval.txt"):
        path.write_text(path.read_text().replace("000007", "image 7 (1)"))
    (kit / "JPEGImages" / "000007.jpg").rename(kit / "JPEGImages" / "image 7 (1).jpg")
    found = voc.read(kit, "trainval")
    assert found.paths[1] == "JPEGImages/image 7 (1).jpg"
    assert found.labels[:, 3].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("name", "written", "told", "line"),
    [
        (
            "trainval.txt",
            "000005\n000007\n000005\n",
            "000005 is listed twice; it is in line 1 already",
            3,
        ),
        ("trainval.txt", " \n", "list is empty", None),
        (
            "cat_trainval.txt",
            "000005 1\n000007 1\n000009 1\n000005 -1\n",
            "000005 has a label in an earlier line",
            4,
        ),
        ("cat_trainval.txt", "000005 1\n000007 1\n", "000009 is only in the split's list\n", None),
        (
            "cat_trainval.txt",
            "000005 1\n000007 1\n000008 1\n000009 1\n",
            "000008 is only in this file\n",
            None,
        ),
        (
            "cat_trainval.txt",
            "000001 1\n000002 1\n000003 1\n",
            "000001 is only in this file, 5 more differ",
            None,
        ),
        (
            "cat_trainval.txt",
            "000005 1\n000007 2\n000009 1\n",
            r"labels must be 1, -1 or 0 \(difficult\), not '2'",
            2,
        ),
        ("cat_trainval.txt", "000005 1\n000007\n000009 1\n", "labels must be .*, not ''", 2),
    ],
)
def test_what_is_wrong_in_a_list_is_told_with_its_line(kit, name, written, told, line):
    path = main_of(kit) / name
    path.write_text(written)
    with pytest.raises(UserError, match=told) as mistake:
        voc.read(kit, "trainval")
    assert str(mistake.value.at) == (f"{path}, line {line}" if line else str(path))


def test_other_spellings_of_the_suffix_are_found(kit):
    """.jpg counts where both are there, and is what a missing image is called."""
    images = kit / "JPEGImages"
    shutil.copy(images / "000005.jpg", images / "000005.JPG")
    (images / "000007.jpg").rename(images / "000007.JPEG")
    (images / "000009.jpg").unlink()
    assert voc.read(kit, "trainval").paths == (
        "JPEGImages/000005.jpg",
        "JPEGImages/000007.JPEG",
        "JPEGImages/000009.jpg",
    )
    shutil.rmtree(images)
    assert voc.read(kit, "trainval").paths == tuple(f"JPEGImages/{name}.jpg" for name in NAMES)
