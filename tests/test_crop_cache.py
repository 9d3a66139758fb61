"""Centre crops kept decoded: the very bytes of decoding, wherever they are read; stopped, shared by
processes, damaged."""

import multiprocessing
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pretrain import loop
from pretrain.augment import loader
from pretrain.command import Run, train
from pretrain.recipes import moco, pcl
from protobench import __main__ as protobench_command
from protobench import features
from protobench.checkpoints import encoders
from protobench.data import crop_cache, image_list, imagenet
from protobench.data.crop_cache import KeptCrops
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches
from protobench.data.transforms import EvalInput
from protobench.runtime import cache_use, files
from protobench.runtime.errors import UserError

INPUT = EvalInput(resize=40, crop=32)
ROW = 32 * 32 * 3


@pytest.fixture
def photos(tmp_path):
    """JPEG and PNG images of odd sizes, portrait and landscape, smaller than the crop too, grey,
    CMYK and with transparency."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for i in range(20):
        size = (30 + 7 * i, 170 - 6 * i)
        coarse = rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size).convert(("RGB", "L", "CMYK", "RGBA")[i % 4])
        image.save(folder / f"{i:02d}.{'png' if i % 4 == 3 else 'jpg'}")
    return image_list.image_folder(tmp_path / "photos", "photos")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(crop_cache.cores, "usable", lambda: 0)
    return tmp_path / "cache" / "crops"


def _all(crops, workers=0):
    return torch.cat(list(batches(crops, workers=workers, device="cpu", batch_size=7)))


@pytest.mark.parametrize(
    "input_",
    [INPUT, EvalInput(resize=36, crop=36), replace(INPUT, warp=True), EvalInput(resize=20)],
    ids=["smaller", "whole short side", "warped", "larger than the image"],
)
def test_kept_crops_are_the_very_bytes_of_decoding(photos, own_cache, input_):
    decoded = CentreCrops(photos, input_)
    assert crop_cache.find(photos, input_) is None
    assert crop_cache.centre_crops(photos, input_).kept is None
    crop_cache.keep(photos, input_)
    read = crop_cache.centre_crops(photos, input_)
    assert read.kept is not None
    for i in range(20):
        assert torch.equal(decoded[i], read[i])
        assert decoded[i].stride() == read[i].stride(), "arithmetic goes the same way too"
    assert torch.equal(_all(decoded), _all(read))
    (file,) = own_cache.glob("*.npy")
    assert file.stat().st_size == 128 + crop_cache.size_of(photos, input_)


def test_kept_crops_are_read_and_nothing_is_decoded(photos, monkeypatch):
    crop_cache.keep(photos, INPUT)
    crops = crop_cache.centre_crops(photos, INPUT)
    monkeypatch.setattr(ImageList, "read", lambda *_: pytest.fail("decoded"))
    assert _all(crops).shape == (20, 3, 32, 32)


def test_another_transform_list_or_version_is_another_file(photos, own_cache, monkeypatch):
    crop_cache.keep(photos, INPUT)
    assert crop_cache.find(photos, replace(INPUT, mean=(0, 0, 0))), "normalised afterwards"
    for other in (replace(INPUT, crop=30), replace(INPUT, resize=41), replace(INPUT, warp=True)):
        assert crop_cache.find(photos, other) is None
    assert crop_cache.find(photos.subset(np.arange(19)), INPUT) is None
    monkeypatch.setattr(crop_cache.PIL, "__version__", "1.1.7")
    assert crop_cache.find(photos, INPUT) is None
    crop_cache.keep(photos.subset(np.arange(19)), INPUT)
    assert len(list(own_cache.glob("*.npy"))) == 2


def test_a_picture_changed_in_place_is_noticed(photos):
    crop_cache.keep(photos, INPUT)
    path = photos.root / photos.paths[3]
    path.write_bytes((photos.root / photos.paths[7]).read_bytes())
    changed = image_list.image_folder(photos.root, "photos")
    assert crop_cache.find(changed, INPUT) is None
    np.testing.assert_array_equal(crop_cache.keep(changed, INPUT)[3], INPUT.pixels(changed.read(3)))


def test_pictures_in_memory_need_no_file(own_cache):
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    images = ImageList("p", own_cache, tuple("abcd"), np.zeros(4, np.int64), ("x",), pixels=pixels)
    assert crop_cache.keep(images, INPUT) is None
    assert crop_cache.centre_crops(images, INPUT).kept is None
    assert not own_cache.exists()


def test_a_worker_is_sent_the_path_and_not_the_crops(photos):
    kept = crop_cache.keep(photos, INPUT)
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[5], kept[5])


# Who reads them -----------------------------------------------------------------------------------


def test_features_are_the_same_bit_for_bit(photos, encoder_file, tmp_path):
    encoder = encoders.load(encoder_file)
    before = features.extract(encoder, photos, cache=tmp_path / "one", batch_size=8)
    crop_cache.keep(photos, encoder.input)
    after = features.extract(encoder, photos, cache=tmp_path / "two", batch_size=8)
    assert before.tobytes() == after.tobytes()


def test_an_e_step_reads_them(photos, monkeypatch):
    recipe = replace(moco.MINI, input=INPUT)
    monkeypatch.setattr(recipe.__class__, "check_images", lambda *_: None)
    decoded = loader.open_views(recipe, photos, 1, "cpu", 0)
    expected = list(decoded.centre_crops(decoded.parts()))
    crop_cache.keep(photos, INPUT)
    views = loader.open_views(recipe, photos, 1, "cpu", 0)
    monkeypatch.setattr(ImageList, "read", lambda *_: pytest.fail("decoded"))
    read = list(views.centre_crops(views.parts()))
    assert all(torch.equal(a, b) for a, b in zip(expected, read, strict=True))


def test_a_training_that_reads_them_ends_the_same(train_images, tmp_path, monkeypatch):
    recipe = replace(
        pcl.MINI,
        queue=64,
        num_prototypes=(5,),
        warmup=0,
        train=replace(pcl.MINI.train, epochs=2, batch_size=32),
    )
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    read, given = [], KeptCrops.__getitem__
    monkeypatch.setattr(KeptCrops, "__getitem__", lambda self, i: read.append(i) or given(self, i))
    decoded = loop.pretrain(recipe, train_images, tmp_path / "decoded", seed=1)
    assert not read
    crop_cache.keep(train_images, recipe.input)
    read.clear()
    kept = loop.pretrain(recipe, train_images, tmp_path / "kept", seed=1)
    assert len(read) >= 2 * len(train_images), "by two E-steps at least"
    first, second = (load_file(path) for path in (decoded, kept))
    assert encoders.digest_of(first) == encoders.digest_of(second)


# Writing ------------------------------------------------------------------------------------------


def _stopping(monkeypatch, after):
    read, seen = ImageList.read, []

    def stop(self, index):
        seen.append(index)
        if len(seen) == after:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(ImageList, "read", stop)
    return seen


def test_a_stopped_run_resumes_after_what_is_on_the_disk(photos, own_cache, monkeypatch):
    monkeypatch.setattr(crop_cache, "SYNC_SECONDS", -1.0)
    monkeypatch.setattr(crop_cache, "BATCH", 4)
    with monkeypatch.context() as patch:
        _stopping(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            crop_cache.keep(photos, INPUT)
    assert crop_cache.find(photos, INPUT) is None, "half a file is none"
    (growing,) = own_cache.glob("*.partial")
    with open(growing, "ab") as file:
        file.write(b"half a crop")
    with monkeypatch.context() as patch:
        seen = _stopping(patch, -1)
        crop_cache._write(crop_cache.path_of(photos, INPUT), photos, INPUT)
        assert seen == list(range(8, 20)), "eight were on the disk"
    kept = crop_cache.keep(photos, INPUT)
    for i in range(20):
        np.testing.assert_array_equal(kept[i], INPUT.pixels(photos.read(i)))
    assert sorted(path.suffix for path in own_cache.iterdir()) == [".lock", ".npy", ".use"]


@pytest.mark.parametrize("counter", ["", "eight", "20"])
def test_a_partial_file_that_does_not_fit_its_counter_is_started_over(photos, own_cache, counter):
    path = crop_cache.path_of(photos, INPUT)
    path.parent.mkdir(parents=True)
    path.with_suffix(".partial").write_bytes(b"too short")
    path.with_suffix(".rows").write_text(counter)
    kept = crop_cache.keep(photos, INPUT)
    np.testing.assert_array_equal(kept[0], INPUT.pixels(photos.read(0)))
    np.testing.assert_array_equal(kept[19], INPUT.pixels(photos.read(19)))


def _keep(photos, result):
    crop_cache.keep(photos, INPUT)
    result.put(1)


def test_of_several_processes_one_writes(photos, own_cache, monkeypatch):
    """Each counts what it decodes beyond the images that it compares on opening."""
    count, read = multiprocessing.Value("i", 0), ImageList.read

    def counting(self, index):
        with count.get_lock():
            count.value += 1
        return read(self, index)

    monkeypatch.setattr(ImageList, "read", counting)
    context, result = multiprocessing.get_context("fork"), multiprocessing.SimpleQueue()
    processes = [context.Process(target=_keep, args=(photos, result)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert count.value == 20 + 3 * crop_cache.COMPARED
    assert len(list(own_cache.glob("*.npy"))) == 1


def test_the_size_is_said_and_a_full_disk_refused_before_anything_is_decoded(
    photos, monkeypatch, capsys
):
    free = crop_cache.size_of(photos, INPUT)
    disk = type("Disk", (), {"free": free})
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda folder: disk)
        patch.setattr(ImageList, "read", lambda *_: pytest.fail("decoded"))
        with pytest.raises(UserError, match="the centre crops of photos, and 5% to spare, need"):
            crop_cache.keep(photos, INPUT)
    assert f"keeping the centre crops of photos: {free / 1e9:.3g} GB" in capsys.readouterr().out
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: type("D", (), {"free": 10**6}))
    assert len(crop_cache.keep(photos, INPUT)) == 20


def test_imagenet_s_crops_take_193_gb(photos):
    imagenet = replace(
        photos, paths=photos.paths[:1] * 1_281_167, labels=np.zeros(1_281_167, np.int64)
    )
    assert crop_cache.size_of(imagenet, EvalInput()) == 192_851_506_176 == 1_281_167 * 224 * 224 * 3


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_kept(photos, own_cache):
    (photos.root / photos.paths[4]).write_bytes(b"\xff\xd8\xff damaged")
    images = image_list.image_folder(photos.root, "photos")
    with pytest.raises(UserError, match="cannot decode image 4"):
        crop_cache.keep(images, INPUT)
    assert not list(own_cache.glob("*.npy"))


# Reading ------------------------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_refused(photos):
    crop_cache.keep(photos, INPUT)
    path = crop_cache.path_of(photos, INPUT)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:60], b"", b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="are damaged") as refusal:
            crop_cache.find(photos, INPUT)
        assert path.name in str(refusal.value)
    other = np.zeros((20, 32, 32, 3), np.uint8)
    np.save(path, other)
    with pytest.raises(UserError, match="of image 0 is not what decoding"):
        crop_cache.find(photos, INPUT)
    np.save(path, other[:19])
    with pytest.raises(UserError, match="are damaged"):
        crop_cache.find(photos, INPUT)
    path.write_bytes(whole)
    assert crop_cache.find(photos, INPUT)


def test_a_file_is_in_use_until_its_last_reader_is_gone(photos):
    crop_cache.keep(photos, INPUT)
    path = crop_cache.path_of(photos, INPUT)
    first, second = crop_cache.find(photos, INPUT), crop_cache.find(photos, INPUT)
    assert first is not None
    assert second is not None
    assert not cache_use.is_unused(path)
    del first
    assert not cache_use.is_unused(path), "one reader is left"
    del second
    assert cache_use.is_unused(path)
    assert cache_use.read(path) == {"data": "photos", "form": "32 pixels of 40"}


def test_a_file_that_is_trimmed_before_it_is_opened_is_none(photos, monkeypatch):
    crop_cache.keep(photos, INPUT)
    using = cache_use.using

    def after_a_trim(path, **what):
        path.unlink(missing_ok=True)
        return using(path, **what)

    monkeypatch.setattr(cache_use, "using", after_a_trim)
    assert crop_cache.find(photos, INPUT) is None
    assert crop_cache.centre_crops(photos, INPUT).kept is None


# Asking for them ----------------------------------------------------------------------------------


@pytest.fixture
def small_world(world, tmp_path):
    for split in ("train", "val"):
        for folder in sorted((world / "imagenet" / split).iterdir()):
            own = tmp_path / "root" / "imagenet" / split / folder.name
            own.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:2]:
                shutil.copy(image, own)
    return tmp_path / "root"


def test_the_command_keeps_what_a_run_reads(small_world, command, own_cache, encoder_file, capsys):
    words = ("keep-crops", small_world, "--resize", 36, "--crop", 32)
    code, said, _ = command(protobench_command.main, *words)
    assert code == 0
    assert said.count("keeping the centre crops of imagenet-") == 2
    assert len(list(own_cache.glob("*.npy"))) == 2
    assert command(protobench_command.main, *words)[1].count("keeping") == 0, "they are there"
    encoder = encoders.load(encoder_file)
    for split in ("train", "val"):
        features.extract(encoder, imagenet.read(small_world, split))
    assert capsys.readouterr().out.count("kept decoded in") == 2


def test_a_pretraining_keeps_them_if_asked_to(small_world, tmp_path, own_cache):
    recipe = replace(moco.MINI, train=replace(moco.MINI.train, epochs=0))
    run = Run(data=small_world, out=tmp_path / "plain", device="cpu")
    train(recipe, run)
    assert not own_cache.exists()
    train(recipe, replace(run, keep_crops=True, out=tmp_path / "kept"))
    assert len(list(own_cache.glob("*.npy"))) == 1
