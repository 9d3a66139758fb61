"""Every kind of bad input, and every way in which a machine falls short, through a script's own
entry point.

Each ends with exit code 2, without a traceback, in a message that says what is wrong, where, and
what to do; no file that was there has changed and none is left half written. What only looks odd
(spaces, bytes that are no UTF-8, data that may only be read) works."""

import builtins
import gc
import multiprocessing
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from evaluate import ami, detection, fullsvm, gallery, knn, linear, lowshot, semisup
from pretrain import command as pretrain_command
from pretrain.recipes import moco, pcl
from protobench import __main__ as protobench_command
from protobench import records
from protobench.checkpoints import encoders, resnet
from protobench.data import loading
from protobench.data.image_list import ImageList
from protobench.data.transforms import EvalInput
from protobench.runtime import resource_errors
from protobench.runtime.errors import UserError


def pretrain() -> int:
    """python pretrain/moco.py and pcl.py, with tiny recipes."""
    train = replace(moco.MINI.train, epochs=1, batch_size=4)
    return pretrain_command._main(
        "",
        {
            "moco": replace(moco.MINI, queue=8, train=train),
            "pcl": replace(pcl.MINI, queue=8, train=train, num_prototypes=(3,), warmup=0),
        },
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Features of before would hide that nothing can be read."""
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Path(os.environ["PROTOBENCH_CACHE"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """ImageNet's layout with two classes of six and two images. They are not square, so pretraining
    reads them with workers."""
    root = tmp_path / "data" / "imagenet"
    for split, count in (("train", 6), ("val", 2)):
        for title in ("cat", "dog"):
            (root / split / title).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([i, len(split), len(title)]).integers(
                    0, 255, (40, 48, 3), dtype=np.uint8
                )
                Image.fromarray(noise).save(root / split / title / f"{i}.jpg")
    return root


@pytest.fixture
def kit(world, tmp_path) -> Path:
    """A copy of the bundled VOC that may be spoilt."""
    shutil.copytree(world / "VOCdevkit", tmp_path / "data" / "VOCdevkit")
    return tmp_path / "data" / "VOCdevkit" / "VOC2007"


@pytest.fixture
def boxes(scene_data, tmp_path) -> Path:
    """A copy of the bundled scenes in VOC's layout that may be spoilt."""
    shutil.copytree(scene_data / "VOCdevkit", tmp_path / "data" / "VOCdevkit")
    return tmp_path / "data" / "VOCdevkit" / "VOC2007"


def snapshot(root: Path, *, strictly: bool = False) -> dict[str, tuple]:
    """Every file below ``root`` with its time and content; ``strictly``: every folder too, whose
    time tells what was in it for a moment, and lock files, which else are no output."""
    found: dict[str, tuple] = {}
    for place, folders, names in os.walk(root):
        for name in names + (folders if strictly else []):
            path = os.path.join(place, name)
            state = os.lstat(path)
            content = Path(path).read_bytes() if os.path.isfile(path) else b""
            if strictly or name != ".lock":
                found[path] = (state.st_mode, state.st_mtime_ns, content)
    return found


@pytest.fixture
def refused(command, tmp_path, own_cache) -> Callable[..., str]:
    """Runs a command that must fail as every one should; returns what it says. Without ``hint``
    what is told names the flag."""

    def run(main: Callable, *args, told: str, at: object = None, hint: str | None) -> str:
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / "earlier.json").write_text("a record of before")
        before = snapshot(tmp_path)
        code, out, err = command(main, *args)
        said = (
            out[out.index("error: ") :]
            if main is protobench_command.main and "error: " in out
            else err[err.index("error: ") :]
        )
        assert code == 2, said
        assert "Traceback" not in out + err
        assert told in said.split("\n  at: ")[0].split("\n  hint: ")[0]
        if at is not None:
            assert f"\n  at: {at}" in said
        assert hint is None or ("\n  hint: " in said and hint in said.partition("\n  hint: ")[2])
        assert snapshot(tmp_path) == before
        assert not [*own_cache.rglob("*.tmp")]
        return said

    return run


def scoring(ckpt: Path, data: Path, tmp_path: Path, *more: object) -> tuple:
    """The flags of every evaluation."""
    return (
        "--ckpt",
        ckpt,
        "--data",
        data,
        "--results",
        tmp_path / "results",
        "--workers",
        0,
        "--device",
        "cpu",
        *more,
    )


