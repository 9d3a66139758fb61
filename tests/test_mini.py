import hashlib
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

from evaluate import lowshot
from pretrain import command as pretrain
from pretrain.recipes import moco, untrained
from protobench.data import image_list, places, voc
from protobench.data.synthetic import bundled, manifest
from protobench.data.synthetic.sprites import CATEGORIES, SHAPES, TEXTURES, shape, texture
from protobench.runtime.errors import UserError


@pytest.fixture(scope="module")
def drawer():
    return bundled.World(1)


def test_pixels_are_the_same_on_every_machine(drawer):
    """The pixels before JPEG, so that the test does not depend on Pillow's version."""
    digest = hashlib.sha256()
    for number in range(40):
        digest.update(drawer.one_object("imagenet-train", number)[0].tobytes())
        digest.update(drawer.objects("voc-test", number)[0].tobytes())
        digest.update(drawer.scene("places-val", number)[0].tobytes())
    assert digest.hexdigest()[:16] == "f3ab5e0b720a734c"


def test_an_image_depends_on_its_number_alone(drawer):
    again = bundled.World(1)
    np.testing.assert_array_equal(drawer.objects("voc-test", 7)[0], again.objects("voc-test", 7)[0])


def test_worlds_are_different_draws(drawer):
    other = bundled.World(2)
    assert not np.array_equal(
        drawer.one_object("imagenet-train", 0)[0], other.one_object("imagenet-train", 0)[0]
    )


@pytest.mark.parametrize("category", range(len(CATEGORIES)))
def test_no_world_evaluates_on_an_object_of_another_one_s_pretraining(drawer, category):
    other = bundled.World(2)
    seen, tested = (
        {
            world.masks[category][i].tobytes()
            for split in splits
            for i in world.instances(split, category)
        }
        for world, splits in (
            (drawer, ["imagenet-train"]),
            (other, [split for split in bundled.SHARES if split != "imagenet-train"]),
        )
    )
    assert seen.isdisjoint(tested)


def test_missing_worlds_are_made_in_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "SPLITS", dict.fromkeys(TINY, 20))
    roots = bundled.ensure_all([3, 1, 3])
    assert sorted(roots) == [1, 3]
    assert [bundled.world_of(root / "imagenet" / "val") for root in roots.values()] == [1, 3]
    assert len({manifest.verify(root) for root in roots.values()}) == 2
    (kind,) = {bundled.kind_of(root) for root in roots.values()}
    assert kind.startswith(f"v{bundled.VERSION}-")
    assert kind != bundled.kind_of(bundled.ensure(tmp_path / "other", dict.fromkeys(TINY, 40)))
    with pytest.raises(UserError, match="no bundled world -1"):
        bundled.ensure(world=-1)


def test_two_generations_are_equal_byte_for_byte(world, tmp_path):
    other = bundled.ensure(tmp_path / "again", TINY)
    assert manifest.verify(other) == manifest.verify(world)


