"""Images with boxes: the bundled scenes, VOC's annotations and COCO's files, and what is refused
of them."""

import json
import shutil
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from conftest import SCENES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluate.mmdet_adapter import scoring
from evaluate.mmdet_adapter.training import Detections, bitmap, run_lengths
from protobench.data import coco, decoding, voc, voc_boxes
from protobench.data.boxes import BoxList, presence
from protobench.data.datasets import DATASETS
from protobench.data.rle import decoded
from protobench.data.synthetic import bundled, scenes
from protobench.runtime.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask", reason="needs the extra detection")


@pytest.fixture(scope="module")
def drawer():
    return bundled.World(1)


@pytest.fixture
def kit(scene_data, tmp_path) -> Path:
    """A copy that may be spoilt."""
    shutil.copytree(scene_data, tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    return tmp_path / "data"


# Scenes -------------------------------------------------------------------------------------------


def test_a_scene_depends_on_its_number_alone_and_splits_differ(drawer):
    image, things = scenes.scene(drawer, "voc2007-test", 5)
    again, same = scenes.scene(bundled.World(1), "voc2007-test", 5)
    np.testing.assert_array_equal(image, again)
    assert [thing.box for thing in things] == [thing.box for thing in same]
    assert not np.array_equal(image, scenes.scene(drawer, "voc2007-trainval", 5)[0])


def test_objects_lie_inside_overlap_nowhere_and_are_seen(drawer):
    counts = []
    for number in range(60):
        image, things = scenes.scene(drawer, "voc2012-trainval", number)
        height, width = image.shape[:2]
        assert (width, height) in scenes.SIZES
        assert sum(thing.mask.astype(int) for thing in things).max() == 1, (
            "a pixel belongs to one object"
        )
        for thing in things:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 < width
            assert 0 <= y1 < y2 < height
        counts.append(len(things))
    assert set(counts) == {1, 2, 3, 4}
    assert any(
        thing.difficult
        for number in range(60)
        for thing in scenes.scene(drawer, "voc2012-trainval", number)[1]
    )


def test_the_top_object_hides_the_one_below():
    below, above = np.zeros((8, 8)), np.zeros((8, 8))
    below[:4, :6], above[2:6, 2:8] = 1, 1
    first, second = scenes._masks([below, above], 8, 6)
    assert second.sum() == 24
    assert first.sum() == 24 - 8
    assert scenes._visible_shares([below, above], 8, 6) == pytest.approx([16 / 24, 1])
    assert scenes._visible_shares([below, above], 8, 3) == pytest.approx([14 / 24, 0]), (
        "two rows at the border are not seen"
    )


def test_train_and_test_scenes_share_no_object(drawer, monkeypatch):
    asked = set()
    instances = bundled.World.instances
    monkeypatch.setattr(
        bundled.World,
        "instances",
        lambda self, split, category: (asked.add((kind, split)), instances(self, split, category))[
            1
        ],
    )
    for kind in ("voc2007-trainval", "voc2012-trainval", "voc2007-test", "coco-train", "coco-val"):
        scenes.scene(drawer, kind, 0)
    assert asked == {
        ("voc2007-trainval", "voc-trainval"),
        ("voc2012-trainval", "voc-trainval"),
        ("voc2007-test", "voc-test"),
        ("coco-train", "voc-trainval"),
        ("coco-val", "voc-test"),
    }


def test_run_lengths_are_pycocotools():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((7, 5)) < 0.5
        encoded = {"size": [7, 5], "counts": scenes._run_lengths(mask)}
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.frPyObjects(encoded, 7, 5)), mask)


def test_a_folder_of_embedded_data_is_bundled_data(scene_data, tmp_path):
    assert all(
        bundled.is_used(folder)
        for folder in (None, scene_data, scene_data / "coco", scene_data / "VOCdevkit" / "VOC2007")
    )
    assert not bundled.is_used(tmp_path)