def neighbours(ckpt: Path, data: Path, tmp_path: Path, *more: object) -> tuple:
    """Of a kNN among six images."""
    return scoring(ckpt, data, tmp_path, "--feature", "pooled", "--k", 1, *more)


def training(data: Path, tmp_path: Path, *more: object, method: str = "moco") -> tuple:
    """The flags of a pretraining."""
    return (
        method,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--workers",
        0,
        "--device",
        "cpu",
        *more,
    )


# Images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
def test_a_truncated_jpeg_is_named(refused, folder, encoder_file, tmp_path, script, workers):
    victim = folder / "train" / "dog" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:700])
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    refused(
        main,
        *args(folder, tmp_path, "--workers", workers),
        told="truncated",
        at=victim,
        hint="replace the file",
    )


def huge(path: Path, side: int) -> None:
    """A PNG of a few bytes that promises ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(
    ("side", "told"),
    [(30_000, "decompression bomb"), (11_000, "11000 x 11000 pixels are more than any")],
)
@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # the images' own filter, which pytest's overrules
def test_an_image_of_900_or_121_megapixels_is_refused_before_it_fills_the_memory(
    refused, folder, encoder_file, tmp_path, script, side, told
):
    victim = folder / "train" / "cat" / "2.png"
    huge(victim, side)
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    refused(main, *args(folder, tmp_path), told=told, at=victim, hint="replace the file")


def test_check_data_lists_bombs_beside_whole_images_and_says_nothing_else(folder, tmp_path):
    """In a process of its own, where Pillow's warning would be seen."""
    for side in (30_000, 11_000):
        huge(folder / "train" / "cat" / f"{side}.png", side)
    before = snapshot(folder, strictly=True)
    words = [sys.executable, "-m", "protobench", "check-data", folder.parent]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "16 images decoded, 2 unreadable" in done.stdout
    assert done.stdout.count("unreadable: ") == 2
    assert "30000" not in done.stderr
    assert "Warning" not in done.stderr
    assert snapshot(folder, strictly=True) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(refused, folder, encoder_file, tmp_path, split):
    (folder / split / "emu").mkdir()
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path),
        told="class 'emu' has no image",
        at=folder / split / "emu",
        hint="remove the empty folder or unpack",
    )


def test_imagenet_s_val_as_it_is_unpacked_lies_flat(refused, folder, encoder_file, tmp_path):
    for title in ("cat", "dog"):
        for path in (folder / "val" / title).iterdir():
            path.rename(folder / "val" / f"ILSVRC2012_val_{title}{path.name}")
        (folder / "val" / title).rmdir()
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path),
        told="images lie flat",
        at=folder / "val",
        hint="one folder per class (ImageNet's val too)",
    )


@pytest.mark.parametrize(
    ("link", "to", "told"),
    [
        (
            "train/cat/x.jpg",
            "x.jpg",
            "cannot read an image of the list: Too many levels of symbolic links",
        ),
        ("train/loop", "loop", "cannot read this folder: Too many levels of symbolic links"),
        ("train/loop", ".", "class 'loop' has no image"),
    ],
)
def test_links_that_lead_to_themselves_end(refused, folder, encoder_file, tmp_path, link, to, told):
    (folder / link).symlink_to(to)
    hint = {
        "cannot read an": "correct the list",
        "cannot read th": "check permissions, links",
        "class 'loop' h": "remove the",
    }
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path),
        told=told,
        at=folder / link,
        hint=hint[told[:14]],
    )


def test_a_data_folder_that_leads_to_itself_is_no_folder(refused, encoder_file, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, tmp_path / "a", tmp_path),
        told="no such folder",
        at=tmp_path / "a",
        hint="one folder per class",
    )


def test_a_link_to_a_folder_above_is_not_followed(command, folder, encoder_file, tmp_path):
    (folder / "train" / "cat" / "up").symlink_to("..")
    code, _, err = command(knn.EVALUATION.main, *neighbours(encoder_file, folder, tmp_path))
    assert code == 0, err


