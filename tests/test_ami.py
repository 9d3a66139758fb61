"""Clusters whose agreement is known, and the command line."""

import numpy as np
import pytest

from evaluate import ami
from protobench import features, records


def _args(file, world, out, *more):
    return ("--ckpt", file, "--data", world, "--workers", 0, "--results", out, *more)


def _config(*ks, **more):
    return ami.Config("x", num_clusters=ks, **more)


def test_separate_classes_are_found_whole():
    rng = np.random.default_rng(0)
    centres = features.unit_norm(rng.normal(size=(8, 32)).astype(np.float32))
    labels = np.repeat(np.arange(8), 40)
    x = features.unit_norm(centres[labels] + 0.01 * rng.normal(size=(320, 32)).astype(np.float32))
    (run,) = ami.score(x, labels, _config(8))
    assert run["value"] == pytest.approx(1.0)
    assert run["purity"] == 1.0
    assert run["non_empty"] == 8


def test_features_without_classes_score_nothing():
    rng = np.random.default_rng(0)
    x, labels = (
        features.unit_norm(rng.normal(size=(2000, 16)).astype(np.float32)),
        rng.integers(0, 10, 2000),
    )
    for run in ami.score(x, labels, _config(10, 100, restarts=1)):
        assert abs(run["value"]) < 0.02


def test_the_command_line_prints_all_scores_and_records_them(command, moco_file, world, tmp_path):
    code, out, err = command(
        ami.EVALUATION.main, *_args(moco_file, world, tmp_path, "--num-clusters", 10, 20)
    )
    assert code == 0, err
    assert "64-D embedding feature of the momentum encoder" in out
    assert "AMI(max)" in out
    (record,) = records.read_all(tmp_path).values()
    assert [run["k"] for run in record["runs"]] == [10, 20]
    command(
        ami.EVALUATION.main, *_args(moco_file, world, tmp_path / "again", "--num-clusters", 10, 20)
    )
    assert [r["runs"] for r in records.read_all(tmp_path / "again").values()] == [record["runs"]], (
        "same seed, same record"
    )


def test_pooled_features_need_no_head(command, encoder_file, world, tmp_path):
    code, out, _ = command(
        ami.EVALUATION.main,
        *_args(encoder_file, world, tmp_path, "--num-clusters", 10, "--feature", "pooled"),
    )
    assert code == 0
    assert "128-D pooled feature of the query encoder" in out


def test_bundled_data_has_a_default_of_its_own(world):
    assert (
        ami.Config("x").clusters
        == ami.Config("x", world).clusters
        == ami.Config("x", world / "imagenet").clusters
        == (100,)
    )
    assert ami.Config("x", world.parent).clusters == (25_000,)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--num-clusters", 25_000), "25000 clusters of only 200 images"),
        (("--num-clusters", 0), "at least 1"),
        (("--num-clusters", 5, 5), "different"),
        (("--restarts", 0), "at least 1"),
    ],
)
def test_senseless_parameters_are_refused(command, encoder_file, world, tmp_path, flags, complaint):
    code, _, err = command(
        ami.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--feature", "pooled", *flags)
    )
    assert code == 2
    assert complaint in err
