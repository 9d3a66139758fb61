"""Tables from synthetic records: comparing, rendering, exit codes."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from evaluate import lowshot
from protobench import records
from protobench.records import ModelInfo, ResultKey
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, reference, runs
from tables.engine.pages import show
from tables.pcl.table1 import TABLE


def _write(
    results,
    tier,
    row,
    seed,
    value,
    *,
    recipe="r",
    source="released checkpoint x.pth",
    params=None,
    sd=0.05,
    arch="resnet50",
    untouched=False,
    data=None,
    trained=None,
    fingerprints=("a", "b"),
    **more,
):
    """Both records of an encoder; ``value(column)`` is the mean, five draws scatter around it."""
    for dataset in ("voc07", "places205"):
        rng = np.random.default_rng(seed)
        runs = [
            {
                "k": column.k,
                "draw": draw,
                "cost": 0.5,
                "value": value(column) + sd * float(rng.normal()),
            }
            for column in TABLE.columns
            if column.dataset == dataset
            for draw in range(5)
        ]
        result = ResultKey(
            "lowshot",
            dataset,
            lowshot.EVALUATION.version,
            f"{row}{seed}{recipe}",
            fingerprints,
            params or {"protocol": "pcl"},
        )
        classes, test_images, train_images = (
            (20, 4952, 5011) if dataset == "voc07" else (205, 20_500, 2_448_873)
        )
        records.write(
            results / tier / "records",
            result,
            runs,
            model=ModelInfo(row, seed, source, recipe),
            metric={"test_images": test_images},
            data={"classes": classes, "train_images": train_images} | (data or {}),
            checkpoint={"arch": arch, "untouched": untouched, "trained": trained},
            **more,
        )


def _paper(row, shift=0.0):
    return lambda column: float(TABLE.numbers[row, column.title]) + shift


RUNNABLE = [row.name for row in TABLE.rows if not row.cited]


def _fill(results, tier="paper", seeds=(0,), **shifts):
    for row in RUNNABLE:
        for seed in seeds:
            _write(results, tier, row, seed, _paper(row, shifts.get(row.replace("-", "_"), 0.0)))


def _remove(results, row):
    for path in (results / "paper" / "records").glob(f"{row}-0-*"):
        path.unlink()


def _diff(command, results, *flags):
    return command(tables_main.main, "diff", "table1", "--results", results, "--wide", *flags)


def test_equal_numbers_are_reproduced_and_plain_diff_agrees(command, tmp_path):
    _fill(tmp_path)
    code, out, err = _diff(command, tmp_path, "--tier", "paper")
    assert code == 0, err
    assert "60 reproduced, 10 cited" in out
    assert f"{len(TABLE.claims)} holds" in out
    assert (tmp_path / "paper" / "table1.csv").read_text().split("\n")[
        0
    ] == TABLE.numbers_csv.read_text().split("\n")[0]
    ours, paper = _both(tmp_path)
    assert [row["row"] for row in ours] == [row["row"] for row in paper]
    assert ours[2] == paper[2], "the cited row is the paper's"
    for row, printed in zip(ours, paper, strict=True):
        for column in TABLE.columns:
            assert float(row[column.title]) == pytest.approx(float(printed[column.title]), abs=0.11)


def _both(results):
    return [
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (results / "paper" / "table1.csv", TABLE.numbers_csv)
    ]


def test_a_short_row_differs(command, tmp_path):
    _fill(tmp_path, pcl=-8.0)
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 1
    assert "10 short" in out
    assert "▼" in out


def _retrained(results, seeds, shifts, sd=0.05):
    """Every row pretrained by the user; ``shifts(row, seed)`` points from the paper's numbers."""
    for row in RUNNABLE:
        for seed in seeds:
            _write(
                results,
                "paper",
                row,
                seed,
                _paper(row, shifts(row, seed)),
                source="retrained",
                sd=sd,
            )