# Names that only look odd -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"a name with spaces", b"caf\xe9 \xff", "naïve 猫".encode(), b"--data", b"two\nlines"]
)
def test_any_name_works(command, folder, encoder_file, tmp_path, name):
    """Of folders, classes, images, checkpoint and results; the scores are those of plain names."""
    odd = os.fsdecode(name)
    code, _, err = command(knn.EVALUATION.main, *neighbours(encoder_file, folder, tmp_path))
    assert code == 0, err
    home = tmp_path / odd
    home.mkdir()
    renamed = home / "imagenet"
    shutil.copytree(folder, renamed)
    for split in ("train", "val"):
        (renamed / split / "cat" / "1.jpg").rename(renamed / split / "cat" / f"1{odd}.jpg")
        (renamed / split / "dog").rename(renamed / split / f"dog{odd}")
    before = snapshot(home, strictly=True)
    ckpt = shutil.copy(encoder_file, tmp_path / f"x{odd}.safetensors")
    how = ("--skip-bad-images", 1, "--results", tmp_path / f"out {odd}")
    code, out, err = command(knn.EVALUATION.main, *neighbours(Path(ckpt), renamed, tmp_path), *how)
    assert code == 0, err
    assert "record: " in out
    (plain,) = records.read_all(tmp_path / "results").values()
    (found,) = records.read_all(tmp_path / f"out {odd}").values()
    assert found["runs"] == plain["runs"]
    victim = renamed / "train" / "cat" / f"1{odd}.jpg"
    victim.write_bytes(b"")
    code, out, err = command(
        ami.EVALUATION.main,
        *scoring(Path(ckpt), renamed, tmp_path, "--feature", "pooled", "--num-clusters", 2),
        *how,
    )
    assert code == 0, err
    assert "left out: " in out
    code, out, _ = command(protobench_command.main, "check-data", home)
    assert code == 2
    assert "15 images decoded, 1 unreadable" in out
    victim.write_bytes((folder / "train" / "cat" / "1.jpg").read_bytes())
    run = tmp_path / f"run {odd}"
    code, out, err = command(
        pretrain, "moco", "--data", renamed, "--out", run, "--workers", 0, "--device", "cpu"
    )
    assert code == 0, err
    assert (run / "encoder.safetensors").is_file()
    assert snapshot(home, strictly=True).keys() == before.keys()


# VOC, Places --------------------------------------------------------------------------------------


def shots(ckpt: Path, data: Path, tmp_path: Path, *more: object) -> tuple:
    """Of a small low-shot evaluation."""
    return scoring(ckpt, data, tmp_path, "--shots", 1, "--draws", 1, *more)


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("</annotation>", "", "not well-formed XML"),
        ("<annotation>", "\x00", "not well-formed XML"),
        ("<annotation>", LAUGHS + "<annotation>&i;", "declares a document type"),
        (
            "<annotation>",
            '<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation>',
            "declares a document type",
        ),
        (r"<xmax>\d+<", "<xmax>9999<", "reaches beyond the image"),
        (r"<ymin>\d+<", "<ymin>-3<", "reaches beyond the image"),
        (r"<xmin>\d+<", "<xmin>999<", "an empty box"),
        (r"<xmax>\d+<", "<xmax>x<", "<xmax> must hold a number"),
        (r"<name>\w+<", "<name>unicorn<", "unknown class 'unicorn'"),
        (r"<bndbox>.*?</bndbox>", "", "<object> has 0 <bndbox>"),
    ],
)
def test_a_malformed_annotation_is_named_with_its_line(refused, boxes, old, new, told):
    path = sorted((boxes / "Annotations").iterdir())[3]
    text = path.read_text()
    path.write_text(re.sub(old, new, text, count=1))
    assert path.read_text() != text
    refused(
        protobench_command.main,
        "check-data",
        boxes.parents[1],
        told=told,
        at=path,
        hint="take the challenge's",
    )


def test_voc_without_its_lists(refused, kit, encoder_file, tmp_path):
    shutil.rmtree(kit / "ImageSets")
    data = kit.parents[1]
    refused(
        lowshot.EVALUATION.main,
        *shots(encoder_file, data, tmp_path),
        told="no VOCdevkit here",
        at=data,
        hint="looked for ImageSets/Main in",
    )


def test_voc_without_its_test_labels(refused, kit, encoder_file, tmp_path):
    (kit / "ImageSets" / "Main" / "test.txt").unlink()
    where = kit / "ImageSets" / "Main" / "test.txt"
    refused(
        lowshot.EVALUATION.main,
        *shots(encoder_file, kit, tmp_path),
        told="has no test list",
        at=where,
        hint="separate download (VOCtest_06-Nov-2007.tar)",
    )