def test_the_other_bundled_data_means_the_scenes(scene_data, world, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "ensure", lambda **_: scene_data.parent)
    assert scenes.root_of(scene_data) == scene_data
    assert scenes.root_of(tmp_path) == tmp_path
    assert scenes.root_of(None) == scenes.root_of(world) == scene_data.parent


# VOC ----------------------------------------------------------------------------------------------


def test_voc_is_read_with_boxes_from_0(scene_data):
    train, test = DATASETS["voc07"].read_both_with_boxes(scene_data)
    assert (len(train), len(test)) == (SCENES["voc2007-trainval"], SCENES["voc2007-test"])
    image, things = scenes.scene(bundled.World(1), "voc2007-test", 3)
    assert test.objects[3].boxes_N4.tolist() == [list(thing.box) for thing in things]
    assert test.objects[3].ignored_N.tolist() == [thing.difficult for thing in things]
    assert [test.classes[label] for label in test.objects[3].labels_N] == [
        bundled.CATEGORIES[thing.category] for thing in things
    ]
    assert test.sized(3).shape == image.shape
    plain = voc.read(scene_data, "test")
    np.testing.assert_array_equal(test.labels, plain.labels)
    assert test.classes == plain.classes


def test_voc07_and_12_follow_one_another(scene_data):
    train, _ = DATASETS["voc07"].read_both_with_boxes(scene_data)
    both, _ = DATASETS["voc07+12"].read_both_with_boxes(scene_data)
    assert (
        len(both)
        == SCENES["voc2007-trainval"] + SCENES["voc2012-trainval"]
        == len(both.objects)
        == len(both.labels)
    )
    assert both.paths[: len(train)] == train.paths
    assert both.paths[-1].startswith("VOC2012/")
    assert both.sized(len(both) - 1).shape[:2] == (both.objects[-1].height, both.objects[-1].width)
    assert both.fingerprint != train.fingerprint


def test_boxes_are_part_of_the_fingerprint(kit):
    before = voc_boxes.read(kit, 2007, "test")
    path = kit / "VOCdevkit/VOC2007/Annotations" / (Path(before.paths[0]).stem + ".xml")
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert voc_boxes.read(kit, 2007, "test").fingerprint != before.fingerprint


def test_subsets_keep_images_and_objects_together(scene_data):
    test = voc_boxes.read(scene_data, 2007, "test")
    some = test.subset(np.array([4, 1]))
    assert isinstance(some, BoxList)
    assert some.paths == (test.paths[4], test.paths[1])
    assert some.objects == (test.objects[4], test.objects[1])
    np.testing.assert_array_equal(some.labels, presence(list(some.objects), 20))


def test_unreadable_images_are_left_out_with_their_objects(kit):
    test = voc_boxes.read(kit, 2007, "test")
    (test.root / test.paths[2]).write_bytes(b"no jpeg")
    (kept,) = decoding.leave_out((test,), 1)
    assert kept.unreadable == (test.paths[2],)
    assert kept.objects == test.objects[:2] + test.objects[3:]


def test_an_image_of_another_size_than_its_annotation_is_refused(kit):
    test = voc_boxes.read(kit, 2007, "test")
    Image.new("RGB", (50, 40)).save(test.root / test.paths[0])
    with pytest.raises(UserError, match=r"50 x 40 pixels, its annotation says 1?\d\d x 1?\d\d"):
        test.sized(0)


WHOLE = """<annotation>
  <size><width>100</width><height>50</height><depth>3</depth></size>
  <object><name>cat</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
    <bndbox><xmin>1</xmin><ymin>2.7</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
  <object><name>dog</name><difficult>1</difficult>
    <bndbox><xmax>9</xmax><ymax>9</ymax><xmin>3</xmin><ymin>4</ymin></bndbox></object>
</annotation>"""


