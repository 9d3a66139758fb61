"""Tiny files in CIFAR's pickled layout, read through torchvision, whose list of MD5 sums is
replaced by theirs."""

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from evaluate import linear
from pretrain import command as pretrain_command
from pretrain.recipes import spcl
from protobench import __main__ as main
from protobench import features
from protobench.checkpoints import encoders, resnet
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import cifar, decoding, imagenet, verify
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.transforms import EvalInput
from protobench.runtime import cli
from protobench.runtime.errors import UserError

CLASSES = {
    "cifar10": [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    "cifar100": sorted(f"thing{i:02d}" for i in range(100)),
}
SOURCES = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
PER_BATCH = {"cifar10": 10, "cifar100": 100}


def _dump(path, content):
    data = pickle.dumps(content, protocol=2).replace(
        b"\x89\x88\x87", b"K\x00K\x01\x87"
    )  # Python 2 wrote flags as 0 and 1
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


def _write(root, name, monkeypatch):
    """A data set with each class once a file; returns the pixels [N, 32, 32, 3] of its files."""
    source, rng, count, pixels = SOURCES[name], np.random.default_rng(0), PER_BATCH[name], {}
    folder = root / cifar.FOLDERS[name]
    folder.mkdir(parents=True)
    sums = {}
    for title, _ in source.train_list + source.test_list:
        rows = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = list(range(count))[::-1]
        kinds = (
            {"labels": labels}
            if name == "cifar10"
            else {"fine_labels": labels, "coarse_labels": [i % 20 for i in labels]}
        )
        sums[title] = _dump(folder / title, {"data": rows, **kinds})
        pixels[title] = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    meta = {source.meta["key"]: CLASSES[name], "coarse_label_names": ["coarse"] * 20}
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(
            source, which, [[title, sums[title]] for title, _ in getattr(source, which)]
        )
    monkeypatch.setattr(
        source, "meta", source.meta | {"md5": _dump(folder / source.meta["filename"], meta)}
    )
    return pixels


def _says(complaint, call, *args):
    with pytest.raises(UserError, match=complaint) as error:
        call(*args)
    return str(error.value)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_10_is_read_whole_and_in_order(tmp_path, monkeypatch, below):
    pixels = _write(tmp_path / below, "cifar10", monkeypatch)
    train, test = DATASETS["cifar10"].read_both(tmp_path)
    assert (train.name, test.name) == ("cifar10-train", "cifar10-test")
    assert train.classes == test.classes == tuple(CLASSES["cifar10"])
    assert (train.paths[0], train.paths[49], test.paths[9]) == (
        "train/00000",
        "train/00049",
        "test/00009",
    )
    assert train.labels.tolist() == 5 * list(range(10))[::-1]
    np.testing.assert_array_equal(
        train.pixels, np.concatenate([pixels[f"data_batch_{i}"] for i in range(1, 6)])
    )
    assert train.read(12).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(train.read(12)), pixels["data_batch_2"][2])
    np.testing.assert_array_equal(np.asarray(test.read(3)), pixels["test_batch"][3])


def test_cifar_100_has_its_fine_labels(tmp_path, monkeypatch):
    _write(tmp_path, "cifar100", monkeypatch)
    train, test = DATASETS["cifar100"].read_both(tmp_path)
    assert train.labels.tolist() == test.labels.tolist() == list(range(100))[::-1]
    assert train.classes == tuple(CLASSES["cifar100"])


def test_no_file_is_touched_after_reading(tmp_path, monkeypatch, encoder_file):
    _write(tmp_path, "cifar10", monkeypatch)
    _, test = DATASETS["cifar10"].read_both(tmp_path)
    shutil.rmtree(tmp_path / cifar.FOLDERS["cifar10"])
    encoder = encoders.load(encoder_file)
    x_ND = features.extract(encoder, test, cache=tmp_path / "features")
    chosen = np.array([7, 2])
    np.testing.assert_allclose(
        features.extract(encoder, test.subset(chosen), cache=tmp_path / "features"),
        x_ND[chosen],
        rtol=1e-4,
        atol=1e-5,
    )
    assert not decoding.check(test, 1).bad
    assert decoding.leave_out((test,), 1)[0] is test


