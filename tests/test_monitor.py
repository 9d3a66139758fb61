"""The monitor measures what it says, changes nothing, and is the same after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain import command as pretrain_command
from pretrain import loop, moco, monitor, optim
from pretrain.recipes import moco as moco_recipes
from pretrain.recipes import pcl, supervised
from protobench.checkpoints import encoders
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic

MOCO = replace(
    moco_recipes.MINI, train=replace(moco_recipes.MINI.train, epochs=3, batch_size=32), queue=64
)


def _course(out):
    return json.loads((out / "course.json").read_text())


def _timeless(found):
    return [
        {name: value for name, value in line.items() if "seconds" not in name} for line in found
    ]


def test_a_training_is_measured_at_its_ends_and_between():
    assert [e for e in range(41) if monitor.due(e, 40)] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert [e for e in range(21) if monitor.due(e, 20)] == [0, 5, 10, 15, 20]
    assert [e for e in range(201) if monitor.due(e, 200)] == list(range(0, 201, 25))
    assert [e for e in range(4) if monitor.due(e, 3)] == [0, 1, 2, 3]
    for epochs in (9, 12, 13, 15, 16, 90, 100):
        found = [e for e in range(epochs + 1) if monitor.due(e, epochs)]
        assert len(found) == (5 if epochs < 40 else 9)
        assert (found[0], found[-1]) == (0, epochs)


def test_cluster_numbers_are_the_paper_s_or_of_their_proportion():
    assert monitor.cluster_numbers(1_281_167) == (25_000, 50_000, 100_000)
    assert monitor.cluster_numbers(4000) == pcl.MINI.num_prototypes
    assert monitor.cluster_numbers(10) == (1, 1, 1)


def test_balance_by_hand():
    found = monitor.balance(np.array([0, 2, 2, 4]))
    assert (found["mean"], found["sd"], found["max"], found["empty"]) == (2.0, 1.4142, 4, 1)
    assert (
        found["gini"] == 0.375
    )  # mean absolute difference 1.5 of all 16 pairs, over twice the mean
    assert found["histogram"] == {"0": 1, "2": 2, "4": 1}
    assert monitor.balance(np.full(7, 3))["gini"] == 0


def test_embeddings_that_are_the_classes_agree_wholly():
    labels = np.arange(400) % 5

    x_IC = np.eye(5, dtype=np.float32)[labels] + 0.001 * np.random.default_rng(0).normal(
        size=(400, 5)
    ).astype(np.float32)
    found = monitor.measure(x_IC, labels, 7, device="cpu")
    assert found["epochs"] == 7
    assert list(found["clusters"]) == ["5", "10", "20"]
    assert found["clusters"]["5"]["ami"] == 1
    assert found["clusters"]["5"]["mi"] == pytest.approx(np.log(5), abs=1e-6)
    assert found["feature_mi"] == pytest.approx(found["upper_bound"], abs=0.15)


def test_the_monitor_does_not_affect_the_training(train_images, tmp_path, monkeypatch):
    monitored = loop.pretrain(MOCO, train_images, tmp_path / "with", seed=1)
    monkeypatch.setattr(monitor, "due", lambda done, epochs: False)
    without = loop.pretrain(MOCO, train_images, tmp_path / "without", seed=1)
    a, b = (encoders.load(path).backbone.state_dict() for path in (monitored, without))
    assert all(torch.equal(a[name], b[name]) for name in a)
    course = _course(tmp_path / "with")
    assert [line["epochs"] for line in course["probes"]] == [0, 1, 2, 3]
    assert [line["epoch"] for line in course["epochs"]] == [0, 1, 2]
    assert course["key"] == encoders.load(monitored).key
    assert _course(tmp_path / "without")["probes"] == []


def test_a_measurement_that_fails_does_not_stop_the_training(
    train_images, tmp_path, monkeypatch, capsys
):
    def fails(*_, **__):
        raise UserError("no GPU that faiss can use")

    monkeypatch.setattr(monitor, "kmeans", fails)
    path = loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    assert path.exists()
    assert capsys.readouterr().out.count("no measurement after") == 4
    assert _course(tmp_path)["probes"] == []


def test_a_classifier_has_no_embedding_to_measure(train_images, tmp_path):
    recipe = replace(
        supervised.MINI,
        train=replace(supervised.MINI.train, epochs=1, batch_size=32),
    )
    loop.pretrain(recipe, train_images, tmp_path, seed=1)
    assert _course(tmp_path)["probes"] == []


def test_a_method_without_embedding_leaves_no_record(command, world, tmp_path):
    """Nor does that keep the command from succeeding."""
    code, out, err = command(
        lambda: pretrain_command._main("doc", supervised.RECIPES),
        "mini",
        "--data",
        world,
        "--epochs",
        1,
        "--batch-size",
        32,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert str(tmp_path / "run" / "encoder.safetensors") in out
    assert not (tmp_path / "run" / "records").exists()


def test_the_monitor_uses_the_momentum_encoder_as_pcl_s_clustering_does(train_images, tmp_path):
    method = moco.build(MOCO, torch.empty(0), 0, 1)
    with torch.no_grad():
        for parameter in method.encoder_k.parameters():
            parameter.add_(0.1)
    seen = [p.data_ptr() for p in method.networks().embedding.parameters()]
    assert seen == [p.data_ptr() for p in method.encoder_k.parameters()]


def test_a_kill_before_the_course_was_written_loses_none_of_it(train_images, tmp_path, monkeypatch):
    loop.pretrain(MOCO, train_images, tmp_path / "whole", seed=1)
    real = loop.files.write_text

    def killed(path, text):
        if path.name == "course.json":
            raise KeyboardInterrupt
        real(path, text)

    monkeypatch.setattr(loop.files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(MOCO, train_images, tmp_path / "cut", seed=1)
    monkeypatch.setattr(loop.files, "write_text", real)
    loop.pretrain(MOCO, train_images, tmp_path / "cut", seed=1)
    assert _timeless(_course(tmp_path / "whole")["probes"]) == _timeless(
        _course(tmp_path / "cut")["probes"]
    )


def test_a_killed_run_keeps_its_measurements(train_images, tmp_path, monkeypatch):
    loop.pretrain(MOCO, train_images, tmp_path / "whole", seed=1)
    real, steps = optim.learning_rate, []

    def stop(*args):
        steps.append(0)
        if len(steps) == 9:  # in the second of three epochs
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(optim, "learning_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(MOCO, train_images, tmp_path / "cut", seed=1)
    loop.pretrain(MOCO, train_images, tmp_path / "cut", seed=1)
    whole, cut = (_course(tmp_path / name) for name in ("whole", "cut"))
    assert _timeless(whole["probes"]) == _timeless(cut["probes"])
    assert _timeless(whole["epochs"]) == _timeless(cut["epochs"])