def test_an_annotation_is_read_as_mmdetection_reads_it(tmp_path):
    """Minus one, truncated; parts of a person are no objects; the difficult flag may be missing."""
    (tmp_path / "a.xml").write_text(WHOLE)
    found = voc_boxes.objects(tmp_path / "a.xml", {"cat": 3, "dog": 1})
    assert (found.width, found.height) == (100, 50)
    assert found.boxes_N4.tolist() == [[0, 1, 99, 49], [2, 3, 8, 8]]
    assert found.labels_N.tolist() == [3, 1]
    assert found.ignored_N.tolist() == [False, True]


@pytest.mark.parametrize(
    ("written", "ignored"),
    [
        ("", False),
        ("<difficult/>", False),
        ("<difficult></difficult>", False),
        ("<difficult> </difficult>", False),
        ("<difficult>Unspecified</difficult>", False),
        ("<difficult>0</difficult>", False),
        ("<difficult>1</difficult>", True),
        ("<difficult>1.0</difficult>", True),
    ],
)
def test_an_object_is_difficult_only_where_its_annotation_says_so(tmp_path, written, ignored):
    """labelme's labelme2voc leaves the element empty, CVAT writes Unspecified, others leave it
    out."""
    (tmp_path / "a.xml").write_text(WHOLE.replace("<difficult>1</difficult>", written))
    assert voc_boxes.objects(tmp_path / "a.xml", {"cat": 0, "dog": 1}).ignored_N.tolist() == [
        False,
        ignored,
    ]


LABELME = """<annotation>
  <folder/><filename>a.jpg</filename><database/><annotation/><image/>
  <size><height>50</height><width>100</width><depth>3</depth></size><segmented/>
  <object><name>dog</name><pose/><truncated/><difficult/>
    <bndbox><xmin>12.5</xmin><ymin>4.999</ymin><xmax>60.25</xmax><ymax>40.0</ymax></bndbox></object>
</annotation>"""

LABELIMG = """<?xml version="1.0" ?>
<annotation verified="yes">
	<folder>Bilder é</folder><filename>a.jpg</filename><path>C:\\Bilder é\\a.jpg</path>
	<!-- checked twice -->
	<source><database>Unknown</database></source>
	<size><width>100</width><height>50</height><depth>3</depth></size><segmented>0</segmented>
	<object><name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
		<bndbox><xmin>12</xmin><ymin>4</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
</annotation>
"""

CHALLENGE = """<annotation><folder>VOC2007</folder><filename>000005.jpg</filename>
	<source><database>The VOC2007 Database</database>
	<annotation>PASCAL VOC2007</annotation><image>flickr</image></source>
	<owner><flickrid>archintent louisville</flickrid><name>?</name></owner>
	<size><width>100</width><height>50</height><depth>3</depth></size><segmented>0</segmented>
	<object><name>dog</name><pose>Rear</pose><truncated>0</truncated><difficult>0</difficult>
		<bndbox><xmin>12</xmin><ymin>4</ymin><xmax>60</xmax><ymax>40</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>20</xmin><ymin>5</ymin><xmax>30</xmax><ymax>9</ymax></bndbox></part></object>
</annotation>"""


@pytest.mark.parametrize(
    "content",
    [
        LABELME.encode(),
        LABELIMG.encode(),
        CHALLENGE.encode(),
        b"\xef\xbb\xbf" + LABELIMG.encode(),
        LABELIMG.encode("utf-16"),
        LABELIMG.replace("?>", 'encoding="iso-8859-1"?>').encode("latin-1"),
        LABELIMG.replace("\n", "\r\n").encode(),
        LABELIMG.replace("?>", 'encoding="windows-1252"?>').encode("cp1252"),
    ],
)
def test_the_same_box_is_read_whatever_tool_wrote_it(tmp_path, content):
    """Fractions are cut off as in MMDetection, which takes int(float(text))."""
    (tmp_path / "a.xml").write_bytes(content)
    found = voc_boxes.objects(tmp_path / "a.xml", {"cat": 0, "dog": 1})
    assert found.content == [100, 50, [[11, 3, 59, 39]], [1], [False], []]


