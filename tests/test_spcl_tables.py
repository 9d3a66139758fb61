"""SPCL's tables as printed, and what is particular to them: cells that a row lacks, numbers for
which lower is better."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluate import linear
from pretrain import history, loop
from pretrain.recipes import spcl
from protobench import records
from protobench.data import imagenet
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo, ResultKey
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine import compare, runs, verdicts
from tables.engine.catalogue import load
from tables.engine.pages import pictures, show
from tables.spcl import figure2, rows, table1, table2

DATA = Path(__file__).parent / "data"


def _plain(text):
    return re.sub(r"<[^>]*>|\$|\\times|_3| \[14\]| \(ours\)|\(CE\)", "", text).strip()


def test_table_1_is_as_printed():
    """Its block SimCLR bears the name on the second of three lines; four names are misprinted or
    run together."""
    spelt = {
        "MoChi": "MoCHi",
        "MoCov2": "MoCo v2",
        "SimCLRv2": "SimCLR v2",
        "BOYL": "BYOL",
        "PCLv2": "PCL v2",
    }
    printed = []
    for line in (DATA / "spcl_table1_excerpt.txt").read_text().splitlines()[1:]:
        title, arch, million, batch, top1 = map(_plain, line.split("\t"))
        if top1:  # else it heads a part
            name = spelt.get(title, title) or "SimCLR"
            wide = re.search(r"\((\d) *\)", arch)
            printed.append((f"{name} ({wide[1]}x)" if wide else name, million, batch, top1))
    table = table1.TABLE
    ours = []
    for row in table.printed_rows:
        _, million, batch = re.split(", (?=[0-9]|batch)", table.architectures[row.title])
        ours.append(
            (
                row.title,
                million.removesuffix(" M"),
                batch.removeprefix("batch "),
                table.numbers[row.name, "Top-1"],
            )
        )
    assert ours == printed
    assert [row.name for row in table.rows if not row.cited] == [
        "random",
        "moco",
        "simclr",
        "pcl",
        "pcl-v2",
        "spcl",
        "supervised",
    ]


def test_table_2_is_as_printed_weight_by_weight():
    table, recipes_by_row = table2.TABLE, {row.title: row.mini for row in table2.TABLE.rows}
    lines = (DATA / "spcl_table2_excerpt.txt").read_text().splitlines()[1:]
    assert len(lines) == 10
    for row, line in zip(table.printed_rows, lines, strict=True):
        cells = [
            re.sub(r"<[^>]*>|\\checkmark|\\pm.*|\$", "", cell).strip() for cell in line.split("\t")
        ]
        title, *weights, top1, tp, fn = cells
        numbers = [table.numbers[row.name, column.title] for column in table.columns]
        assert numbers == [top1, *("" if cell == "—" else cell for cell in (tp, fn))], row.name
        if title == "SPCL":
            expected = [
                (
                    0.0
                    if "times" in weight
                    else float(weight.strip("()"))
                    if "GT" not in weight
                    else 1.0
                )
                for weight in weights
            ]
            assert [
                recipes_by_row[row.title].alpha,
                recipes_by_row[row.title].beta,
                recipes_by_row[row.title].gamma,
            ] == expected
            assert (recipes_by_row[row.title].prototypes == "labels") == (weights[2] == "(GT)")


def test_the_symmetric_pair_is_the_text_s():
    table = load("spcl-symmetric")
    assert [table.numbers["spcl", c.title] for c in table.columns] == ["73.97", "93.24"]
    assert [table.numbers["spcl-symmetric", c.title] for c in table.columns] == ["74.04", "93.35"]
    assert (
        table.row("spcl-symmetric").mini.sce_alpha,
        table.row("spcl-symmetric").mini.sce_beta,
    ) == (0.1, 1.0)
    assert (
        table.row("spcl-symmetric-wang").mini.sce_alpha,
        table.row("spcl-symmetric-wang").mini.sce_beta,
    ) == (6.0, 0.1)
    assert {row.recipe("paper").dataset for row in table.rows if row.name != "random"} == {
        "cifar100"
    }


def test_rows_of_both_tiers_differ_in_the_same_fields():
    for row in table2.TABLE.rows[3:]:
        for tier, base in (("mini", spcl.MINI), ("paper", spcl.CIFAR10)):
            recipe = row.recipe(tier)
            changed = {name for name in vars(base) if getattr(recipe, name) != getattr(base, name)}
            assert changed <= {"alpha", "beta", "gamma", "pairs", "prototypes"}, row.name
    assert rows.LEAK.mini == replace(spcl.MINI, pairs="labels")


def test_a_sweep_shares_the_encoder_that_all_tables_have():
    for family in (rows.BY_PROTOTYPES, rows.BY_BATCH, rows.SPCL_BY_TEMPERATURE):
        assert [row.mini == spcl.MINI for row in family].count(True) == 1
        assert next(row for row in family if row.name == "spcl") == rows.SPCL
    for row in rows.BY_BATCH:
        for base, recipe in (
            (spcl.MINI, row.mini),
            (spcl.CIFAR10, row.paper),
        ):
            assert recipe.train.lr / recipe.train.batch_size == pytest.approx(
                base.train.lr / base.train.batch_size
            )


# Lower is better, and cells that a row lacks ------------------------------------------------------


def test_of_a_number_that_should_be_low_a_high_one_is_short():
    runs = np.array([[0.30], [0.31], [0.29]])
    high = verdicts.compare("0.11", 1, runs, 0.02, same_encoder=False, lower_is_better=True)
    assert high.verdict == "short"
    assert high.p_short < 0.01
    assert high.delta == pytest.approx(0.19)
    low = verdicts.compare("0.50", 1, runs, 0.02, same_encoder=False, lower_is_better=True)
    assert low.verdict == "above"
    assert low.p_short > 0.99
    assert verdicts.compare("0.11", 1, runs, 0.02, same_encoder=False).verdict == "above"


def _fill(results, tier="mini", **top1):
    """Records of Table 2: top-1 as given, else the paper's; TP and FN the paper's."""
    table = table2.TABLE
    for row in table.rows:
        for seed in (1, 2, 3, 4):
            wobble = 0.01 * seed
            common = {
                "model": ModelInfo(row.name, seed, "retrained", row.name),
                "data": {"classes": 10, "train_images": 50_000},
                "checkpoint": {"arch": "resnet18, cifar stem", "untouched": False, "trained": None},
                "metric": {},
            }
            encoder = f"{row.name}{seed}"
            value = top1.get(
                row.name.replace("-", "_"), float(table.numbers[row.name, "top-1"] or 30)
            )
            records.write(
                results / tier / "records",
                ResultKey("linear", "cifar10", 1, encoder, ("a",), {}),
                [{"draw": 0, "value": value + wobble}],
                **common | {"metric": {"test_images": 10_000}},
            )
            if not row.lacks:
                tp, fn = (
                    float(table.numbers[row.name, what]) + wobble / 10 for what in ("TP", "FN")
                )
                records.write(
                    results / tier / "records",
                    ResultKey("similarity", "cifar10", 1, encoder, ("a",), {}),
                    [{"draw": 0, "value": tp, "fn": fn}],
                    **common,
                )


def test_cells_that_a_row_lacks_are_not_missing(command, tmp_path):
    _fill(tmp_path)
    code, out, err = command(tables_main.main, "diff", "spcl-table2", "--results", tmp_path)
    assert code == 0, err
    assert "29 off-protocol, 4 absent" in out
    assert out.count("holds") == len(table2.TABLE.claims) + 1, "every claim, and the summary"
    line = next(
        line for line in out.splitlines() if line.startswith("Supervised") and "|" not in line
    )
    assert line.split() == ["Supervised", "—", "—"]


def test_in_the_paper_s_tier_equal_numbers_are_reproduced(command, tmp_path):
    _fill(tmp_path, "paper")
    code, out, err = command(
        tables_main.main, "diff", "spcl-table2", "--tier", "paper", "--results", tmp_path
    )
    assert code == 0, err
    assert (
        "28 reproduced, 4 absent, 1 unprinted" in out
        or "1 unprinted, 4 absent, 28 reproduced" in out
    )
    found = runs.collect(table2.TABLE, tmp_path, "paper").rows
    outcome = compare.outcome(table2.TABLE, "paper", found)
    assert "absent" in show.cells_csv(outcome)


def test_a_better_simclr_reverses_the_claims_about_it(command, tmp_path):
    _fill(tmp_path, simclr=94.5)
    wide = "--results", tmp_path, "--wide"
    _, out, _ = command(tables_main.main, "diff", "spcl-table2", *wide)
    assert re.search(r"^reversed +SPCL > SimCLR", out, re.MULTILINE)
    assert re.search(r"^reversed +contrastive \+ metric \(x 1\) > SimCLR", out, re.MULTILINE)
    assert re.search(r"^holds +the metric loss is needed", out, re.MULTILINE)


# The record of TP and FN --------------------------------------------------------------------------


def test_the_last_epoch_becomes_a_record(train_images, tmp_path):
    recipe = replace(
        spcl.MINI,
        num_prototypes=(8,),
        train=replace(spcl.MINI.train, epochs=2, batch_size=32),
    )
    path = loop.pretrain(recipe, train_images, tmp_path / "run", seed=0)
    last = (path.parent / "log.jsonl").read_text().splitlines()[-1]
    history.write("similarity", path, train_images, "imagenet", tmp_path / "scores")
    (record,) = records.read_all(tmp_path / "scores").values()
    (run,) = record["runs"]
    logged = json.loads(last)
    assert run == {"draw": 0, "value": logged["tp"]} | {
        name: logged[name] for name in ("fn", "tp_release", "fn_release")
    }


def test_other_images_than_those_of_the_training_are_refused(moco_file, tmp_path):
    small = bundled.ensure(
        tmp_path / "small",
        {
            "imagenet-train": 60,
            "imagenet-val": 20,
            "voc-trainval": 20,
            "voc-test": 20,
            "places-train": 20,
            "places-val": 20,
        },
    )
    with pytest.raises(UserError, match="was not trained on these images"):
        history.write("similarity", moco_file, imagenet.read(small, "train"), "imagenet", tmp_path)


def test_bundled_images_never_pass_for_cifar(command, world, encoder_file, tmp_path):
    code, out, err = command(
        linear.EVALUATION.main,
        "--ckpt",
        encoder_file,
        "--data",
        world,
        "--dataset",
        "cifar10",
        "--epochs",
        1,
        "--batch-size",
        20,
        "--workers",
        0,
        "--results",
        tmp_path,
    )
    assert code == 0, err
    assert "BUNDLED SYNTHETIC DATA" in out
    code, _, err = command(
        tables_main.main, "reproduce", "spcl-leak", "--tier", "paper", "--data", world, "--plan"
    )
    assert code == 2
    assert "this is the bundled synthetic data" in err


def test_encoders_without_it_are_refused(moco_file, encoder_file, train_images, tmp_path):
    for path, complaint in ((moco_file, "not measured"), (encoder_file, "no training history")):
        with pytest.raises(UserError, match=complaint) as error:
            history.write("similarity", path, train_images, "imagenet", tmp_path)
        assert error.value.hint


# Figure 2 -----------------------------------------------------------------------------------------


def _figure_2(accuracy=lambda row: 80.0, fn=lambda row: 0.2, seeds=(1, 2)):
    """Records of all rows of the figure, by default of two seeds, and of three epochs, of which
    only the last has ``fn``."""
    found = {}
    for row in figure2.FIGURE.rows:
        for seed in seeds:
            recipe = {
                "temperature": row.mini.temperature,
                "train": {"batch_size": row.mini.train.batch_size},
                "num_prototypes": getattr(row.mini, "num_prototypes", ()),
            }
            common = {
                "subject": {"row": row.name, "seed": seed},
                "checkpoint": {"trained": {"recipe": recipe}},
            }
            wobble, temperature = 0.01 * seed, row.mini.temperature
            tp = [0.5 + 0.1 * epoch + wobble * temperature for epoch in range(3)]
            fns = [
                (fn(row) if epoch == 2 else 0.9 - fn(row)) + 0.001 * seed * temperature
                for epoch in range(3)
            ]
            found.setdefault(row.name, []).extend(
                [
                    {
                        **common,
                        "unit": {"evaluation": "linear", "data_name": "cifar10"},
                        "runs": [{"draw": 0, "value": accuracy(row) + wobble}],
                    },
                    {
                        **common,
                        "unit": {"evaluation": "course", "data_name": "cifar10"},
                        "runs": [
                            {
                                "tp": tp[epoch],
                                "fn": fns[epoch],
                                "tp_release": tp[epoch] / temperature,
                                "fn_release": fns[epoch] / temperature,
                            }
                            for epoch in range(3)
                        ],
                    },
                ]
            )
    return found


def test_the_claims_of_figure_2():
    def fn(row):
        return (
            0.3 * row.mini.temperature
            if row.mini.method == "simclr"
            else 0.02 * row.mini.temperature
        )

    judged = {
        claim.text: (claim.verdict, claim.detail)
        for claim in figure2.claims(
            _figure_2(
                lambda row: {"spcl-prototypes-1": 70.0, "spcl-batch-1": 60.0}.get(row.name, 80.0),
                fn,
                seeds=(1, 2, 3, 4),
            )
        )
    }
    assert next(value for text, value in judged.items() if "the batch size" in text)[0] == "holds"
    assert judged["in SimCLR, FN becomes larger with the epochs, at temperature 0.2"][0] == (
        "reversed"
    ), "0.9 - 0.06 at first, 0.06 at last"
    verdict, detail = next(
        value for text, value in judged.items() if "number of prototypes" in text
    )
    assert verdict == "reversed"
    assert "25: -10.0" in detail
    assert judged["FN is more robust to the temperature in SPCL than in SimCLR"][0] == "holds"
    assert judged["SPCL's FN is lower than SimCLR's at temperature 0.5"][0] == "holds"
    verdict, detail = judged["in SimCLR, TP rises with the temperature"]
    assert detail.count("as the released code measures") == 1
    text, release = detail.split("; as the released code measures: ")
    assert verdict in ("holds", "weaker", "undecided")
    assert ": +0." in text
    assert ": -" in release, "it divides by the temperature"
    assert judged["SPCL's TP is higher than SimCLR's at temperature 0.5"][0] != "holds"


def test_figure_2_needs_histories_that_measured_it():
    found = _figure_2()
    assert pictures.missing(figure2.FIGURE, found) == []
    for run in found["simclr"][1]["runs"]:
        del run["fn"]
    del found["simclr"][3]
    assert pictures.missing(figure2.FIGURE, found) == ["simclr"]


def test_figure_2_holds_every_number():
    drawing = figure2.draw(_figure_2(lambda row: 60.0 + row.mini.temperature))
    (line, *_), (*_, points) = (
        [each for each in drawing.picture.axes[0].lines][:1],
        [drawing.picture.axes[0].lines[1]],
    )
    assert line.get_ydata() == pytest.approx([60.215] * 3), "the mean of 60.21 and 60.22"
    assert sorted(points.get_ydata()) == pytest.approx([60.21, 60.22])
    quantities = [(line[0], line[1], line[6]) for line in drawing.data]
    sweeps = len(rows.BY_PROTOTYPES) + len(rows.BY_BATCH)
    assert sum(what == "top-1" for *_, what in quantities) == 2 * sweeps
    assert sum(what == "FN" for *_, what in quantities) == 2 * 3 * 6
    assert sum(what == "FN as released" for *_, what in quantities) == 2 * 3 * 6
    titles = [axis.get_title() for axis in drawing.picture.axes]
    assert titles == [
        "(a) Accuracy by prototypes K",
        "(a) Accuracy by batch size",
        "(b) SimCLR, TP",
        "(b) SimCLR, FN",
        "(b) SPCL, TP",
        "(b) SPCL, FN",
    ]
