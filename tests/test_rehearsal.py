"""Rehearsals: few of the real images, by the very readers, recipes and evaluations of the paper's
tier, kept apart from it; and what they say the full run will cost."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cluster import slurm  # noqa: F401 (a fixture)

from evaluate import gallery, semisup
from pretrain import loop, measuring, throughput
from pretrain.recipes import common, moco, pcl, simclr, spcl, supervised
from protobench import records
from protobench.checkpoints import encoders
from protobench.data import rehearsal
from protobench.data.boxes import BoxList, Objects
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.rehearsal import Limits
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine import catalogue, runs
from tables.engine.jobs import costs, plan, rehearsal_report, work
from tables.engine.jobs import rehearsal as plans
from tables.engine.jobs.plan import EvalTask, Job
from tables.engine.jobs.rehearsal import Machine


def _images(paths, labels, classes, root):
    return ImageList("some", root, tuple(paths), np.array(labels), tuple(classes))


# Data ---------------------------------------------------------------------------------------------


def test_the_images_whose_names_come_first_are_kept_in_the_order_of_the_list(tmp_path):
    images = _images(["b3", "a2", "b1", "a1", "c1", "b2"], [1, 0, 1, 0, 2, 1], "abc", tmp_path)
    few = rehearsal.few(images, 2, 1)
    assert (few.paths, few.labels.tolist(), few.classes) == (("b1", "a1"), [1, 0], ("a", "b"))
    assert few.rehearsed_of == 6
    assert rehearsal.few(images, None, 2).paths == ("a2", "b1", "a1", "c1", "b2")


def test_of_images_with_several_labels_every_class_gets_its_share(tmp_path):
    labels = [[1, -1, -1], [1, 0, -1], [-1, 1, 1], [-1, 1, -1]]
    images = _images(["1", "2", "3", "4"], labels, "abc", tmp_path)
    few = rehearsal.few(images, 2, 1)
    assert few.paths == ("1", "3")
    assert few.labels.tolist() == [[1, -1], [-1, 1]]
    with pytest.raises(UserError, match="some has no image of b"):
        rehearsal.few(images.subset(np.array([0, 1])), None, 1)


def test_objects_of_classes_left_out_are_left_out_too(tmp_path):
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    objects = Objects(9, 9, boxes, np.array([2, 0, 1]), np.zeros(3, bool), ("m2", "m0", "m1"))
    images = BoxList(
        "boxes", tmp_path, ("1",), np.array([[1, 1, 1]]), tuple("abc"), objects=(objects,)
    )
    (kept,) = rehearsal.few(images, 2, 1).objects
    assert (kept.labels_N.tolist(), kept.masks) == ([0, 1], ("m0", "m1"))
    assert kept.boxes_N4.tolist() == boxes[1:].tolist()


def test_a_rehearsal_folder_is_read_as_the_root_it_names(world, tmp_path):
    rehearsal.write(tmp_path, world, Limits(5, 2, 1))
    train, test = DATASETS["imagenet"].read_both(tmp_path)
    whole, _ = DATASETS["imagenet"].read_both(world)
    assert (len(train), len(test), train.classes) == (10, 5, whole.classes[:5])
    assert (train.root, train.rehearsed_of) == (whole.root, len(whole))
    assert DATASETS["imagenet"].training_images(tmp_path).paths == train.paths
    assert set(train.paths) <= set(whole.paths)
    voc, _ = DATASETS["voc07"].read_both(tmp_path)
    assert ((voc.labels == 1).sum(0) >= 2).all()


def test_a_damaged_rehearsal_folder_is_named(tmp_path):
    (tmp_path / rehearsal.FILE).write_text('{"source": 3}')
    with pytest.raises(UserError, match="not what a rehearsal writes"):
        DATASETS["imagenet"].read_both(tmp_path)


def test_nothing_of_a_rehearsal_has_a_real_run_s_key_even_where_it_takes_every_image(
    world, tmp_path
):
    rehearsal.write(tmp_path, world, Limits(None, 10_000, 10_000))
    for name in ("imagenet", "voc07"):
        whole, few = (DATASETS[name].training_images(root) for root in (world, tmp_path))
        assert few.paths == whole.paths
        assert few.fingerprint != whole.fingerprint
        assert few.cache_key != whole.cache_key  # of features and pictures
    whole, few = (DATASETS["imagenet"].training_images(root) for root in (world, tmp_path))
    assert common.run_key(moco.MINI, whole, 1) != common.run_key(moco.MINI, few, 1)
    assert "rehearsal" not in records.data_of("imagenet", (whole,))
    assert records.data_of("imagenet", (few,))["rehearsal"] == {"of": len(whole)}


def test_fine_tuning_takes_all_of_a_rehearsal_s_images(tmp_path):
    images = replace(_images("abcd", [0, 0, 1, 1], "xy", tmp_path), rehearsed_of=400)
    assert semisup._subset(images, None, {"percent": 1, "seed": 0}, 0).tolist() == [0, 1, 2, 3]


# Recipes ------------------------------------------------------------------------------------------

CPU = Machine(on_gpu=False, gib=None, processes=1)


def test_one_epoch_per_phase_and_what_the_images_fill():
    few = plans.few_recipe(pcl.V1, 32, CPU)
    assert (few.train.epochs, few.warmup) == (3, 1)  # warm-up, first clustering, second
    assert (few.train.batch_size, few.queue) == (8, 32)
    assert few.num_prototypes == (4, 8, 16)
    assert few.train.milestones == (2,)
    assert (few.arch, few.augment, few.bn_groups) == (pcl.V1.arch, pcl.V1.augment, 4)
    assert plans.few_recipe(simclr.PAPER, 32, CPU).train.warmup_epochs == 1
    assert plans.few_recipe(spcl.IMAGENET, 32, CPU).num_prototypes == (16,)
    assert plans.few_recipe(supervised.PAPER, 32, CPU).train.epochs == 2


def _trained():
    """The paper's recipes, of all tables and figures."""
    exhibits = [*catalogue.tables().values(), *catalogue.figures().values()]
    recipes = [row.paper for exhibit in exhibits for row in exhibit.rows if row.paper]
    return [one for i, one in enumerate(recipes) if one.train.epochs and one not in recipes[:i]]


