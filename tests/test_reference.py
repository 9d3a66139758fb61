"""Is my installation right? By hand, by simulation, and from synthetic records."""

import re
import shutil

import numpy as np
import pytest
from scipy import stats

from evaluate import lowshot
from protobench import records
from protobench.records import ModelInfo, ResultKey
from protobench.runtime import files
from tables import __main__ as tables_main
from tables.engine import compare, reference, runs
from tables.pcl.table1 import TABLE

ROWS = [row for row in TABLE.rows if not row.cited]

# The check ----------------------------------------------------------------------------------------


def test_a_row_by_hand():
    """Endpoints of the reference: 10, 12, 14 in units of the spread; ours: 15, 18."""
    theirs = {1: np.array([10.0, 20.0]), 2: np.array([12.0, 24.0]), 3: np.array([14.0, 28.0])}
    ours = {1: np.array([14.0, 32.0]), 2: np.array([18.0, 36.0])}
    to_all, to_same = reference.gaps(ours, theirs, np.array([1.0, 2.0]), rows=1)
    assert to_all.distance == pytest.approx((16.5 - 12) / 2)
    t = stats.t(2).ppf(1 - 0.05 * 0.75 / 2)
    assert to_all.allowed == pytest.approx(t * np.sqrt(1 / 2 + 1 / 3))
    # differences of 5 and 6, in standard deviations of 2: 2.5 and 3
    assert to_same.distance == pytest.approx(2.75)
    t = stats.t(1).ppf(1 - 0.05 * 0.25 / 2)
    assert to_same.allowed == pytest.approx(t * np.std([2.5, 3.0], ddof=1) / np.sqrt(2))


def test_other_seeds_are_not_paired_and_small_differences_of_the_same_never_count():
    theirs = {seed: np.array([float(seed)]) for seed in range(1, 6)}
    sd = np.std(range(1, 6), ddof=1)
    ours = {seed: value + 0.1 for seed, value in theirs.items()}
    _, to_same = reference.gaps(ours, theirs, np.ones(1), rows=6)
    assert (to_same.distance, to_same.allowed) == (pytest.approx(0.1 / sd), 0.5)
    others = {seed + 10: value for seed, value in ours.items()}
    assert len(reference.gaps(others, theirs, np.ones(1), rows=6)) == 1


def test_the_spread_of_a_column_is_the_root_mean_square_over_rows():
    variances = [np.array([1.0, 4.0, 0.0]), np.array([7.0, np.nan, 0.0])]
    assert reference.spread(variances).tolist() == [2.0, 2.0, 1.0]


def test_the_error_is_divided_among_the_rows_by_sidak():
    theirs = {seed: np.array([float(seed)]) for seed in range(1, 11)}
    ours = {seed: np.array([0.0]) for seed in (11, 12, 13, 14)}
    (gap,) = reference.gaps(ours, theirs, np.ones(1), rows=6)
    sidak = stats.t(9).ppf(1 - 0.75 * (1 - 0.95 ** (1 / 6)) / 2)
    assert gap.allowed == pytest.approx(sidak * np.sqrt(1 / 4 + 1 / 10))


def test_rows_without_any_spread_must_be_equal():
    theirs = {seed: np.full(2, 5.0) for seed in (1, 2, 3)}
    ours = {4: np.full(2, 5.0)}
    assert reference.gaps(ours, theirs, np.ones(2), rows=1)[0].inside
    assert not reference.gaps({4: np.full(2, 4.9)}, theirs, np.ones(2), rows=1)[0].inside


def _simulated(equal, *, ours=4, theirs=10, shift=0.0, correlation=0.5, times=1500, apart=0):
    """Shares of simulated runs in which any row, and the row that is shifted, lies outside.

    Six rows of ten correlated columns whose standard deviations differ by factors; ``equal``: the
    share of the variance that is the same at the same seeds; the rest is rounding's. ``shift``: of
    one row, in standard deviations of each of its columns. ``apart``: added to our seeds, so that
    they are others."""
    rng = np.random.default_rng(0)
    sd_RC = np.exp(rng.normal(0.0, 0.5, size=(6, 10)))

    def noise(seeds):
        """Of unit variance; half of what columns have in common, rows have too."""
        common, row, own = (rng.normal(size=(seeds, *size)) for size in ((1, 1), (6, 1), (6, 10)))
        return np.sqrt(correlation / 2) * (common + row) + np.sqrt(1 - correlation) * own

    outside = np.zeros((times, 6), dtype=bool)
    for i in range(times):
        seeds = noise(max(ours, theirs))
        a, b = (
            sd_RC * (np.sqrt(equal) * seeds[:n] + np.sqrt(1 - equal) * noise(n))
            for n in (ours, theirs)
        )
        a[:, 2] += shift * sd_RC[2]
        spread_C = reference.spread(list(b.var(0, ddof=1)))
        for row in range(6):
            our = {seed + apart: value_C for seed, value_C in enumerate(a[:, row])}
            found = reference.gaps(our, dict(enumerate(b[:, row])), spread_C, rows=6)
            outside[i, row] = not all(gap.inside for gap in found)
    return outside.any(1).mean(), outside[:, 2].mean()


