"""A row that a user brings stands in every tier and form of a table, and in none of its claims."""

import csv
import io

import pytest
import safetensors.torch
import torch

from protobench import records
from protobench.checkpoints import encoders, identity, resnet
from protobench.data.synthetic import bundled
from protobench.data.transforms import EvalInput
from protobench.records import ModelInfo, ResultKey
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, own_rows, runs
from tables.engine.jobs import plan
from tables.engine.pages import publish, show

HOSTILE = "<script>|50 % of $x$ \\y_1"


def _encoder(path, arch="resnet10-mini", seed=0, trained=None):
    """An exported encoder with weights of its own."""
    torch.manual_seed(seed)
    backbone = resnet.build(arch)
    with torch.no_grad():
        backbone.bn1.running_mean.fill_(0.1)  # not as it is initialised
    encoders.export(
        path, backbone, key=f"{arch}{seed:02}", input_=EvalInput(36, 32), trained=trained
    )
    return path


@pytest.fixture
def tiny_worlds(world, monkeypatch):
    """One tiny world in place of all that are bundled."""
    monkeypatch.setattr(bundled, "ensure", lambda *_, **__: world)
    monkeypatch.setattr(bundled, "ensure_all", lambda worlds: dict.fromkeys(sorted(worlds), world))


@pytest.fixture
def reproduce(command, tmp_path, tiny_worlds, monkeypatch):
    """Runs table7 in the quick tier with the rows given, in this process."""
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))

    def run(*args, table="table7", tier="quick"):
        return command(
            tables_main.main,
            "reproduce",
            table,
            "--tier",
            tier,
            "--results",
            tmp_path / "results",
            "--runs",
            tmp_path / "runs",
            *args,
        )

    return run


# By hand ------------------------------------------------------------------------------------------


def _write(
    folder, row, seed, value, *, encoder, source, evaluation="ami", data="imagenet", world=1
):
    return records.write(
        folder,
        ResultKey(evaluation, data, 1, encoder, (f"w{world}",), {"num_clusters": (100,)}),
        [{"draw": 0, "k": 100, "value": value}],
        model=ModelInfo(row, seed, source, own_rows.RECIPE),
        metric={"name": "AMI", "unit": "", "test_images": 9, "higher_is_better": True},
        checkpoint={"arch": "resnet10-mini", "untouched": False, "sha256": encoder},
        data={"name": data, "embedded": True, "classes": 20, "train_images": 9, "world": world},
        cost={"seconds": 1.0},
    )


def _own(folder, row=HOSTILE, seed=1, value=0.25, encoder="e1", **more):
    return _write(folder, row, seed, value, encoder=encoder, source="own row: checkpoint a", **more)


def _outcome(folder, name="table7", tier="mini"):
    table = catalogue.load(name, tier)
    return compare.outcome(table, tier, runs.collect(table, folder, tier).rows)


def test_records_of_a_name_that_no_table_has_are_a_row_after_the_others(tmp_path):
    folder = tmp_path / "mini" / "records"
    _own(folder, seed=1, value=0.25)
    _own(folder, seed=2, value=0.35, encoder="e2", world=2)
    outcome = _outcome(tmp_path)
    assert outcome.table.rows[-1].title == HOSTILE
    cell = outcome.cells[HOSTILE, "AMI"]
    assert (cell.verdict, cell.paper, cell.seeds) == ("unprinted", "", 2)
    assert cell.mean == pytest.approx(0.3)
    assert not any(HOSTILE in claim.rows for claim in outcome.claims)
    # a table without a column of that evaluation does not have it
    assert HOSTILE not in [row.name for row in _outcome(tmp_path, "table1").table.rows]


def test_what_is_not_marked_as_an_own_row_is_none(tmp_path):
    """Other exhibits' rows are in the same folder, under names that this table does not have."""
    folder = tmp_path / "mini" / "records"
    _write(folder, "pcl-w16", 1, 0.5, encoder="x", source="retrained")
    assert "pcl-w16" not in [row.name for row in _outcome(tmp_path).table.rows]


def test_an_own_row_named_like_a_row_of_another_table_never_mixes_with_it(tmp_path):
    folder = tmp_path / "mini" / "records"
    _own(folder, row="moco")
    assert not runs.collect(catalogue.load("table7"), tmp_path, "mini").rows


def test_every_form_has_the_row_and_escapes_its_name(tmp_path):
    _own(tmp_path / "mini" / "records")
    forms = show.forms(_outcome(tmp_path))
    assert HOSTILE in forms["txt"]
    assert "\\<script\\>\\|50 % of $x$ \\\\y\\_1" in forms["md"]
    assert "<script>" not in forms["md"].replace("\\<script", "")
    assert "50 \\% of \\$x\\$ \\textbackslash{}y\\_1" in forms["tex"]
    *_, last = csv.reader(io.StringIO(forms["csv"]))
    assert last == [HOSTILE, "", "0.250"]
    cells = [line for line in csv.reader(io.StringIO(forms["cells.csv"])) if line[1] == HOSTILE]
    assert [line[-2] for line in cells] == ["unprinted"]
    publish.publish(catalogue.load("table7"), "mini", tmp_path)
    page = (tmp_path / "mini" / "table7.html").read_text()
    assert "<script>|50" not in page
    assert "&lt;script&gt;|50 % of $x$" in page