def test_voc_without_its_test_annotations(refused, boxes):
    for path in (boxes / "Annotations").glob("2007_5*.xml"):
        path.unlink()
    refused(
        protobench_command.main,
        "check-data",
        boxes.parents[1],
        told="test images have no annotations",
        at=boxes / "Annotations" / "2007_500000.xml",
        hint="separate download",
    )


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_places365_is_not_places205(refused, encoder_file, tmp_path, layout):
    root = tmp_path / "data" / "places205"
    if layout == "lists":
        (root / "data/vision/torralba/deeplearning/images256").mkdir(parents=True)
        where = root / "trainvalsplit_places205" / "train_places205.csv"
        where.parent.mkdir()
        where.write_text("".join(f"a/x{i}.jpg {i}\n" for i in range(365)))
    else:
        where = root
        for i in range(365):
            (root / "train" / f"scene{i}").mkdir(parents=True)
            (root / "train" / f"scene{i}" / "x.jpg").touch()
    args = shots(encoder_file, root, tmp_path, "--dataset", "places205")
    refused(
        lowshot.EVALUATION.main,
        *args,
        told="it is Places365",
        at=where,
        hint="Places205's folder as --data",
    )


def labelled(kit: Path, split: str, title: str, label: str) -> None:
    """Gives every image of a split this label of a class."""
    path = kit / "ImageSets" / "Main" / f"{title}_{split}.txt"
    path.write_text(
        "".join(f"{line.split()[0]} {label}\n" for line in path.read_text().splitlines())
    )


def test_a_class_with_fewer_images_than_shots(refused, kit, encoder_file, tmp_path):
    refused(
        lowshot.EVALUATION.main,
        *shots(encoder_file, kit, tmp_path, "--shots", 1, 64),
        told="64 are to be drawn",
        at=kit,
        hint="lower --shots",
    )


@pytest.mark.parametrize(
    ("main", "label", "flags", "told", "hint"),
    [
        (fullsvm.EVALUATION.main, "-1", (), "no image shows class 'heart'", "unpack the data set"),
        (
            fullsvm.EVALUATION.main,
            "1",
            (),
            "every image shows class 'heart'",
            "unpack the data set",
        ),
        (
            lowshot.EVALUATION.main,
            "1",
            ("--shots", 1, "--draws", 1),
            "every one of the 20 images drawn shows class 'heart'",
            "raise --shots",
        ),
        (
            lowshot.EVALUATION.main,
            "1",
            ("--shots", 1, "--protocol", "goyal"),
            "class 'heart' is absent from 0 images",
            "lower --shots",
        ),
        (
            lowshot.EVALUATION.main,
            "0",
            ("--shots", 1),
            "class 'heart' has 0 images",
            "lower --shots",
        ),
    ],
)
def test_an_svm_of_one_class(refused, kit, encoder_file, tmp_path, main, label, flags, told, hint):
    labelled(kit, "trainval", "heart", label)
    refused(main, *scoring(encoder_file, kit, tmp_path, *flags), told=told, at=kit, hint=hint)


# Checkpoints --------------------------------------------------------------------------------------


def spoilt(path: Path, change: Callable[[torch.Tensor], object]) -> Path:
    """An encoder of ours whose every weight was changed."""
    torch.manual_seed(0)
    net = resnet.build("resnet10-mini")
    with torch.no_grad():
        for parameter in net.parameters():
            change(parameter)
    encoders.export(path, net, key="k", input_=EvalInput(36, 32), trained={})
    return path


@pytest.mark.parametrize(
    ("change", "told", "hint"),
    [
        (lambda weight: weight.fill_(float("nan")), "not dense finite", ""),
        (
            lambda weight: weight.fill_(1e30),
            "gives NaN or infinite features",
            "weights are damaged",
        ),
        (lambda weight: weight.zero_(), "it has collapsed", "train again"),
    ],
)
@pytest.mark.parametrize("main", [knn.EVALUATION.main, lowshot.EVALUATION.main])
def test_encoders_that_diverged_or_collapsed_get_no_score(
    refused, world, tmp_path, main, change, told, hint
):
    ckpt = spoilt(tmp_path / "encoder.safetensors", change)
    args = neighbours if main == knn.EVALUATION.main else shots
    refused(main, *args(ckpt, world, tmp_path), told=told, hint=hint)