def test_every_recipe_of_the_paper_has_a_rehearsal_that_its_method_takes(tmp_path):
    images = _images(map(str, range(16)), [i % 4 for i in range(16)], "abcd", tmp_path)
    assert len(_trained()) > 15
    for recipe in _trained():
        few = plans.few_recipe(recipe, len(images), CPU)
        common.check(few)
        common.check_share(few, 1)
        few.check_images(images)
        loop.build(replace(few, arch="resnet10-mini"), images, 0)
    assert plans.few_recipe(moco.V1, 16, CPU).train.batch_size == 16, "8 groups of two"


def test_a_gallery_of_few_images_has_a_cluster_that_fills_it():
    for images in (12, 16, 160, 16_000):
        settings = dict(plans._settings(catalogue.load("figure6"), images, 4, plans.ON_CPU))
        assert images / settings["fine"] > gallery.NEAREST - 1
        assert 1 <= settings["coarse"] < settings["fine"]


def test_a_gpu_takes_the_whole_batch_where_its_memory_holds_it():
    large, small = (Machine(on_gpu=True, gib=gib, processes=1) for gib in (80.0, 12.0))
    assert plans.few_recipe(moco.V2, 16_000, large).train.batch_size == 256
    assert plans.few_recipe(moco.V2, 16_000, large).queue == 15_872
    assert plans.few_recipe(moco.V2, 16_000, small).train.batch_size == 64
    eight = Machine(on_gpu=True, gib=80.0, processes=8)
    assert plans.few_recipe(spcl.IMAGENET, 16_000, large).train.batch_size < 1024
    several = replace(large, gpus=4)  # --gpus gives a training as many as it needs
    assert plans.few_recipe(spcl.IMAGENET, 16_000, several).train.batch_size == 1024
    assert plans.few_recipe(spcl.IMAGENET, 16_000, eight).train.batch_size == 1024


def test_too_few_images_for_any_batch_are_told():
    with pytest.raises(UserError, match="a rehearsal of 5 images fills no batch of 16"):
        plans.few_recipe(moco.V1, 5, CPU)


# Costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "ieee", "tf32"),
    [(moco.V2, 996, 466), (simclr.PAPER, 1474, 673), (supervised.PAPER, 737, 336)],
)
def test_an_epoch_on_an_h100_is_as_its_operators_gave_it(recipe, ieee, tf32):
    one = replace(recipe, train=replace(recipe.train, epochs=1))
    for arithmetic, seconds in (("ieee", ieee), ("tf32", tf32)):
        assert 3600 * costs.card_hours(one, costs.H100, arithmetic) == pytest.approx(
            seconds, rel=0.04
        )


def test_pcl_s_clusterings_are_those_of_the_paper():
    assert costs.clusterings(pcl.V1) == 180
    assert costs.clustering_flops(pcl.V1, 1_281_167) == pytest.approx(5.74e15, rel=0.01)
    assert costs.clusterings(moco.V1) == costs.clustering_flops(moco.V1, 10) == 0
    ratio = costs.card_hours(pcl.V1, costs.H100, "ieee") / costs.card_hours(
        moco.V1, costs.H100, "ieee"
    )
    assert ratio == pytest.approx(1 + 0.9 * 0.27, abs=0.02)  # 1.27 with an E-step, 180 of 200


def test_what_a_pretraining_keeps_goes_with_its_network():
    large = replace(spcl.CIFAR10, arch="resnet50")
    assert costs.training_bytes(spcl.CIFAR10) == pytest.approx(0.45 * costs.training_bytes(large))


def test_an_encoder_that_another_row_has_finished_is_not_opened(tmp_path):
    """Two rows that share it may run side by side, and a run folder has one user at a time."""
    row = catalogue.load("table1").row("moco")
    where = tmp_path / "encoder.safetensors"
    job = Job(row, 1, row.paper, where, False, "retrained", "", "done", "", ())
    context = work.RunContext("paper", tmp_path, tmp_path, tmp_path, "cpu", 0)
    with files.exclusive_folder(tmp_path, "in use"):
        work.train(job, context)


def test_hours_are_the_slower_of_reading_and_steps_and_the_clusterings():
    found = throughput.Throughput(
        "cpu", False, 1, 2, 2, 1e9, views=10.0, crops=4.0, embedded=8.0, trained=20.0
    )
    recipe = replace(pcl.V1, warmup=2, train=replace(pcl.V1.train, epochs=3))
    clustered = 1000 / 4 + 2 * 1000 * 175_000 * 128 * 100 / 1e9
    # three epochs are too few to tell quarters apart: before, after each, and at the end
    monitored = 1000 / 4 + 2 * 1000 * (12 + 25 + 50) * 128 * 101 / 1e9
    hours = rehearsal_report._training_hours(recipe, 1000, found)
    assert hours == pytest.approx((3 * 1000 / 10 + clustered + 4 * monitored) / 3600)
    bare = replace(supervised.PAPER, train=replace(supervised.PAPER.train, epochs=3))
    hours = rehearsal_report._training_hours(bare, 1000, found)
    assert hours == pytest.approx(3 * 1000 / 10 / 3600), "Supervised is not monitored"
    told = rehearsal_report._input_bound(found)
    assert told.startswith("input-bound: steps could take 2.0 times the images that are read")
    assert "about 4 workers" in told
    assert rehearsal_report._input_bound(replace(found, views=None)) == ""


def test_what_kept_crops_would_save_is_told():
    found = throughput.Throughput("a GPU", True, 1, 8, 8, 1e13, crops=1000.0, embedded=2000.0)
    waited = 180 * 1_281_167 * (1 / 1000 - 1 / 2000) / 3600
    assert f"{waited:.1f}" == "32.0"
    told = rehearsal_report._crop_bound(pcl.V1, 1_281_167, found)
    assert told.startswith("in 32.0 h of the training clusterings wait for centre crops")
    assert told.endswith("keep-crops keeps them, 193 GB")
    for less in (replace(found, crops=None), replace(found, crops=2000.0)):
        assert rehearsal_report._crop_bound(pcl.V1, 1_281_167, less) == ""
    assert rehearsal_report._crop_bound(pcl.V1, 1000, found) == "", "seconds"
    assert rehearsal_report._crop_bound(supervised.PAPER, 1_281_167, found) == "", "no clusterings"


