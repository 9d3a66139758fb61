"""The evaluations behind the figures, on cases whose answer is known, and the figures drawn from
their records."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from PIL import Image

from evaluate import gallery, tsne
from pretrain import history, loop
from pretrain.recipes import moco as moco_recipes
from pretrain.recipes import pcl, simclr, spcl
from protobench import records
from protobench.checkpoints import encoders
from protobench.kmeans import Clustering
from protobench.records import ModelInfo, ResultKey
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine import catalogue, claims, histories, runs
from tables.engine.pages import pictures
from tables.engine.schema import ClaimResult
from tables.pcl import figure5, figure6
from tables.spcl import figure2

PCL = replace(
    pcl.MINI,
    train=replace(pcl.MINI.train, epochs=2, batch_size=64),
    queue=64,
    warmup=1,
    num_prototypes=(2, 5, 10),
)


@pytest.fixture(scope="module")
def trained(train_images, tmp_path_factory):
    """row -> encoder, each of two epochs."""
    moco = replace(moco_recipes.MINI, train=PCL.train, queue=64)
    return {
        name: loop.pretrain(recipe, train_images, tmp_path_factory.mktemp(name), seed=1)
        for name, recipe in (
            ("moco", moco),
            ("pcl", PCL),
            ("pcl-fixed", replace(PCL, concentration="fixed")),
        )
    }


@pytest.fixture(scope="module")
def spcl_trained(train_images, tmp_path_factory):
    """method -> encoder, likewise."""
    return {
        recipe.method: loop.pretrain(
            replace(recipe, train=PCL.train), train_images, tmp_path_factory.mktemp("spcl"), seed=1
        )
        for recipe in (simclr.MINI, replace(spcl.MINI, num_prototypes=(5,)))
    }


@pytest.fixture(scope="module")
def results(trained, spcl_trained, train_images, world, tmp_path_factory):
    """A results folder with the records of all figures, of two pretended seeds."""
    folder = tmp_path_factory.mktemp("results")
    where = {"workers": 0, "results": folder / "mini" / "records"}
    for row, path in trained.items():
        for seed in (1, 2):
            model = ModelInfo(row, seed, "retrained", row)
            history.write("course", path, train_images, "imagenet", where["results"], model)
            if row != "pcl-fixed":
                tsne.EVALUATION.execute(
                    tsne.Config(path, world, per_class=5, perplexity=5, **where), model
                )
    for row in figure2.FIGURE.rows:
        for seed in (1, 2):
            model = ModelInfo(row.name, seed, "retrained", row.name)
            encoder = spcl_trained[row.mini.method]
            path = history.write(
                "course", encoder, train_images, "cifar10", where["results"], model
            )
            account = records.read(path)["checkpoint"]
            records.write(
                folder / "mini" / "records",
                ResultKey("linear", "cifar10", 1, row.name, (), {}),
                [{"draw": 0, "value": 50.0 + seed}],
                model=model,
                checkpoint=account,
                data={"classes": 10},
                metric={"test_images": 40},
            )
    gallery.EVALUATION.execute(
        gallery.Config(
            trained["pcl"], world, fine=10, coarse=4, clusters=3, coarse_images=4, **where
        ),
        ModelInfo("pcl", 1, "retrained", "pcl"),
    )
    # detectors, and the twelve arms of the mechanism, take too long to train here
    arms = {row.name for row in catalogue.load("mechanism").rows}
    for path in (Path(__file__).parents[1] / "results/reference/mini/records").glob("*.json"):
        row, _, rest = path.name.partition("-1-")
        of_arm = row in arms and rest.startswith(("fullsvm-", "ami-", "knn-"))
        if of_arm or rest.startswith("detection-voc07-"):
            shutil.copy(path, folder / "mini" / "records")
    return folder


# course -------------------------------------------------------------------------------------------


def test_a_training_history_becomes_a_record(trained, train_images, tmp_path):
    path = history.write("course", trained["pcl"], train_images, "imagenet", tmp_path)
    out = history.report(records.read(path))
    assert "AMI K=2" in out
    assert out.index("AMI K=5") < out.index("AMI K=10")
    (record,) = records.read_all(tmp_path).values()
    assert [run["epoch"] for run in record["runs"]] == [0, 1]
    assert [probe["epochs"] for probe in record["probes"]] == [0, 1, 2]


def test_a_history_that_is_missing_damaged_or_another_s_is_refused(trained, train_images, tmp_path):
    shutil.copy(trained["pcl"], tmp_path / "encoder.safetensors")
    whole = json.loads((trained["pcl"].parent / "course.json").read_text())
    short = json.dumps({**whole, "probes": whole["probes"][:-1]})
    for content, complaint in (
        (None, "no training history beside this encoder"),
        ("{}", "not the history of a finished training"),
        (short, "not the history of a finished training"),
        ((trained["moco"].parent / "course.json").read_text(), "another run"),
    ):
        if content:
            (tmp_path / "course.json").write_text(content)
        ckpt = tmp_path / "encoder.safetensors"
        with pytest.raises(UserError, match=complaint) as error:
            history.write("course", ckpt, train_images, "imagenet", tmp_path / "r")
        assert error.value.hint


# t-SNE --------------------------------------------------------------------------------------------


def test_the_first_classes_and_a_seeded_part_of_each_are_shown():
    labels = np.repeat(np.arange(6), 30)
    rows = tsne.sample(labels, 4, 10, 0)
    assert np.bincount(labels[rows]).tolist() == [10] * 4
    assert (
        rows.tolist()
        == tsne.sample(labels, 4, 10, 0).tolist()
        != tsne.sample(labels, 4, 10, 1).tolist()
    )
    assert len(tsne.sample(labels, 60, 200, 0)) == 180


def test_groups_far_apart_stay_apart_and_noise_mixes():
    labels = np.arange(120) % 4
    rng = np.random.default_rng(0)
    far, near = rng.normal(size=(120, 8)) + 50 * np.eye(8)[labels], rng.normal(size=(120, 8))
    places, run = tsne.score(far.astype(np.float32), labels, 10)
    assert places.shape == (120, 2)
    assert run["value"] == 100
    assert tsne.score(near.astype(np.float32), labels, 10)[1]["value"] < 50


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--perplexity", 500), "needs more than 200 images"),
        (("--classes", 0), "at least 1"),
        (("--perplexity", 0.5), "at least 1"),
    ],
)
def test_senseless_parameters_of_tsne_are_refused(
    command, trained, world, tmp_path, flags, complaint
):
    code, _, err = command(
        tsne.EVALUATION.main,
        "--ckpt",
        trained["pcl"],
        "--data",
        world,
        "--workers",
        0,
        "--results",
        tmp_path,
        *flags,
    )
    assert code == 2
    assert complaint in err


# gallery ------------------------------------------------------------------------------------------


def test_the_nearest_five_and_the_coarse_cluster_that_holds_most_of_them():
    fine = Clustering(
        np.zeros((3, 2)),
        np.array([0] * 7 + [1] * 4 + [2] * 6),
        np.array([7, 6, 5, 4, 3, 2, 1] + [0] * 10),
    )
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
    record = next(
        r
        for r in records.read_all(results / "mini" / "records").values()
        if r["unit"]["evaluation"] == "gallery"
    )
    for group in record["groups"]:
        assert len(group["near"]) == 5
        for image in group["near"] + group["around"]:
            assert image["path"].startswith(image["class"] + "/")
            assert Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))).size == (40, 40)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--fine", 5, "--coarse", 5), "less than"),
        (("--clusters", 0), "at least 1"),
        (("--fine", 201, "--coarse", 9), "201 clusters of only 200 images"),
    ],
)
def test_senseless_parameters_of_galleries_are_refused(
    command, trained, world, tmp_path, flags, complaint
):
    args = ("--ckpt", trained["pcl"], "--data", world, "--workers", 0, "--results", tmp_path)
    code, _, err = command(gallery.EVALUATION.main, *args, *flags)
    assert code == 2
    assert complaint in err


# figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(catalogue.figures()))
def test_a_figure_is_drawn_from_records_alone_and_always_the_same(command, results, name):
    code, out, err = command(tables_main.main, "diff", name, "--results", results)
    assert code == 0, err
    assert "MINI" in out
    first = {path.suffix: path.read_bytes() for path in (results / "mini").glob(f"{name}.*")}
    assert first.keys() == {".png", ".svg", ".csv", ".html"}
    command(tables_main.main, "diff", name, "--results", results)
    assert first == {
        path.suffix: path.read_bytes() for path in (results / "mini").glob(f"{name}.*")
    }
    width, height = Image.open(io.BytesIO(first[".png"])).size
    assert width > 600 < 2 * height
    assert b"<dc:date>" not in first[".svg"]
    lines = first[".csv"].decode().splitlines()
    assert len(lines) > 5
    assert all(line.count(",") >= lines[0].count(",") for line in lines)


def test_the_csv_holds_what_the_records_say(command, results):
    command(tables_main.main, "diff", "figure4", "--results", results)
    record = next(
        r
        for r in records.read_all(results / "mini" / "records").values()
        if (r["unit"]["evaluation"], r["subject"]["row"], r["subject"]["seed"])
        == ("course", "pcl", 2)
    )
    assert (
        f"pcl,2,2,5,AMI,{record['probes'][-1]['clusters']['5']['ami']:.6f}"
        in (results / "mini" / "figure4.csv").read_text()
    )


def test_a_figure_without_all_its_records_is_incomplete(command, tmp_path):
    code, _, err = command(tables_main.main, "diff", "figure3", "--results", tmp_path)
    assert code == 3
    assert "needs records of moco, pcl, pcl-fixed" in err


def test_claims_are_judged_over_pretrainings():
    left, right = {1: 2.0, 2: 2.1, 3: 1.9, 4: 2.0}, {1: 1.0, 2: 1.05, 3: 1.0, 4: 1.0}

    def verdict(a, b):
        return claims.of_seeds("x", a, b, "text", "a - b").verdict

    assert verdict(left, right) == "holds"
    assert verdict(right, left) == "reversed"
    assert verdict({1: 2.0}, {1: 1.0}) == "undecided", "one pretraining"
    assert verdict({1: 2.0}, {2: 1.0}) == "not-run"


def test_strict_counts_a_reversed_claim(command, results, monkeypatch):
    figure = catalogue.load("figure4")
    monkeypatch.setattr(
        catalogue,
        "load",
        lambda *name: replace(figure, claims=lambda found: (ClaimResult("x", "reversed", "", ""),)),
    )
    assert command(tables_main.main, "diff", "figure4", "--results", results)[0] == 0
    assert command(tables_main.main, "diff", "figure4", "--results", results, "--strict")[0] == 1


def test_colours_differ_in_grey_too():
    """The three that lines of one picture have; dash, marker and hatch differ as well."""
    shades = [
        0.299 * int(c[1:3], 16) + 0.587 * int(c[3:5], 16) + 0.114 * int(c[5:], 16)
        for c in pictures.COLOURS[:3]
    ]
    assert min(abs(a - b) for i, a in enumerate(shades) for b in shades[:i]) > 60
    assert (
        len(set(pictures.DASHES))
        == len(set(pictures.MARKERS))
        == len(set(pictures.HATCHES))
        == len(pictures.COLOURS)
        == 4
    )


def _drawn(name, results):
    figure = catalogue.load(name)
    found = runs.collect(figure, results, "mini").rows
    return figure.draw(found).picture, found


def test_figure_3_shows_each_kind_under_its_own_name(results):
    picture, found = _drawn("figure3", results)
    left, right = picture.axes
    for text, row in zip(
        (t.get_text() for t in left.get_legend().get_texts()), ("pcl-fixed", "pcl"), strict=True
    ):
        sds = [record["probes"][-1]["clusters"]["5"]["sd"] for record in found[row]]
        assert text.startswith("fixed" if row == "pcl-fixed" else "estimated")
        assert f"sd {np.mean(sds):.1f}" in text
    lines = {
        line.get_label(): line.get_ydata()
        for line in right.get_lines()
        if not line.get_label().startswith("_")
    }
    for row, title in (("moco", "InfoNCE (MoCo)"), ("pcl", "ProtoNCE (PCL)")):
        features = np.mean(
            [[probe["feature_mi"] for probe in record["probes"]] for record in found[row]], axis=0
        )
        prototypes = np.mean(
            [[probe["clusters"]["5"]["mi"] for probe in record["probes"]] for record in found[row]],
            axis=0,
        )
        np.testing.assert_allclose(lines[f"{title}, features"], features)
        np.testing.assert_allclose(lines[f"{title}, prototypes"], prototypes)


def test_curves_are_means_in_a_band_from_least_to_greatest():
    records_ = [
        {
            "subject": {"seed": seed},
            "probes": [{"epochs": e, "feature_mi": seed * e} for e in (0, 5)],
        }
        for seed in (1, 2, 6)
    ]
    _, ((axis,),) = pictures.axes(1)
    histories.curve(
        axis, records_, histories.of_features, label="x", colour="k", dash="-", marker="o"
    )
    assert axis.get_lines()[0].get_ydata().tolist() == [0, 15]
    band = axis.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(5, 5), (5, 30)}


def test_a_giant_cluster_does_not_hide_the_others(results):
    figure, found = (
        catalogue.load("figure3"),
        runs.collect(catalogue.load("figure3"), results, "mini").rows,
    )
    for record in found["pcl"] + found["pcl-fixed"]:
        record["probes"][-1]["clusters"]["5"]["histogram"] = {
            str(size): 10 for size in range(20, 60)
        } | {"5000": 1}
    left = figure.draw(found).picture.axes[0]
    assert "last bar" in left.get_xlabel()
    counts = next(patch for patch in left.patches).get_data().values
    assert (counts > 0).sum() > 8


def test_figure_5_names_its_panels_and_tells_60_classes_apart(results):
    picture, found = _drawn("figure5", results)
    for axis, row, title in zip(picture.axes, ("moco", "pcl"), ("MoCo", "PCL"), strict=True):
        assert axis.get_title().startswith(f"{title}, seed 1 of 2")
        first = next(r for r in found[row] if r["subject"]["seed"] == 1)
        of_class = [
            np.array(first["places"])[np.array(first["labels"]) == label] for label in range(20)
        ]
        for shown, places in zip(axis.collections, of_class, strict=True):
            np.testing.assert_allclose(np.asarray(shown.get_offsets()), places)
    marks = {
        (figure5.colour(label), pictures.MARKERS[(label + label // 20) % 4]) for label in range(60)
    }
    assert len(marks) == 60


def test_figure_6_frames_the_nearest_in_green_and_the_others_in_orange(results):
    picture, found = _drawn("figure6", results)
    (record,) = found["pcl"]
    width = len(picture.axes) // len(record["groups"])
    for line, group in enumerate(record["groups"]):
        for i, image in enumerate(group["near"] + group["around"]):
            axis = picture.axes[line * width + i]
            assert axis.get_title() == image["class"][:16]
            assert to_hex(axis.spines["left"].get_edgecolor()) == (
                figure6.GREEN if i < 5 else figure6.ORANGE
            )


def test_class_names_are_no_formulas(results):
    figure, found = (
        catalogue.load("figure5"),
        runs.collect(catalogue.load("figure5"), results, "mini").rows,
    )
    for record in found["moco"] + found["pcl"]:
        record["class_names"][0] = r"$\frac$"
    drawing, png, _ = pictures.draw(figure, "mini", found)
    assert png
    assert drawing.data[0][3] == r"$\frac$"


def test_pictures_and_galleries_look_at_the_momentum_encoder(trained, world, tmp_path, monkeypatch):
    asked, real = [], encoders.load

    def load(*args, **how):
        asked.append(how.get("prefer"))
        return real(*args, **how)

    monkeypatch.setattr(encoders, "load", load)
    where = {"workers": 0, "results": tmp_path}
    tsne.EVALUATION.execute(tsne.Config(trained["moco"], world, per_class=5, perplexity=5, **where))
    gallery.EVALUATION.execute(gallery.Config(trained["moco"], world, fine=10, coarse=4, **where))
    assert asked == ["momentum", "momentum"]
    record = next(
        r for r in records.read_all(tmp_path).values() if r["unit"]["evaluation"] == "tsne"
    )
    assert record["labels"] == sorted(record["labels"])


def test_the_committed_figures_are_those_of_the_committed_records(tmp_path):
    """In numbers: the picture's bytes depend on matplotlib's version."""
    reference = Path(__file__).parent.parent / "results" / "reference"
    for name in catalogue.figures():
        figure = catalogue.load(name)
        found = runs.collect(figure, reference, "mini").rows
        drawing = figure.draw(found)
        pyplot.close(drawing.picture)
        lines = [",".join(row) for row in drawing.data]
        committed = (reference / "mini" / f"{name}.csv").read_text().splitlines()[1:]
        assert [line.replace('"', "") for line in committed] == lines
    assert json.loads(json.dumps(lines)) == lines