@pytest.mark.parametrize("encoding", ["gb2312", "nonsense"])
def test_an_encoding_that_cannot_be_read_is_told(tmp_path, encoding):
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>' + WHOLE)
    with pytest.raises(UserError, match="in an encoding that cannot be read") as mistake:
        voc_boxes.objects(tmp_path / "a.xml", {"cat": 0, "dog": 1})
    assert "UTF-8" in str(mistake.value.hint)


def test_a_box_that_counts_from_0_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.xml").write_text(LABELME.replace("12.5", "0.5"))
    with pytest.raises(UserError, match="VOC counts pixels from 1, some tools from 0"):
        voc_boxes.objects(tmp_path / "a.xml", {"dog": 1})


@pytest.mark.parametrize(
    ("old", "new", "told", "line"),
    [
        ("<name>dog</name>", "<name>wolf</name>", "unknown class 'wolf'", ""),
        ("<xmin>3</xmin>", "<xmin>9</xmin>", "an empty box of a dog: [9, 4, 9, 9]", ""),
        ("<ymin>4</ymin>", "<ymin>12</ymin>", "an empty box", ""),
        ("<xmax>100</xmax>", "<xmax>102</xmax>", "reaches beyond the image of 100 x 50", ""),
        ("<xmin>1</xmin><ymin>2.7", "<xmin>0</xmin><ymin>2.7", "of a cat reaches beyond", ""),
        ("<ymax>9</ymax>", "<ymax>nine</ymax>", "<ymax> must hold a number, not 'nine'", ""),
        ("<ymax>9</ymax>", "<ymax>nan</ymax>", "must hold a number", ""),
        ("<ymax>9</ymax>", "", "<bndbox> has 0 <ymax>, not one", ""),
        ("<difficult>1", "<difficult>2", "difficult must be 0 or 1", ""),
        ("<difficult>1", "<difficult>perhaps", "<difficult> must hold a number, not 'perhaps'", ""),
        ("<width>100</width>", "<width>0</width>", "an image of 0 x 50", ""),
        ("<size>", "<sise>", "mismatched tag", ", line 2"),
        ("</annotation>", "", "no element found", ", line 7"),
        ("<annotation>", "<html>", "mismatched tag", ", line 7"),
    ],
)
def test_what_is_wrong_in_an_annotation_is_told_with_its_file(tmp_path, old, new, told, line):
    assert old in WHOLE
    (tmp_path / "a.xml").write_text(WHOLE.replace(old, new, 1))
    with pytest.raises(UserError) as mistake:
        voc_boxes.objects(tmp_path / "a.xml", {"cat": 0, "dog": 1})
    assert told in mistake.value.what
    assert str(mistake.value.at) == f"{tmp_path / 'a.xml'}{line}"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "document type",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x "'
            + "y" * 1000
            + '">]><annotation>'
            + "&x;" * 9
            + "</annotation>",
            "document type",
        ),
        ("<annotation>" + " " * 1_000_001 + "</annotation>", "more than 1,000,000 bytes"),
        ("<annotation>&amp;&undefined;</annotation>", "undefined entity"),
        ("<html/>", "the root element is <html>"),
        ("", "no element found"),
        ("\x00\x01", "not well-formed"),
    ],
)
def test_hostile_and_foreign_xml_is_refused(tmp_path, content, told):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UserError, match=told):
        voc_boxes.objects(tmp_path / "a.xml", {"cat": 0})