@pytest.mark.parametrize("source", ["retrained", "checkpoint mine.pth, sha256 0123"])
def test_short_cells_of_one_pretraining_are_never_called_equal(command, tmp_path, source):
    """Five draws look like five runs, but only several pretrainings give a p-value."""
    _fill(tmp_path)
    _remove(tmp_path, "pcl")
    _write(tmp_path, "paper", "pcl", 0, _paper("pcl", -7.0), source=source)
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 1
    assert "10 short; rows short on average: PCL; cells that count as short: 10;" in out


def test_one_retrained_seed_seven_points_low_differs(command, tmp_path):
    _retrained(tmp_path, (1,), lambda row, seed: -7.0 if row == "pcl" else 0.0)
    assert _diff(command, tmp_path, "--tier", "paper")[0] == 1


def test_a_table_that_differs_and_is_incomplete_says_both(command, tmp_path):
    _retrained(tmp_path, (1,), lambda row, seed: -7.0 if row == "pcl" else 0.0)
    for path in (tmp_path / "paper" / "records").glob("simclr-*"):
        path.unlink()
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 1
    closing = next(line for line in out.splitlines() if "-> exit" in line)
    assert "10 short" in closing
    assert "10 not-run" in closing
    assert closing.endswith("-> exit 1 (differs and is incomplete)")


def test_a_missing_row_alone_is_incomplete(command, tmp_path):
    _retrained(tmp_path, (1,), lambda row, seed: 0.0)
    for path in (tmp_path / "paper" / "records").glob("simclr-*"):
        path.unlink()
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 3
    assert "-> exit 3\n" in out


def test_trouble_is_told_before_all_else(command, tmp_path):
    _retrained(tmp_path, (1,), lambda row, seed: {"pcl": -7.0, "supervised": -7.0}.get(row, 0.0))
    for path in (tmp_path / "paper" / "records").glob("simclr-*"):
        path.unlink()
    assert _diff(command, tmp_path, "--tier", "paper")[0] == 2


@pytest.mark.parametrize(
    ("spread", "code", "told"),
    [
        (0.1, 1, "10 short; rows short on average: PCL; cells that count as short: 10;"),
        (6.0, 0, "10 undecided; claims:"),
    ],
)
def test_with_five_seeds_chance_is_told_from_shortness(command, tmp_path, spread, code, told):
    _retrained(
        tmp_path, range(1, 6), lambda row, seed: -7.0 + spread * (seed - 3) if row == "pcl" else 0.0
    )
    found, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert told in out
    assert found == code


def test_better_than_the_paper_differs_only_if_strict(command, tmp_path):
    _fill(tmp_path, pcl=+8.0)
    assert _diff(command, tmp_path, "--tier", "paper")[0] == 0
    code, out, _ = _diff(command, tmp_path, "--tier", "paper", "--strict")
    assert code == 1
    assert "▲" in out


@pytest.mark.parametrize(
    ("control", "shift"), [("random", 2.5), ("random", -2.5), ("supervised", -6.0)]
)
def test_a_failed_control_invalidates_every_learned_row(command, tmp_path, control, shift):
    _fill(tmp_path, **{control: shift})
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 2
    assert "40 invalid" in out
    outcome = compare.outcome(TABLE, "paper", runs.collect(TABLE, tmp_path, "paper").rows)
    assert {cell.verdict for cell in outcome.cells.values() if not cell.row.control} == {
        "invalid",
        "cited",
    }
    assert {result.verdict for result in outcome.claims} == {"invalid"}
    assert "more" in outcome.controls or shift == -6.0


def test_missing_rows_are_incomplete_and_nothing_at_all_too(command, tmp_path):
    _write(tmp_path, "paper", "pcl", 0, _paper("pcl"))
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 3
    assert "controls (Random, Supervised): not run" in out
    assert "10 unchecked" in out, "nothing is judged without its controls"
    code, _, err = _diff(command, tmp_path / "typo")
    assert code == 3
    assert "no records" in err
    assert not (tmp_path / "typo").exists()


