"""The papers' numbers, claims and hyper-parameters, as printed: their excerpts lie in data/."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.recipes import moco as moco_recipes
from pretrain.recipes import pcl as pcl_recipes
from tables.engine.catalogue import load, tables
from tables.pcl.table1 import TABLE

DATA = Path(__file__).parent / "data"
EXCERPT = (DATA / "pcl_table1_excerpt.txt").read_text().splitlines()


def test_every_number_stands_in_the_paper_row_by_row():
    printed = {}
    for line in EXCERPT:
        title, _, *cells = line.split("\t")
        if title == "Random Supervised":  # two rows in one, two numbers in a cell
            printed["Random"], printed["Supervised"] = zip(
                *(cell.split(" ") for cell in cells), strict=True
            )
        else:
            printed[re.sub(r" [\[(].*", "", title)] = tuple(cells)
    ours = {
        row.title: tuple(TABLE.numbers[row.name, column.title] for column in TABLE.columns)
        for row in TABLE.rows
    }
    assert ours == printed


def test_random_and_supervised_were_not_mixed_up():
    assert TABLE.numbers["random", "VOC07 k=16"] == "8.5"
    assert TABLE.numbers["supervised", "VOC07 k=1"] == "54.3"
    assert TABLE.numbers["supervised", "Places205 k=16"] == "36.0"


@pytest.mark.parametrize("name", ["table4", "table7"])
def test_tables_of_one_line_are_as_printed(name):
    titles, numbers = (
        line.split("\t")[1:]
        for line in ((DATA / f"pcl_{name}_excerpt.txt").read_text().splitlines())
    )
    table = load(name)
    (column,) = table.columns
    printed = {
        re.sub(r" [\[(].*", "", title): number
        for title, number in zip(titles, numbers, strict=True)
    }
    assert {
        row.title: table.numbers[row.name, column.title] for row in table.printed_rows
    } == printed
    assert {row.name for row in table.rows} - {row.name for row in table.printed_rows} == {
        "random",
        "supervised",
    }
    lead = float(table.numbers["pcl", column.title]) - float(table.numbers["moco", column.title])
    assert column.margin < lead / 3


def test_table_2_is_as_printed():
    table, printed = load("table2"), []
    for line in (DATA / "pcl_table2_excerpt.txt").read_text().splitlines():
        title, _, _, *cells = line.split("\t")
        if any(cells):  # else it heads a part
            printed.append((re.sub(r" [\[(].*", "", title), *cells))
    assert [
        (row.title, *(table.numbers[row.name, column.title] for column in table.columns))
        for row in table.printed_rows
    ] == printed
    assert {row.name for row in table.rows} - {row.name for row in table.printed_rows} == {
        "random",
        "supervised",
    }
    assert [column.margin for column in table.columns] == [2.0, 0.8]
    assert 0.8 < (85.6 - 83.0) / 3


def test_table_3_is_as_printed():
    """Stars and daggers apart, which the notes explain."""
    lines = (DATA / "pcl_table3_excerpt.txt").read_text().splitlines()[2:]
    table = load("table3")
    printed = []
    for line in lines:
        title, _, epochs, *cells = line.split("\t")
        title = re.sub(r" [\[(].*", "", title) + (" (1000 epochs)" if epochs == "1000" else "")
        printed.append(
            (title, *("" if cell == "–" else re.sub("[^0-9.]", "", cell) for cell in cells))
        )
    assert [
        (row.title, *(table.numbers[row.name, column.title] for column in table.columns))
        for row in table.printed_rows
    ] == printed
    for column in table.columns:
        lead = float(table.numbers["pcl", column.title]) - float(
            table.numbers["moco", column.title]
        )
        assert lead > 0


@pytest.mark.parametrize("name", list(tables()))
def test_each_row_is_cited_or_has_both_recipes(name):
    table = load(name)
    for row in table.rows:
        assert bool(row.cited) == (row.mini is None) == (row.paper is None)
    assert {row.control for row in table.rows} == {"", "lower", "upper"}
    assert len(table.numbers) == len(table.rows) * len(table.columns)
    for claim in table.claims:
        assert set(claim.rows) <= {row.name for row in table.rows}


@pytest.mark.parametrize("name", list(tables()))
def test_the_claims_hold_in_the_paper_s_own_numbers(name):
    table = load(name)

    def of(names, column):
        each = [names] if isinstance(names, str) else names
        printed = [table.numbers[row, column.title] for row in each]
        ours = {"spcl-table1": {"simclr"}}.get(name, set()) & set(each)
        assert all(printed) or ours or table.claimed_by != "the paper", names
        return np.mean([float(one) for one in printed]) if all(printed) else None

    for claim in table.claims:
        for left in claim.left:
            for right in claim.right:
                pairs = [(of(left, column), of(right, column)) for column in claim.columns]
                leads = [a - b for a, b in pairs if None not in (a, b)]
                if claim.endpoint == "mean" and leads:
                    leads = [np.mean(leads)]
                assert all(lead > claim.by for lead in leads), claim.text


def test_the_paper_s_hyper_parameters():
    """PCL, appendix A; MoCo's README."""
    moco, pcl, v2 = moco_recipes.V1, pcl_recipes.V1, pcl_recipes.V2
    for recipe in (moco, pcl):
        train = recipe.train
        assert (train.epochs, train.batch_size, train.lr, train.milestones) == (
            200,
            256,
            0.03,
            (120, 160),
        )
        assert (train.sgd_momentum, train.weight_decay, train.schedule, train.warmup_epochs) == (
            0.9,
            1e-4,
            "step",
            0,
        )
        assert (recipe.momentum, recipe.dim, recipe.mlp, recipe.arch) == (
            0.999,
            128,
            False,
            "resnet50",
        )
    assert (moco.temperature, moco.queue) == (0.07, 65536)
    assert (pcl.temperature, pcl.alpha, pcl.queue, pcl.num_negatives, pcl.warmup) == (
        0.1,
        10,
        16384,
        16384,
        20,
    )
    assert pcl.num_prototypes == (25_000, 50_000, 100_000)
    assert (v2.temperature, v2.mlp, v2.augment.blur, v2.train.schedule) == (
        0.2,
        True,
        0.5,
        "cosine-epoch",
    )
    augment = moco.augment
    assert augment.jitter == (0.4, 0.4, 0.4, 0.4)
    assert (augment.min_area, augment.jitter_p, augment.grayscale, augment.blur) == (0.2, 1, 0.2, 0)


def test_bundled_pcl_inherits_mocos_values():
    """But for the rate and the temperature, which are tuned for every method."""
    moco = moco_recipes.MINI
    pcl = replace(pcl_recipes.MINI, train=replace(pcl_recipes.MINI.train, lr=moco.train.lr))
    for name in (
        "arch",
        "augment",
        "input",
        "train",
        "dim",
        "queue",
        "momentum",
        "mlp",
    ):
        assert getattr(moco, name) == getattr(pcl, name), name
