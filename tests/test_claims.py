"""The papers' statements as declared: each with its place, one of each table primary, margins by
their rule, and every kind of claim judged on made records whose answer is known."""

import re
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from protobench.checkpoints import released
from tables.engine import claims, margins, verdicts
from tables.engine.catalogue import exhibits, load, tables
from tables.engine.claims import Rows, of_table
from tables.pcl import figure3, figure4, figure6, table4
from tables.spcl import figure2, table2

PAIRS = {"spcl-leak": ("spcl", "simclr")}
"""The two rows that a table is there to tell apart, where they are not those of its primary claim:
of these, the paper prints no numbers."""


@pytest.mark.parametrize("name", list(tables()))
def test_every_claim_has_a_place_and_one_is_primary(name):
    table = load(name)
    assert all(claim.source for claim in table.claims)
    assert [claim.primary for claim in table.claims].count(True) == 1
    assert len({claim.text for claim in table.claims}) == len(table.claims)
    assert all(column.delta for column in table.columns)


@pytest.mark.parametrize("name", list(tables()))
def test_margins_obey_their_rule(name):
    table = load(name)
    (primary,) = (claim for claim in table.claims if claim.primary)
    left, right = PAIRS.get(name, (primary.left[0], primary.right[0]))
    for column in table.columns:
        lead = abs(
            float(table.numbers[left, column.title]) - float(table.numbers[right, column.title])
        )
        unit = column.title in ("AMI", "TP", "FN")
        rule = margins.chosen(
            lead,
            column.noise,
            table.decimals,
            cap=margins.CAP_UNIT if unit else margins.CAP,
            tolerance=margins.TOLERANCE_UNIT if unit else margins.TOLERANCE,
        )
        assert column.margin == pytest.approx(rule), column.title


def test_the_rule_of_margins():
    assert margins.chosen(9.0, 0.5, 1) == 1.4, "2.9 x noise"
    assert margins.chosen(3.0, 0.4, 1) == 1.0, "a third of the lead"
    assert margins.chosen(0.9, 0.2, 1) == 0.4, "twice the noise"
    assert margins.chosen(0.3, None, 1) == 0.3, "the tolerance"
    assert margins.chosen(9.0, None, 1) == 2.0, "the cap"
    assert verdicts.ceiling(2.9, 1.0) == pytest.approx(0.79, abs=0.005)
    assert verdicts.ceiling(2.0, 1.0) == pytest.approx(0.28, abs=0.005)


def _hopeless(table):
    """The titles of the columns that cannot be decided."""
    return {
        column.title
        for column in table.columns
        if column.noise and verdicts.ceiling(column.margin, column.noise) < verdicts.DECIDABLE
    }


def test_the_columns_that_the_documentation_calls_undecidable_are_so():
    assert _hopeless(load("table1")) == {"VOC07 k=2"}
    assert _hopeless(load("table3")) == {"ImageNet"}
    assert _hopeless(load("table6")) == {column.title for column in load("table6").columns}
    for name in ("spcl-table2", "spcl-leak"):
        assert _hopeless(load(name)) == {"TP", "FN"}


@pytest.mark.parametrize("name", list(tables()))
def test_a_table_whose_columns_cannot_be_decided_says_so(name):
    table, words = load(name), ("does not tell", "can be called reproduced", "cannot be decided")
    told = any(word in table.margin_reason for word in words)
    assert not _hopeless(table) or told or "those of" in table.margin_reason


def test_the_noise_of_spcl_is_the_median_of_what_it_prints():
    lines = (Path(__file__).parent / "data" / "spcl_table2_excerpt.txt").read_text().splitlines()
    for column, cell in ((table2.TOP1, -3), (table2.TP, -2), (table2.FN, -1)):
        printed = [
            float(found[1])
            for line in lines[1:]
            if (found := re.search(r"(?:\\pm|±)(?:\$)? *([0-9.]+)", line.split("\t")[cell]))
        ]
        assert column.noise == pytest.approx(median(printed), abs=0.006), column.title
    for column in (table2.TP, table2.FN):
        assert verdicts.ceiling(column.margin, column.noise) < verdicts.DECIDABLE


