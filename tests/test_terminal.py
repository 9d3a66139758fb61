"""What a run ends with on a terminal: a table that fits, the claims, and what to do next."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from protobench import records
from protobench.runtime import colour
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, runs
from tables.engine.jobs import executor, reproduce
from tables.engine.jobs.reproduce import Pretrainings
from tables.engine.pages import publish, show
from tables.engine.schema import ClaimResult

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "mini"
ESCAPES = re.compile(r"\x1b\]8;;[^\x1b]*\x1b\\|\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def outcomes():
    have = records.read_all(REFERENCE / "records")
    return [
        compare.outcome(table, "mini", runs.select_records(table, have).rows)
        for table in catalogue.tables().values()
    ]


def test_every_table_fits_and_loses_no_number(outcomes):
    for outcome in outcomes:
        narrow = show.table_text(outcome, 100) + show.ending(outcome, columns=100)
        assert max(map(len, narrow.splitlines())) <= 100, outcome.table.name
        for row in show._rows(outcome, outcome.table.columns):
            assert all(cell in narrow for cell in row)
        for claim in outcome.claims:
            assert claim.verdict in narrow


def test_a_part_that_is_too_wide_is_cut_into_even_pieces(outcomes):
    (table1,) = [outcome for outcome in outcomes if outcome.table.name == "table1"]
    cut = show.table_text(table1, 70)
    assert max(map(len, cut.splitlines())) <= 70
    heads = [line.split() for line in cut.splitlines() if line.strip().startswith("k=")]
    assert heads == [["k=1", "k=2", "k=4"], ["k=8", "k=16"]] * 2
    whole = [line.split() for line in show.table_text(table1, 100).splitlines()]
    assert whole.count(["k=1", "k=2", "k=4", "k=8", "k=16"]) == 2


def test_a_column_that_is_too_wide_stands_alone(outcomes):
    (table1,) = [outcome for outcome in outcomes if outcome.table.name == "table1"]
    cut = show.table_text(table1, 10)
    heads = [line.split() for line in cut.splitlines() if line.strip().startswith("k=")]
    assert heads == [[f"k={k}"] for k in (1, 2, 4, 8, 16)] * 2


def test_the_file_stays_as_wide_as_it_is(outcomes):
    (table1,) = [outcome for outcome in outcomes if outcome.table.name == "table1"]
    assert show.text(table1) == (REFERENCE / "table1.txt").read_text(encoding="utf-8")
    assert show.table_text(table1) + show.ending(table1) == show.text(table1)


@pytest.fixture
def knn(tmp_path):
    """A results folder that holds Table 4's records alone."""
    for path in (REFERENCE / "records").glob("*-knn-*.json"):
        (tmp_path / "mini" / "records").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "mini" / "records")
    return tmp_path


def test_what_is_printed_ends_with_the_claims_and_what_to_do_next(command, knn):
    code, out, err = command(tables_main.main, "diff", "table4", "--results", knn)
    assert code == 0, err
    *before, page, following = out.strip().splitlines()
    assert page == f"page: {knn / 'mini' / 'table4.html'}"
    undecided = [line for line in before if line.startswith("undecided")]
    assert following == (
        "next: python -m tables reproduce table4 --max-seeds 6"
        f" ({len(undecided)} claim{'s are' if len(undecided) > 1 else ' is'} undecided)"
    )
    assert out.index("written:") < out.index("claim of the paper") < out.index("page:")
    assert max(len(line) for line in before if not line.startswith("written:")) <= 100
    _, wide, _ = command(tables_main.main, "diff", "table4", "--results", knn, "--wide")
    assert show.INTERVALS in wide


def _open(*rows, verdict="undecided"):
    return ClaimResult("a > b", verdict, "", "", rows=rows)


def _found(**seeds):
    return {
        row: [{"subject": {"seed": seed}} for seed in range(1, count + 1)]
        for row, count in seeds.items()
    }


@pytest.mark.parametrize(
    ("tier", "claims", "seeds", "told"),
    [
        ("mini", [_open("moco", "pcl")], 4, "table4 --max-seeds 6 (1 claim is undecided)"),
        ("mini", [_open("moco", "pcl")] * 2, 10, "table4 --max-seeds 12 (2 claims are undecided)"),
        ("small", [_open("moco", "pcl")], 6, "table4 --tier small --data ROOT --max-seeds 9"),
        ("paper", [_open("moco", "pcl", "cited")], 1, "--tier paper --data ROOT --seeds 4"),
        ("mini", [_open("moco", "pcl")], 12, "at the last look, of 12 pretrainings"),
        ("mini", [_open("moco", "pcl", verdict="holds")], 4, ""),
        ("mini", [_open()], 4, ""),
        ("quick", [_open("moco", "pcl")], 1, ""),
    ],
)
def test_the_next_look_is_the_one_that_open_claims_need(tier, claims, seeds, told):
    found = _found(moco=seeds, pcl=seeds + 3)
    text = publish.more_pretrainings(catalogue.load("table4"), tier, claims, found)
    assert told in text
    assert bool(told) == bool(text)


def test_paths_are_links_where_a_terminal_follows_them(monkeypatch, tmp_path):
    path = tmp_path / "a page.html"
    assert colour.link(path) == str(path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    told = colour.link(path)
    assert f"\x1b]8;;file://{str(path).replace(' ', '%20')}\x1b\\" in told
    assert ESCAPES.sub("", told) == str(path)
    monkeypatch.setenv("TERM", "dumb")
    assert colour.link(path) == str(path)


def test_the_bar_says_which_look_and_how_many_claims_are_open(tmp_path, monkeypatch):
    table = catalogue.load("table4")
    assert reproduce._look(table, Pretrainings(4)) == "look 1 of 4, "
    further = Pretrainings(4, {"moco": 9}, 2)
    assert reproduce._look(table, further) == "look 3 of 4, 2 claims open, "
    assert reproduce._look(table, Pretrainings(1)) == "", "nothing is decided by one"
    monkeypatch.setattr(executor.plan, "estimate", lambda job: 1.0)
    bar = executor.JobsBar([object()], tmp_path, "look 1 of 4, ")
    assert bar.bar.desc.startswith("look 1 of 4, 1 encoders")
    bar.bar.close()