@pytest.mark.parametrize("category", range(len(CATEGORIES)))
def test_no_sprite_instance_is_in_two_of_the_disjoint_splits(drawer, category):
    parts = [
        set(drawer.instances(split, category).tolist())
        for split in ("imagenet-train", "voc-trainval", "voc-test")
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(drawer.masks[category])


@pytest.fixture
def small(tmp_path):
    return bundled.ensure(tmp_path / "data", dict.fromkeys(TINY, 20))


def test_a_changed_file_is_found_and_named(small):
    victim = sorted(small.rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=victim.name):
        bundled.ensure(small, dict.fromkeys(TINY, 20))


def test_a_missing_and_an_added_file_are_found_and_named(small):
    victim = sorted(small.rglob("*.xml"))[3]
    victim.rename(victim.with_name("more.xml"))
    with pytest.raises(UserError, match=f"2 files, .*{victim.name}"):
        bundled.ensure(small, dict.fromkeys(TINY, 20))


def test_only_files_that_were_touched_are_read_again(small, monkeypatch):
    hashed, sha256_file = [], manifest.files.sha256_file
    monkeypatch.setattr(
        manifest.files, "sha256_file", lambda path: (hashed.append(path), sha256_file(path))[1]
    )
    fingerprint = manifest.verify(small)
    assert not hashed
    victim = sorted(small.rglob("*.jpg"))[3]
    os.utime(victim, (1, 1))
    for _ in range(2):  # the second time its new time is noted
        assert manifest.verify(small) == fingerprint
    assert hashed == [victim]
    (small / manifest.NOTE).unlink()
    manifest.verify(small)
    assert len(hashed) == 1 + len(manifest.read(small)["files"])


def test_a_change_under_the_same_size_and_time_is_found_once_the_note_is_gone(small):
    victim = sorted(small.rglob("*.jpg"))[3]
    state = victim.stat()
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    manifest.verify(small)
    (small / manifest.NOTE).unlink()
    with pytest.raises(UserError, match=victim.name):
        manifest.verify(small)


def test_fingerprints_are_those_of_the_files_themselves(small, tmp_path):
    shutil.copytree(small, tmp_path / "copy", copy_function=shutil.copyfile)  # of other times
    (tmp_path / "copy" / "manifest.json").unlink()
    for read in (places.read, voc.read):
        split = "train" if read is places.read else "trainval"
        ours, plain = read(small, split), read(tmp_path / "copy", split)
        assert ours.fingerprint == plain.fingerprint
    victim = ours.root / ours.paths[3]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert voc.read(small, "trainval").fingerprint != plain.fingerprint


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


def test_a_plan_trains_and_scores_every_seed_in_its_world(monkeypatch, tmp_path):
    from tables.engine import catalogue
    from tables.engine.jobs import plan

    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "SPLITS", dict.fromkeys(TINY, 160))
    jobs = plan.make_plan(
        catalogue.load("table1"),
        "quick",
        data=None,
        given={},
        rows=("random", "moco"),
        seeds=2,
        results=tmp_path / "results",
        runs=tmp_path / "runs",
    )
    assert [(job.row.name, job.seed, job.world) for job in jobs] == [
        (row, seed, seed) for row in ("random", "moco") for seed in (1, 2)
    ]
    config = plan.eval_config(jobs[1], jobs[1].tasks[0], data=None)
    assert (config.data, config.world, config.draws) == (None, 2, 20)
    lists = [lowshot.EVALUATION.load_data(None, "voc07", world=world) for world in (1, 2)]
    for job in jobs:
        result = lowshot.EVALUATION.result_key(
            "x", lists[job.seed - 1], plan.eval_config(job, job.tasks[0], data=None)
        )
        assert result.data != lists[2 - job.seed]
    assert len({task.key for job in jobs for task in job.tasks}) == 8


def test_by_hand_an_encoder_is_trained_and_scored_in_the_world_of_its_seed(
    command, monkeypatch, tmp_path
):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "SPLITS", dict.fromkeys(TINY, 200))
    train = replace(moco.MINI, train=replace(moco.MINI.train, epochs=1, batch_size=64), queue=64)
    trained, fresh = (
        pretrain.train(recipe, pretrain.Run(out=tmp_path / name, seed=seed, device="cpu"))
        for recipe, name, seed in ((train, "moco", 3), (untrained.MINI, "random", 2))
    )
    for encoder, flags, world in (
        (trained, (), 3),
        (fresh, (), 2),
        (trained, ("--world", 2), 2),
    ):
        code, out, err = command(
            lowshot.EVALUATION.main,
            *("--ckpt", encoder, "--dataset", "voc07", "--draws", 1, "--shots", 1, "--workers", 0),
            *(*flags, "--results", tmp_path / f"results-{encoder.parent.name}{len(flags)}"),
        )
        assert code == 0, err
        assert f"BUNDLED SYNTHETIC DATA, WORLD {world}:" in out
    code, _, err = command(
        lowshot.EVALUATION.main, "--ckpt", trained, "--data", tmp_path, "--world", 1
    )
    assert code == 2
    assert "--world is one of the bundled data" in err


def test_a_later_look_reads_only_the_worlds_that_are_new(monkeypatch, tmp_path):
    from tables.engine import catalogue
    from tables.engine.jobs import plan

    asked = []
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "SPLITS", dict.fromkeys(TINY, 20))
    monkeypatch.setattr(bundled, "ensure", lambda **of: asked.append(of["world"]) or tmp_path)
    monkeypatch.setattr(bundled, "usable", lambda: 1)
    how = {"data": None, "given": {}, "rows": ("random", "moco"), "results": tmp_path}
    table, seen = catalogue.load("table1"), plan.AlreadyRead()
    plan.make_plan(table, "quick", **how, runs=tmp_path, seeds=2, seen=seen)
    jobs = plan.make_plan(
        table, "quick", **how, runs=tmp_path, seeds=2, more_seeds={"moco": 3}, seen=seen
    )
    assert asked == [1, 2, 3]
    assert [job.world for job in jobs] == [1, 2, 1, 2, 3]
