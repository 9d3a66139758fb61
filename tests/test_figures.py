"""The evaluations behind the figures, on cases whose answer is known, and the figures drawn from their records."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate import course, gallery, tsne
from pretrain import loop, recipes
from protobench import records
from protobench.kmeans import Clustering
from tables import __main__ as tables_main
from tables import catalogue, compare, courses, pictures

PCL = replace(recipes.PCL_MINI, train=replace(recipes.PCL_MINI.train, epochs=2, batch_size=64), queue=64, warmup=1,
              num_prototypes=(2, 5, 10))


@pytest.fixture(scope="module")
def encoders(train_images, tmp_path_factory):
    """row -> encoder, each of two epochs."""
    moco = replace(recipes.MOCO_MINI, train=PCL.train, queue=64)
    return {name: loop.pretrain(recipe, train_images, tmp_path_factory.mktemp(name), seed=1)
            for name, recipe in (("moco", moco), ("pcl", PCL), ("pcl-fixed", replace(PCL, concentration="fixed")))}


@pytest.fixture(scope="module")
def results(encoders, world, tmp_path_factory):
    """A results folder with the records of all figures, of two pretended seeds."""
    folder = tmp_path_factory.mktemp("results")
    where = {"workers": 0, "results": folder / "mini" / "records"}
    for row, path in encoders.items():
        for seed in (1, 2):
            subject = {"row": row, "seed": seed, "source": "retrained", "recipe": row}
            course.evaluate(course.Config(path, world, **where), subject)
            if row != "pcl-fixed":
                tsne.evaluate(tsne.Config(path, world, per_class=5, perplexity=5, **where), subject)
    gallery.evaluate(gallery.Config(encoders["pcl"], world, fine=10, coarse=4, clusters=3, coarse_images=4, **where),
                     {"row": "pcl", "seed": 1, "source": "retrained", "recipe": "pcl"})
    return folder


# course ---------------------------------------------------------------------------------------------------------------

def test_a_course_becomes_a_record(command, encoders, world, tmp_path):
    code, out, err = command(course.main, "--ckpt", encoders["pcl"], "--data", world, "--results", tmp_path)
    assert code == 0, err
    assert "AMI K=2" in out
    assert out.index("AMI K=5") < out.index("AMI K=10")
    (record,) = records.read_all(tmp_path).values()
    assert [run["epoch"] for run in record["runs"]] == [0, 1]
    assert [probe["epochs"] for probe in record["probes"]] == [0, 1, 2]


def test_a_course_that_is_missing_damaged_or_another_s_is_refused(command, encoders, world, tmp_path):
    shutil.copy(encoders["pcl"], tmp_path / "encoder.safetensors")
    args = ("--ckpt", tmp_path / "encoder.safetensors", "--data", world, "--results", tmp_path / "r")
    for content, complaint in ((None, "no course beside this encoder"), ("{}", "no course of a pretraining"),
                               ((encoders["moco"].parent / "course.json").read_text(), "another run's")):
        if content:
            (tmp_path / "course.json").write_text(content)
        code, _, err = command(course.main, *args)
        assert code == 2
        assert complaint in err
        assert "hint:" in err


# t-SNE ----------------------------------------------------------------------------------------------------------------

def test_the_first_classes_and_a_seeded_part_of_each_are_shown():
    labels = np.repeat(np.arange(6), 30)
    rows = tsne.chosen(labels, 4, 10, 0)
    assert np.bincount(labels[rows]).tolist() == [10] * 4
    assert rows.tolist() == tsne.chosen(labels, 4, 10, 0).tolist() != tsne.chosen(labels, 4, 10, 1).tolist()
    assert len(tsne.chosen(labels, 60, 200, 0)) == 180


def test_groups_far_apart_stay_apart_and_noise_mixes():
    labels = np.arange(120) % 4
    rng = np.random.default_rng(0)
    far, near = rng.normal(size=(120, 8)) + 50 * np.eye(8)[labels], rng.normal(size=(120, 8))
    places, run = tsne.score(far.astype(np.float32), labels, 10)
    assert places.shape == (120, 2)
    assert run["value"] == 100
    assert tsne.score(near.astype(np.float32), labels, 10)[1]["value"] < 50


@pytest.mark.parametrize(("flags", "complaint"), [(("--perplexity", 500), "needs more than 200 images"),
                                                  (("--classes", 0), "at least 1"), (("--perplexity", 0.5), "at least 1")])
def test_senseless_parameters_of_tsne_are_refused(command, encoders, world, tmp_path, flags, complaint):
    code, _, err = command(tsne.main, "--ckpt", encoders["pcl"], "--data", world, "--workers", 0, "--results", tmp_path, *flags)
    assert code == 2
    assert complaint in err


# gallery --------------------------------------------------------------------------------------------------------------

def test_the_nearest_five_and_the_coarse_cluster_that_holds_most_of_them():
    fine = Clustering(np.zeros((3, 2)), np.array([0] * 7 + [1] * 4 + [2] * 6), np.array([7, 6, 5, 4, 3, 2, 1] + [0] * 10))
    coarse = Clustering(np.zeros((2, 2)), np.array([0, 0, 0, 1, 1, 1, 0] + [1] * 10), np.zeros(17))
    groups = {group["fine"]: group for group in gallery.choose(fine, coarse, 5, 3, 0)}
    assert groups.keys() == {0, 2}, "a cluster of four has no nearest five"
    assert groups[0]["near"] == [6, 5, 4, 3, 2]
    assert groups[0]["coarse"] == 1
    assert len(groups[0]["around"]) == 3
    assert not set(groups[0]["around"]) & set(groups[0]["near"])
    assert set(groups[0]["around"]) <= set(range(7, 17))
    assert len(gallery.choose(fine, coarse, 1, 3, 0)) == 1


def test_the_record_holds_pictures_that_can_be_shown(results):
    record = next(r for r in records.read_all(results / "mini" / "records").values() if r["unit"]["evaluation"] == "gallery")
    for group in record["groups"]:
        assert len(group["near"]) == 5
        for image in group["near"] + group["around"]:
            assert image["path"].startswith(image["class"] + "/")
            assert Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))).size == (40, 40)


@pytest.mark.parametrize(("flags", "complaint"), [(("--fine", 5, "--coarse", 5), "less than"), (("--clusters", 0), "at least 1"),
                                                  (("--fine", 201, "--coarse", 9), "201 clusters asked of 200 images")])
def test_senseless_parameters_of_galleries_are_refused(command, encoders, world, tmp_path, flags, complaint):
    args = ("--ckpt", encoders["pcl"], "--data", world, "--workers", 0, "--results", tmp_path)
    code, _, err = command(gallery.main, *args, *flags)
    assert code == 2
    assert complaint in err


# figures --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_a_figure_is_drawn_from_records_alone_and_always_the_same(command, results, name):
    code, out, err = command(tables_main.main, "diff", name, "--results", results)
    assert code == 0, err
    assert "MINI" in out
    first = {path.suffix: path.read_bytes() for path in (results / "mini").glob(f"{name}.*")}
    assert first.keys() == {".png", ".svg", ".csv", ".html"}
    command(tables_main.main, "diff", name, "--results", results)
    assert first == {path.suffix: path.read_bytes() for path in (results / "mini").glob(f"{name}.*")}
    width, height = Image.open(io.BytesIO(first[".png"])).size
    assert width > 600 < 2 * height
    assert b"<dc:date>" not in first[".svg"]
    lines = first[".csv"].decode().splitlines()
    assert len(lines) > 5
    assert all(line.count(",") >= lines[0].count(",") for line in lines)


def test_the_csv_holds_what_the_records_say(command, results):
    command(tables_main.main, "diff", "figure4", "--results", results)
    record = next(r for r in records.read_all(results / "mini" / "records").values()
                  if (r["unit"]["evaluation"], r["subject"]["row"], r["subject"]["seed"]) == ("course", "pcl", 2))
    assert f"pcl,2,2,5,AMI,{record['probes'][-1]['clusters']['5']['ami']:.6f}" in (results / "mini" / "figure4.csv").read_text()


def test_a_figure_without_all_its_records_is_incomplete(command, tmp_path):
    code, _, err = command(tables_main.main, "diff", "figure3", "--results", tmp_path)
    assert code == 3
    assert "needs records of moco, pcl, pcl-fixed" in err


def test_claims_are_judged_over_pretrainings():
    left, right = {1: 2.0, 2: 2.1, 3: 1.9}, {1: 1.0, 2: 1.05, 3: 1.0}
    assert courses.claim("x", left, right)[1] == "holds"
    assert courses.claim("x", right, left)[1] == "reversed"
    assert courses.claim("x", {1: 2.0}, {1: 1.0})[1] == "undecided", "one pretraining"
    assert courses.claim("x", {1: 2.0}, {2: 1.0})[1] == "not-run"


def test_strict_counts_a_reversed_claim(command, results, monkeypatch):
    figure = catalogue.either("figure4")
    monkeypatch.setattr(tables_main, "either", lambda name: replace(figure, claims=lambda found: (("x", "reversed", ""),)))
    assert command(tables_main.main, "diff", "figure4", "--results", results)[0] == 0
    assert command(tables_main.main, "diff", "figure4", "--results", results, "--strict")[0] == 1


def test_colours_differ_in_grey_too():
    """Luminance of neighbours among the lines' colours; where they are close, dash and marker differ as well."""
    assert len(set(pictures.DASHES)) == len(set(pictures.MARKERS)) == len(set(pictures.HATCHES)) == len(pictures.COLOURS) == 4


def test_the_committed_figures_are_those_of_the_committed_records(tmp_path):
    """In numbers: the picture's bytes depend on matplotlib's version."""
    reference = Path(__file__).parent.parent / "results" / "reference"
    for name in catalogue.FIGURES:
        figure = catalogue.either(name)
        found = compare.collect(figure, reference, "mini").rows
        drawing, _, _ = pictures.draw(figure, "mini", found)
        lines = [",".join(row) for row in drawing.data]
        committed = (reference / "mini" / f"{name}.csv").read_text().splitlines()[1:]
        assert [line.replace('"', "") for line in committed] == lines
    assert json.loads(json.dumps(lines)) == lines
