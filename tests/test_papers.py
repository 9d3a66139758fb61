"""Papers as folders: what is found in them, and a third one, of published checkpoints alone."""

import importlib.util
import sys
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import tables
from protobench import records
from protobench.checkpoints import released, resnet
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, runs
from tables.engine.jobs import plan
from tables.engine.pages import publish, show
from tables.engine.schema import Paper

ROOT = Path(__file__).parent.parent

PAPER = """
from tables.engine.schema import Paper

PAPER = Paper("BYOL", "Bootstrap your own latent", "Grill et al.", "2006.07733", "v1")
"""
TABLE = """
from pathlib import Path

from tables.engine.encoders import DATA
from tables.engine.schema import Claim, Column, Row, Table
from tables.byol import PAPER

POOLED = (("feature", "pooled"),)
TOP1 = Column("top-1", "ImageNet", "kNN", "knn", "imagenet", margin=1.0, k=20)
TABLE = Table(
    name="byol-table1",
    title="Nearest neighbours of published encoders",
    paper=PAPER,
    where="Table 1",
    source_note="Typed by hand.",
    numbers_csv=Path(__file__).with_suffix(".csv"),
    rows=(
        Row("byol", "BYOL", settings=POOLED),
        Row("swav", "SwAV", settings=POOLED),
        Row("cpc", "CPC", cited="its paper"),
    ),
    columns=(TOP1,),
    claims=(Claim("BYOL > SwAV", ("byol",), ("swav",), (TOP1,)),),
    paper_runs=1,
    unit={"ImageNet": "top-1 (%)"},
    margin_reason="fixed before any run",
    expected_data={"imagenet": DATA["imagenet"]},
)
"""


@pytest.fixture
def byol(tmp_path, monkeypatch):
    """A third paper: four files in a folder, and nothing else."""
    folder = tmp_path / "papers" / "byol"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PAPER)
    (folder / "table1.py").write_text(TABLE)
    (folder / "table1.csv").write_text(
        "row,architecture,top-1\nBYOL,R50,60.0\nSwAV,R50,57.0\nCPC,R50,50.0\n"
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path / "papers")])
    catalogue.exhibits.cache_clear()
    yield catalogue.load("byol-table1")
    catalogue.exhibits.cache_clear()
    for name in ("tables.byol", "tables.byol.table1"):
        sys.modules.pop(name, None)
    vars(tables).pop("byol", None)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = resnet.build("resnet18")
    network.bn1.running_mean += 0.1
    torch.save(network.state_dict(), tmp_path / "byol.pth")
    return tmp_path / "byol.pth"


def _records(results, **values):
    for row, value in values.items():
        records.write(
            results / "paper" / "records",
            records.ResultKey("knn", "imagenet", 1, row, ("a", "b"), {}),
            [{"k": 20, "draw": 0, "value": value}],
            model=records.ModelInfo(row, 0, f"released checkpoint {row}", row),
            metric={"test_images": 50_000},
            data={"classes": 1000, "train_images": 1_281_167},
            checkpoint={"arch": "resnet50", "untouched": False},
        )


# What is found ------------------------------------------------------------------------------------


def test_the_order_of_all_tables_and_figures():
    """Paper by paper, those of each by their place in it, and numbers in names as numbers."""
    found = list(catalogue.exhibits().values())
    papers = [paper for paper, _ in groupby(one.paper for one in found)]
    assert papers == sorted(papers, key=lambda paper: (paper.order, paper.name))
    by_paper: dict[str, list[str]] = {}
    for one in found:
        by_paper.setdefault(one.paper.name, []).append(one.name)
    assert len(by_paper) == len(papers)
    assert by_paper["PCL"] == [
        *("figure3", "figure4", "figure5", "figure6"),
        *(f"table{i}" for i in range(1, 8)),
    ]
    assert by_paper["SPCL"] == [
        *("spcl-figure2", "spcl-table1", "spcl-table2", "spcl-symmetric", "spcl-leak"),
    ]


def test_every_paper_says_where_its_numbers_come_from():
    for exhibit in catalogue.exhibits().values():
        paper = exhibit.paper
        assert bool(paper.authors) == bool(paper.arxiv)
        assert paper.version
        assert isinstance(paper, Paper)
    assert catalogue.load("table1").source.startswith("arXiv 2005.04966 (")
    assert catalogue.load("spcl-leak").source.startswith("arXiv 2208.08819 (v1), Table 2")
    assert catalogue.load("losses").source == "the suite's own measurements"


def test_tox_finds_the_same_names(monkeypatch):
    """Without importing the project, whose dependencies it installs."""
    plugin = ModuleType("tox.plugin")
    plugin.impl = lambda hook: hook
    monkeypatch.setitem(sys.modules, "tox", ModuleType("tox"))
    monkeypatch.setitem(sys.modules, "tox.plugin", plugin)
    spec = importlib.util.spec_from_file_location("toxfile", ROOT / "toxfile.py")
    toxfile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toxfile)
    assert sorted(toxfile.names()) == sorted(catalogue.exhibits())
    assert "reproduce-spcl-table2" in toxfile.tox_extend_envs()
    for name, exhibit in catalogue.exhibits().items():
        detects = any(plan.trains_detectors(evaluation) for evaluation, _ in exhibit.tasks)
        needed = {"slurm", "detection"} if detects else {"slurm"}
        assert toxfile.extras(f"reproduce-{name}") == needed
    assert toxfile.extras("tests") == set()