@pytest.mark.parametrize("tier", ["mini", "quick", "small", "small-gpu", "paper"])
def test_it_stands_in_every_tier(tmp_path, tier):
    table = catalogue.load("table7", tier)
    data = table.columns[0].dataset
    _own(tmp_path / tier / "records", row="Mine", data=data)
    outcome = _outcome(tmp_path, tier=tier)
    assert outcome.cells["Mine", table.columns[0].title].verdict == "unprinted"


def test_a_name_with_characters_that_no_file_can_have(tmp_path):
    path = _own(tmp_path / "mini" / "records", row="../a/b: c")
    assert path.parent == tmp_path / "mini" / "records"
    assert path.name.startswith(".._a_b__c-1-ami-imagenet-")
    assert "../a/b: c" in [row.name for row in _outcome(tmp_path).table.rows]


# Seeds --------------------------------------------------------------------------------------------


def test_files_of_one_name_are_seeds_and_keep_their_numbers(tmp_path):
    a, b, c = (_encoder(tmp_path / f"{n}.safetensors", seed=n) for n in range(3))
    assert own_rows.seeds("Mine", [a, b], {}) == {1: a, 2: b}
    record = {
        "unit": {"encoder": "resnet10-mini01"},
        "subject": {"row": "Mine", "seed": 1, "source": "own row: checkpoint b"},
    }
    assert own_rows.seeds("Mine", [a, b, c], {"k": record}) == {1: b, 2: a, 3: c}
    with pytest.raises(UserError, match="stands for other files in these results: checkpoint b"):
        own_rows.seeds("Mine", [a, c], {"k": record})
    assert own_rows.seeds("Other", [a, c], {"k": record}) == {1: a, 2: c}


def test_a_seed_is_scored_in_its_home_world_or_in_that_of_its_number(tmp_path, tiny_worlds):
    home = _encoder(tmp_path / "a.safetensors", trained={"data": "x", "world": 7, "seed": 7})
    stranger = _encoder(tmp_path / "b.safetensors", seed=1)
    table = own_rows.added(catalogue.load("table7", "mini"), [own_rows.row("Mine")])
    jobs = plan.make_plan(
        table,
        "mini",
        data=None,
        given={},
        own={"Mine": (home, stranger)},
        rows=("random",),
        seeds=1,
        results=tmp_path,
        runs=tmp_path,
    )
    found = [(job.row.name, job.seed, job.world, job.name) for job in jobs if job.given]
    assert found == [
        ("Mine", 1, 7, "Mine seed 1, a.safetensors"),
        ("Mine", 2, 2, "Mine seed 2, b.safetensors"),
    ]


# The command --------------------------------------------------------------------------------------


def test_own_rows_are_scored_and_shown_again_by_diff(reproduce, command, world, tmp_path):
    files = [_encoder(tmp_path / f"{n}.safetensors", seed=n) for n in (1, 2)]
    own = [word for path in files for word in ("--ckpt", f"My method={path}")]
    where, table4 = (
        ("--data", world, "--jobs", 1, "--workers", 0),
        {"table": "table4", "tier": "paper"},
    )
    code, out, err = reproduce("--rows", "My method", *where, *own, **table4)
    assert "My method" in out, err
    have = [*records.read_all(tmp_path / "results" / "paper" / "records").values()]
    mine = [of for of in have if of["subject"]["row"] == "My method"]
    assert sorted(of["subject"]["seed"] for of in mine) == [1, 2]
    # no projection head: the pooled feature
    assert {of["unit"]["params"]["feature"] for of in mine} == {"pooled"}
    line = next(line for line in out.splitlines() if line.startswith("My method"))
    _, again, _ = command(
        tables_main.main, "diff", "table4", "--tier", "paper", "--results", tmp_path / "results"
    )
    assert line in again
    # other files under this name would silently be averaged with these
    other = _encoder(tmp_path / "3.safetensors", seed=3)
    code, _, err = reproduce(*where, "--ckpt", f"My method={other}", **table4)
    assert code == 2
    assert "'My method' stands for other files in these results: checkpoint 1.safetensors" in err


def test_what_cannot_be_an_own_row(reproduce, tmp_path):
    a, b = (_encoder(tmp_path / f"{n}.safetensors", seed=n) for n in (1, 2))
    wide = _encoder(tmp_path / "wide.safetensors", arch="resnet18")
    copy = tmp_path / "copy.safetensors"
    safetensors.torch.save_file(  # other bytes, the same encoder
        safetensors.torch.load_file(a), copy, identity.safetensors_metadata(a) | {"note": "copied"}
    )
    for given, said in (
        ((f"moco={a}",), "in the quick tier the row 'moco' is trained by its recipe"),
        ((f"MoCo={a}",), "reads like table7's row 'moco'"),
        ((f"deepcluster={a}",), "is cited"),
        ((f"={a}",), "cannot be the name of a row"),
        ((f"a\nb={a}",), "cannot be the name of a row"),
        ((f"{'x' * 61}={a}",), "at most 60 characters"),
        ((f"Mine={a}", f"Mine={a}"), "given twice"),
        ((f"Mine={a}", f"Mine={copy}"), "holds the same encoder"),
        ((f"Mine={a}", f"Other={copy}"), "holds the same encoder"),
        ((f"Mine={b}", f"Mine={wide}"), "are different networks: resnet10-mini, resnet18"),
        ((f"Mine={tmp_path / 'absent.pth'}",), "absent.pth"),
    ):
        code, _, err = reproduce(*(word for one in given for word in ("--ckpt", one)))
        assert code == 2
        assert said in err
    code, _, err = reproduce("--ckpt", f"Mine={a}", table="figure5")
    assert code == 2
    assert "a figure has no other rows than its own" in err