def test_missing_parts_of_voc_are_named(kit):
    voc2007 = kit / "VOCdevkit" / "VOC2007"
    test = voc_boxes.read(kit, 2007, "test")
    (voc2007 / "Annotations" / f"{Path(test.paths[3]).stem}.xml").unlink()
    with pytest.raises(UserError, match="cannot read this annotation") as mistake:
        voc_boxes.read(kit, 2007, "test")
    assert Path(test.paths[3]).stem in str(mistake.value.at)
    (voc2007 / "Annotations" / f"{Path(test.paths[0]).stem}.xml").unlink()
    with pytest.raises(UserError, match="test images have no annotations") as mistake:
        voc_boxes.read(kit, 2007, "test")
    assert "separate download" in str(mistake.value.hint)
    shutil.rmtree(kit / "VOCdevkit" / "VOC2012" / "ImageSets")
    with pytest.raises(UserError, match="no VOC2012 here"):
        voc_boxes.read(kit, 2012, "trainval")
    (voc2007 / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(UserError, match="VOC2007 has no test list"):
        voc_boxes.read(kit, 2007, "test")
    shutil.rmtree(voc2007 / "Annotations")
    with pytest.raises(UserError, match="no Annotations folder"):
        voc_boxes.read(kit, 2007, "trainval")
    shutil.rmtree(voc2007 / "ImageSets")
    with pytest.raises(UserError, match="no VOCdevkit here"):
        voc_boxes.read(kit, 2007, "trainval")


# COCO ---------------------------------------------------------------------------------------------


def test_coco_is_read_with_masks(scene_data):
    train, val = coco.DATASET.read_both(scene_data)
    assert (len(train), len(val)) == (SCENES["coco-train"], SCENES["coco-val"])
    _, things = scenes.scene(bundled.World(1), "coco-val", 2)
    objects = val.objects[2]
    for thing, box, mask in zip(things, objects.boxes_N4, objects.masks, strict=True):
        x1, y1, x2, y2 = thing.box
        assert box.tolist() == [x1, y1, x2 + 1, y2 + 1]
        np.testing.assert_array_equal(bitmap(mask, objects), thing.mask)
    assert coco.read(scene_data / "coco", "val").fingerprint == val.fingerprint


def changed(kit: Path, split: str, change) -> Path:
    path = kit / "coco" / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_polygons_crowds_gaps_in_ids_and_empty_images(kit):
    def change(content):
        first, second, third = content["images"][:3]
        content["images"] = [third, second, first]
        content["categories"] = [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}]
        square = {
            "image_id": second["id"],
            "category_id": 90,
            "id": 1,
            "bbox": [2, 1, 3, 2],
            "iscrowd": 0,
            "segmentation": [[2, 1, 5, 1, 5, 3, 2, 3]],
        }
        runs = {
            "size": [second["height"], second["width"]],
            "counts": [4, 2, second["height"] * second["width"] - 6],
        }
        crowd = square | {"id": 2, "category_id": 7, "iscrowd": 1, "segmentation": runs}
        content["annotations"] = [square, crowd]

    for split in ("train", "val"):
        changed(kit, split, change)
    train, val = coco.read(kit, "train"), coco.read(kit, "val")
    assert train.classes == ("train", "toothbrush"), "in the order of ids"
    assert (len(train), len(val)) == (1, 3), "images without an object are only tested on"
    (objects,) = train.objects
    assert objects.labels_N.tolist() == [1, 0]
    assert objects.ignored_N.tolist() == [False, True]
    expected = np.zeros((objects.height, objects.width), int)
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(bitmap(objects.masks[0], objects), expected)
    assert bitmap(objects.masks[1], objects).sum() == 2
    assert [len(of) for of in val.objects] == [0, 2, 0]
    assert train.labels.tolist() == [[0, 1]]


def lengths(mask: np.ndarray) -> list[int]:
    """Of runs down the columns, by itertools; the first one is of 0."""
    runs = [(bit, len(list(group))) for bit, group in groupby(mask.T.ravel().tolist())]
    return [0] * runs[0][0] + [length for _, length in runs]


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    bits = data.draw(st.integers(0, 2 ** (height * width) - 1))
    mask = np.array([bits >> i & 1 for i in range(height * width)], np.uint8).reshape(height, width)
    written = coco_mask.encode(np.asfortranarray(mask))
    runs = decoded(written["counts"].decode())
    assert runs == lengths(mask)
    assert (
        coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width) == written
    )