def test_the_name_of_tox_s_environment_will_do(command, tmp_path):
    args = ("--plan", "--rows", "random", "--results", tmp_path)
    for name in ("table7", "reproduce-table7"):
        code, out, err = command(tables_main.main, "reproduce", name, *args)
        assert code == 0, err
        assert out.startswith("table7, tier mini")


# A third paper ------------------------------------------------------------------------------------


def test_a_third_paper_is_found_and_stands_last(command, byol):
    assert list(catalogue.tables())[-1] == "byol-table1"
    code, out, _ = command(tables_main.main, "list")
    assert code == 0
    assert 'byol-table1: Nearest neighbours of published encoders; BYOL: Grill et al., "Boot' in out


def test_two_of_one_name_are_refused(byol, tmp_path):
    (tmp_path / "papers" / "byol" / "again.py").write_text(TABLE)
    (tmp_path / "papers" / "byol" / "again.csv").write_text("row,architecture,top-1\n")
    catalogue.exhibits.cache_clear()
    with pytest.raises(ValueError, match="two tables or figures are named 'byol-table1'"):
        catalogue.exhibits()
    sys.modules.pop("tables.byol.again", None)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "byol-table1 has only published checkpoints, which the mini tier does not score"),
        (("--rows", "byol"), "row 'byol' is a published checkpoint, which the mini tier does not"),
        (("--rows", "cpc"), "row 'cpc' is cited"),
        (
            ("--tier", "paper", "--data", "."),
            "a published checkpoint: --ckpt byol=FILE; a published checkpoint: --ckpt swav=FILE",
        ),
    ],
)
def test_published_checkpoints_are_scored_on_real_data_and_have_to_be_given(
    reproduce_table, byol, tmp_path, flags, complaint
):
    code, _, err = reproduce_table(*flags, table="byol-table1")
    assert code == 2
    assert complaint in err
    assert not (tmp_path / "runs").exists()


def test_a_given_checkpoint_is_scored_and_the_others_are_named(
    reproduce_table, byol, tmp_path, world, checkpoint
):
    flags = ("--tier", "paper", "--data", world, "--device", "cpu", "--workers", 0, "--jobs", 1)
    code, out, err = reproduce_table(*flags, "--ckpt", f"byol={checkpoint}", table="byol-table1")
    assert code == 3, err
    assert "1 off-protocol, 1 not-run, 1 cited; claims: 1 not-run" in out
    assert "not possible: swav: a published checkpoint: --ckpt swav=FILE" in err
    assert (tmp_path / "results" / "paper" / "byol-table1.html").exists()


def test_a_published_file_that_was_fetched_need_not_be_given(
    byol, tmp_path, world, checkpoint, monkeypatch
):
    entry = SimpleNamespace(
        name="byol-200",
        rows=("byol-table1/byol",),
        kept_as="byol.pth",
        file="byol.pth",
        title="BYOL",
        proof="by its name",
        sha256="",
        md5="",
    )
    monkeypatch.setattr(released, "catalogue", lambda: {"byol-200": entry})
    monkeypatch.setattr(plan, "FETCHED", tmp_path / "checkpoints")
    how = {
        "data": world,
        "given": {},
        "rows": ("byol",),
        "seeds": 1,
        "results": tmp_path / "results",
        "runs": tmp_path / "runs",
    }
    (job,) = plan.make_plan(byol, "paper", **how)
    assert job.encoder == "impossible"
    assert job.why.endswith("python -m protobench fetch byol-200, or --ckpt byol=FILE")
    (tmp_path / "checkpoints").mkdir()
    checkpoint.rename(tmp_path / "checkpoints" / "byol.pth")
    (job,) = plan.make_plan(byol, "paper", **how)
    assert (job.encoder, job.given, job.trains) == ("done", True, False)
    assert job.source == "released checkpoint byol.pth: BYOL, by its name"


def test_without_controls_cells_and_claims_are_judged_all_the_same(byol, tmp_path):
    _records(tmp_path, byol=60.2, swav=56.0)
    outcome = compare.outcome(byol, "paper", runs.collect(byol, tmp_path, "paper").rows)
    assert outcome.controls == compare.NO_CONTROLS
    assert not outcome.failed
    assert outcome.cells["byol", "top-1"].verdict == "within"
    assert outcome.cells["swav", "top-1"].delta == pytest.approx(-1.0)
    assert outcome.cells["cpc", "top-1"].verdict == "cited"
    assert [claim.text for claim in outcome.claims] == ["BYOL > SwAV"]
    assert "none in this table" in show.text(outcome)
    code = publish.publish(byol, "paper", tmp_path)
    assert code == 0
    assert "<h1>BYOL, put to the test</h1>" in (tmp_path / "index.html").read_text()
    page = (tmp_path / "paper" / "byol-table1.html").read_text()
    assert "arXiv 2006.07733 (v1), Table 1" in page


def test_a_row_of_the_paper_s_tier_alone_is_no_gap_in_the_others(byol):
    outcome = compare.outcome(byol, "mini", {})
    assert {cell.verdict for cell in outcome.cells.values()} == {"absent", "cited"}
    assert not outcome.incomplete


def test_one_control_alone_is_held_against_the_paper(byol, tmp_path):
    from dataclasses import replace

    rows = tuple(replace(row, control="upper") if row.name == "swav" else row for row in byol.rows)
    table = replace(byol, rows=rows)
    for value, told in ((56.5, "ok"), (50.0, "SwAV has 50.0 for 57.0 at top-1")):
        _records(tmp_path / told[:2], byol=60.0, swav=value)
        found = runs.collect(table, tmp_path / told[:2], "paper").rows
        assert compare.outcome(table, "paper", found).controls == told