@pytest.mark.parametrize(
    ("equal", "apart", "at_most"),
    [(0.0, 99, 0.05), (0.0, 0, 0.05), (0.5, 0, 0.05), (0.95, 0, 0.05), (1.0, 0, 0.0)],
    ids=["other seeds", "all from rounding", "half", "little from rounding", "equal bits"],
)
def test_a_right_installation_is_called_wrong_in_at_most_5_percent(equal, apart, at_most):
    alarms, _ = _simulated(equal, apart=apart, times=1000)
    assert alarms <= at_most + 2 * np.sqrt(at_most * (1 - at_most) / 1000)


@pytest.mark.parametrize(
    ("shift", "ours", "equal", "found"),
    [
        (3.0, 4, 0.0, 0.93),
        (3.0, 3, 0.0, 0.85),
        (2.0, 4, 0.0, 0.55),
        (2.0, 10, 0.0, 0.85),
        (1.0, 4, 0.95, 0.25),
        (1.0, 10, 0.8, 0.75),
    ],
)
def test_a_row_that_is_shifted_by_standard_deviations_of_seeds_is_found(shift, ours, equal, found):
    for correlation in (0.5, 0.8):
        _, power = _simulated(equal, ours=ours, shift=shift, correlation=correlation, times=300)
        assert power >= found - 2 * np.sqrt(0.25 / 300), correlation


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    for flush in ("sync", "_sync_folder"):
        monkeypatch.setattr(files, flush, lambda *_: None)


def _run(results, seeds, tier="mini", *, noise=0, recipe="r", draws=2, data="world", **shifts):
    """A run of Table 1; seeds scatter by a point, and ``noise`` chooses another machine's run."""
    for row in ROWS:
        if (shift := shifts.get(row.name.replace("-", "_"), 0.0)) is None:
            continue
        for seed in seeds:
            rng = np.random.default_rng([seed, noise])
            base = shift + rng.normal()
            for dataset in ("voc07", "places205"):
                values = {
                    column.k: float(TABLE.numbers[row.name, column.title]) + base + rng.normal() / 2
                    for column in TABLE.columns
                    if column.dataset == dataset
                }
                records.write(
                    results / tier / "records",
                    ResultKey(
                        "lowshot",
                        dataset,
                        lowshot.EVALUATION.version,
                        f"{row.name}{seed}{noise}",
                        (dataset, data),
                        {"protocol": "pcl", "draws": draws},
                    ),
                    [
                        {"k": k, "draw": draw, "cost": 0.5, "value": round(value + draw, 6)}
                        for k, value in values.items()
                        for draw in range(draws)
                    ],
                    model=ModelInfo(row.name, seed, "retrained", recipe),
                    metric={"test_images": 1000},
                    data={"classes": 20, "train_images": 1000},
                    checkpoint={"arch": "resnet10-mini", "untouched": False, "trained": None},
                )


def _commit(results, seeds=range(1, 11), **how):
    """A run that becomes the committed one."""
    _run(results, seeds, **how)
    (results / "reference").mkdir(exist_ok=True)
    (results / "mini").rename(results / "reference" / "mini")


def _told(results, tier="mini"):
    """What is said about the installation, in lines."""
    found = runs.collect(TABLE, results, tier).rows
    outcome = compare.outcome(TABLE, tier, found)
    return reference.against(outcome, found, results / "reference").splitlines()


def test_equal_digits_say_it_all(tmp_path):
    _commit(tmp_path)
    _run(tmp_path, (1, 2, 3))
    assert _told(tmp_path) == [f"{reference.QUESTION} yes, to the last digit in 18 of 18 encoders"]