def test_bundled_numbers_are_never_subtracted_from_the_paper_s(command, tmp_path):
    _fill(tmp_path, "mini", seeds=(1, 2, 3, 4), pcl=-20.0)
    code, out, _ = _diff(command, tmp_path)
    assert code == 0, "the mini tier cannot differ from the paper"
    assert "60 off-protocol" in out
    assert "not comparable" in out
    with open(tmp_path / "mini" / "table1.cells.csv", newline="", encoding="utf-8") as file:
        assert all(line["delta"] == "" for line in csv.DictReader(file))
    assert _diff(command, tmp_path, "--strict")[0] == 1, "a reversed claim counts if asked"


def test_bundled_controls_in_the_wrong_order_are_invalid(command, tmp_path):
    _fill(tmp_path, "mini", seeds=(1, 2, 3), supervised=-60.0)
    code, out, _ = _diff(command, tmp_path)
    assert code == 2
    assert "Random is not below Supervised" in out


def test_a_network_that_scores_like_random_is_called_untrained(command, tmp_path):
    _fill(tmp_path)
    _remove(tmp_path, "pcl")
    _write(tmp_path, "paper", "pcl", 0, _paper("random", 0.1))
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert "PCL scores like the Random row: this looks like an untrained network" in out
    assert "10 invalid" in out
    assert code == 2, "an untrained network is trouble, not agreement"


def test_freshly_initialised_weights_are_called_untrained_whatever_they_score(command, tmp_path):
    _fill(tmp_path)
    _remove(tmp_path, "pcl")
    _write(tmp_path, "paper", "pcl", 0, _paper("pcl"), untouched=True)
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert "PCL has BatchNorm as it is initialised: this looks like an untrained network" in out
    assert "10 invalid" in out
    assert code == 2


def test_a_file_that_is_not_the_papers_own_encoder_has_no_interval(command, tmp_path):
    """Draws of one pretraining of somebody's say nothing about another pretraining."""
    _fill(tmp_path)
    _remove(tmp_path, "pcl")
    _write(tmp_path, "paper", "pcl", 0, _paper("pcl"), source="checkpoint mine.pth, sha256 0123")
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert "50 reproduced, 10 cited, 10 within" in out
    concerned = sum("pcl" in claim.rows for claim in TABLE.claims)
    assert out.count("of single encoders, which cannot speak for other") == concerned
    assert code == 0


def test_other_data_or_architecture_is_off_protocol_in_the_papers_tier(command, tmp_path):
    _fill(tmp_path)
    _remove(tmp_path, "moco")
    _write(tmp_path, "paper", "moco", 0, _paper("moco"), arch="resnet18")
    _, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert "10 off-protocol" in out
    assert "MoCo: voc07 is off protocol: resnet18 as architecture instead of resnet50" in out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"augment": {"profile": "raw"}},
            "pretrained on views of the raw profile, which are not torchvision's pixels",
        ),
        ({"train": {"precision": "bf16"}}, "pretrained in bf16, the papers in fp32"),
        ({"train": {"precision": "tf32"}}, "pretrained in tf32, the papers in fp32"),
        ({"augment": {"profile": "faithful"}, "train": {"precision": "fp32"}}, ""),
    ],
)
def test_faster_pretraining_is_off_protocol(command, tmp_path, changed, told):
    _fill(tmp_path)
    _remove(tmp_path, "moco")
    _write(
        tmp_path, "paper", "moco", 0, _paper("moco"), trained={"unreadable": 0, "recipe": changed}
    )
    _, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert ("60 reproduced, 10 cited" in out) == (not told)
    assert f"MoCo: voc07 is off protocol: {told}" in out or not told


