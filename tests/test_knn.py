"""On features whose answer is known, against scikit-learn, and through the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from evaluate import knn
from protobench import features, outcomes, records
from protobench.checkpoints import encoders
from protobench.data import image_list
from protobench.runtime import distributed


def _unit(rng, n, d=16):
    return features.unit_norm(rng.normal(size=(n, d)).astype(np.float32))


def test_the_nearest_is_the_image_itself():
    x = _unit(np.random.default_rng(0), 200)
    labels = np.arange(200) % 7
    (run,) = knn.score(x, labels, x, labels, (1,), 0.07)
    assert run["value"] == run["top5"] == 100.0


def test_shuffled_labels_score_at_chance():
    rng = np.random.default_rng(0)
    x, labels = _unit(rng, 4000), rng.integers(0, 10, 4000)
    (run,) = knn.score(x[:3000], labels[:3000], x[3000:], labels[3000:], (20,), 0.1)
    assert run["value"] == pytest.approx(10, abs=3)
    assert run["top5"] == pytest.approx(50, abs=6)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 0.1, 1.0])
def test_equals_scikit_learn_s_weighted_vote(temperature):
    rng = np.random.default_rng(1)
    bank, query = _unit(rng, 700), _unit(rng, 150)
    labels, truth = rng.integers(0, 9, 700), rng.integers(0, 9, 150)
    for run in knn.score(bank, labels, query, truth, (1, 5, 20, 200), temperature):

        def weights(
            distance,
        ):  # exp(v.v' / T) but for a factor per query, which keeps it from vanishing
            square = distance.astype(np.float64) ** 2
            return np.exp(-(square - square.min(1, keepdims=True)) / 2 / temperature)

        theirs = KNeighborsClassifier(run["k"], weights=weights, algorithm="brute").fit(
            bank, labels
        )
        assert run["value"] == pytest.approx(
            100 * (theirs.predict(query) == truth).mean(), abs=100 / 150 + 1e-6
        )
        probability = theirs.predict_proba(query)
        top5 = np.argsort(-probability, axis=1, kind="stable")[:, :5]
        hit = (theirs.classes_[top5] == truth[:, None]).any(1).mean()
        if run["k"] == 1:
            assert run["top5"] == run["value"], "one vote, one answer"
        if (
            run["k"] >= 20 and temperature > 0.01
        ):  # else classes without a vote take part in scikit-learn's ranking
            assert run["top5"] == pytest.approx(100 * hit, abs=100 / 150 + 1e-6)


def test_a_vote_by_hand():
    """One near neighbour of class 0 against two farther ones of class 1: the temperature
    decides."""
    bank = np.array([[1, 0], [0.9, np.sqrt(1 - 0.81)], [0.9, -np.sqrt(1 - 0.81)]], dtype=np.float32)
    query, labels = np.array([[1, 0]], dtype=np.float32), np.array([0, 1, 1])
    sharp, soft = (
        knn.score(bank, labels, query, np.array([0]), (3,), t)[0]["value"] for t in (0.1, 1.0)
    )
    assert (sharp, soft) == (100.0, 0.0)  # e^10 against 2 e^9; e^1 against 2 e^0.9


def test_the_outcomes_are_those_of_the_images_in_their_order():
    """Every image but the third finds itself; the third carries another label than its twin."""
    x = _unit(np.random.default_rng(0), 11)
    labels = np.arange(11) % 7
    truth = labels.copy()
    truth[2] += 1
    (run,) = knn.score(x, labels, x, truth, (1,), 0.07)
    found = outcomes.of_run(run, 11)["value"]
    assert found.tolist() == [i != 2 for i in range(11)]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    bank, query, labels, truth = (
        _unit(rng, 500),
        _unit(rng, 101),
        rng.integers(0, 5, 500),
        rng.integers(0, 5, 101),
    )
    whole = knn.score(bank, labels, query, truth, (3, 50), 0.1)
    monkeypatch.setattr(knn, "QUERIES", 7)
    monkeypatch.setattr(knn, "BANK", 33)
    for ours, theirs in zip(
        knn.score(bank, labels, query, truth, (3, 50), 0.1), whole, strict=True
    ):
        a, b = (outcomes.of_run(run, 101)["value"] for run in (ours, theirs))
        assert (a != b).sum() <= 1, "two votes may be equal but for rounding, of one query of 101"
        assert ours["top5"] == pytest.approx(theirs["top5"], abs=1)


def _args(file, world, out, *more):
    return ("--ckpt", file, "--data", world, "--workers", 0, "--results", out, *more)


def test_queries_are_compared_with_momentum_embeddings(command, moco_file, world, tmp_path):
    code, out, err = command(knn.EVALUATION.main, *_args(moco_file, world, tmp_path, "--k", 5, 20))
    assert code == 0, err
    assert (
        "(query encoder) among 200 training images (momentum encoder), 64-D embedding feature,"
        " temperature 0.1" in out
    )
    (record,) = records.read_all(tmp_path).values()
    bank = features.extract(
        encoders.load(moco_file, prefer="momentum"),
        image_list.image_folder(world / "imagenet" / "train", "imagenet-train"),
        pooling="embedding",
    )
    val = image_list.image_folder(world / "imagenet" / "val", "imagenet-val")
    query = features.extract(encoders.load(moco_file), val, pooling="embedding")
    expected = knn.score(
        features.unit_norm(bank),
        np.repeat(np.arange(20), 10),
        features.unit_norm(query),
        val.labels,
        (5, 20),
        0.1,
    )
    assert record["runs"] == expected
    assert record["feature"] == {
        "dim": 64,
        "pooling": "embedding",
        "copy": "query",
        "bank": "momentum",
    }


def test_the_embedding_is_the_training_one(world, tmp_path):
    """What the file gives is what the method's own encoders compute."""
    from pretrain.moco import MoCo
    from pretrain.recipes import moco, pcl

    method = MoCo(pcl.MINI_V2, seed=3).eval()
    for parameter in method.encoder_k.parameters():
        parameter.data.mul_(1.1)
    input_, networks = moco.MINI.input, method.networks()
    encoders.export(
        tmp_path / "e.safetensors",
        networks.backbone,
        projection=networks.projection,
        momentum=networks.momentum,
        key="k",
        input_=input_,
        trained={},
    )
    val = image_list.image_folder(world / "imagenet" / "val", "imagenet-val")
    pixels = torch.stack(
        [torch.from_numpy(input_.pixels(val.read(i)).copy()).permute(2, 0, 1) for i in range(8)]
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (input_.mean, input_.std))
    for copy, encoder in (("query", method.encoder_q), ("momentum", method.encoder_k)):
        loaded = encoders.load(tmp_path / "e.safetensors", prefer=copy)
        got = features.unit_norm(
            features.extract(loaded, val.subset(np.arange(8)), pooling="embedding")
        )
        with torch.inference_mode():
            expected = encoder((pixels / 255 - mean) / std)
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_without_a_head_the_pooled_feature_must_be_asked_for(
    command, encoder_file, world, tmp_path
):
    code, _, err = command(knn.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--k", 5))
    assert code == 2
    assert "holds no projection head" in err
    assert "--feature pooled" in err
    code, out, err = command(
        knn.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--k", 5, "--feature", "pooled")
    )
    assert code == 0, err
    assert "(query encoder), 128-D pooled feature, temperature 0.07" in out


def test_other_copies_are_other_records(command, moco_file, world, tmp_path):
    """The bank is the momentum encoder's by default and the query encoder's where that is asked
    for."""
    for flags in ((), ("--weights", "query"), ("--weights", "momentum")):
        code, _, err = command(
            knn.EVALUATION.main, *_args(moco_file, world, tmp_path, "--k", 5, *flags)
        )
        assert code == 0, err
    found = list(records.read_all(tmp_path).values())
    assert len({record["unit"]["encoder"] for record in found}) == 3
    assert {(r["feature"]["copy"], r["feature"]["bank"]) for r in found} == {
        ("query", "momentum"),
        ("query", "query"),
        ("momentum", "momentum"),
    }


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--k", 500), "500 of only 200 images"),
        (("--k", 0), "at least 1"),
        (("--k", 5, 5), "different numbers"),
        (("--temperature", -1), "must be positive"),
        (("--temperature", 0), "must be positive"),
        (("--data", "/nowhere"), "no such folder"),
    ],
)
def test_senseless_parameters_are_refused(command, moco_file, world, tmp_path, flags, complaint):
    code, _, err = command(knn.EVALUATION.main, *_args(moco_file, world, tmp_path), *flags)
    assert code == 2
    assert complaint in err
    assert not list(tmp_path.glob("*.json"))


def test_processes_that_share_the_bank_find_what_one_finds(command, moco_file, world, tmp_path):
    """Two, each with a part that is smaller than k."""
    args = [
        "--ckpt",
        moco_file,
        "--data",
        world,
        "--workers",
        "0",
        "--k",
        "5",
        "150",
        "--device",
        "cpu",
    ]
    assert command(knn.EVALUATION.main, *args, "--results", tmp_path / "one")[0] == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*torchrun, Path(knn.__file__), *args, "--results", tmp_path / "two"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    (one,), (two,) = (records.read_all(tmp_path / name).values() for name in ("one", "two"))
    for ours, theirs in zip(two["runs"], one["runs"], strict=True):
        a, b = (outcomes.of_run(run, 40)["value"] for run in (ours, theirs))
        assert (a != b).sum() <= 1, "two votes may be equal but for rounding, of one image of 40"
        assert ours["top5"] == pytest.approx(theirs["top5"], abs=2.5)


def test_parts_cover_everything_once(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 5)
    parts = []
    for rank in range(5):
        monkeypatch.setattr(distributed.dist, "get_rank", lambda rank=rank: rank)
        parts += distributed.shard(13)
    assert parts == list(range(13))