def test_another_processor_lies_within_the_intervals(tmp_path, monkeypatch):
    _commit(tmp_path)
    environment = records.environment() | {"processor": "Xeon", "torch": "9.9"}
    monkeypatch.setattr(records, "environment", lambda: environment)
    _run(tmp_path, (1, 2, 3, 4), noise=7)
    told = _told(tmp_path)
    assert told[0] == f"{reference.QUESTION} yes, 6 of 6 rows lie in its 95% prediction intervals"
    assert told[1] == "  distances in standard deviations of seeds (allowed)"
    assert re.match(r"    from all seeds: Random [+-]\d\.\d \(2\.1\), Supervised ", told[2])
    assert re.match(r"    from the same seeds: Random [+-]\d\.\d \(\d+\.\d\), ", told[3])
    assert re.match(
        r"  the same seeds: 0 of 24 encoders equal to the last digit; \d+ of 60 cells equal to"
        r" 0\.05, difference \d\.\d\d on average, \d\.\d\d at most \([^,]+, \S+ k=\d+:"
        r" \d+\.\d\d, reference \d+\.\d\d\)$",
        told[4],
    )
    assert "processor Xeon (reference: " in told[5]
    assert "versions that differ: torch 9.9 (reference: " in told[5]


def test_a_row_outside_is_named_with_its_distance(tmp_path):
    _commit(tmp_path)
    _run(tmp_path, (1, 2, 3, 4), noise=7, simclr=-8.0)
    told = _told(tmp_path)[0]
    assert re.fullmatch(
        rf"{reference.QUESTION} no, because SimCLR lies \d+\.\d standard deviations of seeds below"
        r" all seeds of the reference \(2\.1 allowed\)",
        told,
    )


def test_a_single_seed_shows_great_shifts_alone(tmp_path):
    _commit(tmp_path)
    _run(tmp_path, (11,))
    assert _told(tmp_path)[0] == (
        f"{reference.QUESTION} cannot be told: with 1 of 10 seeds only a shift beyond 3.7 standard"
        " deviations of seeds would show"
    )
    shutil.rmtree(tmp_path / "mini")
    _run(tmp_path, (11,), pcl=-30.0)
    assert "no, because PCL lies" in _told(tmp_path)[0]


def test_a_reference_of_few_seeds_decides_nothing(tmp_path):
    _commit(tmp_path, seeds=(1, 2, 3))
    _run(tmp_path, (1, 2, 3), noise=7)
    assert "cannot be told: with 3 of 3 seeds only a shift beyond" in _told(tmp_path)[0]


def test_rows_that_were_not_run_are_named(tmp_path):
    _commit(tmp_path, pcl_v2=None)
    _run(tmp_path, (1, 2, 3, 4), noise=7, simclr=None, moco=None)
    assert _told(tmp_path)[0] == (
        f"{reference.QUESTION} yes, 3 of 6 rows lie in its 95% prediction intervals; cannot be"
        " told: not run: MoCo, SimCLR; not in the reference: PCL v2"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": "mine"}, "another recipe"),
        ({"draws": 3}, "other parameters of lowshot"),
        ({"data": "another world"}, "other images of places205"),
    ],
)
def test_other_runs_are_not_compared(tmp_path, change, reason):
    _commit(tmp_path)
    _run(tmp_path, (1, 2, 3, 4), **change)
    everything = ", ".join(row.title for row in ROWS)
    assert _told(tmp_path)[0] == f"{reference.QUESTION} cannot be told: {reason}: {everything}"


def test_other_tiers(tmp_path):
    _commit(tmp_path)
    for tier, told in (("quick", ["cannot be told in the quick tier"]), ("paper", [])):
        _run(tmp_path, (1,), tier)
        found = _told(tmp_path, tier)
        assert all(part in line for part, line in zip(told, found, strict=True))


def test_without_a_reference_nothing_is_said(tmp_path):
    _run(tmp_path, (1, 2))
    assert _told(tmp_path) == []


def test_the_command_says_it_after_the_table(command, tmp_path):
    _commit(tmp_path, seeds=(1, 2))
    _run(tmp_path, (1, 2))
    _, out, err = command(tables_main.main, "diff", "table1", "--results", tmp_path)
    assert f"{reference.QUESTION} yes, to the last digit in 12 of 12 encoders\n" in out, err