def test_lists_in_memory_are_named_by_their_pixels_and_cut_by_rows():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 8, 3), dtype=np.uint8)

    def listed(pixels, labels=range(6)):
        return ImageList(
            "x", Path("nowhere"), tuple("abcdef"), np.array(labels), tuple("uvwxyz"), pixels=pixels
        )

    base, other = listed(pixels), pixels.copy()
    other[5, 3, 7, 2] ^= 1
    same = (pixels.copy(), np.asfortranarray(pixels))
    assert {listed(of).fingerprint for of in same} == {base.fingerprint}
    different = (
        listed(other),
        listed(pixels, [0] * 6),
        listed(pixels.reshape(6, 8, 4, 3)),
        base.subset(np.arange(5)),
    )
    assert len({base.fingerprint, *(of.fingerprint for of in different)}) == 5
    part = base.subset(np.array([4, 1]))
    assert (part.paths, part.labels.tolist()) == (("e", "b"), [4, 1])
    np.testing.assert_array_equal(part.pixels, pixels[[4, 1]])
    for wrong in (pixels[:5], pixels.astype(float), pixels[..., :2], pixels[0]):
        _says("x: pixels of shape", listed, wrong)


def test_whatever_is_wrong_with_the_files_is_told(tmp_path, monkeypatch):
    assert str(tmp_path / "cifar100" / "cifar-100-python") in _says(
        "no cifar100 here", cifar.read, tmp_path, "cifar100", "test"
    )
    _says("no such folder", cifar.read, tmp_path / "absent", "cifar10", "test")
    (tmp_path / "cifar-10-python.tar.gz").touch()
    _says("this archive is damaged, or not the", cifar.read, tmp_path, "cifar10", "train")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(b"").hexdigest())
    assert "tar xf cifar-10-python.tar.gz" in _says(
        "an archive, not unpacked", cifar.read, tmp_path, "cifar10", "train"
    )
    _write(tmp_path, "cifar10", monkeypatch)
    assert len(cifar.read(tmp_path, "cifar10", "train")) == 50, "the archive may stay"
    folder = tmp_path / "cifar-10-batches-py"
    for victim in ("data_batch_3", "batches.meta"):
        whole = (folder / victim).read_bytes()
        (folder / victim).write_bytes(whole[:-2] + b"\x00.")
        _says("damaged, or not the published cifar10", cifar.read, tmp_path, "cifar10", "test")
        (folder / victim).unlink()
        assert "hint: unpack the archive again" in _says(
            f"lacks {victim}", cifar.read, tmp_path, "cifar10", "test"
        )
        (folder / victim).write_bytes(whole)