def test_other_work_beside_the_measurements_is_told():
    found = throughput.Throughput("cpu", False, 1, 2, 2, 1e9)
    assert rehearsal_report._busy([]) == rehearsal_report._busy([found]) == ""
    assert rehearsal_report._busy([replace(found, load=4.0)]) == "", "its own"
    told = rehearsal_report._busy([replace(found, load=1.0), replace(found, load=14.2)])
    assert told.startswith("measured beside other work (load average 14 on 2 cores)")


def test_an_evaluation_s_images_are_those_that_pass_the_network():
    def images(evaluation, dataset, **params):
        return rehearsal_report.passes(EvalTask(evaluation, dataset, "to run"), params, 10_000)

    assert images("linear", "imagenet", epochs=100) == 1_000_000
    assert images("semisup", "imagenet-1pct", epochs=20, percent=1) == 3 * 20 * 100
    assert images("lowshot", "voc07", shots=(1, 2), draws=5) == 10_000
    assert images("lowshot", "places205", shots=(1, 2), draws=5) == 205 * 5 * 3
    assert images("lowshot", "places205", shots=(16, 32), draws=5) == 10_000
    assert images("knn", "imagenet") == 10_000


def test_distances_of_features_are_counted_where_they_take_hours():
    def flops(evaluation, **params):
        return costs.distance_flops(evaluation, params, 1000, 10)

    assert flops("knn", k=(20,), feature="pooled") == 2 * 10 * 1000 * 2048
    ami = {"num_clusters": (25, 50), "iterations": 20, "restarts": 5}
    assert flops("ami", feature="embedding", **ami) == 2 * 1000 * 75 * 128 * 101
    assert flops("gallery", fine=100, coarse=50) == 2 * 1000 * 150 * 128 * 101
    assert flops("lowshot", shots=(1,)) == 0


def test_training_and_evaluation_of_months_are_told(tmp_path):
    exhibit = catalogue.load("table6")
    row = exhibit.row("random")
    job = Job(row, 1, None, tmp_path, False, "retrained", "", "to run", "", ())
    context = work.RunContext("paper", tmp_path, tmp_path, tmp_path, "cpu", 0)
    prepared = plans.Prepared(exhibit, {}, {}, (), ())
    report = rehearsal_report.Report(prepared, (), (), context, tmp_path)

    def of(*hours, training=None):
        return rehearsal_report._Row(job, None, None, training, [*hours])

    def stops(*hours, training=None):
        return list(report._stops([of(*hours, training=training)]))

    end = "on this machine, which has no GPU in use"
    assert stops(24 * 1000, 24 * 111) == [f"Random: 1,111 days of evaluation {end}"]
    assert stops(training=24 * 61.0) == [f"Random: 61.0 days of training {end}"]
    assert stops(24 * 59, None) == []
    line = of(24 * 1111, training=24 * 1000).line()
    assert line.endswith(" 1,000 days    1,111 days"), "columns that are apart"


def test_shared_memory_is_that_of_two_batches_a_worker():
    found = throughput.Throughput("a GPU", True, 1, 16, 16, 1e13, views=1.0)
    two = 2 * 16 * 256 * 2 * 3 * 224 * 224
    assert rehearsal_report._shared_bytes(moco.V2, found) == two
    assert rehearsal_report._shared_bytes(supervised.PAPER, found) == two / 2
    assert rehearsal_report._shared_bytes(moco.V2, replace(found, views=None)) == 0


def test_what_will_stop_the_full_run_is_told_of_its_lists_and_recipes(tmp_path):
    row = replace(catalogue.load("table1").row("pcl"), title="SPCL")
    where = tmp_path / "encoder.safetensors"
    tasks = (EvalTask("lowshot", "places205", "to run"),)
    job = Job(row, 1, spcl.IMAGENET, where, False, "retrained", "", "to run", "", tasks)
    images = _images([str(i) for i in range(1030)], [i % 2 for i in range(1030)], "ab", tmp_path)
    lists = {("lowshot", "places205"): (images.subset(np.arange(20)), images)}

    def stops(gib, gpus=1):
        machine = Machine(on_gpu=True, gib=gib, processes=1, gpus=gpus)
        return list(plans._stops([job], [job], {"imagenet": images}, lists, tmp_path, machine))

    memory, shots = stops(80.0)
    assert memory.startswith("SPCL: GPU memory: a batch of 1024 needs 16")
    assert "GiB on each GPU (computed), which has 80.0; use 4 GPUs" in memory
    assert shots == "lowshot places205: a class has 10 training images, fewer than 16 shots"
    assert stops(80.0, gpus=8) == [shots]
    few = images.subset(np.arange(1000))
    told = list(plans._stops([job], [job], {"imagenet": few}, {}, tmp_path, CPU))
    assert told == ["SPCL: some has 1000 images, less than one batch of 1024"]