def _judged(table, real, **shifts):
    """Every claim of a table on four seeds that lie on the paper's numbers, or ``shifts`` off
    them."""
    rng = np.random.default_rng(0)
    noise = {
        (row.name, column.title): rng.normal(0, 0.001, 4)
        for row in table.rows
        for column in table.columns
    }
    runs = {
        (row.name, column.title): {
            (seed, 0): float(table.numbers[row.name, column.title] or 50.0)
            + shifts.get(row.name.replace("-", "_"), 0.0)
            + float(noise[row.name, column.title][seed])
            for seed in range(4)
            if not row.cited
        }
        for row in table.rows
        for column in table.columns
    }
    rows = Rows(table, runs, {}, lambda column: True, real)
    return {claim.text: of_table(claim, rows, invalid=False) for claim in table.claims}


@pytest.mark.parametrize("name", [name for name in tables() if name != "spcl-leak"])
def test_on_the_paper_s_own_numbers_all_hold_or_are_too_small_to_matter(name):
    """Of numbers that the paper does not print, the claims of spcl-leak among them, nothing is
    known."""
    for text, result in _judged(load(name), real=True).items():
        assert result.verdict == "holds", (text, result.detail)


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("table2", "PCL > the self-supervised and semi-supervised methods that the paper cites"),
        ("table3", "PCL and PCL v2 > Colorization and Jigsaw on VOC07"),
        (
            "table4",
            "PCL > Instance Disc. and Local Agg., which the paper cites with 200 neighbours",
        ),
        ("table7", "PCL > DeepCluster, as the paper cites it"),
        ("spcl-table1", "SPCL > all self-supervised methods that the paper cites"),
    ],
)
def test_cited_numbers_are_compared_on_real_data_alone(name, claim):
    ours = {"pcl": -40.0, "pcl_v2": -40.0, "spcl": -40.0}
    assert _judged(load(name), True, **ours)[claim].verdict == "reversed"
    bundled = _judged(load(name), False)[claim]
    assert bundled.verdict == "not-run"
    assert "numbers on the real data" in bundled.detail


def test_a_mean_over_columns_may_hold_where_a_column_does_not():
    table = load("table1")
    runs = {
        (row.name, column.title): {
            (seed, 0): {"pcl": 60.0 if column.k > 1 else 50.0}.get(row.name, 55.0) + 0.001 * seed**2
            for seed in range(4)
        }
        for row in table.rows
        for column in table.columns
    }
    for offset in range(4):  # so that differences vary
        runs["pcl", "VOC07 k=16"][offset, 0] += 0.01 * offset
    rows = Rows(table, runs, {}, lambda column: True, False)
    judged = {claim.text: of_table(claim, rows, invalid=False).verdict for claim in table.claims}
    assert judged["PCL > MoCo on VOC07, mean over k"] == "holds"
    assert judged["PCL > MoCo at every k on VOC07"] == "reversed"
    assert judged["PCL > MoCo by more than 10 points at k = 1, 2, 4, 8 on VOC07"] == "reversed"


def test_ground_truth_prototypes_with_more_false_negatives_are_reversed():
    text = "FN similarity: prototypes from the ground truth have the lowest"
    assert _judged(table2.TABLE, False)[text].verdict == "holds"
    assert _judged(table2.TABLE, False, spcl_gt=0.1)[text].verdict == "reversed", "as 0.13 > 0.11"


def _knn(row, seed, twenty, two_hundred):
    return {
        "subject": {"row": row, "seed": seed},
        "unit": {"evaluation": "knn", "data_name": "imagenet"},
        "runs": [
            {"draw": 0, "k": 20, "value": twenty},
            {"draw": 0, "k": 200, "value": two_hundred},
        ],
    }


@pytest.mark.parametrize(("behind", "verdict"), [(4.0, "holds"), (-4.0, "reversed")])
def test_fewer_neighbours_compares_20_with_200(behind, verdict):
    found = {
        "pcl": [_knn("pcl", seed, 50.0 + 0.1 * seed, 0.0) for seed in (1, 2, 3, 4)],
        "moco": [_knn("moco", seed, 99.0, 50.0 - behind) for seed in (1, 2, 3, 4)],
    }
    (result,) = table4.fewer_neighbours(found)
    assert result.verdict == verdict
    (missing,) = table4.fewer_neighbours({})
    assert missing.verdict == "not-run"