def test_a_foreign_pickle_is_never_run(tmp_path, monkeypatch):
    _write(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cbuiltins\nexit\n(tR.")
    _says("their MD5 differs", cifar.read, tmp_path, "cifar10", "test")


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    _write(tmp_path, "cifar10", monkeypatch)

    def denied(path, _):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(datasets.cifar, "check_integrity", denied)
    assert "data_batch_1" in _says(
        "cannot read these files: Permission denied", cifar.read, tmp_path, "cifar10", "train"
    )


def test_the_bundled_images_stand_in_and_only_they(world, tmp_path):
    train, test = DATASETS["cifar100"].read_both(world)
    assert (train.name, test.name, len(train), len(test)) == (
        "cifar100-train",
        "cifar100-test",
        200,
        40,
    )
    assert [of.fingerprint for of in (train, test)] == [
        of.fingerprint for of in imagenet.DATASET.read_both(world)
    ]
    for other in ('{"fingerprint": "0", "files": {}}', '{"files": {}}', "[]", "no JSON"):
        (tmp_path / "manifest.json").write_text(other)
        _says("no cifar10 here", cifar.read, tmp_path, "cifar10", "train")


# check-data ---------------------------------------------------------------------------------------


def test_check_data_holds_cifar_against_what_was_published(command, tmp_path, monkeypatch):
    pixels = _write(tmp_path, "cifar10", monkeypatch)
    code, out, _ = command(main.main, "check-data", tmp_path)
    assert code == cli.DIFFERS
    assert "cifar10-train has 50 images, not 50000" in out
    assert "60 images decoded, 0 unreadable" in out
    assert "cifar100: not here" in out
    assert "imagenet: not here" in out
    train, test = DATASETS["cifar10"].splits
    small = replace(train, images=50), replace(test, images=10)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], splits=small))
    code, out, _ = command(main.main, "check-data", tmp_path)
    assert code == cli.SAME
    assert "as published: counts, classes and their order" in out
    changed = small[0], replace(small[1], class_hash="0" * 64)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], splits=changed))
    assert verify.check(tmp_path, ("cifar10",), 1) == cli.DIFFERS
    twice = np.concatenate([pixels["test_batch"], pixels["test_batch"]])
    repeated, once = (
        ImageList(
            "x",
            tmp_path,
            ("name",) * len(of),
            np.arange(len(of)) % 10,
            tuple("abcdefghij"),
            pixels=of,
        )
        for of in (twice, pixels["test_batch"])
    )
    fake = replace(DATASETS["cifar10"], read_train=lambda _: repeated, read_test=lambda _: once)
    monkeypatch.setitem(DATASETS, "cifar10", fake)
    _, out, _ = command(main.main, "check-data", tmp_path)
    assert "10 images occur in both x and x, byte for byte" in out
    assert "10 images of x repeat another" in out


def test_check_data_names_trouble_and_absence(command, world, tmp_path, monkeypatch):
    assert "cifar10: not here" in command(main.main, "check-data", world)[1]
    assert verify.check(tmp_path, ("cifar100",), 1) == cli.TROUBLE
    _write(tmp_path, "cifar100", monkeypatch)
    (tmp_path / "cifar-100-python" / "train").unlink()
    code, out, _ = command(main.main, "check-data", tmp_path)
    assert code == cli.TROUBLE
    assert "cifar100 lacks train" in out


def test_pretraining_and_probing_on_it_from_the_command_line(command, tmp_path, monkeypatch):
    """A network too small for anything, so that it takes seconds: the mini tier's."""
    _write(tmp_path, "cifar10", monkeypatch)
    flags = (
        "--data",
        tmp_path,
        "--device",
        "cpu",
        "--arch",
        "resnet10-mini",
        "--epochs",
        1,
        "--batch-size",
        8,
    )
    code, out, err = command(
        lambda: pretrain_command._main("doc", {"cifar10": spcl.CIFAR10}),
        "cifar10",
        *flags,
        "--num-prototypes",
        5,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    code, out, err = command(
        linear.EVALUATION.main,
        "--ckpt",
        tmp_path / "run" / "encoder.safetensors",
        "--data",
        tmp_path,
        "--dataset",
        "cifar10",
        "--epochs",
        1,
        "--batch-size",
        10,
        "--workers",
        0,
        "--results",
        tmp_path / "scores",
    )
    assert code == 0, err
    assert "linear probe on cifar10, 128-D, 1 epochs of 50 images, 10 test images" in out
    assert "mean 0.4914 0.4822 0.4465" in out, "the normalisation it was trained with"
    code, _, err = command(
        lambda: pretrain_command._main("doc", {"cifar100": spcl.CIFAR100}),
        "cifar100",
        *flags,
    )
    assert code == 2
    assert "no cifar100 here" in err


# The networks for it ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18-cifar", "resnet50-cifar"])
def test_networks_for_32_pixels_survive_export_and_keep_their_report(name, tmp_path):
    net = resnet.build(name)
    assert net.arch.stem == "cifar"
    assert resnet.arch_of(net.state_dict()) == net.arch == resnet.named(name)
    encoders.export(
        tmp_path / "encoder.safetensors", net, key="k", input_=EvalInput(32, 32), trained=None
    )
    encoder = encoders.load(tmp_path / "encoder.safetensors", LoadOptions(arch=name))
    assert encoder.backbone.arch == net.arch
    assert encoder.report.arch == f"{name.removesuffix('-cifar')}, cifar stem"