@pytest.mark.parametrize(("convolutions", "told"), [("tf32", True), ("ieee", False)])
def test_scores_of_convolutions_in_tf32_are_off_protocol(command, tmp_path, convolutions, told):
    _fill(tmp_path)
    _remove(tmp_path, "moco")
    of = {"convolutions": convolutions, "matrix products": "ieee"}
    _write(tmp_path, "paper", "moco", 0, _paper("moco"), fp32_precision=of)
    _, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert ("MoCo: voc07 is off protocol: scored with convolutions in TF32" in out) == told


def test_one_retrained_encoder_is_never_more_than_within(command, tmp_path):
    for row in RUNNABLE:
        _write(tmp_path, "paper", row, 1, _paper(row), source="retrained")
    code, out, _ = _diff(command, tmp_path, "--tier", "paper")
    assert code == 0
    assert "60 within" in out


def test_draws_of_one_pretraining_decide_no_claim(command, tmp_path):
    """They would give a tight interval about this encoder, and the claim is about the method."""
    for seeds, verdict in (((1,), "undecided"), ((1, 2, 3, 4), "holds")):
        for row in RUNNABLE:
            for seed in seeds:
                _write(tmp_path, "mini", row, seed, _paper(row), source="retrained")
        _, out, _ = _diff(command, tmp_path)
        assert f"{len(TABLE.claims)} {verdict}" in out
        assert ("nothing is decided before 4" in out) == (seeds == (1,))


def test_what_a_run_asked_for_is_shown_not_what_came_last(tmp_path):
    keys = {}
    for recipe in ("first", "second"):
        _write(tmp_path, "paper", "pcl", 0, _paper("pcl"), recipe=recipe)
        keys[recipe] = {
            key
            for key, record in records.read_all(tmp_path / "paper" / "records").items()
            if record["subject"]["recipe"] == recipe
        }
    for recipe in ("first", "second"):
        rows = runs.collect(TABLE, tmp_path, "paper", keys[recipe]).rows
        assert {record["subject"]["recipe"] for record in rows["pcl"]} == {recipe}


def test_one_file_scored_for_two_rows_makes_two_records(tmp_path):
    for row in ("pcl", "moco"):
        _write(tmp_path, "paper", row, 0, _paper(row), recipe="same")
    found = records.read_all(tmp_path / "paper" / "records").values()
    assert sorted(record["subject"]["row"] for record in found) == ["moco", "moco", "pcl", "pcl"]


def test_a_published_encoder_and_pretrainings_of_ours_decide_no_claim(command, tmp_path):
    """Nothing tells how much another pretraining of the published one would differ."""
    _fill(tmp_path)
    _remove(tmp_path, "moco")
    for seed in range(1, 6):
        _write(tmp_path, "paper", "moco", seed, _paper("moco"), source="retrained")
    _, out, _ = _diff(command, tmp_path, "--tier", "paper")
    concerned = sum("moco" in claim.rows for claim in TABLE.claims)
    assert out.count("of single encoders, which cannot speak for other") == concerned
    assert "of these encoders alone" in out, "where all are published"


def test_seeds_are_the_unit_where_there_are_several(tmp_path):
    for seed, shift in ((1, -1.0), (2, 0.0), (3, 1.0)):
        _write(tmp_path, "mini", "pcl", seed, _paper("pcl", shift), sd=5.0)
    outcome = compare.outcome(TABLE, "mini", runs.collect(TABLE, tmp_path, "mini").rows)
    cell = outcome.cells["pcl", "VOC07 k=1"]
    assert len(cell.runs) == 15
    assert len(cell.values) == 3
    single = runs.samples({(0, draw): float(draw) for draw in range(5)})
    assert single == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_records_of_other_recipes_or_parameters_are_left_out_and_counted(command, tmp_path):
    _write(tmp_path, "mini", "pcl", 1, _paper("pcl"), recipe="old")
    _write(tmp_path, "mini", "moco", 1, _paper("moco"), params={"protocol": "goyal"})
    for path in (tmp_path / "mini" / "records").glob("*.json"):
        _age(path)
    _write(tmp_path, "mini", "pcl", 2, _paper("pcl"), recipe="new")
    collected = runs.collect(TABLE, tmp_path, "mini")
    assert collected.stale == 4
    assert list(collected.rows) == ["pcl"]
    assert {record["subject"]["seed"] for record in collected.rows["pcl"]} == {2}
    assert "left out: 4 records" in _diff(command, tmp_path)[1]


