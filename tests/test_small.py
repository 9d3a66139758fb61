"""The tiers on CIFAR-10: a tiny data set in both of its layouts, through the real command line."""

import hashlib
import json
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from test_cifar import CLASSES, _dump
from test_mechanism import TRUE, _record
from torchvision import datasets

from pretrain import recipes
from pretrain.recipes import common, moco
from protobench.checkpoints import resnet
from protobench.data import cifar, verify
from protobench.data.datasets import DATASETS
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError
from tables import __main__ as main
from tables.engine import catalogue, compare, runs
from tables.engine.jobs import plan, reproduce
from tables.engine.pages import pictures
from tables.engine.schema import TIERS
from tables.engine.verdicts import CellVerdict
from tables.ours import mechanism

SMALL = ("small", "small-gpu")
IN_SMALL = ("table1", "table3", "table4", "table7", "spcl-table2")
PER_CLASS = 30


def _pictures(rng, label):
    """Of one class: its own colour, and noise."""
    base = np.array([label * 25, 255 - label * 20, (label * 77) % 256])
    noise = rng.integers(-25, 25, (PER_CLASS, 32, 32, 3))
    return (base + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """CIFAR-10 as folders of image files, 30 pictures a class in each split."""
    root, rng = tmp_path / "folders", np.random.default_rng(0)
    for split in ("train", "test"):
        for label, title in enumerate(cifar.CIFAR10):
            folder = root / "cifar10" / split / title
            folder.mkdir(parents=True)
            for number, picture in enumerate(_pictures(rng, label)):
                Image.fromarray(picture).save(folder / f"{number:04d}.png")
    return root


@pytest.fixture
def official(tmp_path, monkeypatch):
    """CIFAR-10 as published, with MD5 sums of its own; 60 pictures in each of the five files."""
    root, rng, source = tmp_path / "official", np.random.default_rng(0), datasets.CIFAR10
    folder = root / cifar.FOLDERS["cifar10"]
    folder.mkdir(parents=True)
    sums = {}
    for title, _ in source.train_list + source.test_list:
        labels = np.arange(60) % 10
        pixels = np.stack([_pictures(rng, label)[0] for label in labels])
        rows = pixels.transpose(0, 3, 1, 2).reshape(60, -1)
        sums[title] = _dump(folder / title, {"data": rows, "labels": labels.tolist()})
    for which in ("train_list", "test_list"):
        listed = [[title, sums[title]] for title, _ in getattr(source, which)]
        monkeypatch.setattr(source, which, listed)
    meta = _dump(folder / "batches.meta", {"label_names": CLASSES["cifar10"]})
    monkeypatch.setattr(source, "meta", source.meta | {"md5": meta})
    return root


# Data ---------------------------------------------------------------------------------------------


def test_the_part_has_the_first_pictures_of_every_class_in_both_layouts(
    folders, official, monkeypatch
):
    monkeypatch.setattr(cifar, "PER_CLASS", 7)
    for root in (folders, official):
        whole, part = (DATASETS[name].training_images(root) for name in ("cifar10", "cifar10-10k"))
        first = [
            [path for path, label in zip(whole.paths, whole.labels, strict=True) if label == c][:7]
            for c in range(10)
        ]
        assert {*part.paths} == {path for of in first for path in of}
        assert np.bincount(part.labels).tolist() == [7] * 10
        where = [whole.paths.index(path) for path in part.paths]
        assert where == sorted(where), "in the order of the whole"
        np.testing.assert_array_equal(part.read(3), whole.read(where[3]))
        assert part.name == "cifar10-10k-train"
        _, test = DATASETS["cifar10-10k"].read_both(root)
        assert test.fingerprint == DATASETS["cifar10"].read_test(root).fingerprint


def test_the_part_is_not_checked_apart_from_the_whole(folders, capsys):
    assert verify.check(folders, (), 1) == cli.DIFFERS
    out = capsys.readouterr().out
    assert "cifar10-train" in out
    assert "cifar10-10k" not in out


# Bad input ----------------------------------------------------------------------------------------


def _plan(command, root, *more, table="table4", tier="small"):
    where = ("--results", root / "results", "--runs", root / "runs", "--device", "cpu")
    return command(main.main, "reproduce", table, "--tier", tier, *where, *more)


@pytest.mark.parametrize("tier", SMALL)
def test_nothing_is_fetched_without_being_asked(command, tmp_path, monkeypatch, tier):
    monkeypatch.setattr(cifar, "download", lambda *_: pytest.fail("fetched"))
    code, _, err = _plan(command, tmp_path, tier=tier)
    assert code == cli.TROUBLE
    assert f"the {tier} tier needs CIFAR-10" in err
    assert "--download, which fetches it (170 MB)" in err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--data", ".", "--download"), "--download fetches CIFAR-10, and --data names its data"),
        (("--tier", "mini", "--download"), "the mini tier does not use it"),
        (("--tier", "paper", "--download", "--data", "."), "the paper tier does not use it"),
        (("--data", "nowhere"), "no such folder"),
    ],
)
def test_flags_that_do_not_go_together(command, tmp_path, flags, complaint):
    code, _, err = _plan(command, tmp_path, *flags)
    assert code == cli.TROUBLE
    assert complaint in err