@pytest.mark.parametrize(
    ("content", "flags", "told", "hint"),
    [
        (b"", (), "the checkpoint file is empty", "fetch it again"),
        (
            b"<!DOCTYPE html><title>404 Not Found</title>",
            (),
            "this is a web page",
            "the download failed",
        ),
        (
            {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}},
            (),
            "an optimiser's state",
            "",
        ),
        ("whole", ("--arch", "resnet50"), "not a resnet50", ""),
        ("whole", ("--weights", "momentum"), "has no momentum copy", ""),
        ("cut", (), "cannot read the checkpoint", "truncated or damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_checkpoint_gets_no_score(
    refused, world, encoder_file, tmp_path, content, flags, told, hint
):
    path = tmp_path / "moco.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    else:
        whole = encoder_file.read_bytes()
        path.write_bytes({"whole": whole, "cut": whole[:-1000]}.get(content, content))
    refused(
        knn.EVALUATION.main,
        *neighbours(path, world, tmp_path, *flags),
        told=told,
        at=path,
        hint=hint,
    )


# Numbers that make no sense -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "flags", "told", "hint"),
    [
        (
            ami.EVALUATION.main,
            ("--feature", "pooled", "--num-clusters", 13),
            "13 clusters of only 12 images",
            "lower --num-clusters",
        ),
        (
            gallery.EVALUATION.main,
            ("--fine", 13, "--coarse", 3),
            "13 clusters of only 12 images",
            "lower --fine",
        ),
        (
            knn.EVALUATION.main,
            ("--feature", "pooled", "--k", 13),
            "k = 13 of only 12 images",
            "lower --k",
        ),
        (linear.EVALUATION.main, ("--lr", 0), "--lr must be different positive numbers", None),
        (linear.EVALUATION.main, ("--lr", "nan"), "--lr must be different positive numbers", None),
        (linear.EVALUATION.main, ("--epochs", -1), "--epochs must be at least 1", None),
        (
            linear.EVALUATION.main,
            ("--batch-size", 99),
            "12 training images are less than a batch of 99",
            "lower --batch-size",
        ),
        (
            semisup.EVALUATION.main,
            ("--backbone-lr", 0),
            "--backbone-lr and --head-lr must be positive",
            None,
        ),
        (
            semisup.EVALUATION.main,
            ("--head-lr", -1),
            "--backbone-lr and --head-lr must be positive",
            None,
        ),
        (semisup.EVALUATION.main, ("--epochs", -1), "--epochs must be at least 1", None),
        (detection.EVALUATION.main, ("--lr", 0), "--lr must be positive", None),
        (
            detection.EVALUATION.main,
            ("--epochs", -1),
            "--epochs and --iterations must be at least 1",
            None,
        ),
    ],
)
def test_senseless_numbers_of_an_evaluation(
    refused, folder, encoder_file, moco_file, tmp_path, main, flags, told, hint
):
    ckpt = moco_file if main == gallery.EVALUATION.main else encoder_file
    refused(main, *scoring(ckpt, folder, tmp_path, *flags), told=told, hint=hint)


@pytest.mark.parametrize(
    ("method", "flags", "told", "hint"),
    [
        ("pcl", ("--num-prototypes", 13), "13 clusters requested of 12 images", "--num-prototypes"),
        ("moco", ("--epochs", -1), "-1 epochs", "--epochs from 0"),
        ("moco", ("--lr", -1), "sgd-momentum 0.9", "--lr is positive"),
        ("moco", ("--lr", "inf"), "sgd-momentum 0.9", "--lr is positive"),
        (
            "moco",
            ("--batch-size", 13, "--queue", 13),
            "12 images, less than one batch of 13",
            "lower --batch-size",
        ),
        ("moco", ("--lr", 0), "--lr 0", "--lr is positive"),
        (
            "moco",
            ("--queue", 16),
            "a queue of 16 negatives for imagenet-train's 12 images",
            "lower --queue",
        ),
        ("moco", ("--queue", 9), "queue 9 is not a multiple of the batch size 4", "change --queue"),
        ("moco", ("--lr", "1e30", "--epochs", 2), "the loss is not finite", "lower --lr"),
    ],
)
def test_senseless_numbers_of_a_pretraining(refused, folder, tmp_path, method, flags, told, hint):
    refused(pretrain, *training(folder, tmp_path, *flags, method=method), told=told, hint=hint)


# Where nothing can be written ---------------------------------------------------------------------