def _in_world(results, row, seed, world, kind="v2-a"):
    fingerprints = (f"train of {kind}, {world}", f"test of {kind}, {world}")
    told = {"embedded": True, "world": world, "kind_of_world": kind}
    _write(results, "mini", row, seed, _paper(row), data=told, fingerprints=fingerprints)


def test_every_seed_has_its_world_and_worlds_of_two_kinds_never_mix(tmp_path):
    for row in ("moco", "pcl"):
        for seed in (1, 2):
            _in_world(tmp_path, row, seed, seed, "v1-a")
    for path in (tmp_path / "mini" / "records").glob("*.json"):
        _age(path)
    _in_world(tmp_path, "moco", 1, 1)
    _in_world(tmp_path, "pcl", 1, 1)
    collected = runs.collect(TABLE, tmp_path, "mini")
    assert collected.stale == 8, "seeds 1 and 2 of the other kind, in both rows and data sets"
    assert {r["subject"]["seed"] for of in collected.rows.values() for r in of} == {1}
    _in_world(tmp_path, "moco", 2, 2)
    rows = runs.collect(TABLE, tmp_path, "mini").rows
    assert [record["subject"]["seed"] for record in rows["moco"]] == [1, 1, 2, 2]
    task = TABLE.columns[0].task
    assert not runs.shares_data(rows["moco"], task)
    assert runs.shares_data(rows["pcl"], task)
    assert runs.shares_data([*rows["pcl"], *rows["moco"][:2]], task)


def test_within_a_world_the_images_must_be_the_same(tmp_path):
    _in_world(tmp_path, "moco", 1, 1)
    _write(
        tmp_path,
        "mini",
        "pcl",
        1,
        _paper("pcl"),
        data={"embedded": True, "world": 1, "kind_of_world": "v2-a"},
    )
    assert runs.collect(TABLE, tmp_path, "mini").stale == 2


def _age(path):
    """Rewrites a record as one of last year."""
    from protobench.runtime import files

    record = records.read(path)
    record.pop("record_id")
    record["finished"] = "2025-01-01T00:00:00+00:00"
    path.write_text(records._readable({"record_id": files.sha256(record), **record}))


def test_an_edited_record_stops_the_table(command, tmp_path):
    _fill(tmp_path)
    path = next((tmp_path / "paper" / "records").glob("pcl-0-*voc07*"))
    path.write_text(path.read_text().replace('"draw": 0', '"draw": 9', 1))
    code, out, err = _diff(command, tmp_path, "--tier", "paper")
    assert code == 2
    assert path.name in err
    assert "reproduced" not in out


def test_every_form_is_a_function_of_the_records_alone(command, tmp_path):
    _fill(tmp_path, "mini", seeds=(1, 2, 3))
    _diff(command, tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "mini").glob("table1*")}
    assert set(first) == {
        "table1.csv",
        "table1.cells.csv",
        "table1.md",
        "table1.tex",
        "table1.txt",
        "table1.html",
        "table1.claims.png",
        "table1.claims-dark.png",
        "table1.claims.tex",
    }
    _diff(command, tmp_path)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "mini").glob("table1*")}


def test_forms(command, tmp_path):
    _fill(tmp_path, "mini", seeds=(1, 2, 3))
    _diff(command, tmp_path)
    tex, markdown = (
        (tmp_path / "mini" / f"table1.{ending}").read_text() for ending in ("tex", "md")
    )
    assert "\\toprule" in tex
    assert "\\multicolumn{5}{c}{VOC07}" in tex
    assert "MINI" in tex
    assert markdown.count("\n| PCL v2 ") == 4, "both halves and two claims"
    assert "Jigsaw: cited" in markdown
    assert "**MINI" in markdown