def test_bundled_data_is_no_picture(command, tmp_path, world):
    code, _, err = _plan(command, tmp_path, "--data", world)
    assert code == cli.TROUBLE
    assert "this is the bundled synthetic data" in err


def test_a_table_that_cifar_cannot_make_names_those_that_it_can(command, tmp_path):
    code, _, err = _plan(command, tmp_path, "--data", tmp_path, table="table5")
    assert code == cli.TROUBLE
    assert "table5 cannot be made of cifar10-10k" in err
    assert "table1, table3, table4, table7" in err


@pytest.mark.parametrize("kind", ["changed", "missing"])
def test_a_file_with_a_wrong_hash_and_a_missing_one_stop_the_plan(
    command, tmp_path, official, kind
):
    batch = official / cifar.FOLDERS["cifar10"] / "data_batch_4"
    if kind == "changed":
        batch.write_bytes(batch.read_bytes() + b"\0")
    else:
        batch.unlink()
    code, _, err = _plan(command, tmp_path, "--data", official, "--plan")
    assert code == cli.TROUBLE
    assert ("their MD5 differs" if kind == "changed" else "cifar10 lacks data_batch_4") in err


def _archive(root, official):
    """The published files in an archive; returns its MD5."""
    root.mkdir(exist_ok=True)
    path = root / cifar.ARCHIVES["cifar10"]
    with tarfile.open(path, "w:gz") as archive:
        archive.add(official / cifar.FOLDERS["cifar10"], cifar.FOLDERS["cifar10"])
    return path, hashlib.md5(path.read_bytes()).hexdigest()


def test_an_archive_with_a_wrong_hash_is_not_to_be_unpacked(
    command, tmp_path, official, monkeypatch
):
    archive, md5 = _archive(tmp_path / "there", official)
    code, _, err = _plan(command, tmp_path, "--data", archive.parent, "--plan")
    assert code == cli.TROUBLE
    assert f"its MD5 is {md5}, not {datasets.CIFAR10.tgz_md5}" in err
    assert "tar xf" not in err
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    code, _, err = _plan(command, tmp_path, "--data", archive.parent, "--plan")
    assert "an archive, not unpacked" in err


# Fetching -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, official):
    """The archive on a server of this machine: its file, its MD5, its address."""
    archive, md5 = _archive(tmp_path / "server", official)
    handler = partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield archive, md5, f"http://127.0.0.1:{serving.server_port}/{archive.name}"
        serving.shutdown()