def test_results_that_cannot_be_written_are_told_before_the_work(
    refused, folder, encoder_file, tmp_path, monkeypatch
):
    """Root may write everywhere, but not below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        resnet.ResNet, "features", lambda *_: pytest.fail("features were computed in vain")
    )
    out = tmp_path / "file" / "results"
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path, "--results", out),
        told=f"{tmp_path / 'file'} is no folder",
        at=out,
        hint="--results",
    )
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode != os.W_OK
    )  # as on a disk mounted to be read
    out = tmp_path / "results"
    refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path),
        told="may not be written to",
        at=out,
        hint="--results",
    )


@pytest.mark.parametrize("failing", ["open", "replace"])
@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only file system"),
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
    ],
    ids=str,
)
def test_a_disk_that_refuses_at_the_end(
    refused, folder, encoder_file, tmp_path, monkeypatch, failing, failure
):
    real = getattr(builtins if failing == "open" else os, failing)

    def refusing(path, *rest, **how):
        writes = failing == "replace" or "w" in (rest[0] if rest else how.get("mode", "r"))
        if writes and "results" in str(path) and str(path).endswith(".tmp"):
            raise failure
        return real(path, *rest, **how)

    monkeypatch.setattr(builtins if failing == "open" else os, failing, refusing)
    said = refused(
        knn.EVALUATION.main,
        *neighbours(encoder_file, folder, tmp_path),
        told=f"cannot write: {failure.strerror}",
        hint="check free space and permissions",
    )
    assert f"at: {tmp_path / 'results'}" in said


def test_a_run_folder_or_an_export_that_cannot_be_written(refused, folder, encoder_file, tmp_path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "run"
    refused(
        pretrain,
        *training(folder, tmp_path, "--out", below),
        told="cannot write",
        at=below,
        hint="permissions",
    )
    for out in (below / "e.pth", Path("/proc/no-such-place/e.pth")):
        args = ("export", encoder_file, out, "--layout", "torchvision")
        refused(
            protobench_command.main, *args, told="cannot write", at=out.parent, hint="permissions"
        )


@pytest.mark.parametrize("why", ["a file", "read-only"])
@pytest.mark.parametrize(
    ("main", "args"),
    [
        (
            knn.EVALUATION.main,
            ("--ckpt", "CKPT", "--feature", "pooled", "--workers", 0, "--results", "RESULTS"),
        ),
        (
            knn.EVALUATION.main,
            (
                "--ckpt",
                "CKPT",
                "--feature",
                "pooled",
                "--workers",
                0,
                "--results",
                "RESULTS",
                "--data",
                "DATA",
                "--k",
                1,
            ),
        ),
        (
            ami.EVALUATION.main,
            (
                "--ckpt",
                "CKPT",
                "--feature",
                "pooled",
                "--workers",
                0,
                "--results",
                "RESULTS",
                "--data",
                "DATA",
                "--skip-bad-images",
                1,
            ),
        ),
        (pretrain, ("moco", "--out", "RESULTS/run", "--workers", 0)),
        (protobench_command.main, ("check-data", "DATA")),
    ],
    ids=["embedded", "features", "readable", "pretrain", "check-data"],
)
def test_a_cache_that_cannot_be_written(
    refused, folder, encoder_file, tmp_path, monkeypatch, main, args, why
):
    cache, real = tmp_path / "cache", os.open
    if why == "a file":
        cache.touch()
    else:
        for name in ("features", "readable"):
            (cache / name).mkdir(parents=True)

    def refusing(path, flags, *rest, **how):
        if flags & os.O_CREAT and str(path).startswith(str(cache)):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *rest, **how)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setenv("PROTOBENCH_CACHE", str(cache))
    places = {
        "CKPT": encoder_file,
        "DATA": folder.parent,
        "RESULTS": tmp_path / "results",
        "RESULTS/run": tmp_path / "run",
    }
    refused(
        main,
        *(places.get(word, word) for word in args),
        told="cannot write: " + ("" if why == "a file" else "Read-only"),
        at=cache,
        hint="permissions",
    )


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (lowshot.EVALUATION.main, ("--shots", 1, "--draws", 1, "--skip-bad-images", 1)),
        (lowshot.EVALUATION.main, ("--shots", 1, "--draws", 1, "--dataset", "places205")),
        (fullsvm.EVALUATION.main, ()),
        (knn.EVALUATION.main, ("--feature", "pooled", "--k", 1)),
        (ami.EVALUATION.main, ("--feature", "pooled", "--num-clusters", 5)),
        (linear.EVALUATION.main, ("--epochs", 1, "--batch-size", 50)),
        (semisup.EVALUATION.main, ("--epochs", 1, "--batch-size", 2)),
    ],
    ids=lambda value: value.__module__ if callable(value) else "",
)
def test_nothing_is_written_beside_the_data(command, world, encoder_file, tmp_path, main, flags):
    before = snapshot(world, strictly=True)
    code, _, err = command(main, *scoring(encoder_file, world, tmp_path, *flags))
    assert code == 0, err
    assert snapshot(world, strictly=True) == before


def test_nor_by_pretraining_and_check_data(command, world, tmp_path):
    before = snapshot(world, strictly=True)
    for profile in ((), ("--batch-size", 64, "--queue", 64)):
        code, _, err = command(
            pretrain, *training(world, tmp_path, "--batch-size", 64, "--queue", 64, *profile)
        )
        assert code == 0, err
    assert command(protobench_command.main, "check-data", world)[0] == 0
    assert snapshot(world, strictly=True) == before


# What a machine falls short of --------------------------------------------------------------------


@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
def test_a_gpu_that_is_not_there(refused, folder, encoder_file, tmp_path, monkeypatch, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    refused(
        main,
        *args(folder, tmp_path, "--device", "cuda"),
        told="no GPU that torch can use",
        hint="--device cpu",
    )


CUDA = (
    "CUDA out of memory. Tried to allocate 392.00 MiB. GPU 0 has a total capacity of 79.15 GiB of"
    " which 205.31 MiB is free. Process 4711 has 78.94 GiB memory in use. If reserved but"
    " unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to"
    " avoid fragmentation."
)


@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
def test_a_gpu_that_is_too_small(refused, folder, encoder_file, tmp_path, monkeypatch, script):
    """No batch size is lowered, for that would be another protocol; what helps is said, and what
    does not."""

    def full(self, x):
        try:
            raise torch.OutOfMemoryError(CUDA)
        except torch.OutOfMemoryError:
            return {}["what follows from it"]

    monkeypatch.setattr(resnet.ResNet, "features", full)
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    said = refused(
        main,
        *args(folder, tmp_path),
        told=(
            "the GPU's memory is too small (OutOfMemoryError: CUDA out of memory. "
            "Tried to allocate 392.00 MiB."
        ),
        hint="more GPUs, with torchrun, keep the protocol",
    )
    assert "a smaller --batch-size, where there is one, is another protocol" in said
    assert "Fewer --workers do not help" in said
    assert len(max(said.splitlines(), key=len)) < 300


@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 55)], ids=["torch", "numpy"]
)
def test_a_memory_that_is_too_small(
    refused, folder, encoder_file, tmp_path, monkeypatch, script, allocate
):
    monkeypatch.setattr(resnet.ResNet, "features", lambda *_: allocate())
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    refused(
        main,
        *args(folder, tmp_path),
        told="this machine's memory is too small (",
        hint="lower --workers, end other programs",
    )


@pytest.fixture
def reading(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Lets something happen before the fourth training image is read, in whichever process reads
    it."""
    monkeypatch.setattr(
        loading,
        "DataLoader",
        lambda dataset, num_workers, **how: torch.utils.data.DataLoader(
            dataset,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            **how,
        ),
    )
    real = ImageList.read

    def before(happens: Callable[[], object]) -> None:
        def read(self: ImageList, index: int) -> Image.Image:
            if index == 3 and "train" in self.name:
                happens()
            return real(self, index)

        monkeypatch.setattr(ImageList, "read", read)

    return before