def test_batches_of_an_evaluation_that_no_gpu_holds_are_told(tmp_path):
    """Mask R-CNN's 16 images: 90 GiB, or 45 on each of two."""
    row, tasks = catalogue.load("table6").row("moco"), (EvalTask("detection", "coco", "to run"),)
    job = Job(row, 1, None, tmp_path / "a.pth", True, "own", "", "done", "", tasks)
    images = _images(["0"], [0], "a", tmp_path)

    def stops(gib, **has):
        machine = Machine(on_gpu=gib is not None, gib=gib, processes=1, **has)
        lists = {("detection", "coco"): (images, images)}
        return list(plans._stops([], [job], {}, lists, tmp_path, machine))

    assert stops(80.0) == [
        "detection coco: GPU memory: a batch needs at least 90 GiB on one GPU (computed), which has"
        " 80.0; 2 such GPUs would do"
    ]
    assert stops(80.0, for_evaluation=2) == stops(141.0) == stops(None) == []
    assert stops(4.0, for_evaluation=8)[0].endswith("GPUs with more memory would do")
    assert stops(96.0) == [], "close; the evaluation warns"
    job = replace(job, tasks=(replace(tasks[0], state="done"),))
    assert stops(80.0) == [], "nothing is left to do"


def test_a_rehearsal_s_detectors_have_batches_that_the_gpus_hold(tmp_path):
    """Of 5.65 GiB an image, with a fifth to spare; the paper's is 16."""
    row, tasks = catalogue.load("table6").row("moco"), (EvalTask("detection", "coco", "to run"),)
    job = Job(row, 1, None, tmp_path / "a.pth", True, "own", "", "done", "", tasks)

    def batch(gib, gpus=1, job=job):
        machine = Machine(on_gpu=True, gib=gib, processes=1, for_evaluation=gpus)
        return dict(plans._detection([job], tmp_path, machine)).get("batch_size")

    assert batch(141.0) is batch(96.0) is batch(80.0, 2) is batch(None) is None
    assert [batch(80.0), batch(24.0), batch(24.0, 2), batch(1.0)] == [11, 3, 6, 1]
    on_voc = replace(job, tasks=(EvalTask("detection", "voc07", "to run"),))
    assert batch(8.0, job=on_voc) is None


def test_missing_data_is_refused_but_not_a_transformer_s_missing_evaluation(tmp_path):
    row = catalogue.load("table3").row("pcl")

    def require(why):
        tasks = (EvalTask("linear", "places205", "impossible", why),)
        plans._require_data([Job(row, 0, None, tmp_path, True, "own", "", "done", "", tasks)])

    require(f"{plan.NO_RESNET}: this protocol pools the last convolutional map to 2x2")
    with pytest.raises(UserError, match="cannot be rehearsed: no Places205 list here"):
        require("no Places205 list here")


def test_more_clusters_than_images_stop_an_evaluation(tmp_path):
    images = _images(map(str, range(30)), [i % 2 for i in range(30)], "ab", tmp_path)
    for table, task in (("table7", ("ami", "imagenet")), ("figure6", ("gallery", "imagenet"))):
        row = catalogue.load(table).row("pcl")
        where = tmp_path / "encoder.safetensors"
        tasks = (EvalTask(*task, "to run"),)
        job = Job(row, 1, row.paper, where, False, "retrained", "", "to run", "", tasks)
        (told,) = plans._stops([], [job], {}, {task: (images,)}, tmp_path, CPU)
        assert told.startswith(f"{task[0]} imagenet: ")
        assert told.endswith("000 clusters of 30 images")


