"""Tables 5 and 6 as printed, their claims, the figure of detections, and cells without
MMDetection."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate import detection
from evaluate.mmdet_adapter import operators
from protobench.data import verify
from protobench.data.datasets import DATASETS
from protobench.data.synthetic import bundled, scenes
from tables.engine import catalogue, compare, runs
from tables.engine.catalogue import load
from tables.engine.jobs import executor, plan, plan_text, reproduce, work
from tables.ours import detections as detections_figure

DATA = Path(__file__).parent / "data"


def test_table_5_is_as_printed():
    table, lines = load("table5"), (DATA / "pcl_table5_excerpt.txt").read_text().splitlines()[2:]
    printed = {
        re.sub(r" [\[(].*", "", title): (architecture, *numbers)
        for title, _, architecture, *numbers in (line.split("\t") for line in lines)
    }
    assert {
        row.title: (
            table.architectures[row.title],
            *(table.numbers[row.name, column.title] for column in table.columns),
        )
        for row in table.printed_rows
    } == printed
    assert {row.name for row in table.rows} - {row.name for row in table.printed_rows} == {"random"}


def test_table_6_is_as_printed():
    table, lines = load("table6"), (DATA / "pcl_table6_excerpt.txt").read_text().splitlines()[1:]
    printed = {
        re.sub(r" [\[(].*", "", title): tuple(numbers)
        for title, *numbers in (line.split("\t") for line in lines)
    }
    assert {
        row.title: tuple(table.numbers[row.name, column.title] for column in table.columns)
        for row in table.printed_rows
    } == printed
    assert [column.value for column in table.columns] == [
        "value",
        "box50",
        "box75",
        "mask",
        "mask50",
        "mask75",
    ]


def record(row: str, seed: int, dataset: str, values: list[float], **more) -> dict:
    return {
        "record_id": f"{row}{seed}{dataset}",
        "unit": {
            "evaluation": "detection",
            "data_name": dataset,
            "version": 1,
            "data": [1],
            "params": {},
        },
        "subject": {"row": row, "seed": seed, "source": "retrained", "recipe": row},
        "finished": "2026",
        "runs": [{"draw": draw, "value": value} for draw, value in enumerate(values)],
        "checkpoint": {"arch": "resnet10-mini", "untouched": False, "trained": None},
        "data": {"classes": 20, "train_images": 16, "embedded": True},
        "metric": {"test_images": 60},
        "environment": {},
    } | more


@pytest.mark.parametrize(
    ("behind", "verdict"),
    [
        ((0.4, 0.6, 0.5, 0.5), "holds"),
        ((9.0, 11.9, 10.4, 9.1), "undecided"),
        ((16.0, 16.2, 16.1, 16.1), "reversed"),
    ],
)
def test_the_gap_to_supervised_is_judged_by_its_interval(behind, verdict):
    table = load("table5")
    found = {
        row: [
            record(row, seed, dataset, [value - (behind[seed - 1] if row == "pcl" else 0)])
            for dataset in ("voc07", "voc07+12")
            for seed in (1, 2, 3, 4)
        ]
        for row, value in {"random": 5.0, "supervised": 60.0, "moco": 40.0, "pcl": 60.0}.items()
    }
    outcome = compare.outcome(table, "mini", found)
    assert outcome.controls == "ok"
    verdicts = {result.text: result.verdict for result in outcome.claims}
    assert (
        verdicts["PCL closes more than half of the gap between MoCo and Supervised"] == verdict
    ), "half of it is 10 points behind"
    assert verdicts["MoCo < Supervised"] == "holds"


def test_without_mmdetection_detection_is_not_run_and_says_why(world, monkeypatch, tmp_path):
    """Other tables do not notice."""
    monkeypatch.setattr(bundled, "ensure", lambda **_: world)
    find = operators.find_spec
    monkeypatch.setattr(
        operators, "find_spec", lambda name: None if name == "mmdet" else find(name)
    )
    how = {
        "data": None,
        "given": {},
        "rows": ("random",),
        "seeds": 1,
        "results": tmp_path,
        "runs": tmp_path,
    }
    (job,) = plan.make_plan(load("table5"), "quick", **how)
    assert {task.state for task in job.tasks} == {"impossible"}
    assert all("MMDetection is not installed" in task.why for task in job.tasks)
    (job,) = plan.make_plan(load("table7"), "quick", **how)
    assert {task.state for task in job.tasks} == {"to run"}


@pytest.mark.usefixtures("mmdet")
def test_a_score_that_fails_does_not_stop_the_others(
    command, world, scene_data, monkeypatch, tmp_path
):
    from tables import __main__ as tables_main

    monkeypatch.setattr(bundled, "ensure", lambda **_: world)
    monkeypatch.setattr(scenes, "ensure", lambda **_: scene_data)
    seen = []

    def run(config, context):
        seen.append(config.dataset)
        if config.dataset == "voc07":
            raise detection.UserError("detection training diverged", hint="a lower --lr")

    monkeypatch.setattr(detection, "EVALUATION", replace(detection.EVALUATION, run=run))
    jobs = plan.make_plan(
        load("table5"),
        "quick",
        data=None,
        given={},
        rows=("random",),
        seeds=1,
        results=tmp_path,
        runs=tmp_path,
    )
    where = work.RunContext("quick", None, tmp_path, tmp_path, "cpu", 0)
    with pytest.raises(
        detection.UserError, match="detection voc07: detection training diverged"
    ) as mistake:
        executor.run_job(jobs[0], where)
    assert mistake.value.hint == "a lower --lr"
    assert seen == ["voc07", "voc07+12"]
    code, out, _ = command(
        tables_main.main, "reproduce", "table5", "--tier", "quick", "--plan", "--results", tmp_path
    )
    assert code == 0
    assert "detection voc07+12 to run" in out


def test_another_rate_is_off_protocol_and_belongs_to_real_data(tmp_path):
    table, reproduced = load("table5"), reproduce.Reproduce("table5", "paper", lr=0.005)
    changed = reproduce._set(reproduced, table)
    assert all(
        row.settings == (*table.row(row.name).settings, ("lr", 0.005)) for row in changed.rows
    )
    config = plan._config(
        changed.row("pcl").settings, tmp_path / "x", "detection", "voc07", tmp_path
    )
    assert config.params()["lr"] == 0.005
    assert reproduce._set(reproduce.Reproduce("table5"), table) == table
    for refused in (
        reproduce.Reproduce("table5", "mini", lr=0.005),
        reproduce.Reproduce("table1", "paper", lr=0.005),
    ):
        with pytest.raises(
            detection.UserError, match="--lr belongs to the paper tier of tables 5 and 6"
        ):
            reproduce._set(refused, load(refused.table))
    published = {"classes": 20, "train_images": 5011}
    for lr, told in ((0.05, []), (0.005, ["voc07 is off protocol: lr 0.005 instead of 0.05"])):
        made = record(
            "pcl",
            1,
            "voc07",
            [70.0],
            data=published,
            metric={"test_images": 4952},
            checkpoint={"arch": "resnet50", "untouched": False, "trained": None},
        )
        made["unit"]["params"] = {"lr": lr}
        assert list(compare._departures(changed, [made]).values()) == told


def test_what_the_paper_prints_is_kept_when_a_row_was_tried_at_another_rate():
    have = {}
    for row, lr, when in (
        ("random", 0.05, "1"),
        ("moco", 0.05, "1"),
        ("supervised", 0.005, "2"),
        ("moco", 0.005, "2"),
    ):
        made = record(row, 1, "voc07", [40.0], finished=when)
        made["unit"]["params"] = {"lr": lr}
        have[f"{row} {lr}"] = made
    kept = runs.select_records(load("table5"), have)
    assert {
        row: [of["unit"]["params"]["lr"] for of in records] for row, records in kept.rows.items()
    } == {"random": [0.05], "moco": [0.05]}
    assert kept.stale == 2
    tried = runs.select_records(
        load("table5"), have, requested_keys={"supervised 0.005", "moco 0.005"}
    )
    assert set(tried.rows) == {
        "supervised",
        "moco",
    }, "what was asked for comes first, and rates are not mixed"


@pytest.mark.parametrize("lr", [0, -1, float("nan"), float("inf")])
def test_a_rate_is_refused_before_anything_is_trained(lr):
    with pytest.raises(detection.UserError, match="--lr is positive"):
        reproduce._set(reproduce.Reproduce("table5", "paper", lr=lr), load("table5"))


def test_a_plan_tells_the_gpu_memory_of_fine_tuning_on_coco(tmp_path):
    tasks = [plan.EvalTask("detection", name, "to run") for name in ("voc07", "coco")]
    row = load("table6").row("moco")
    job = plan.Job(row, 1, None, tmp_path, True, "own", "", "done", "", (*tasks, *tasks[1:]))
    told = plan_text.describe(load("table6"), "paper", [job], tmp_path, 1)
    memory = "detection coco: GPU memory: at least 90 GiB for a batch on one GPU (computed)"
    assert told.count(f"{memory}; GPUs that would do: 6 of 24 GiB or 2 of 80 GiB\n") == 1
    assert "voc07: GPU memory" not in told, "the backbone is frozen"


def test_bundled_scenes_are_refused_as_real_data(command, scene_data):
    from tables import __main__ as tables_main

    code, _, err = command(
        tables_main.main, "reproduce", "table5", "--tier", "paper", "--data", scene_data
    )
    assert code == 2
    assert "only stands in for VOC and COCO" in err


def test_the_quick_tier_trains_detectors_for_a_few_steps():
    quick = reproduce._set(reproduce.Reproduce("table5", "quick"), load("table5"))
    config = plan._config(quick.row("pcl").settings, Path("x"), "detection", "voc07+12", None)
    assert (config.params()["iterations"], config.params()["epochs"]) == (20, 0)
    assert reproduce._set(reproduce.Reproduce("table1", "quick"), load("table1")) == load("table1")


def test_the_figure_draws_boxes_and_curves_of_every_row(monkeypatch):
    from matplotlib import pyplot

    from evaluate.mmdet_adapter import plots

    boxes, curve = [], np.linspace(1, 0, 51).tolist()
    rectangle = plots._rectangle
    monkeypatch.setattr(
        plots, "_rectangle", lambda *args: (boxes.append(args[1:3]), rectangle(*args))
    )
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "white").save(buffer, format="JPEG")
    white = base64.b64encode(buffer.getvalue()).decode()
    shown = [
        {
            "jpeg": white,
            "size": [20, 10],
            "truth": [["cat", 1, 2, 8, 9]],
            "found": [["dog_$", 0.5, 2, 2, 9, 9]],
        }
    ] * 6
    found = {
        row.name: [
            record(row.name, 1, "voc07", [40.0], shown=shown, curves={"cat": curve, "dog": curve})
        ]
        for row in detections_figure.ROWS
    }
    for of in found.values():
        of[0]["runs"][0]["classes"] = {"cat": 50.0, "dog": 40.0}
    drawing = detections_figure.draw(found)
    pyplot.close(drawing.picture)
    assert len(boxes) == 4 * 4 * 2
    assert drawing.data[0] == ["random", "1", "cat", "0.00", "1.0000"]
    assert len(drawing.data) == 4 * 2 * 51


def test_check_data_knows_coco_and_voc_2012(command, scene_data, capsys):
    assert verify.check(scene_data, ("coco", "voc07+12"), 2) == 0
    told = capsys.readouterr().out
    assert "coco-train2017" in told
    assert "voc07+12-trainval-boxes       24 images" in told
    assert told.count("bundled synthetic data") == 2


def test_a_folder_named_annotations_is_no_coco(tmp_path):
    """Many data sets have one; beside train/ it must not hide ImageNet."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    assert not verify.is_here(DATASETS["coco"], tmp_path)
    assert verify.is_here(DATASETS["imagenet"], tmp_path)
    (tmp_path / "train2017").mkdir()
    assert verify.is_here(DATASETS["coco"], tmp_path)


def test_detection_stands_in_the_catalogue():
    assert {"table5", "table6"} <= catalogue.tables().keys()
    assert "detections" in catalogue.figures()
