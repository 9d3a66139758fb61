import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from protobench import features
from protobench.checkpoints import encoders, resnet
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import image_list, voc
from protobench.runtime import cores, files
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


@pytest.fixture(scope="module")
def encoder(encoder_file):
    return encoders.load(encoder_file)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_features_do_not_depend_on_the_number_of_workers(encoder, world, tmp_path, monkeypatch):
    # without this, workers would be limited to the machine's cores
    monkeypatch.setattr(cores, "usable", lambda: 8)
    test = voc.read(world, "test")
    first, *others = [
        features.extract(encoder, test, workers=n, batch_size=50, cache=tmp_path / str(n))
        for n in (0, 1, 3)
    ]
    assert first.shape == (120, 128)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_features_are_extracted_once_and_again_when_anything_changes(encoder, world, tmp_path):
    test = voc.read(world, "test")
    features.extract(encoder, test, cache=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    again = features.extract(encoder, test, cache=tmp_path)
    assert isinstance(again, np.memmap)
    again = np.array(again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == written
    (path,) = written
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(features.extract(encoder, test, cache=tmp_path), again)
    features.extract(encoder, test, warp=True, cache=tmp_path)
    wide = features.extract(encoder, test, pooling="2x2", cache=tmp_path)
    assert wide.shape == (120, 4 * 128)
    features.extract(encoder, test.subset(np.arange(100)), cache=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_other_weights_under_the_same_key_are_extracted_again(encoder_file, world, tmp_path):
    """A key says how an encoder was trained; its features depend on its weights."""
    test = voc.read(world, "test").subset(np.arange(20))
    first = encoders.load(encoder_file)
    torch.manual_seed(5)
    encoders.export(
        tmp_path / "other.safetensors",
        resnet.build("resnet10-mini"),
        key=first.key,
        input_=first.input,
        trained={},
    )
    second = encoders.load(tmp_path / "other.safetensors")
    assert first.key == second.key
    a, b = (features.extract(encoder, test, cache=tmp_path) for encoder in (first, second))
    assert not np.array_equal(a, b)


def test_pooling_follows_the_papers(encoder, world, tmp_path):
    test = voc.read(world, "test").subset(np.arange(8))
    average = features.extract(encoder, test, cache=tmp_path)
    wide = features.extract(encoder, test, pooling="2x2", cache=tmp_path).reshape(8, 128, 4)
    # the small network's map is 2x2: no windows overlap
    np.testing.assert_allclose(wide.mean(2), average, atol=1e-5)
    map_NCHW = torch.arange(49.0).view(1, 1, 7, 7)
    expected = [map_NCHW[0, 0, i : i + 6, j : j + 6].mean().item() for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(features._pool(map_NCHW, "2x2", None)[0].tolist(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_even_from_a_worker(encoder, tmp_path, workers):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "x.jpg")
    victim = tmp_path / "b" / "x.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    images = image_list.image_folder(tmp_path, "x")
    with pytest.raises(UserError) as error:
        features.extract(encoder, images, workers=workers, cache=tmp_path / "cache")
    assert error.value.at == victim


def test_collapsed_and_nan_encoders_are_refused(encoder_file, world, tmp_path):
    test = voc.read(world, "test")
    collapsed = encoders.load(encoder_file)
    with torch.no_grad():
        for parameter in collapsed.backbone.layer4.parameters():
            parameter.zero_()
    with pytest.raises(UserError, match="collapsed"):
        features.extract(collapsed, test, cache=tmp_path)
    broken = encoders.load(encoder_file)
    with torch.no_grad():
        broken.backbone.bn1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        features.extract(broken, test, cache=tmp_path)
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.gpu
def test_gpu_features_agree_with_the_cpu(encoder_file, world, tmp_path):
    test = voc.read(world, "test")
    cpu = features.extract(encoders.load(encoder_file), test, cache=tmp_path)
    gpu = features.extract(encoders.load(encoder_file), test, device="cuda", cache=tmp_path)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-3)


def test_a_stopped_extraction_resumes_after_the_rows_on_the_disk(
    encoder, world, tmp_path, monkeypatch
):
    test = voc.read(world, "test")
    whole = np.array(features.extract(encoder, test, batch_size=16, cache=tmp_path / "whole"))
    monkeypatch.setattr(features, "SYNC_SECONDS", -1.0)
    real, seen = image_list.ImageList.read, []

    def stop_at_70(self, index):
        seen.append(index)
        if index == 70 and seen.count(70) == 1:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(image_list.ImageList, "read", stop_at_70)
    with pytest.raises(KeyboardInterrupt):
        features.extract(encoder, test, batch_size=16, cache=tmp_path / "cut")
    (partial,) = (tmp_path / "cut").glob("*.partial")
    with open(partial, "ab") as file:
        file.write(b"half a row")  # as if killed while writing
    again = features.extract(encoder, test, batch_size=16, cache=tmp_path / "cut")
    assert seen == [*range(71), *range(64, 120)]
    np.testing.assert_array_equal(again, whole)
    assert not [*(tmp_path / "cut").glob("*.partial"), *(tmp_path / "cut").glob("*.rows")]


def test_a_partial_file_shorter_than_its_counter_says_is_started_over(
    encoder, world, tmp_path, monkeypatch
):
    test = voc.read(world, "test")
    whole = np.array(features.extract(encoder, test, batch_size=16, cache=tmp_path / "whole"))
    monkeypatch.setattr(features, "SYNC_SECONDS", -1.0)
    monkeypatch.setattr(features, "_check", lambda *_: 1 / 0)  # killed at the very end
    with pytest.raises(ZeroDivisionError):
        features.extract(encoder, test, batch_size=16, cache=tmp_path / "cut")
    monkeypatch.undo()
    real, reads = image_list.ImageList.read, []

    def recorded(self, index):
        reads.append(index)
        return real(self, index)

    monkeypatch.setattr(image_list.ImageList, "read", recorded)
    (partial,) = (tmp_path / "cut").glob("*.partial")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "cut", copy)
    resumed = features.extract(encoder, test, batch_size=16, cache=tmp_path / "cut")
    np.testing.assert_array_equal(resumed, whole)
    assert not reads, "all rows were on the disk"
    with open(copy / partial.name, "r+b") as file:
        file.truncate(5000)
    np.testing.assert_array_equal(features.extract(encoder, test, batch_size=16, cache=copy), whole)
    assert len(reads) == 120


def test_a_full_disk_is_reported_before_features_are_written(encoder, world, tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(1000))
    with pytest.raises(UserError, match="PROTOBENCH_CACHE"):
        features.extract(encoder, voc.read(world, "test"), cache=tmp_path)


def test_what_is_extracted_together_is_read_once_and_equal_to_the_last_bit(
    moco_file, world, tmp_path, monkeypatch
):
    test = voc.read(world, "test")
    query, momentum = (encoders.load(moco_file, prefer=copy) for copy in (None, "momentum"))
    kinds = [
        (query, "average"),
        (query, "2x2"),
        (momentum, "embedding"),
        (query, "embedding"),
        (query, "average"),
    ]
    alone = [
        np.array(features.extract(encoder, test, pooling=pooling, cache=tmp_path / "alone"))
        for encoder, pooling in kinds
    ]
    real, reads = image_list.ImageList.read, []

    def recorded(self, index):
        reads.append(self.paths[index])
        return real(self, index)

    monkeypatch.setattr(image_list.ImageList, "read", recorded)
    passed = []
    monkeypatch.setattr(
        features.Forward,
        "all",
        lambda self, x, real=features.Forward.all: passed.append(1) or real(self, x),
    )
    together = features.extract_together(kinds, test, batch_size=256, cache=tmp_path / "together")
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(reads) == sorted(test.paths)
    assert len(passed) == 2, "one batch, through two networks"
    one_missing = min((tmp_path / "together").glob("*.npy"))
    one_missing.unlink()
    again = features.extract_together(kinds, test, cache=tmp_path / "together")
    for one, other in zip(alone, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(reads) == 2 * len(test)


def test_an_exported_checkpoint_of_others_is_extracted(encoder, world, tmp_path):
    """Its header says what it was exported from, and not how it was trained."""
    path = tmp_path / "exported.safetensors"
    told = {"exported_from": {"file": "theirs.pth"}}
    encoders.export(path, encoder.backbone, key="theirs", input_=encoder.input, trained=told)
    test = voc.read(world, "test").subset(np.arange(8))
    found = features.extract(encoders.load(path), test, cache=tmp_path)
    np.testing.assert_array_equal(found, features.extract(encoder, test, cache=tmp_path))


def test_encoders_of_different_inputs_share_no_pass(encoder, world, tmp_path):
    other = replace(encoder, input=replace(encoder.input, crop=16))
    with pytest.raises(ValueError, match="too many values"):
        features.extract_together(
            [(encoder, "average"), (other, "average")], voc.read(world, "test"), cache=tmp_path
        )


def test_evaluations_share_one_extraction(encoder_file, world, tmp_path, monkeypatch, capsys):
    from evaluate import fullsvm, lowshot

    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    fullsvm.EVALUATION.execute(fullsvm.Config(encoder_file, world, workers=0, results=tmp_path))
    lowshot.EVALUATION.execute(
        lowshot.Config(encoder_file, world, shots=(1,), workers=0, results=tmp_path)
    )
    assert capsys.readouterr().out.count("taken from the cache") == 2
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2


def test_bf16_is_another_encoder_and_its_agreement_with_fp32_is_recorded(
    encoder_file, world, tmp_path
):
    test = voc.read(world, "test")
    exact = encoders.load(encoder_file)
    fast = encoders.load(encoder_file, LoadOptions(precision="bf16"))
    assert exact.key != fast.key
    a, b = (np.array(features.extract(encoder, test, cache=tmp_path)) for encoder in (exact, fast))
    assert not np.array_equal(a, b)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.999
    spread = np.unique(np.linspace(0, 119, 64).astype(int))
    assert fast.report.bf16.min_cosine == pytest.approx(cosines[spread].min(), abs=1e-5)
    assert fast.report.bf16.images == 64
