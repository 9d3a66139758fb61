"""Is my installation right? By hand, by simulation, and from synthetic records."""

import re

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
    """Endpoints of the reference: 10, 12, 14 in units of the spread; ours: 15, 17."""
    spread_C = np.array([1.0, 2.0])
    theirs = np.array([[10.0, 20.0], [12.0, 24.0], [14.0, 28.0]])
    ours = np.array([[14.0, 32.0], [16.0, 36.0]])
    assert reference.distance(ours, theirs, spread_C) == pytest.approx((16 - 12) / 2)


def test_the_spread_of_a_column_is_the_root_mean_square_over_rows():
    variances = [np.array([1.0, 4.0, 0.0]), np.array([7.0, np.nan, 0.0])]
    assert reference.spread(variances).tolist() == [2.0, 2.0, 1.0]


def test_the_interval_is_that_of_a_mean_of_further_seeds():
    t = stats.t(9).ppf(0.975)
    assert reference.allowed(4, 10, rows=1) == pytest.approx(t * np.sqrt(1 / 4 + 1 / 10))
    sidak = stats.t(9).ppf(1 - (1 - 0.95 ** (1 / 6)) / 2)
    assert reference.allowed(4, 10, rows=6) == pytest.approx(sidak * np.sqrt(0.35))


def test_rows_without_any_spread_must_be_equal():
    same = np.full((3, 2), 5.0)
    assert reference.distance(same[:2], same, np.ones(2)) == 0
    assert reference.distance(same[:2] - 0.1, same, np.ones(2)) == -np.inf


def _simulated(shared, *, ours=4, theirs=10, shift=0.0, correlation=0.5, times=1500):
    """Shares of simulated runs in which any row, and the row that is shifted, lies outside.

    Six rows of ten correlated columns whose standard deviations differ by factors; ``shared``: the
    share of the variance that is equal at equal seeds; the rest is rounding's. ``shift``: of one
    row, in standard deviations of each of its columns."""
    rng = np.random.default_rng(0)
    sd_RC = np.exp(rng.normal(0.0, 0.5, size=(6, 10)))

    def noise(seeds):
        """Of unit variance; half of what columns have in common, rows have too."""
        common, row, own = (rng.normal(size=size) for size in ((seeds, 1, 1), (seeds, 6, 1), ()))
        own = rng.normal(size=(seeds, 6, 10))
        return np.sqrt(correlation / 2) * (common + row) + np.sqrt(1 - correlation) * own

    outside = np.zeros((times, 6), dtype=bool)
    for i in range(times):
        seeds = noise(max(ours, theirs))
        a, b = (
            sd_RC * (np.sqrt(shared) * seeds[:n] + np.sqrt(1 - shared) * noise(n))
            for n in (ours, theirs)
        )
        a[:, 2] += shift * sd_RC[2]
        spread_C = reference.spread(list(b.var(0, ddof=1)))
        half = reference.allowed(ours, theirs, rows=6)
        outside[i] = [
            abs(reference.distance(a[:, r], b[:, r], spread_C)) > half + 1e-9 for r in range(6)
        ]
    return outside.any(1).mean(), outside[:, 2].mean()


@pytest.mark.parametrize(
    ("equal", "at_most"), [(0.0, 0.05), (0.5, 0.03), (1.0, 0.0)], ids=["other", "same", "equal"]
)
def test_a_right_installation_is_called_wrong_in_at_most_5_percent(equal, at_most):
    """Other seeds; the same seeds, half of whose variance rounding renews; equal bits."""
    alarms, _ = _simulated(equal)
    assert alarms <= at_most + 2 * np.sqrt(at_most * (1 - at_most) / 1500)


@pytest.mark.parametrize(
    ("shift", "ours", "found"), [(3.0, 4, 0.95), (3.0, 3, 0.88), (2.0, 4, 0.6), (2.0, 10, 0.9)]
)
def test_a_row_that_is_shifted_by_standard_deviations_of_seeds_is_found(shift, ours, found):
    for correlation in (0.5, 0.8):
        _, power = _simulated(0.0, ours=ours, shift=shift, correlation=correlation, times=400)
        assert power >= found - 2 * np.sqrt(0.25 / 400), correlation


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
    assert re.match(
        r"  distances in standard deviations of seeds \(allowed\): Random [+-]\d\.\d \(2\.0\), ",
        told[1],
    )
    assert re.match(
        r"  the same seeds: 0 of 24 encoders equal to the last digit; \d+ of 60 cells equal to"
        r" 0\.05, difference \d\.\d\d on average, \d\.\d\d at most \([^,]+, \S+ k=\d+:"
        r" \d+\.\d\d, reference \d+\.\d\d\)$",
        told[2],
    )
    assert "processor Xeon (reference: " in told[3]
    assert "versions that differ: torch 9.9 (reference: " in told[3]


def test_a_row_outside_is_named_with_its_distance(tmp_path):
    _commit(tmp_path)
    _run(tmp_path, (1, 2, 3, 4), noise=7, simclr=-8.0)
    told = _told(tmp_path)[0]
    assert re.fullmatch(
        rf"{reference.QUESTION} no, because SimCLR lies \d+\.\d standard deviations of seeds below"
        r" it \(2\.0 allowed\)",
        told,
    )


def test_a_single_seed_shows_great_shifts_alone(tmp_path):
    _commit(tmp_path)
    _run(tmp_path, (11,))
    assert _told(tmp_path)[0] == (
        f"{reference.QUESTION} cannot be told: with 1 of 10 seeds only a shift beyond 3.5 standard"
        " deviations of seeds would show"
    )
    _run(tmp_path, (11,), noise=3, pcl=-30.0)
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