def test_download_unpacks_what_is_fetched_once(command, tmp_path, server, monkeypatch):
    archive, md5, address = server
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    monkeypatch.setattr(datasets.CIFAR10, "url", address)
    code, out, err = _plan(command, tmp_path, "--download", "--plan")
    assert code == cli.SAME, err
    assert "moco seed 4" in out
    archive.unlink()
    assert _plan(command, tmp_path, "--download", "--plan")[0] == cli.SAME, "it is there"


def test_what_is_fetched_with_a_wrong_hash_is_refused(command, tmp_path, server, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.CIFAR10, "url", server[2])
    code, _, err = _plan(command, tmp_path, "--download", "--plan")
    assert code == cli.TROUBLE
    assert "cifar10 cannot be fetched" in err


def test_without_a_network_the_error_names_another_way(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/absent")
    code, _, err = _plan(command, tmp_path, "--download")
    assert code == cli.TROUBLE
    assert "fetch cifar-10-python.tar.gz elsewhere, and give --data" in err


# Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", SMALL)
@pytest.mark.parametrize("name", IN_SMALL)
def test_what_the_tier_trains_is_the_network_that_the_table_expects(name, tier):
    table = catalogue.load(name, tier)
    trained = {recipe.arch for row in table.rows if (recipe := row.recipe(tier))}
    assert {resnet.arch_name(resnet.named(arch)) for arch in trained} == set(table.networks)


@pytest.mark.parametrize("tier", SMALL)
@pytest.mark.parametrize("name", IN_SMALL)
def test_a_form_is_of_the_tier_s_data_alone_and_has_one_primary_claim(name, tier):
    form, dataset = catalogue.load(name, tier), TIERS[tier].dataset
    assert {of for _, of in form.tasks} == {dataset}
    assert [claim.primary for claim in form.claims].count(True) == 1
    assert {column for claim in form.claims for column in claim.columns} <= {*form.columns}
    for row in form.rows:
        recipe = row.recipe(tier)
        assert bool(row.cited) == (recipe is None)
        assert recipe is None or recipe.dataset == dataset
    named = {name for claim in form.claims for name in claim.rows}
    assert named <= {row.name for row in form.rows if not row.cited}


def test_what_the_tiers_show_is_what_they_have():
    for tier in SMALL:
        here = {name for name, one in catalogue.exhibits().items() if one.form(tier)}
        assert here == {*IN_SMALL, "mechanism"}


@pytest.mark.parametrize("tier", SMALL)
def test_the_dial_for_collisions_judges_the_same_predictions_on_cifar_10(tier):
    form, dataset = catalogue.load("mechanism", tier), TIERS[tier].dataset
    on = mechanism.of_cifar10(dataset)
    assert on.rates == pytest.approx((0, 0.1, 16 / 25))
    assert form.tasks == (("linear", dataset), ("ami", dataset), ("knn", dataset))
    assert {row.recipe(tier).dataset for row in form.rows} == {dataset}
    of_row = {row.name: row.recipe(tier) for row in form.rows}
    assert (of_row["moco-w16"].weight, of_row["pcl-w0"].weight) == (16.0, 0.0)
    assert of_row["moco-w16"].num_prototypes == () != of_row["pcl"].num_prototypes
    assert of_row["moco-w1"].train == of_row["pcl"].train
    found = {
        row.name: [
            _record(evaluation, dataset, row.name, seed, [{"draw": 0, "k": 20, "value": value}])
            for seed in (1, 2, 3)
            for evaluation, unit in (("linear", 1), ("ami", 0.01), ("knn", 1))
            for value in [unit * (TRUE[row.name] + 0.01 * seed * len(row.name))]
        ]
        for row in form.rows
    }
    judged = form.claims(found)
    assert [claim.verdict for claim in judged] == ["holds"] * len(judged)
    assert "at 64 % - lead at 0 %" in judged[0].detail
    assert "points of top-1 as class collisions go from 0 % to 64 %" in form.headline(found)
    drawing, png, _ = pictures.draw(form, tier, found)
    assert png.startswith(b"\x89PNG")
    k = "+".join(map(str, of_row["pcl"].num_prototypes))
    assert ["top-1", "pcl-w16", "0.6400", k, "1", "34.0700"] in drawing.data


def test_the_cpu_size_changes_nothing_but_data_input_and_views():
    for method in recipes.by_method().values():
        for name, recipe in method.items():
            if name in ("small", "small-v2"):
                mini = method[name.replace("small", "mini")]
                back = replace(recipe, dataset=mini.dataset, input=mini.input, augment=mini.augment)
                assert back == mini


def test_the_gpu_size_trains_all_methods_alike():
    of = [
        recipe
        for method in recipes.by_method().values()
        for name, recipe in method.items()
        if name.startswith("small-gpu") and recipe.train.epochs
    ]
    assert len(of) == 6
    for recipe in of:
        shared = (recipe.train, recipe.augment, recipe.input, recipe.arch)
        assert shared == (
            common.SMALL_GPU_TRAIN,
            common.CIFAR_VIEWS,
            common.cifar_input("cifar10"),
            "resnet18-cifar",
        )
        assert getattr(recipe, "queue", 512) % recipe.train.batch_size == 0


def test_public_numbers_stand_beside_the_gpu_size_alone():
    form = catalogue.load("table4", "small-gpu")
    assert form.numbers["moco-lightly", "k=200"] == "84.7"
    assert form.numbers["moco", "k=200"] == ""
    assert not any(row.cited for row in catalogue.load("table4", "small").rows)
    outcome = compare.outcome(form, "small-gpu", {})
    cell = outcome.cells["simclr-lightly", "k=200"]
    assert (cell.verdict, cell.paper, cell.delta) == ("cited", "84.8", None)


# A whole run --------------------------------------------------------------------------------------


def _shrink(monkeypatch):
    """Every recipe of the CPU size in a few seconds: one epoch of batches of 64."""
    original = plan._chosen_rows

    def chosen(table, tier, names, given):
        rows = original(table, tier, names, given)
        return [replace(row, small=_tiny(row.small)) for row in rows]

    monkeypatch.setattr(plan, "_chosen_rows", chosen)


def _tiny(recipe):
    own = {"queue": 64, "num_prototypes": (8,), "warmup": 0, "num_negatives": 8}
    fields = {name: value for name, value in own.items() if hasattr(recipe, name)}
    train = replace(recipe.train, epochs=min(recipe.train.epochs, 1), batch_size=64)
    return replace(recipe, train=train, **fields)


def _in_process(monkeypatch):
    """Jobs run here, one after the other, as patches do not reach other processes."""
    from tables.engine.jobs import executor

    def run(self, jobs):
        for job in jobs:
            executor.run_job(job, self.context)
        return []

    monkeypatch.setattr(executor.LocalProcesses, "run", run)


@pytest.mark.parametrize("layout", ["folders", "official"])
def test_table_4_on_both_layouts(command, tmp_path, layout, request, monkeypatch):
    root = request.getfixturevalue(layout)
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    _shrink(monkeypatch)
    _in_process(monkeypatch)
    code, out, err = _plan(command, tmp_path, "--data", root, "--seeds", 2, "--wide")
    assert code in (cli.SAME, cli.TROUBLE), err  # after an epoch, controls may fail
    assert "SMALL: 10,000 training pictures of CIFAR-10" in out
    assert "k-nearest-neighbour classification, on CIFAR-10" in out
    assert "claim of the paper, tested on CIFAR-10" in out
    assert "nothing is decided before 4" in out
    encoded = "whose encoding may have changed pixels"
    assert (encoded in out) == (layout == "folders"), "the record says so, and the table does"
    found = [
        json.loads(path.read_text())
        for path in (tmp_path / "results" / "small" / "records").glob("*.json")
    ]
    assert len(found) == 10
    assert {of["unit"]["data_name"] for of in found} == {"cifar10-10k"}
    assert all(bool(of["data"].get("departures")) == (layout == "folders") for of in found)
    assert len({tuple(of["unit"]["data"]) for of in found}) == 1, "all seeds share the data"
    form = catalogue.load("table4", "small")
    assert runs.shares_data(found, ("knn", "cifar10-10k"))
    collected = runs.collect(form, tmp_path / "results", "small").rows
    verdicts: set[CellVerdict] = {
        cell.verdict for cell in compare.outcome(form, "small", collected).cells.values()
    }
    assert verdicts <= {"off-protocol", "invalid"}, "no cell is compared with any paper's"
    code, out, _ = _plan(command, tmp_path, "--data", root, "--seeds", 2, "--plan")
    assert "20 cached, 0 to run" in out
    # the other size finds none of it
    code, _, err = command(
        main.main, "diff", "table4", "--tier", "small-gpu", "--results", tmp_path / "results"
    )
    assert code == cli.INCOMPLETE
    assert "no records of table4" in err


def test_a_plan_reads_compares_and_hashes_every_file_once(command, tmp_path, folders, monkeypatch):
    """Table 4 asks for the training images twice, to train and to score on."""
    hashed = []
    monkeypatch.setattr(
        files, "sha256_file", lambda path, of=files.sha256_file: hashed.append(path) or of(path)
    )
    code, _, err = _plan(command, tmp_path, "--data", folders, "--plan", tier="small-gpu")
    assert code == cli.SAME, err
    assert err.count("cifar10-train is not as published") == 1
    assert len(hashed) == len(set(hashed)) == 2 * 10 * PER_CLASS


def test_an_equal_training_of_another_row_is_not_made_again(tmp_path, monkeypatch):
    """MoCo and the mechanism's moco-w1 are one recipe in the small-gpu tier."""
    assert mechanism.ARMS["MoCo"][1.0].small_gpu == moco.SMALL_GPU
    moco_, mine, other = (
        tmp_path / f"{name}/encoder.safetensors"
        for name in ("moco-seed1-0123abcd", "moco-w1-seed1-0123abcd", "moco-seed2-0123abcd")
    )
    keys = {moco_: "key", other: "key of seed 2"}
    monkeypatch.setattr(plan, "exported_key", keys.get)
    for path in keys:
        path.parent.mkdir()
        path.touch()
    assert plan._finished(mine, "key") == moco_
    assert plan._finished(mine, "another key") == mine
    assert plan._finished(moco_, "key") == moco_
    keys[mine] = "key"
    assert plan._finished(mine, "key") == mine


def test_records_of_the_other_size_are_left_out_even_in_one_folder():
    """By their data set, wherever they lie."""

    def record(dataset, recipe):
        return {
            "unit": {
                "evaluation": "knn",
                "data_name": dataset,
                "data": [dataset],
                "version": 1,
                "params": {},
            },
            "subject": {"row": "moco", "seed": 1, "recipe": recipe, "source": "retrained"},
            "data": {},
            "finished": "2026-01-01",
        }

    have = {
        of["unit"]["data_name"]: of for of in (record("cifar10", "a"), record("cifar10-10k", "b"))
    }
    for tier in SMALL:
        rows = runs.select_records(catalogue.load("table4", tier), have).rows
        assert [of["unit"]["data_name"] for of in rows["moco"]] == [TIERS[tier].dataset]
    keys = {common.run_key(recipe, None, 1) for recipe in (moco.MINI, moco.SMALL, moco.SMALL_GPU)}
    assert len(keys) == 3, "and encoders of different sizes are different runs"


def test_the_small_tiers_look_further_as_the_mini_tier_does():
    config = reproduce.Reproduce("table1", tier="small")
    form = catalogue.load("table1", "small")
    assert reproduce._seeds(config, form) == 4
    assert reproduce._most(replace(config, max_seeds=9), form) == 9
    with pytest.raises(
        UserError, match="belongs to the mini tier and the small ones, not to paper"
    ):
        reproduce._check_max_seeds(replace(config, tier="paper", max_seeds=6), 6, 4)
