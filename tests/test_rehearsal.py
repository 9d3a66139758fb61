"""Rehearsals: few of the real images, by the very readers, recipes and evaluations of the paper's
tier, kept apart from it; and what they say the full run will cost."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate import semisup
from pretrain.recipes import common, moco
from protobench import records
from protobench.data import rehearsal
from protobench.data.boxes import BoxList, Objects
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.rehearsal import Limits
from protobench.runtime.errors import UserError


def _images(paths, labels, classes, root):
    return ImageList("some", root, tuple(paths), np.array(labels), tuple(classes))


# Data ---------------------------------------------------------------------------------------------


def test_the_images_whose_names_come_first_are_kept_in_the_order_of_the_list(tmp_path):
    images = _images(["b3", "a2", "b1", "a1", "c1", "b2"], [1, 0, 1, 0, 2, 1], "abc", tmp_path)
    few = rehearsal.few(images, 2, 1)
    assert (few.paths, few.labels.tolist(), few.classes) == (("b1", "a1"), [1, 0], ("a", "b"))
    assert few.rehearsed_of == 6
    assert rehearsal.few(images, None, 2).paths == ("a2", "b1", "a1", "c1", "b2")


def test_of_images_with_several_labels_every_class_gets_its_share(tmp_path):
    labels = [[1, -1, -1], [1, 0, -1], [-1, 1, 1], [-1, 1, -1]]
    images = _images(["1", "2", "3", "4"], labels, "abc", tmp_path)
    few = rehearsal.few(images, 2, 1)
    assert few.paths == ("1", "3")
    assert few.labels.tolist() == [[1, -1], [-1, 1]]
    with pytest.raises(UserError, match="some has no image of b"):
        rehearsal.few(images.subset(np.array([0, 1])), None, 1)


def test_objects_of_classes_left_out_are_left_out_too(tmp_path):
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    objects = Objects(9, 9, boxes, np.array([2, 0, 1]), np.zeros(3, bool), ("m2", "m0", "m1"))
    images = BoxList(
        "boxes", tmp_path, ("1",), np.array([[1, 1, 1]]), tuple("abc"), objects=(objects,)
    )
    (kept,) = rehearsal.few(images, 2, 1).objects
    assert (kept.labels_N.tolist(), kept.masks) == ([0, 1], ("m0", "m1"))
    assert kept.boxes_N4.tolist() == boxes[1:].tolist()


def test_a_rehearsal_folder_is_read_as_the_root_it_names(world, tmp_path):
    rehearsal.write(tmp_path, world, Limits(5, 2, 1))
    train, test = DATASETS["imagenet"].read_both(tmp_path)
    whole, _ = DATASETS["imagenet"].read_both(world)
    assert (len(train), len(test), train.classes) == (10, 5, whole.classes[:5])
    assert (train.root, train.rehearsed_of) == (whole.root, len(whole))
    assert DATASETS["imagenet"].training_images(tmp_path).paths == train.paths
    assert set(train.paths) <= set(whole.paths)
    voc, _ = DATASETS["voc07"].read_both(tmp_path)
    assert ((voc.labels == 1).sum(0) >= 2).all()


def test_a_damaged_rehearsal_folder_is_named(tmp_path):
    (tmp_path / rehearsal.FILE).write_text('{"source": 3}')
    with pytest.raises(UserError, match="not what a rehearsal writes"):
        DATASETS["imagenet"].read_both(tmp_path)


def test_nothing_of_a_rehearsal_has_a_real_run_s_key_even_where_it_takes_every_image(
    world, tmp_path
):
    rehearsal.write(tmp_path, world, Limits(None, 10_000, 10_000))
    for name in ("imagenet", "voc07"):
        whole, few = (DATASETS[name].training_images(root) for root in (world, tmp_path))
        assert few.paths == whole.paths
        assert few.fingerprint != whole.fingerprint
        assert few.cache_key != whole.cache_key  # of features and pictures
    whole, few = (DATASETS["imagenet"].training_images(root) for root in (world, tmp_path))
    assert common.run_key(moco.MINI, whole, 1) != common.run_key(moco.MINI, few, 1)
    assert "rehearsal" not in records.data_of("imagenet", (whole,))
    assert records.data_of("imagenet", (few,))["rehearsal"] == {"of": len(whole)}


def test_fine_tuning_takes_all_of_a_rehearsal_s_images(tmp_path):
    images = replace(_images("abcd", [0, 0, 1, 1], "xy", tmp_path), rehearsed_of=400)
    assert semisup._subset(images, None, {"percent": 1, "seed": 0}, 0).tolist() == [0, 1, 2, 3]
