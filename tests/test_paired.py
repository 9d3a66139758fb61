"""Two encoders on the same images: by hand, by enumeration, by simulation, and as a command."""

import json
from math import comb

import numpy as np
import pytest

from evaluate import knn
from protobench import outcomes, records
from protobench.records import ModelInfo, ResultKey
from tables import __main__ as tables_main
from tables.engine.scoring import paired


def _outcomes(both=0, only_a=0, only_b=0, neither=0):
    """Two encoders' outcomes with these counts."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


# Statistics ---------------------------------------------------------------------------------------


def test_a_comparison_by_hand():
    found = paired.difference(*_outcomes(both=50, only_a=9, only_b=1, neither=38))
    assert (found.images, found.only_a, found.only_b) == (98, 9, 1)
    assert (found.a, found.b) == (pytest.approx(5900 / 98), pytest.approx(5100 / 98))
    assert found.difference == pytest.approx(800 / 98)
    # of 10 discordant images 9 or 10, or 0 or 1: 2 * (10 + 1) / 2^10
    assert found.p == pytest.approx(22 / 1024)
    # (9.5 - 1.5) / 100 = 8 points; sqrt((11 / 100 - 0.0064) / 100) = 3.2187 points
    assert found.low == pytest.approx(8 - 1.959964 * 3.218695, abs=1e-4)
    assert found.high == pytest.approx(8 + 1.959964 * 3.218695, abs=1e-4)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (2, 9), (0, 12), (40, 60)])
def test_p_is_that_of_all_ways_to_divide_the_discordant_images(only_a, only_b):
    n, seen = only_a + only_b, comb(only_a + only_b, only_a)
    as_rare = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= seen)
    found = paired.difference(*_outcomes(100, only_a, only_b, 100))
    assert found.p == pytest.approx(as_rare / 2**n)


def test_exchanging_the_encoders_changes_signs_alone():
    a, b = _outcomes(100, 20, 5, 30)
    one, other = paired.difference(a, b), paired.difference(b, a)
    assert (one.p, one.difference) == (other.p, -other.difference)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_equal_outcomes_leave_an_interval_that_the_number_of_images_sets():
    found = paired.difference(*_outcomes(both=4000, neither=4000))
    assert (found.p, found.difference) == (1.0, 0.0)
    assert found.low == -found.high
    assert 0 < found.high < 0.03


@pytest.mark.parametrize(
    ("images", "only_a", "only_b"),
    [(8000, 0.10, 0.08), (8000, 0.002, 0.001), (500, 0.15, 0.15), (100, 0.08, 0.02)],
)
def test_the_interval_covers_95_percent_and_the_test_errs_in_at_most_5(images, only_a, only_b):
    rng, repetitions = np.random.default_rng(0), 2000
    counts = rng.multinomial(images, [0.5, only_a, only_b, 0.5 - only_a - only_b], repetitions)
    found = [paired.difference(*_outcomes(*of)) for of in counts]
    truth = 100 * (only_a - only_b)
    covered = np.mean([of.low <= truth <= of.high for of in found])
    assert covered == pytest.approx(0.95, abs=0.02), "Monte-Carlo error 0.005"
    if only_a == only_b:
        assert np.mean([of.p < 0.05 for of in found]) < 0.05 + 0.01


# Records ------------------------------------------------------------------------------------------

PARAMS = {"k": [20], "feature": "embedding", "temperature": 0.1}


def _record(
    folder,
    row,
    right,
    *,
    seed=None,
    data="test",
    params=PARAMS,
    evaluation="knn",
    metric="top-1",
    keep=True,
    version=1,
    encoder=None,
):
    """A record of an evaluation with one run."""
    run = {"k": 20, "draw": 0, "value": round(100 * float(np.mean(right)), 6)}
    if keep:
        run["right"] = {"value": outcomes.pack(right)}
    name = encoder or f"{row}-{seed}"
    return records.write(
        folder,
        ResultKey(evaluation, "imagenet", version, name, ("train", data), params),
        [run],
        model=ModelInfo(row, seed, f"{row}.pth", None),
        metric={"name": metric, "unit": "%", "test_images": len(right)},
        checkpoint={"sha256": name},
        data={},
        cost={},
    )


A, B = _outcomes(both=500, only_a=120, only_b=60, neither=320)


def _compare(command, *args):
    return command(tables_main.main, "compare", *args)


def test_two_records_are_compared(command, tmp_path):
    one, two = _record(tmp_path, "one", A), _record(tmp_path, "two", B)
    code, out, err = _compare(command, one, two)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("knn, imagenet")]
    assert line.split()[2:7] == ["k=20,", "top-1", "1000", "62.00", "56.00"]
    assert "+6.00 [+3.3" in line
    assert line.split()[-3:-1] == ["120", "60"]
    assert float(line.split()[-1]) < 1e-4
    assert "two encoders and images like the test images; not about their methods" in out
    code, out, _ = _compare(command, one, two, "--json")
    (found,) = json.loads(out)
    assert (found["found"]["only_a"], found["found"]["difference"]) == (120, pytest.approx(6))


def test_names_of_rows_are_found_in_the_results_and_seeds_are_paired(command, tmp_path):
    for seed in (1, 2):
        for row, right in (("pcl", A), ("moco", B)):
            _record(tmp_path, row, np.roll(right, seed), seed=seed, data=f"world {seed}")
    _record(tmp_path, "pcl", A, seed=3, data="world 3")
    code, out, err = _compare(command, "pcl", "moco", "--results", tmp_path)
    assert code == 0, err
    assert [line.split()[2] for line in out.splitlines() if line.startswith("knn,")] == ["1", "2"]
    assert "left out: knn on imagenet: B has no record of seed 3" in out
    assert "not corrected for their number" in out
    code, out, err = _compare(command, "pcl-2", "moco-2", "--results", tmp_path)
    assert code == 0, err
    assert out.count("knn,") == 1
    code, _, err = _compare(command, "pcl-1", "moco-2", "--results", tmp_path)
    assert code == 2
    assert "differ in their images" in err
    code, _, err = _compare(command, "pclx", "moco", "--results", tmp_path)
    assert code == 2
    assert "did you mean 'pcl'" in err


def test_folders_are_compared_on_what_both_hold(command, tmp_path):
    for row, right in (("a", A), ("b", B)):
        _record(tmp_path / row, row, right)
        _record(tmp_path / row, row, right, evaluation="fullsvm", metric="mAP", keep=False)
        _record(tmp_path / row, row, right, evaluation="linear", params={"lr": [row == "a"]})
    code, out, err = _compare(command, tmp_path / "a", tmp_path / "b")
    assert code == 0, err
    assert "fullsvm on imagenet: mAP ranks all images together" in out
    assert "linear on imagenet: the records differ in lr ([True] and [False])" in out
    assert out.count("knn, imagenet") == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": "other"}, "differ in their images"),
        ({"params": PARAMS | {"temperature": 0.07}}, "differ in temperature (0.1 and 0.07)"),
        ({"version": 2}, "differ in the evaluation's version (1 and 2)"),
        ({"evaluation": "ami"}, "A has knn on imagenet; B has ami on imagenet"),
        ({"keep": False}, "the record of B holds no outcomes per image"),
        ({"encoder": "one-None"}, "both records are of the same encoder"),
    ],
)
def test_what_differs_is_named(command, tmp_path, change, complaint):
    one = _record(tmp_path / "one", "one", A)
    two = _record(tmp_path / "two", "two", B, **change)
    code, out, err = _compare(command, one, two)
    assert (code, out) == (2, "")
    assert complaint in err


def test_map_has_no_outcomes(command, tmp_path):
    one, two = (
        _record(tmp_path, row, A, evaluation="lowshot", metric="mAP", keep=False)
        for row in ("one", "two")
    )
    code, _, err = _compare(command, one, two)
    assert code == 2
    assert "no image has an outcome; compare the draws" in err


def test_a_folder_of_several_encoders_is_refused(command, tmp_path):
    one = _record(tmp_path, "one", A)
    _record(tmp_path, "two", B)
    code, _, err = _compare(command, one, tmp_path)
    assert code == 2
    assert "records of 2 encoders (one, two)" in err


def test_an_empty_folder_is_told(command, tmp_path):
    one = _record(tmp_path / "full", "one", A)
    (tmp_path / "empty").mkdir()
    for what in (tmp_path / "empty", "moco"):
        code, _, err = _compare(command, one, what, "--results", tmp_path / "empty")
        assert code == 2
        assert "no records in this folder" in err


def test_scored_checkpoints_are_compared_by_their_files(
    command, encoder_file, moco_file, world, tmp_path
):
    for ckpt in (encoder_file, moco_file):
        code, _, err = command(
            knn.EVALUATION.main,
            *("--ckpt", ckpt, "--data", world, "--workers", 0, "--feature", "pooled", "--k", 5, 20),
            *("--results", tmp_path),
        )
        assert code == 0, err
    code, out, err = _compare(command, encoder_file, moco_file, "--results", tmp_path)
    assert code == 0, err
    assert [line.split()[2] for line in out.splitlines() if line.startswith("knn,")] == [
        "k=5,",
        "k=20,",
    ]
    other = tmp_path / "other.pth"
    other.write_bytes(b"never scored")
    code, _, err = _compare(command, other, moco_file, "--results", tmp_path)
    assert code == 2
    assert "no record of this checkpoint" in err