def test_a_single_run_has_no_spread(tmp_path):
    _write(tmp_path, "paper", "pcl", 0, _paper("pcl"))
    outcome = compare.outcome(TABLE, "paper", runs.collect(TABLE, tmp_path, "paper").rows)
    cell = replace(outcome.cells["pcl", "VOC07 k=1"], runs={(0, 0): 46.0})
    assert cell.sd is None
    assert "±" not in show._ours(cell, 1)


def _environment(monkeypatch, **changed):
    """The environment that records get from now on; None: as old ones, which lack it."""
    environment = records.environment() | changed
    known = {what: value for what, value in environment.items() if value is not None}
    monkeypatch.setattr(records, "environment", lambda: known)


@pytest.mark.parametrize(
    ("processor", "line"),
    [
        ("AMD EPYC", "Measured on AMD EPYC. Another processor moves"),
        (None, "Processor not recorded. Another processor moves"),
    ],
)
def test_the_processor_stands_under_a_table_of_the_bundled_tier_alone(
    command, tmp_path, monkeypatch, processor, line
):
    _environment(monkeypatch, processor=processor)
    for tier in ("mini", "paper"):
        _fill(tmp_path, tier, seeds=(1, 2, 3))
        _diff(command, tmp_path, "--tier", tier)
    for ending in ("md", "txt", "html"):
        assert line in (tmp_path / "mini" / f"table1.{ending}").read_text(), ending
        assert "nother processor" not in (tmp_path / "paper" / f"table1.{ending}").read_text(), (
            ending
        )


def test_records_of_two_processors_name_both(tmp_path, monkeypatch):
    for seed, processor in ((1, "A"), (2, "B"), (3, None)):
        _environment(monkeypatch, processor=processor)
        _write(tmp_path, "mini", "pcl", seed, _paper("pcl"))
    outcome = compare.outcome(TABLE, "mini", runs.collect(TABLE, tmp_path, "mini").rows)
    assert reference.machine(outcome).startswith(
        "Measured on A and B and others not recorded. Another"
    )


def test_unknown_words_get_a_suggestion(command):
    for args, hint in (
        (("diff", "table11"), "did you mean 'table1'"),
        (("dif", "table1"), "did you mean 'diff'"),
    ):
        code, _, err = command(tables_main.main, *args)
        assert code == 2
        assert hint in err
    assert command(tables_main.main, "list")[0] == 0
    with pytest.raises(UserError):
        catalogue.load("table8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"train_images": 2501}}, "2501 training images instead of 5011"),
        ({"data": {"unreadable": {"count": 3, "sha256": "x"}}}, "3 unreadable images left out"),
        ({"trained": {"unreadable": 2}}, "2 unreadable images left out of pretraining"),
    ],
)
def test_fewer_images_than_the_paper_s_are_off_protocol(tmp_path, changes, told):
    for row in ("random", "supervised", "pcl"):
        _write(tmp_path, "paper", row, 1, _paper(row), **(changes if row == "pcl" else {}))
    outcome = compare.outcome(TABLE, "paper", runs.collect(TABLE, tmp_path, "paper").rows)
    assert outcome.cells["pcl", "VOC07 k=1"].verdict == "off-protocol"
    assert outcome.cells["pcl", "VOC07 k=1"].delta is None
    assert any(told in remark for remark in outcome.remarks)
    assert outcome.cells["random", "VOC07 k=1"].verdict != "off-protocol"


def test_a_remark_stands_once_for_all_rows_that_it_is_about(tmp_path):
    for row in ("random", "supervised", "pcl"):
        images = {"train_images": 2501} if row != "pcl" else {}
        _write(tmp_path, "paper", row, 1, _paper(row), data=images)
    outcome = compare.outcome(TABLE, "paper", runs.collect(TABLE, tmp_path, "paper").rows)
    (told,) = [remark for remark in outcome.remarks if "voc07 is off protocol" in remark]
    assert told.startswith("Random, Supervised: voc07 is off protocol: 2501 training images")