def fail_with(failure: Exception) -> None:
    raise failure


def die(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), number)


SHM = RuntimeError(
    "unable to allocate shared memory(shm) for file </torch_4711_815_0>: No space left on device"
    " (28)"
)
SMALL = "shared memory, through which workers pass images, is too small"


@pytest.mark.parametrize(
    ("happens", "told", "hint"),
    [
        (
            partial(fail_with, SHM),
            SMALL,
            "--workers 0 needs none; or enlarge it (docker run --shm-size",
        ),
        (
            partial(die, signal.SIGBUS),
            SMALL,
            "--workers 0 needs none; or enlarge it (docker run --shm-size",
        ),
        (
            partial(die, signal.SIGKILL),
            "a process that reads images died",
            "lower --workers, to 0 if need be",
        ),
        (partial(os._exit, 3), "a process that reads images died", "--shm-size"),
        (
            partial(fail_with, MemoryError()),
            "this machine's memory is too small",
            "lower --workers",
        ),
    ],
    ids=["shm", "SIGBUS", "SIGKILL", "exit", "MemoryError"],
)
@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
def test_workers_that_run_out_of_something(
    refused, folder, encoder_file, tmp_path, reading, script, happens, told, hint
):
    reading(happens)
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    refused(
        main,
        *args(folder, tmp_path, "--workers", 2),
        told=told,
        at="/dev/shm" if told == SMALL else None,
        hint=hint,
    )