def test_great_run_lengths_and_steps_down_are_read():
    mask = np.zeros((700, 900), np.uint8, order="F")
    mask[:, 10], mask[5:8, 20:600], mask[-1, -1] = 1, 1, 1
    assert decoded(coco_mask.encode(mask)["counts"].decode()) == lengths(mask)


@settings(deadline=None, derandomize=True)
@given(
    st.text(max_size=30) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30)
)
def test_any_text_is_run_lengths_or_refused(text):
    with suppress(ValueError):  # any other exception fails
        assert all(isinstance(run, int) for run in decoded(text))


def as_text(counts: list[int], height: int, width: int) -> str:
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)[
        "counts"
    ].decode()


def test_a_region_is_the_same_as_polygon_and_in_both_run_lengths(kit):
    """Same pixels, area and AP; both run lengths give the very same objects, so that the
    fingerprint stays."""

    def change(spelling):
        def of(content):
            image = content["images"][0]
            height, width = image["height"], image["width"]
            mask = np.zeros((height, width), bool)
            mask[10:40, 20:60] = True
            runs = scenes._run_lengths(mask)
            masks = {
                "polygon": [[20, 10, 60, 10, 60, 40, 20, 40]],
                "list": {"size": [height, width], "counts": runs},
                "text": {"size": [height, width], "counts": as_text(runs, height, width)},
            }
            content["annotations"] = [
                {
                    "id": 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [20, 10, 40, 30],
                    "iscrowd": 0,
                    "segmentation": masks[spelling],
                }
            ]

        return of

    found, half = {}, np.zeros((200, 200), np.uint8)
    half[10:40, 20:54] = 1
    for spelling in ("polygon", "list", "text"):
        changed(kit, "val", change(spelling))
        val = coco.read(kit, "val")
        (mask,), objects = val.objects[0].masks, val.objects[0]
        seen = coco_mask.encode(np.asfortranarray(half[: objects.height, : objects.width]))
        detected = Detections(
            objects.boxes_N4, np.array([0.9], np.float32), objects.labels_N, (seen,)
        )
        nothing = Detections(objects.boxes_N4[:0], np.zeros(0, np.float32), objects.labels_N[:0])
        score = scoring.coco([detected] + [nothing] * (len(val) - 1), val)
        found[spelling] = (
            bitmap(mask, objects).tolist(),
            coco_mask.area(run_lengths(mask, objects)),
            score,
            objects.content,
        )
    assert found["text"] == found["list"]
    assert found["text"][:3] == found["polygon"][:3]
    assert found["text"][1] == 30 * 40
    assert found["text"][2]["mask"] == pytest.approx(80, abs=0.01), (
        "an IoU of 0.85 passes 8 of the 10 thresholds"
    )


def test_compressed_masks_and_whole_floats_change_nothing_else(kit):
    """All masks as pycocotools' text, all whole numbers as 96.0, true for 1, no iscrowd, a
    keypoint's fields."""

    def change(content):
        for image in content["images"]:
            image.update(
                width=float(image["width"]), height=float(image["height"]), id=float(image["id"])
            )
        for category in content["categories"]:
            category["id"] = float(category["id"])
        for number, annotation in enumerate(content["annotations"]):
            mask = annotation["segmentation"]
            mask["counts"] = (
                as_text(mask["counts"], *mask["size"]),
                list(map(float, mask["counts"])),
            )[number % 2]
            mask["size"] = list(map(float, mask["size"]))
            annotation |= {
                "iscrowd": (0.0, False)[number % 2],
                "num_keypoints": 1,
                "keypoints": [1, 2, 2],
            }
            if number % 3 == 0:
                del annotation["iscrowd"]

    before = coco.read(kit, "val")
    changed(kit, "val", change)
    after = coco.read(kit, "val")
    assert after.fingerprint == before.fingerprint
    assert {type(of.width) for of in after.objects} == {int}


