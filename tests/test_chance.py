"""Scores far below chance and, for a trained encoder, at chance get a remark; others get none."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate import chance, knn, lowshot


def test_far_below_chance_is_impossible():
    labels = np.repeat(np.arange(3), 30)
    assert "below chance (33 %)" in chance.accuracy_remark(0, labels, trained=False)
    assert chance.accuracy_remark(25, labels, trained=False) == ""


def test_chance_level_is_remarked_on_only_for_a_trained_encoder():
    labels = np.repeat(np.arange(1000), 50)
    assert "no better than chance (0.1 %)" in chance.accuracy_remark(52, labels, trained=True)
    assert chance.accuracy_remark(52, labels, trained=False) == ""
    assert chance.accuracy_remark(500, labels, trained=True) == ""


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(2, 40), st.integers(30, 400), st.integers(0, 2**32 - 1))
def test_answers_independent_of_the_labels_are_never_called_impossible(classes, images, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    answers = rng.choice(classes, images, p=rng.dirichlet(np.ones(classes)))
    assert chance.accuracy_remark(int((labels == answers).sum()), labels, trained=False) == ""


def test_chance_follows_the_number_and_the_shares_of_the_classes():
    assert chance.accuracy_remark(0, np.zeros(50, int), trained=True) == ""
    uneven = np.repeat([0, 1], [95, 5])
    remark = chance.accuracy_remark(5, uneven, trained=False)
    assert remark == "", "always answering the rare class gives that"
    assert "no better than chance (95 %)" in chance.accuracy_remark(94, uneven, trained=True)


def test_z_is_that_of_the_mann_whitney_test():
    from scipy import stats

    rng = np.random.default_rng(0)
    score_NC, positive_NC = rng.normal(size=(200, 4)), rng.random((200, 4)) < 0.3
    expected = []
    for score, positive in zip(score_NC.T, positive_NC.T, strict=True):
        p = stats.mannwhitneyu(
            score[positive], score[~positive], use_continuity=False, alternative="greater"
        ).pvalue
        expected.append(stats.norm.isf(p))
    assert chance.rank_z(score_NC, positive_NC) == pytest.approx(np.mean(expected), abs=1e-3)
    assert chance.rank_z(score_NC, np.ones((200, 4), bool)) == 0.0


def test_reversed_rankings_are_impossible_and_random_ones_no_better_than_chance():
    rng = np.random.default_rng(1)
    positive_NC = rng.random((500, 20)) < 0.2
    good = positive_NC + rng.normal(size=(500, 20))
    assert chance.ranking_remark(chance.rank_z(good, positive_NC), 20, trained=True) == ""
    reversed_z = chance.rank_z(-good, positive_NC)
    assert "rank lower than others" in chance.ranking_remark(reversed_z, 20, trained=False)
    noise = chance.rank_z(rng.normal(size=(500, 20)), positive_NC)
    assert "rank no higher than others" in chance.ranking_remark(noise, 20, trained=True)
    assert chance.ranking_remark(noise, 20, trained=False) == ""


def test_permuted_classes_are_reported_on_the_terminal_and_in_the_record(
    world, moco_file, tmp_path, command
):
    """Each validation folder holds the images of the next class."""
    from protobench import records

    root = tmp_path / "data"
    folders = sorted((world / "imagenet" / "train").iterdir())[:3]
    for number, folder in enumerate(folders):
        shutil.copytree(folder, root / "train" / folder.name)
        shutil.copytree(folder, root / "val" / folders[(number + 1) % 3].name)
    inputs = ("--ckpt", moco_file, "--data", root, "--results", tmp_path / "results")
    options = ("--feature", "pooled", "--k", 1, "--workers", 0)
    code, _, err = command(knn.EVALUATION.main, *inputs, *options)
    assert code == 0
    assert "warning: 0.0 % of 30 is below chance (33 %)" in err
    (record,) = (tmp_path / "results").glob("*.json")
    (warning,) = records.read(record)["warnings"]
    assert "impossible if the labels are right" in warning


def test_lowshot_judges_the_runs_with_the_most_images():
    runs = [{"k": 1, "rank_z": -9.0, "value": 0.0}, {"k": 16, "rank_z": 4.0, "value": 60.0}]
    assert lowshot._remark(runs, np.ones((50, 20), int), trained=True) == ""
    labels = np.repeat(np.arange(4), 50)
    assert "below chance" in lowshot._remark([{"k": 4, "value": 0.0}], labels, trained=True)
