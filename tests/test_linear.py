"""The heads against autograd, on features whose answer is known, and through the command line,
killed and resumed."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluate import linear
from protobench import records
from protobench.data import imagenet
from protobench.data.transforms import EvalInput
from tables.pcl import table3

pytestmark = pytest.mark.arithmetic

PARAMS = {"seed": 0, "batch_norm": False, "sgd_momentum": 0.9, "weight_decay": 0.0}


def _heads(rates, dim, classes, **more):
    return linear.Heads(tuple(rates), dim, classes, PARAMS | more, "cpu")


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_heads_side_by_side_train_as_torch_would_train_each_alone(batch_norm, decay, nesterov):
    rates, dim, classes = (0.1, 1.0, 10.0), 7, 4
    more = {"nesterov": True} if nesterov else {}
    heads = _heads(rates, dim, classes, batch_norm=batch_norm, weight_decay=decay, **more)
    start = heads.weight_LCD[0].clone()
    rng = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, dim, generator=rng), torch.randint(0, classes, (16,), generator=rng))
        for _ in range(5)
    ]
    losses = [heads.step(x, y, 0.5) for x, y in batches]
    for i, rate in enumerate(rates):
        norm = torch.nn.BatchNorm1d(dim, affine=False) if batch_norm else torch.nn.Identity()
        layer = torch.nn.Linear(dim, classes)
        with torch.no_grad():
            layer.weight.copy_(start)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(
            layer.parameters(), 0.5 * rate, momentum=0.9, weight_decay=decay, nesterov=nesterov
        )
        for step, (x, y) in enumerate(batches):
            loss = F.cross_entropy(layer(norm(x)), y)
            assert float(losses[step][i]) == pytest.approx(loss.item(), rel=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(heads.weight_LCD[i], layer.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(heads.bias_LC[i], layer.bias.detach(), rtol=1e-3, atol=1e-4)
        x = torch.randn(3, dim, generator=rng)
        torch.testing.assert_close(
            heads.logits(x)[i], layer(norm.eval()(x)).detach(), rtol=1e-3, atol=1e-3
        )


def test_features_that_are_the_classes_score_100_and_shuffled_labels_chance():
    x, y = torch.eye(6).repeat(20, 1), torch.arange(6).repeat(20)
    heads = _heads([1.0], 6, 6)
    for _ in range(50):
        heads.step(x, y, 1.0)
    assert linear.accuracies(linear.hits(heads, x.numpy(), y.numpy(), "cpu")) == ([100.0], [100.0])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3000, 6)).astype(np.float32), rng.integers(0, 6, 3000)
    top1, top5 = linear.accuracies(linear.hits(heads, x, y, "cpu"))
    assert top1[0] == pytest.approx(100 / 6, abs=4)
    assert top5[0] == pytest.approx(500 / 6, abs=4)


def test_a_head_that_diverges_stops_before_its_weights_are_spoilt_and_alone():
    heads = _heads([0.1, 1e38], 4, 3)
    x, y = (
        1e3 * torch.randn(32, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(32) % 3,
    )
    for _ in range(10):
        heads.step(x, y, 1.0)
    assert heads.alive_L.tolist() == [True, False]
    assert torch.isfinite(heads.weight_LCD[0]).all()


def test_the_schedule():
    assert [linear.factor(epoch, 100) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [linear.factor(epoch, 40) for epoch in (23, 24, 31, 32)] == pytest.approx(
        [1, 0.1, 0.1, 0.01]
    )
    cosine = [linear.factor(epoch, 12, "cosine") for epoch in (0, 2, 3, 4, 6, 8, 12)]
    assert cosine == pytest.approx([1, (2 + 3**0.5) / 4, (2 + 2**0.5) / 4, 0.75, 0.5, 0.25, 0])


def test_defaults_are_the_paper_s():
    on_imagenet, on_places = (
        linear.Config("x", Path("data")).params(),
        linear.Config("x", Path("data"), "places205").params(),
    )
    assert (
        on_imagenet["lr"],
        on_imagenet["epochs"],
        on_imagenet["batch_norm"],
        on_imagenet["pooling"],
    ) == ((10.0,), 100, False, "average")
    assert (
        on_places["lr"],
        on_places["epochs"],
        on_places["batch_norm"],
        on_places["pooling"],
    ) == ((0.3,), 40, True, "2x2")
    assert linear.Config("x").params()["epochs"] == 10


def test_what_records_are_found_by_stays_as_it_is():
    common = {"batch_size": 256, "sgd_momentum": 0.9, "weight_decay": 0.0, "seed": 0}
    on_imagenet = {
        "lr": (10.0,),
        "epochs": 100,
        "batch_norm": False,
        "pooling": "average",
        **common,
    }
    on_places = {"lr": (0.3,), "epochs": 40, "batch_norm": True, "pooling": "2x2", **common}
    assert linear.Config("x", Path("data")).params() == on_imagenet
    assert linear.Config("x", Path("data"), "places205").params() == on_places
    assert linear.Config("x").params() == on_imagenet | {"epochs": 10}
    assert linear.Config("x", dataset="places205").params() == on_places | {"epochs": 10}


def test_each_paper_s_probe_on_imagenet_alone():
    def of(probe, data=Path("data"), dataset="imagenet"):
        params = linear.Config("x", data, dataset=dataset, probe=probe).params()
        return params["lr"], params["epochs"], params.get("schedule"), params.get("nesterov", False)

    assert of("pcl") == ((10.0,), 100, None, False)
    assert of("moco") == ((30.0,), 100, None, False)
    assert of("simclr") == ((0.1,), 90, "cosine", True)
    assert of("spcl") == ((0.1,), 100, "cosine", True)
    for probe in ("moco", "simclr", "spcl"):
        assert of(probe, None) == of("pcl", None), "one rate for all rows on bundled data"
        assert of(probe, dataset="places205") == of("pcl", dataset="places205")
    assert {row.name: dict(row.settings) for row in table3.TABLE.rows if row.settings} == {
        "moco": {"probe": "moco"},
        "simclr": {"probe": "simclr"},
    }


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_has_a_cosine_and_the_bundled_stand_in_a_sweep(dataset):
    common = {
        "batch_size": 256,
        "sgd_momentum": 0.9,
        "weight_decay": 0.0,
        "seed": 0,
        "batch_norm": False,
        "pooling": "average",
        "schedule": "cosine",
        "nesterov": True,
    }
    assert linear.Config("x", Path("data"), dataset).params() == {
        "lr": (0.1,),
        "epochs": 100,
        **common,
    }
    assert linear.Config("x", dataset=dataset).params() == {
        "lr": (0.1, 1.0, 10.0),
        "epochs": 10,
        **common,
    }
    assert linear.Config("x", Path("data"), dataset, batch_size=512).params()["lr"] == (0.2,)
    assert linear.Config("x", dataset=dataset, lr=(3.0,)).params()["lr"] == (3.0,)


def test_random_crops_cover_the_image_and_depend_on_their_key_alone():
    from PIL import Image

    ramp = np.stack([np.tile(np.arange(200, dtype=np.uint8), (100, 1))] * 3, axis=2)
    image, input_ = Image.fromarray(ramp), EvalInput(40, 32)
    crops = [input_.random_pixels(image, np.random.default_rng(i)) for i in range(300)]
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    assert np.array_equal(crops[7], input_.random_pixels(image, np.random.default_rng(7)))
    flipped = np.mean([int(crop[0, 0, 0]) > int(crop[0, -1, 0]) for crop in crops])
    assert flipped == pytest.approx(0.5, abs=0.1)
    widths = [abs(int(crop[0, 0, 0]) - int(crop[0, -1, 0])) for crop in crops]
    assert min(widths) > 20
    assert max(widths) > 110
    assert min(int(crop.min()) for crop in crops) < 10
    assert max(int(crop.max()) for crop in crops) > 190
    thin = Image.fromarray(ramp[:4])
    assert input_.random_pixels(thin, np.random.default_rng(0)).shape == (
        32,
        32,
        3,
    ), "no aspect fits: the middle is taken"


# The command line ---------------------------------------------------------------------------------


def _args(file, world, out, *more):
    return (
        "--ckpt",
        file,
        "--data",
        world,
        "--workers",
        0,
        "--batch-size",
        20,
        "--epochs",
        3,
        "--results",
        out,
        *more,
    )


@pytest.mark.parametrize("dataset", ["imagenet", "places205", "cifar10"])
def test_a_checkpoint_is_scored_recorded_and_unmoved(
    command, encoder_file, world, tmp_path, dataset
):
    code, _, err = command(
        linear.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--dataset", dataset)
    )
    assert code == 0, err
    (record,) = records.read_all(tmp_path).values()
    assert record["feature"]["dim"] == (512 if dataset == "places205" else 128)
    assert record["data"]["held_out"] == (20 if dataset == "cifar10" else 0), (
        "there the bundled default tries three rates"
    )
    assert not list(tmp_path.glob(".linear-*")), "the state is gone when the record is there"
    code, _, err = command(
        linear.EVALUATION.main,
        *_args(encoder_file, world, tmp_path / "again", "--dataset", dataset),
    )
    assert code == 0, err
    assert [r["runs"] for r in records.read_all(tmp_path / "again").values()] == [record["runs"]], (
        "same seed, same record"
    )


def test_without_data_cifar_s_stand_in_is_swept_on_a_cosine(
    command, encoder_file, world, tmp_path, monkeypatch
):
    monkeypatch.setattr(linear.bundled, "ensure", lambda **_: world)
    real, factors = linear.Heads.step, []
    monkeypatch.setattr(
        linear.Heads,
        "step",
        lambda self, x, y, factor: (factors.append(factor), real(self, x, y, factor))[1],
    )
    words = (
        "--ckpt",
        encoder_file,
        "--workers",
        0,
        "--batch-size",
        90,
        "--epochs",
        4,
        "--results",
        tmp_path,
    )
    code, out, err = command(linear.EVALUATION.main, *words, "--dataset", "cifar100")
    assert code == 0, err
    assert factors == pytest.approx(np.repeat([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4], 2))
    assert "BUNDLED SYNTHETIC DATA" in out
    (record,) = records.read_all(tmp_path).values()
    assert record["unit"]["data_name"] == record["data"]["name"] == "cifar100"
    assert [line["lr"] for line in record["sweep"]] == [0.1, 1.0, 10.0]
    assert (record["data"]["embedded"], record["data"]["held_out"]) == (True, 20)
    assert 0 <= record["runs"][0]["value"] <= record["runs"][0]["top5"] <= 100


def test_a_sweep_is_chosen_on_held_out_training_images(command, encoder_file, world, tmp_path):
    code, out, err = command(
        linear.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--lr", 0.1, 1, 10)
    )
    assert code == 0, err
    assert "180 images" in out
    assert out.count("<- chosen on the held-out images") == 1
    (record,) = records.read_all(tmp_path).values()
    best = max(record["sweep"], key=lambda line: line["held_out"])
    assert record["runs"][0]["lr"] == best["lr"]
    assert record["runs"][0]["value"] == best["top1"]


def test_a_stopped_probe_goes_on_from_its_last_epoch(
    command, encoder_file, world, tmp_path, monkeypatch
):
    command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "whole"))
    real, seen = linear.order, []

    def stop_at_2(images, seed, epoch):
        seen.append(epoch)
        if epoch == 2 and seen.count(2) == 1:
            raise KeyboardInterrupt
        return real(images, seed, epoch)

    monkeypatch.setattr(linear, "order", stop_at_2)
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut"))
    assert code == 130
    assert "the same command continues" in err
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut"))
    assert code == 0, err
    assert seen == [0, 1, 2, 2]
    whole, cut = (
        next(iter(records.read_all(tmp_path / name).values())) for name in ("whole", "cut")
    )
    assert whole["runs"] == cut["runs"]


def test_a_probe_told_to_stop_saves_the_step(command, encoder_file, world, tmp_path, monkeypatch):
    command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "whole"))
    real, seen = linear.Heads.step, []

    def signalled(self, *args):
        seen.append(0)
        if len(seen) == 10:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(linear.Heads, "step", signalled)
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut"))
    assert code == 75
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path / "cut"))
    assert code == 0, err
    whole, cut = (
        next(iter(records.read_all(tmp_path / name).values())) for name in ("whole", "cut")
    )
    assert whole["runs"] == cut["runs"]
    monkeypatch.undo()
    epochs, steps = whole["unit"]["params"]["epochs"], 200 // whole["unit"]["params"]["batch_size"]
    assert steps > 1
    assert len(seen) == epochs * steps, "no step was done twice"


def test_a_damaged_state_is_told(command, encoder_file, world, tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "accuracies", lambda *_: 1 / 0)
    command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path))
    states = list(tmp_path.glob(".linear-*.pt"))
    assert len(states) == 2
    for state in states:
        state.write_bytes(b"damaged")
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path))
    assert code == 2
    assert "is damaged" in err
    assert "to start this run again" in err


def test_a_moving_backbone_would_be_noticed(command, encoder_file, world, tmp_path, monkeypatch):
    real = linear.train

    def careless(heads, compute, *rest, **more):
        compute.backbone.conv1.weight.data *= 1.01
        return real(heads, compute, *rest, **more)

    monkeypatch.setattr(linear, "train", careless)
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path))
    assert code == 2
    assert "the frozen backbone moved" in err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--lr", 0), "different positive"),
        (("--lr", 1, 1), "different positive"),
        (("--epochs", 0), "at least 1"),
        (("--batch-size", 1000), "less than a batch"),
        (("--sgd-momentum", 1), "lie in"),
        (("--lr", 1e39), "diverged at every"),
    ],
)
def test_senseless_parameters_are_refused(command, encoder_file, world, tmp_path, flags, complaint):
    code, _, err = command(linear.EVALUATION.main, *_args(encoder_file, world, tmp_path), *flags)
    assert code == 2
    assert complaint in err
    assert not list(tmp_path.glob("*.json"))


def test_classes_of_train_and_val_are_those_of_the_folder(world):
    training, val = linear.EVALUATION.load_data(world, "imagenet")
    assert training.classes == val.classes == imagenet.read(world, "train").classes