def test_leftovers_beside_cocos_files_are_no_data(kit):
    before = coco.DATASET.read_both(kit)
    for folder in ("annotations", "train2017", "val2017"):
        for name in (
            ".DS_Store",
            "Thumbs.db",
            "._instances_train2017.json",
            "._000000000001.jpg",
            "instances_val2017.json~",
        ):
            (kit / "coco" / folder / name).write_bytes(b"\0\5\26\7")
        (kit / "coco" / folder / "@eaDir").mkdir()
    assert [images.fingerprint for images in coco.DATASET.read_both(kit)] == [
        images.fingerprint for images in before
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["annotations"][4].update(category_id=99),
            r"annotation 5: category 99 is not among",
        ),
        (lambda c: c["annotations"][4].update(image_id=-1), r"annotation 5: image -1 is not among"),
        (lambda c: c["annotations"][4].update(bbox=[1, 2, -1, 5]), r"annotation 5: no box"),
        (
            lambda c: c["annotations"][4].update(bbox=[1, 2, float("nan"), 5]),
            r"annotation 5: no box",
        ),
        (
            lambda c: c["annotations"][4].update(iscrowd="0"),
            r"annotation 5: iscrowd must be 0 or 1",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[[1, 2, 3, 4, None, 6]]),
            r"annotation 5: its mask is not .*polygon",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[[1, 2, 3, 4, 1e9, 6]]),
            r"annotation 5: its mask is not .*polygon",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[[1, 2, 3, 4]]),
            r"annotation 5: its mask is not .*polygon",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
            r"annotation 5: its mask is not .*polygon",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts=[5, 5]),
            r"annotation 5: its run lengths are not of an image",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts=[-5, 5]),
            r"annotation 5: its run lengths",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts="PPPP"),
            r"annotation 5: its run lengths",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts="PPPP"),
            r"compressed run lengths that are truncated",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts="a b"),
            r"annotation 5: .* the character ' ' does not occur",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts="11"),
            r"annotation 5: .* they add up to 2, not 12288",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts=[0.5, 5]),
            r"annotation 5: .* whole numbers from 0, not 0\.5",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(counts=7),
            r"annotation 5: .* a list or text, not '7'",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].pop("counts"),
            r"annotation 5: .* a list or text, not 'None'",
        ),
        (
            lambda c: c["annotations"][4]["segmentation"].update(size=[5, 5]),
            r"annotation 5: its run lengths",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[1, 2, 3, 4, 5, 6]),
            r"annotation 5: its mask is not a list of polygons",
        ),
        (
            lambda c: c["annotations"][4].update(segmentation=[["1", "2", "3", "4", "5", "6"]]),
            "annotation 5: its mask is not .*polygon",
        ),
        (
            lambda c: c["annotations"][4].update(bbox=["1", "2", "3", "4"]),
            r"annotation 5: no box of four numbers: \['1'",
        ),
        (lambda c: c["annotations"][4].pop("bbox"), r"annotation 5: no box of four numbers: None"),
        (
            lambda c: c["annotations"][4].update(image_id="4"),
            r"annotation 5: image '4' is not among",
        ),
        (
            lambda c: c["annotations"][4].update(iscrowd=0.5),
            r"annotation 5: iscrowd must be 0 or 1, not 0.5",
        ),
        (
            lambda c: c["categories"][0].update(id=1.5),
            "the category id 1.5 is neither a whole number nor text",
        ),
        (lambda c: c["images"][0].update(id="a"), "some image ids are numbers and others text"),
        (
            lambda c: c["images"][0].update(width=96.5),
            "image 0 is 96.5 x .*; both must be whole numbers above 0",
        ),
        (lambda c: c["images"][0].update(width=True), "image 0 is True x"),
        (
            lambda c: c["annotations"][4].update(segmentation=[[10**400] * 6]),
            "not COCO's instances: OverflowError",
        ),
        (lambda c: c["annotations"][4].update(bbox=[1, 2, 3]), "not COCO's instances: ValueError"),
        (lambda c: c["annotations"][4].update(segmentation=[]), "annotation 5: it has no mask"),
        (lambda c: c["images"][0].update(width="wide"), "image 0 is wide x"),
        (lambda c: c["images"].append(c["images"][0]), "the same id"),
        (lambda c: c.pop("categories"), "not COCO's instances: KeyError 'categories'"),
        (lambda c: c.update(annotations=[]), "no image with an object"),
    ],
)
def test_what_is_wrong_in_coco_is_told(kit, change, told):
    path = changed(kit, "train", change)
    with pytest.raises(UserError, match=told) as mistake:
        coco.read(kit, "train")
    assert mistake.value.at == path