def test_one_score_s_workers_do_not_end_those_of_a_whole_table(
    folder, encoder_file, tmp_path, reading, monkeypatch
):
    """What reproduce calls raises an error that it knows, at once, and leaves no process behind."""
    reading(partial(fail_with, MemoryError()))
    monkeypatch.setattr(
        torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0
    )  # so a wait is longer than any busy machine's
    begun = time.monotonic()
    with pytest.raises(UserError, match="memory is too small"):
        knn.EVALUATION.execute(
            knn.Config(
                encoder_file,
                folder,
                k=(1,),
                feature="pooled",
                device="cpu",
                workers=2,
                results=tmp_path / "results",
            )
        )
    gc.collect()
    assert time.monotonic() - begun < 45
    assert not multiprocessing.active_children()


def starve() -> None:
    """From now on this process opens no file."""
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("script", ["evaluation", "pretraining"])
def test_too_many_open_files_are_not_the_image_s_fault(
    refused, folder, encoder_file, tmp_path, reading, script, workers
):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    reading(starve)
    main, args = (
        (pretrain, training)
        if script == "pretraining"
        else (knn.EVALUATION.main, partial(neighbours, encoder_file))
    )
    try:
        refused(
            main,
            *args(folder, tmp_path, "--workers", workers),
            told="may not open that many files",
            hint="ulimit -n",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (MemoryError(), "memory is too small"),
        (OSError(24, "Too many open files"), "may not open that many files"),
    ],
    ids=str,
)
def test_no_image_is_left_out_for_want_of_memory_or_handles(
    refused, folder, encoder_file, tmp_path, monkeypatch, failure, told
):
    """--skip-bad-images is for images that cannot be decoded, not for a machine that cannot decode
    them now."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: fail_with(failure))
    said = refused(
        ami.EVALUATION.main,
        *scoring(
            encoder_file,
            folder,
            tmp_path,
            "--skip-bad-images",
            5,
            "--feature",
            "pooled",
            "--num-clusters",
            2,
        ),
        told=told,
        hint="--workers",
    )
    assert "left out" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("CUDA error: out of memory", "GPU's memory"),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "GPU's memory",
        ),
        (
            (
                "StandardGpuResources: alloc fail type TemporaryMemoryBuffer dev 0 (cudaMalloc"
                " error out of memory [2])"
            ),
            "GPU's memory",
        ),
        (
            "unable to mmap 602112 bytes from file </torch_1_2_3>: Cannot allocate memory (12)",
            "shared memory",
        ),
        ("unable to write to file </torch_1_2_3>: No space left on device (28)", "shared memory"),
        (
            "Too many open files. Communication with the workers is no longer possible.",
            "open that many files",
        ),
        ("received 0 items of ancdata", "open that many files"),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault.", "reads images died"),
        ("[Errno 12] Cannot allocate memory", "machine's memory"),
        ("std::bad_alloc", "machine's memory"),
    ],
)
def test_the_libraries_words_are_known(words, told):
    found = resource_errors.explained(RuntimeError(words))
    assert told in found.what
    assert words[:40] in found.what


def test_only_what_is_known_is_explained():
    for other in (
        RuntimeError("shapes do not fit"),
        OSError(2, "No such file or directory", "x"),
        KeyError("batch"),
    ):
        assert resource_errors.explained(other) is None
    plain = ValueError("b")
    plain.__context__ = MemoryError()
    assert "memory" in str(resource_errors.explained(plain))
    plain.__suppress_context__ = True  # raise … from None: it was dealt with
    assert resource_errors.explained(plain) is None
    ring, other = ValueError("a"), ValueError("b")
    ring.__cause__, other.__cause__ = other, ring
    assert resource_errors.explained(ring) is None