# Tables of other evaluations ----------------------------------------------------------------------


def _ami(results, tier, row, seed, value, *, pooled=False, version=1):
    settings = {"feature": "pooled" if pooled else "embedding"}
    result = ResultKey("ami", "imagenet", version, f"{row}{seed}", ("a",), settings)
    records.write(
        results / tier / "records",
        result,
        [{"k": 25_000, "draw": 0, "value": value}],
        model=ModelInfo(row, seed, "retrained", row),
        metric={"test_images": 1_281_167},
        data={"classes": 1000},
        checkpoint={"arch": "resnet50", "untouched": False},
    )


def test_records_of_another_version_or_data_are_not_mixed_in_whatever_the_settings(tmp_path):
    _fill_ami(tmp_path, "paper")
    for path in (tmp_path / "paper" / "records").glob("pcl-*"):
        path.unlink()
    for seed in (1, 2, 3):
        _ami(tmp_path, "paper", "pcl", seed, 0.4, version=2)
    collected = runs.collect(catalogue.load("table7"), tmp_path, "paper")
    assert collected.rows.keys() in ({"pcl"}, {"random", "supervised", "moco"})
    assert collected.stale in (12, 3)


def test_scores_of_a_control_with_another_feature_call_no_row_untrained(command, tmp_path):
    _fill_ami(tmp_path, "mini", random=0.5)
    code, out, _ = command(tables_main.main, "diff", "table7", "--results", tmp_path)
    assert code == 0
    assert "untrained" not in out


def test_scores_without_a_seed_are_no_part_of_a_table(tmp_path):
    _fill_ami(tmp_path, "mini")
    _ami(tmp_path, "mini", "moco", None, 0.9)
    collected = runs.collect(catalogue.load("table7"), tmp_path, "mini")
    assert len(collected.rows["moco"]) == 4


def _fill_ami(results, tier, random=0.05):
    for seed, wobble in ((1, 0.001), (2, 0.002), (3, 0.002), (4, 0.003)):
        _ami(results, tier, "random", seed, random + wobble, pooled=True)
        _ami(results, tier, "supervised", seed, 0.7 + wobble, pooled=True)
        _ami(results, tier, "moco", seed, 0.283 + wobble)
        _ami(results, tier, "pcl", seed, 0.408 + wobble)


def test_rows_that_the_paper_lacks_are_shown_and_not_compared(command, tmp_path):
    _fill_ami(tmp_path, "paper")
    code, out, err = command(
        tables_main.main, "diff", "table7", "--results", tmp_path, "--tier", "paper"
    )
    assert code == 0, err
    assert "2 unprinted, 1 cited, 2 reproduced; claims: 2 holds" in out
    assert re.search(r"^Random +0\.052 ±0\.001$", out, re.MULTILINE)
    assert "0.285 ±0.001 | 0.285 | +0.000 ✓" in out
    assert "lead +0.125 [+0.125, +0.125]; 4 pretrainings" in out
    grid = (tmp_path / "paper" / "table7.csv").read_text().splitlines()
    paper = catalogue.load("table7").numbers_csv.read_text().splitlines()
    assert grid == paper, "plain diff finds nothing"


def test_controls_without_printed_numbers_must_be_in_order(command, tmp_path):
    _fill_ami(tmp_path, "paper", random=0.75)
    code, out, _ = command(
        tables_main.main, "diff", "table7", "--results", tmp_path, "--tier", "paper"
    )
    assert code == 2
    assert "Random is not below Supervised at AMI" in out


def test_a_remark_stands_once_for_its_rows():
    told = [("A", "small"), ("B, twice", "small"), ("A", "old")]
    assert compare._by_text(told, 2) == ["all rows: small", "A: old"]
    assert compare._by_text(told, 3) == ["A, B, twice: small", "A: old"]
    assert compare._by_text([("A", "small")], 1) == ["A: small"]
