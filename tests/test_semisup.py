"""Subsets, schedule and fine-tuning against torch by hand; the command line, killed and resumed;
bad lists."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from float64 import float64
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from evaluate import semisup, subsets
from protobench import records
from protobench.checkpoints import resnet
from protobench.data import imagenet
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


@given(st.integers(0, 2000), st.sampled_from([1, 10]), st.integers(0, 5))
def test_a_random_subset_is_a_part_without_repetition(images, percent, draw):
    rows = subsets.drawn(images, percent, 0, draw)
    assert len(rows) == images * percent // 100
    assert len(np.unique(rows)) == len(rows)
    assert rows.tolist() == sorted(rows)
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < images)
    assert rows.tolist() == subsets.drawn(images, percent, 0, draw).tolist()


def test_subsets_differ_between_draws_and_follow_no_class():
    """Of ImageNet's size: 12 811 images as in SimCLR's list; the classes' counts spread as chance
    has it."""
    first, second = (subsets.drawn(1_281_167, 1, 0, draw) for draw in (0, 1))
    assert len(first) == 12_811
    assert len(np.intersect1d(first, second)) < 300
    counts = np.bincount(first * 1000 // 1_281_167, minlength=1000)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)  # Poisson, not balanced


def test_the_schedule_is_appendix_e_s():
    assert [semisup.factor(epoch, 20) for epoch in (0, 11, 12, 15, 16, 19)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04]
    )


def test_defaults_are_appendix_e_s():
    one, ten = (
        semisup.Config("x", Path("data")).params(),
        semisup.Config("x", Path("data"), "imagenet-10pct").params(),
    )
    assert (one["backbone_lr"], one["head_lr"], ten["backbone_lr"], ten["head_lr"]) == (
        0.01,
        1.0,
        0.01,
        0.1,
    )
    assert semisup.Config("x").params()["head_lr"] == 20 / 256
    assert semisup.Config("x", dataset="imagenet-10pct").params()["head_lr"] == 0.1
    for params in (one, ten):
        assert (
            params["epochs"],
            params["batch_size"],
            params["sgd_momentum"],
            params["weight_decay"],
        ) == (20, 256, 0.9, 5e-4)
        assert (params["draws"], params["subset"], params["batch_norm"]) == (1, "random", "train")


def test_every_epoch_sees_each_image_once_in_another_order():
    params = {"seed": 0, "epochs": 3, "batch_size": 4}
    whole = list(semisup.order(np.arange(100, 110), params, 0))
    assert [len(batch) for batch in whole] == [4] * 6, "the last two images fill no batch"
    epochs = [[image for batch in whole for e, image in batch if e == epoch] for epoch in range(3)]
    assert all(len(set(images)) == 8 and set(images) <= set(range(100, 110)) for images in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
@float64()
def test_steps_are_torch_s_sgd_at_two_rates(batch_norm):
    torch.manual_seed(0)
    params = {
        "seed": 0,
        "backbone_lr": 0.01,
        "head_lr": 1.0,
        "sgd_momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_norm": batch_norm,
    }
    backbone = resnet.build("resnet10-mini")
    tuning = semisup.FineTuning(backbone, 7, params, 0, "cpu")
    assert tuning.network[1].weight.std().item() == pytest.approx(0.01, rel=0.2)
    body, head = copy.deepcopy(backbone), copy.deepcopy(tuning.network[1])
    body.train(batch_norm == "train")
    optimizer = torch.optim.SGD(
        [{"params": body.parameters(), "lr": 0.002}, {"params": head.parameters(), "lr": 0.2}],
        momentum=0.9,
        weight_decay=5e-4,
    )
    for _ in range(3):
        x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 7, (8,))
        loss = nn.functional.cross_entropy(head(body(x)), y)
        assert float(tuning.step(x, y, 0.2)) == pytest.approx(loss.item(), rel=1e-10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(tuning.network[1].weight, head.weight)
    torch.testing.assert_close(tuning.network[0].conv1.weight, body.conv1.weight)
    torch.testing.assert_close(tuning.network[0].bn1.running_mean, body.bn1.running_mean)
    assert bool((body.bn1.running_mean == 0).all()) == (batch_norm == "frozen")
    assert bool((backbone.conv1.weight != body.conv1.weight).any()), (
        "the checkpoint's own network stays as it was"
    )


def test_answers_that_are_the_labels_score_100_and_random_ones_chance():
    labels = np.arange(1000) % 20
    perfect = torch.eye(20)[torch.from_numpy(labels)]
    assert semisup.right(nn.Identity(), perfect.split(256), labels).sum(0).tolist() == [1000, 1000]
    noise = torch.randn(20_000, 20, generator=torch.Generator().manual_seed(0))
    top1, top5 = (
        semisup.right(nn.Identity(), noise.split(999), np.arange(20_000) % 20).sum(0) / 200
    ).tolist()
    assert (top1, top5) == (pytest.approx(5, abs=1), pytest.approx(25, abs=1.5))
    second = perfect.roll(1, 1) * 2 + perfect
    assert semisup.right(nn.Identity(), second.split(256), labels).sum(0).tolist() == [0, 1000]


# Lists --------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path):
    paths = (
        "n01440764/n01440764_1.JPEG",
        "n01440764/n01440764_2.JPEG",
        "n01443537/n01443537_1.JPEG",
        "n01443537/same.JPEG",
        "n01484850/same.JPEG",
    )
    return ImageList(
        "imagenet-train",
        tmp_path,
        paths,
        np.array([0, 0, 1, 1, 2]),
        ("n01440764", "n01443537", "n01484850"),
    )


def test_simclr_s_lists_name_files_without_their_folder(training, tmp_path):
    path = tmp_path / "1percent.txt"
    path.write_text("n01443537_1.JPEG\nn01440764_2.JPEG\n\nn01484850/same.JPEG\n")
    assert subsets.listed(training, path, 60).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "n01440764_1.JPEG\nn99999999_7.JPEG\n",
            "1 of 2 images of this list are of unknown classes .n99999999.",
        ),
        ("n01440764_9.JPEG\n", "unknown or in several classes, the first 'n01440764_9.JPEG'"),
        ("n01484850_same\n", "unknown or in"),
        ("same.JPEG\n", "of unknown classes"),
        ("n01440764_1.JPEG\nn01440764_1.JPEG\n", "names 1 images twice"),
        ("\n", "empty"),
    ],
)
def test_lists_that_do_not_fit_are_refused(training, tmp_path, text, complaint):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        subsets.listed(training, path, 60)


def test_a_list_of_another_percentage_is_refused(training, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("n01440764_1.JPEG\n")
    with pytest.raises(UserError, match="names 1 of 5 images, which is not 1 %"):
        subsets.listed(training, path, 1)


def test_images_left_out_as_unreadable_may_stand_in_a_list(training, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("n01440764_1.JPEG\ngone.JPEG\n")
    part = replace(training, unreadable=("n01443537/gone.JPEG",))
    assert subsets.listed(part, path, 40).tolist() == [0]
    path.write_text("gone.JPEG\n")
    with pytest.raises(UserError, match="every image of this list was left out"):
        subsets.listed(part, path, 40)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffn01440764_1.JPEG\nn01440764_2.JPEG",
        "train/n01440764/n01440764_1.JPEG\r\nn01440764_2.JPEG\r\n",
    ],
)
def test_marks_line_ends_and_the_train_folder_do_not_matter(training, tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    assert subsets.listed(training, path, 40).tolist() == [0, 1]


def test_lists_beside_the_data_are_taken_unless_declined(tmp_path, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet_subsets").mkdir()
    listing = tmp_path / "imagenet_subsets" / "10percent.txt"
    listing.write_text("x")
    ten = semisup.Config("x", tmp_path, "imagenet-10pct")
    monkeypatch.chdir(tmp_path / "imagenet")
    for data in (tmp_path, tmp_path / "imagenet", Path(".")):
        assert semisup.Config("x", data, "imagenet-10pct").listing == listing
    assert len(ten.params()["subset"]) == 64
    assert replace(ten, random_subset=True).params()["subset"] == "random"
    assert semisup.Config("x", tmp_path).listing is None


# The command line ---------------------------------------------------------------------------------


def _args(file, world, out, *more):
    return (
        "--ckpt",
        file,
        "--data",
        world,
        "--workers",
        0,
        "--dataset",
        "imagenet-10pct",
        "--batch-size",
        8,
        "--epochs",
        4,
        "--results",
        out,
        *more,
    )


def test_a_checkpoint_is_tuned_scored_and_recorded_twice_the_same(
    command, encoder_file, world, tmp_path
):
    for name in ("one", "two"):
        code, out, err = command(
            semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / name, "--draws", 2)
        )
        assert code == 0, err
        assert "subset: 20 images, drawn at random; fine-tunings: 2" in out
    (one,), (two,) = (records.read_all(tmp_path / name).values() for name in ("one", "two"))
    assert one["runs"] == two["runs"]
    assert [run["draw"] for run in one["runs"]] == [0, 1]
    assert one["runs"][0]["subset"] != one["runs"][1]["subset"]
    assert one["data"]["train_images"] == 20
    assert not list(tmp_path.glob("*/.semisup-*"))


def test_classes_that_any_network_can_tell_are_learned_from_a_tenth_of_the_labels(
    command, encoder_file, tmp_path
):
    rng = np.random.default_rng(0)
    for split, count in (("train", 100), ("val", 5)):
        for label in range(6):
            folder = tmp_path / "imagenet" / split / f"colour-{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.array([label % 2, label // 2 % 2, label // 4]) * 180 + rng.integers(
                    0, 60, (40, 40, 3)
                )
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    code, _, err = command(
        semisup.EVALUATION.main,
        *_args(encoder_file, tmp_path, tmp_path, "--epochs", 10, "--head-lr", 0.01),
    )
    assert code == 0, err
    ((run,),) = (record["runs"] for record in records.read_all(tmp_path).values())
    assert (run["value"], run["top1"], run["classes"]) == (100.0, 100.0, 6)
    assert run["train_loss"] < 1, (
        "chance is 1.8; over many seeds and instruction sets it ended below 0.4"
    )


@pytest.mark.parametrize("at", [1, 4, 9, 13, 16])
def test_a_stopped_fine_tuning_goes_on_and_ends_the_same(
    at, command, encoder_file, world, tmp_path, monkeypatch
):
    """In the first step of either draw, and in the first and the second of an epoch."""
    monkeypatch.setattr(semisup, "SAVE_SECONDS", -1.0)
    command(semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / "whole", "--draws", 2))
    real, seen = semisup.FineTuning.step, []

    def stop_at_13(self, *args):
        seen.append(0)
        if len(seen) == at:  # of 2 draws x 4 epochs x 2 steps
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(semisup.FineTuning, "step", stop_at_13)
    code, _, err = command(
        semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut", "--draws", 2)
    )
    assert code == 130, err
    code, _, err = command(
        semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut", "--draws", 2)
    )
    assert code == 0, err
    assert len(seen) == 16 + 1
    whole, cut = (
        next(iter(records.read_all(tmp_path / name).values())) for name in ("whole", "cut")
    )
    assert whole["runs"] == cut["runs"]


def test_a_subset_list_is_recorded_by_name_and_hash_and_may_be_tuned_on_several_times(
    command, encoder_file, world, tmp_path
):
    names = imagenet.read(world, "train").paths[::10]
    (tmp_path / "10percent.txt").write_text("\n".join(names))
    code, _, err = command(
        semisup.EVALUATION.main,
        *_args(
            encoder_file, world, tmp_path, "--subset-list", tmp_path / "10percent.txt", "--draws", 2
        ),
    )
    assert code == 0, err
    (record,) = records.read_all(tmp_path).values()
    assert record["data"]["subset"] == "10percent.txt"
    assert len(record["unit"]["params"]["subset"]) == 64
    first, second = record["runs"]
    assert first["subset"] == second["subset"]
    assert first["train_loss"] != second["train_loss"], "another classifier, other crops"


def test_a_run_with_other_parameters_does_not_resume_a_stopped_one(
    command, encoder_file, world, tmp_path, monkeypatch
):
    monkeypatch.setattr(semisup, "SAVE_SECONDS", -1.0)
    command(
        semisup.EVALUATION.main,
        *_args(encoder_file, world, tmp_path / "fresh", "--head-lr", 0.2, "--draws", 1),
    )
    real, seen = semisup.FineTuning.step, []

    def stop_at_5(self, *args):
        seen.append(0)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(semisup.FineTuning, "step", stop_at_5)
    assert (
        command(
            semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut", "--draws", 1)
        )[0]
        == 130
    )
    state = max((tmp_path / "cut").glob(".semisup-*.pt"))
    (state.parent / f".{state.name}.{2**22 + 1}.tmp").write_text("of a run killed while it saved")
    code, _, err = command(
        semisup.EVALUATION.main,
        *_args(encoder_file, world, tmp_path / "cut", "--head-lr", 0.2, "--draws", 1),
    )
    assert code == 0, err
    fresh, cut = (
        next(iter(records.read_all(tmp_path / name).values())) for name in ("fresh", "cut")
    )
    assert fresh["runs"] == cut["runs"]
    code, _, err = command(
        semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut", "--draws", 1)
    )
    assert code == 0, err
    assert not list((tmp_path / "cut").glob(".*semisup*"))


def test_scores_use_the_running_statistics():
    """A network in training mode would score each image by its batch."""
    network = nn.Sequential(nn.BatchNorm1d(5), nn.Identity())
    network[0].running_mean.copy_(torch.arange(5.0))
    x, labels = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), np.arange(64) % 5
    network.train()
    assert torch.equal(
        semisup.right(network, x.split(64), labels),
        semisup.right(network.train(), x.split(4), labels),
    )
    assert network[0].num_batches_tracked == 0


def test_draws_differ_in_classifier_and_crops():
    params = {
        "seed": 0,
        "backbone_lr": 0.01,
        "head_lr": 1.0,
        "sgd_momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_norm": "train",
    }
    first, second = (
        semisup.FineTuning(resnet.build("resnet10-mini"), 7, params, draw, "cpu").network[1].weight
        for draw in (0, 1)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--draws", 0), "at least 1"),
        (("--epochs", 0), "at least 1"),
        (("--batch-size", 21), "less than a batch"),
        (("--backbone-lr", 0), "must be positive"),
        (("--head-lr", 0), "must be positive"),
        (("--head-lr", 1e38), "diverged in epoch"),
        (("--epochs", 1, "--batch-size", 20, "--backbone-lr", 1e30), "NaN or infinite logits"),
        (("--random-subset", "--subset-list", "x"), "exclude one another"),
        (("--subset-list", "absent.txt"), "no such list"),
        (("--precision", "bf16"), "for frozen networks"),
        (("--sgd-momentum", 1), "lie in"),
        (("--dataset", "imagenet-5pct"), "imagenet-10pct"),
    ],
)
def test_senseless_parameters_are_refused(command, encoder_file, world, tmp_path, flags, complaint):
    code, out, err = command(semisup.EVALUATION.main, *_args(encoder_file, world, tmp_path), *flags)
    assert code == 2
    assert complaint in out + err
    assert not list(tmp_path.glob("*.json"))