def _course(seed, first, last, seconds=10.0):
    return {
        "subject": {"row": "pcl", "seed": seed},
        "cost": {"seconds": seconds},
        "probes": [
            {"epochs": epochs, "clusters": {k: {"ami": ami} for k in ("50", "100")}}
            for epochs, ami in ((0, first), (20, last))
        ],
    }


@pytest.mark.parametrize(
    ("rise", "verdict"), [(0.3, "holds"), (-0.3, "reversed"), (0.001, "negligible")]
)
def test_ami_rises(rise, verdict):
    found = {"pcl": [_course(s, 0.1, 0.1 + rise + 0.0005 * s * (-1) ** s) for s in (1, 2, 3, 4)]}
    rises, *others = figure4.claims(found)
    assert (rises.verdict, rises.primary, rises.rows) == (verdict, True, ("pcl",))
    assert {other.verdict for other in others} == {"not-run"}
    assert all(other.detail and other.source for other in others)


def test_the_overhead_is_told_and_not_judged():
    found = {
        "pcl": [_course(1, 0.0, 0.0, 13.0)],
        "moco": [_course(1, 0.0, 0.0, 10.0)],
    }
    result = figure3._overhead(found)
    assert result.verdict == "not-run"
    assert "took 1.3 times one of MoCo" in result.detail


def test_five_random_images_share_a_class_by_chance():
    """Of two classes, the larger has 5, 4 or 3 of five with 2, 10 and 20 of 32 chances."""
    assert figure6.by_chance(2) == pytest.approx(20 * (5 * 2 + 4 * 10 + 3 * 20) / 32, abs=0.3)
    found = {
        "pcl": [
            {
                "subject": {"seed": seed},
                "runs": [{"value": 90.0 + 0.1 * seed}],
                "data": {"classes": 20},
            }
            for seed in (1, 2, 3, 4)
        ]
    }
    together, nested = figure6.claims(found)
    assert together.verdict == "holds"
    assert nested.verdict == "not-run"


def test_the_first_claim_of_a_figure_is_primary_and_all_know_their_rows(monkeypatch):
    monkeypatch.setattr(figure2, "_unchanged", lambda *_, **__: None)
    seen = []
    monkeypatch.setattr(
        figure2, "of_seeds", lambda *args, **more: seen.append(more) or claims.of_seeds(*args)
    )
    rows = (*figure2.SIMCLR_BY_TEMPERATURE, *figure2.SPCL_BY_TEMPERATURE)
    found = {
        row.name: [
            {
                "subject": {"seed": seed},
                "checkpoint": {"trained": {"recipe": {"temperature": row.mini.temperature}}},
                "unit": {"evaluation": "course"},
                "runs": [
                    {
                        name: value + 0.001 * seed
                        for name in ("tp", "fn", "tp_release", "fn_release")
                    }
                    for value in (0.1, 0.2)
                ],
            }
            for seed in (1, 2)
        ]
        for row in rows
    }
    figure2.claims(found)
    names = {row.name for row in rows}
    assert all(more["delta"] == margins.NEGLIGIBLE_UNIT for more in seen)
    assert all(set(more["rows"]) <= names and more["rows"] for more in seen)


def test_what_margins_say_they_were_fixed_before():
    for exhibit in exhibits().values():
        if reason := getattr(exhibit, "margin_reason", ""):
            assert "before any run" in reason or reason == "those of spcl-table2", exhibit.name


def test_tables_2_and_5_are_of_the_files_that_table_1_is_of():
    rows = {name: set(entry.rows) for name, entry in released.catalogue().items()}
    for name, row in (("moco-v1", "moco"), ("pcl-v1", "pcl")):
        assert {f"table{i}/{row}" for i in (1, 2, 3, 4, 5, 7)} <= rows[name]
        assert f"table6/{row}" not in rows[name], "the paper does not say of which file"
