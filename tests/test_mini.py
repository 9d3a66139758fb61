import hashlib

import numpy as np
import pytest
from conftest import TINY

from protobench.data import image_list, places, voc
from protobench.data.synthetic import bundled
from protobench.data.synthetic.sprites import CATEGORIES, SHAPES, TEXTURES, shape, texture
from protobench.runtime.errors import UserError


@pytest.fixture(scope="module")
def drawer():
    return bundled.World(bundled.SEED)


def test_pixels_are_the_same_on_every_machine(drawer):
    """The pixels before JPEG, so that the test does not depend on Pillow's version."""
    digest = hashlib.sha256()
    for number in range(40):
        digest.update(drawer.one_object("imagenet-train", number)[0].tobytes())
        digest.update(drawer.objects("voc-test", number)[0].tobytes())
        digest.update(drawer.scene("places-val", number)[0].tobytes())
    assert digest.hexdigest()[:16] == "8ec5400fe79e060b"


def test_an_image_depends_on_its_number_alone(drawer):
    again = bundled.World(bundled.SEED)
    np.testing.assert_array_equal(drawer.objects("voc-test", 7)[0], again.objects("voc-test", 7)[0])


def test_two_generations_are_equal_byte_for_byte(world, tmp_path):
    other = bundled.ensure(tmp_path / "again", TINY)
    assert bundled.verify(other) == bundled.verify(world)


@pytest.mark.parametrize("category", range(len(CATEGORIES)))
def test_no_sprite_instance_is_in_two_of_the_disjoint_splits(drawer, category):
    parts = [
        set(drawer.instances(split, category).tolist())
        for split in ("imagenet-train", "voc-trainval", "voc-test")
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(drawer.masks[category])


def test_a_changed_file_is_found_and_named(tmp_path):
    root = bundled.ensure(tmp_path / "data", dict.fromkeys(TINY, 20))
    victim = sorted(root.rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=victim.name):
        bundled.ensure(root, dict.fromkeys(TINY, 20))


def test_all_layouts_are_read_by_the_loaders_of_the_real_data(world):
    train = image_list.image_folder(world / "imagenet" / "train", "imagenet-train")
    assert np.bincount(train.labels).tolist() == [10] * 20
    test = voc.read(world, "test")
    assert test.labels.shape == (120, 20)
    assert set(np.unique(test.labels)) == {-1, 0, 1}, "difficult objects exist, as in the real data"
    val = places.read(world, "val")
    assert np.bincount(val.labels).tolist() == [6] * 10
    assert val.read(0).size == (bundled.SIZE, bundled.SIZE)


def test_annotations_hold_boxes_inside_the_image(drawer):
    for number in range(200):
        for thing in drawer.objects("voc-trainval", number)[1]:
            xmin, ymin, xmax, ymax = thing.box
            assert 1 <= xmin < xmax <= bundled.SIZE
            assert 1 <= ymin < ymax <= bundled.SIZE


def test_shapes_and_textures_fill_their_range():
    rng = np.random.default_rng(0)
    for name in SHAPES:
        mask = shape(name, rng)
        assert 0.08 < mask.mean() < 0.7, name
    for name in TEXTURES:
        pattern = texture(name, rng, 40)
        assert pattern.min() >= 0, name
        assert pattern.max() <= 1, name
        assert pattern.std() > 0.1, name
