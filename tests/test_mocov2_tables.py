"""MoCo v2's tables as printed, and the recipes of its rows: the paper's changes, one by one."""

from dataclasses import replace
from pathlib import Path

from pretrain.recipes import moco, simclr
from protobench import records
from protobench.records import ModelInfo, ResultKey
from tables.engine import runs
from tables.engine.catalogue import load
from tables.mocov2 import rows

DATA = Path(__file__).parent / "data"


def _excerpt(name: str) -> list[list[str]]:
    """The lines of a table with numbers, cell by cell."""
    lines = (DATA / f"mocov2_{name}_excerpt.txt").read_text().splitlines()[2:]
    return [line.split("\t") for line in lines if "\t" in line]


def test_table_2_is_as_printed():
    """The title of a row tells its epochs, and its batch where that is not 256."""
    table, printed = load("mocov2-table2"), {}
    for case, _, _, _, epochs, batch, number in _excerpt("table2"):
        title = f"{case.partition(' [')[0]}, {epochs} epochs"
        printed[title if batch == "256" else f"{title}, batches of {batch}"] = (number,)
    assert {
        row.title: tuple(table.numbers[row.name, column.title] for column in table.columns)
        for row in table.printed_rows
    } == printed
    assert {row.name for row in table.rows} - {row.name for row in table.printed_rows} == {
        "random",
        "supervised",
    }


def test_the_rows_of_table_2_are_trained_as_printed():
    table = load("mocov2-table2")
    for case, mlp, aug, cos, epochs, batch, _ in _excerpt("table2"):
        title = f"{case.partition(' [')[0]}, {epochs} epochs"
        (row,) = (
            row
            for row in table.rows
            if row.title in (title, f"{title}, batches of {batch}")
            and row.paper.train.batch_size == int(batch)
        )
        train = row.paper.train
        assert train.epochs == int(epochs)
        assert train.schedule.startswith("cosine") == bool(cos)
        assert bool(row.paper.augment.blur) == bool(aug)
        assert getattr(row.paper, "mlp", True) == bool(mlp)
        assert train.lr == {256: 0.03, 4096: 4.8, 8192: 9.6}[int(batch)] or train.lr == 0.3


def test_the_ends_of_the_way_are_mocos_own_recipes():
    assert rows.V1.paper == moco.V1
    assert rows.V2.paper == moco.V2
    assert rows.SIMCLR.paper == simclr.PAPER


def test_the_mini_tier_makes_the_paper_s_changes_and_no_other():
    """Each row differs from MoCo v1 in the same fields in both tiers; v1 itself from the suite's in
    its schedule alone."""

    def changed(of, base):
        fields = {name for name in vars(of) if getattr(of, name) != getattr(base, name)}
        inner = {
            f"{part}.{name}"
            for part in fields & {"train", "augment"}
            for name, value in vars(getattr(of, part)).items()
            if value != getattr(getattr(base, part), name)
        }
        return fields - {"train", "augment"} | inner

    jitter = {"augment.jitter", "augment.jitter_p", "augment.grayscale_first"}
    """which MoCo's code changes with the blur, and which the mini tier has in all rows"""
    for row in (rows.MLP, rows.AUG, rows.MLP_AUG, rows.V2, rows.V2_LONG):
        paper = changed(row.paper, rows.V1.paper) - jitter
        assert changed(row.mini, rows.V1.mini) - {"train.milestones"} == paper, row.name
    steps = replace(moco.MINI.train, schedule="step", milestones=(12, 16))
    assert rows.V1.mini == replace(moco.MINI, train=steps)
    assert rows.V2_LONG.mini.train.epochs == 4 * rows.V2.mini.train.epochs


def test_batches_of_simclr_fit_a_bundled_world():
    for row in (rows.SIMCLR_LARGE, rows.SIMCLR_LONG):
        small, large = simclr.MINI.train, row.mini.train
        assert large.batch_size == 512
        assert large.lr / large.batch_size == small.lr / small.batch_size


def test_a_row_that_is_cited_takes_no_record_of_another_table_s(tmp_path):
    """MoCo v2 is trained for Table 2, and cited in SPCL's Table 1."""
    records.write(
        tmp_path / "mini" / "records",
        ResultKey("linear", "imagenet", 1, "e", ("a", "b"), {}),
        [{"draw": 0, "value": 50.0}],
        model=ModelInfo("moco-v2", 1, "retrained", "r"),
        metric={"test_images": 8000},
        data={"classes": 20, "train_images": 4000},
        checkpoint={"arch": "resnet10-mini", "untouched": False},
    )
    found = {
        name: set(runs.collect(load(name), tmp_path, "mini").rows)
        for name in ("mocov2-table2", "spcl-table1")
    }
    assert found == {"mocov2-table2": {"moco-v2"}, "spcl-table1": set()}