def test_the_published_boxes_without_height_are_no_targets(kit, capsys):
    """Annotation 918 of instances_train2017.json; and one that lies beside its image."""
    flat = {
        "id": 918,
        "iscrowd": 0,
        "area": 0.0,
        "bbox": [6.65, 8.33, 1.03, 0.0],
        "segmentation": [[6.65, 8.33, 6.65, 8.33, 7.68, 8.33, 7.68, 8.33]],
    }
    beside = flat | {
        "id": 919,
        "bbox": [500, 5, 20, 20],
        "segmentation": [[500, 5, 520, 5, 520, 25]],
    }

    def change(content):
        content["annotations"] += [
            odd | {"image_id": 3, "category_id": 1} for odd in (flat, beside)
        ]

    before = coco.read(kit, "train")
    changed(kit, "train", change)
    after = coco.read(kit, "train")
    assert "2 objects less than a pixel wide or high are left out" in capsys.readouterr().out
    assert after.fingerprint == before.fingerprint
    changed(kit, "val", change)
    known = scenes.scene(bundled.World(1), "coco-val", 3)[1]
    assert len(coco.read(kit, "val").objects[3]) == len(known) + 2, "scored as told"


def test_polygons_are_not_rounded_to_single_precision(kit):
    """2.6 is 13 fifths of a pixel; in float32 it is less."""
    polygon = [[2.6, 3.1, 30.3, 3.7, 29.9, 22.3, 4.1, 20.7]]
    changed(kit, "val", lambda content: content["annotations"][0].update(segmentation=polygon))
    content = json.loads((kit / "coco" / "annotations" / "instances_val2017.json").read_text())
    image = next(
        image for image in content["images"] if image["id"] == content["annotations"][0]["image_id"]
    )
    objects = coco.read(kit, "val").objects[image["id"]]
    direct = coco_mask.decode(
        coco_mask.merge(coco_mask.frPyObjects(polygon, image["height"], image["width"]))
    )
    np.testing.assert_array_equal(bitmap(objects.masks[0], objects), direct)


def test_missing_parts_of_coco_are_named(kit):
    changed(kit, "val", lambda content: content["categories"][0].update(name="unicorn"))
    with pytest.raises(UserError, match="different classes: unicorn"):
        coco.DATASET.read_both(kit)
    path = kit / "coco" / "annotations" / "instances_val2017.json"
    path.write_text('{"images": [],\n "cut')
    with pytest.raises(UserError, match="not JSON") as mistake:
        coco.read(kit, "val")
    assert str(mistake.value.at) == f"{path}, line 2"
    path.unlink()
    with pytest.raises(UserError, match="no COCO annotations of val2017"):
        coco.read(kit, "val")
    shutil.rmtree(kit / "coco" / "train2017")
    with pytest.raises(UserError, match="no folder train2017"):
        coco.read(kit, "train")
    with pytest.raises(UserError, match="no such folder"):
        coco.read(kit / "nowhere", "val")