def test_rates_are_measured_on_files_and_written(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.jpg")
    paths = [f"{i}.jpg" for i in range(40)]
    whole = _images(paths, [i % 2 for i in range(40)], "ab", tmp_path / "data")
    few = rehearsal.few(whole, None, 8)
    recipe = plans.few_recipe(replace(pcl.MINI, augment=pcl.V1.augment), 16, CPU)
    recipe = replace(recipe, augment=replace(recipe.augment, size=32))
    found = measuring.of_training(recipe, few, whole, device="cpu", workers=1)
    assert (found.batch, found.processes, found.on_gpu, found.peak_gib) == (8, 1, False, None)
    rates = (found.views, found.crops, found.embedded, found.trained, found.flops)
    assert min(rates) > 0
    assert found.load is None or found.load >= 0
    found.write(tmp_path / "throughput.json")
    assert throughput.read(tmp_path / "throughput.json") == found
    assert throughput.read(tmp_path / "nothing.json") is None


# The whole ----------------------------------------------------------------------------------------


@pytest.fixture
def rehearse(command, world, tmp_path, monkeypatch):
    """Rehearses Table 1 with recipes of the mini tier in the place of the paper's."""
    table = catalogue.load("table1")
    rows = tuple(replace(row, paper=row.mini or row.paper) for row in table.rows)
    monkeypatch.setattr(catalogue, "load", lambda *_: replace(table, rows=rows))

    def run(*flags, data=world):
        return command(
            tables_main.main,
            *("reproduce", "table1", "--tier", "paper", "--data", data, "--rehearse"),
            *("--results", tmp_path / "results", "--runs", tmp_path / "runs", "--device", "cpu"),
            *("--workers", 0, *flags),
        )

    return run


def test_a_rehearsal_runs_every_kind_of_row_and_reaches_no_table(
    rehearse, command, tmp_path, encoder_file
):
    code, out, err = rehearse("--rows", "random", "pcl", "moco", "--ckpt", f"moco={encoder_file}")
    assert code == cli.INCOMPLETE, err  # the tiny world has no 16 shots of a class
    assert "REHEARSAL of table1, tier paper" in out
    assert "6 of 6 records made; they are of no table" in out
    assert "imagenet: 16 of 200 images, 4 of 20 classes" in out
    assert "PCL: 3 of 20 epochs; batch 8, not 128; queue 16, not 512" in out
    assert "lowshot places205: a class has" in out
    line = next(line for line in out.splitlines() if line.startswith("  PCL  "))
    assert "GiB computed" in line
    random = next(line for line in out.splitlines() if line.startswith("  Random  "))
    assert random.endswith(" min"), "scored at the rate of another row's equal network"
    folder = tmp_path / "results" / "rehearsal" / "paper"
    have = records.read_all(folder / "records")
    assert len(have) == 6
    assert all("rehearsal" in record["data"] for record in have.values())
    assert runs.select_records(catalogue.load("table1"), have).rows == {}
    assert not (tmp_path / "results" / "paper").exists()
    assert not (tmp_path / "runs" / "paper").exists()
    (encoder,) = (tmp_path / "runs" / "rehearsal" / "paper").glob("pcl-*/encoder.safetensors")
    assert len((encoder.parent / "log.jsonl").read_text().splitlines()) == 3
    assert json.loads((encoder.parent / "throughput.json").read_text())["batch"] == 8
    results = ("--results", tmp_path / "results" / "rehearsal")
    code, _, err = command(tables_main.main, "diff", "table1", "--tier", "paper", *results)
    assert (code, "no records of table1" in err) == (cli.INCOMPLETE, True)


def test_an_interrupted_rehearsal_goes_on_and_a_finished_one_begins_anew(
    rehearse, tmp_path, monkeypatch
):
    from tables.engine.jobs import executor

    report = tmp_path / "results" / "rehearsal" / "paper" / "table1.txt"
    with monkeypatch.context() as stopped:
        stopped.setattr(executor.LocalProcesses, "run", _interrupted)
        code, _, _ = rehearse("--rows", "random")
        assert code != 0
    assert not report.exists()
    _, out, err = rehearse("--rows", "random")
    assert "2 of 2 records made" in out, err
    records_then = _states(report.parent / "records")
    report.unlink()  # as if it had been interrupted before the report
    _, out, _ = rehearse("--rows", "random")
    assert _states(report.parent / "records") == records_then
    rehearse("--rows", "random")
    assert _states(report.parent / "records") != records_then


def _interrupted(self, jobs):
    raise KeyboardInterrupt


def _states(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def test_jobs_by_submitit_share_the_batch_and_report(rehearse, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    two = ("--slurm", "--slurm-cluster", "local", "--slurm-gpus", 2)
    code, out, err = rehearse("--rows", "moco", *two)
    assert code == cli.INCOMPLETE, err
    assert "2 of 2 records made" in out
    assert "processes that share a batch: 2;" in out
    (path,) = (tmp_path / "runs" / "rehearsal" / "paper").glob("moco-*/encoder.safetensors")
    assert encoders.load(path).report.arch == "resnet10-mini"


def test_on_a_cluster_the_report_is_the_last_job(rehearse, slurm, tmp_path):  # noqa: F811
    pytest.importorskip("submitit", reason="needs the extra slurm")
    code, _, err = rehearse("--rows", "moco", "--slurm")
    assert code == cli.INCOMPLETE, err
    texts = [path.read_text() for path in sorted(slurm.glob("*.sh"))]
    names = [re.search(r"--job-name=(\S+)", text)[1] for text in texts]
    assert [name.partition("-")[0] for name in names] == ["moco", "moco", "moco", "rehearsal"]
    assert "--dependency=afterany:" in texts[-1]
    assert not list((tmp_path / "results").rglob("*.json"))


@pytest.fixture
def broken(world, tmp_path):
    """A copy of the world to be damaged."""
    return Path(shutil.copytree(world, tmp_path / "broken"))


def test_data_that_cannot_be_rehearsed_is_told_before_anything_runs(
    rehearse, broken, tmp_path, monkeypatch
):
    folder = next((broken / "imagenet" / "train").iterdir())
    for path in folder.iterdir():
        path.unlink()
    code, _, err = rehearse("--rows", "pcl", data=broken)
    assert code == cli.TROUBLE
    assert f"class '{folder.name}' has no image" in err
    (broken / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    code, _, err = rehearse("--rows", "random", data=broken)
    assert (code, "no test list" in err, "Traceback" in err) == (cli.TROUBLE, True, False)
    shutil.rmtree(broken / "places205")
    code, _, err = rehearse("--rows", "random", data=broken)
    assert (code, "cannot be rehearsed" in err) == (cli.TROUBLE, True)
    assert not (tmp_path / "runs").exists()


def test_a_disk_without_space_is_told_before_anything_runs(rehearse, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    code, _, err = rehearse("--rows", "pcl")
    assert (code, "the encoders of this rehearsal need" in err) == (cli.TROUBLE, True)
    assert not list(tmp_path.glob("runs/rehearsal/paper/*"))


def test_flags_that_do_not_go_together(command, rehearse):
    code, _, err = command(tables_main.main, "reproduce", "table1", "--rehearse")
    assert (code, "--rehearse belongs to the paper tier" in err) == (cli.TROUBLE, True)
    code, _, err = rehearse("--seeds", 3)
    assert (code, "a rehearsal pretrains each row once" in err) == (cli.TROUBLE, True)


def test_probes_and_detectors_of_one_table_have_settings_of_their_own(tmp_path):
    """On a CPU detectors have one image a batch; on a GPU the paper's batch."""

    def params(exhibit, images, size, name, dataset):
        table = catalogue.load(exhibit)
        settings = plans._settings(table, images, 0, size)
        config = plan._config(settings, tmp_path, name, dataset, tmp_path)
        config.check()
        return config.params()

    both = ("mocov2-table1", 16, plans.ON_CPU)
    assert params(*both, "linear", "imagenet")["epochs"] == 2
    assert params(*both, "linear", "imagenet")["batch_size"] == 8
    found = params(*both, "detection_c4", "voc07+12")
    of = [found[field] for field in ("iterations", "epochs", "batch_size", "draws")]
    assert of == [2, 0, 1, 1]
    on_gpu = params("mocov2-table1", 16_000, plans.ON_GPU, "detection_c4", "voc07+12")
    assert (on_gpu["iterations"], on_gpu["batch_size"]) == (20, 16)
    alone = params("table5", 16, plans.ON_CPU, "detection", "voc07")
    assert (alone["iterations"], alone["epochs"]) == (2, 0)
