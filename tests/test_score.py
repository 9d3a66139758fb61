"""One command scores checkpoints by every evaluation and prints their card."""

import csv
import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from evaluate import knn, lowshot
from pretrain import history
from protobench import features, outcomes, records
from protobench.checkpoints import encoders, input_check
from protobench.data import image_list
from protobench.runtime import progress
from protobench.runtime.errors import UserError
from tables import __main__ as tables_main
from tables.engine.catalogue import tables
from tables.engine.scoring import report_card, score_plan

FROZEN = ("lowshot", "fullsvm", "knn", "ami")


@dataclass(frozen=True)
class FewShots(lowshot.Config):
    """As many images of each class as the tiny world has."""

    shots: tuple[int, ...] = (1, 2)


@pytest.fixture
def known():
    """The evaluations, which a test may change: they are looked up anew in the next one."""
    score_plan.evaluations.cache_clear()
    yield
    score_plan.evaluations.cache_clear()


@pytest.fixture
def score(command, world, tmp_path, monkeypatch, known):
    """Runs the command on the tiny world, with a cache and a folder of results of its own."""
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    few = replace(lowshot.EVALUATION, Config=FewShots)
    monkeypatch.setattr(lowshot, "EVALUATION", few)

    def run(*args, data=world):
        where = ("--data", data) if data else ()
        results = tmp_path / "scores"
        return command(
            tables_main.main, "score", "--workers", 0, *args, *where, "--results", results
        )

    return run


def scores_in(folder):
    return [*records.read_all(folder / "scores").values()]


# Running ------------------------------------------------------------------------------------------


def test_every_image_is_read_once_for_all_evaluations(score, moco_file, tmp_path, monkeypatch):
    # beside these, each evaluation looks at 32 images to see whether the input fits the weights
    monkeypatch.setattr(input_check, "verify", lambda *_: None)
    real, reads = image_list.ImageList.read, Counter()

    def recorded(self, index):
        reads[self.root / self.paths[index]] += 1
        return real(self, index)

    monkeypatch.setattr(image_list.ImageList, "read", recorded)
    code, out, err = score(moco_file, "--only", *FROZEN)
    assert code == 0, out + err
    found = {(of["unit"]["evaluation"], of["unit"]["data_name"]) for of in scores_in(tmp_path)}
    assert found == {
        ("lowshot", "voc07"),
        ("lowshot", "places205"),
        ("fullsvm", "voc07"),
        ("knn", "imagenet"),
        ("ami", "imagenet"),
    }
    assert len(reads) > 500
    assert {*reads.values()} == {1}


def test_records_are_those_of_the_evaluations_themselves(score, moco_file, world, tmp_path):
    assert score(moco_file, "--only", "knn")[0] == 0
    (ours,) = scores_in(tmp_path)
    (path,) = (tmp_path / "scores").glob("*.json")
    alone = knn.EVALUATION.execute(
        knn.Config(moco_file, world, workers=0, results=tmp_path / "alone")
    )
    theirs = records.read(alone)
    for part in ("unit", "subject", "runs", "metric", "checkpoint", "data", "feature"):
        assert ours[part] == theirs[part]
    assert path.name.startswith("encoder-knn-imagenet-")


def test_what_was_scored_is_not_computed_again(score, encoder_file, tmp_path, monkeypatch):
    first = score(encoder_file, "--only", *FROZEN)
    assert first[0] == 0, first[2]
    monkeypatch.setattr(features, "extract_together", lambda *_, **__: 1 / 0)
    code, out, _ = score(encoder_file, "--only", *FROZEN)
    assert code == 0
    assert "nothing to run" in out
    card = out[out.index("report card") :]
    assert card in first[1]
    assert "low-shot linear SVMs, voc07, mAP (%)" in card
    assert "MoCo (PCL Table 1)" in card
    assert "BUNDLED SYNTHETIC DATA" in card
    assert len([*(tmp_path / "scores" / "cards").iterdir()]) == 4


def test_a_failed_evaluation_stops_no_other(score, encoder_file, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(knn, "EVALUATION", replace(knn.EVALUATION, run=fails))
    code, out, err = score(encoder_file, "--only", "knn", "ami")
    assert code == 2
    assert "encoder.safetensors, knn imagenet: RuntimeError: no such thing" in err
    assert "Traceback" not in out + err
    assert "Traceback" in (tmp_path / "scores" / "logs" / "score.log").read_text()
    assert [of["unit"]["evaluation"] for of in scores_in(tmp_path)] == ["ami"]


def test_a_collapsed_encoder_is_extracted_once_and_fails_with_its_reason(
    score, encoder_file, tmp_path, monkeypatch
):
    real, calls = encoders.load, []

    def collapsed(*args, **how):
        loaded = real(*args, **how)
        with torch.no_grad():
            for parameter in loaded.backbone.layer4.parameters():
                parameter.zero_()
        return loaded

    monkeypatch.setattr(encoders, "load", collapsed)
    together = features.extract_together
    monkeypatch.setattr(
        features, "extract_together", lambda *a, **k: calls.append(1) or together(*a, **k)
    )
    code, _, err = score(encoder_file, "--only", "lowshot", "fullsvm", "--datasets", "voc07")
    assert code == 2
    assert err.count("it has collapsed") == 2
    assert len(calls) == 1


def test_evaluations_that_train_run_too(score, encoder_file, tmp_path):
    code, out, err = score(encoder_file, "--only", "semisup", "--datasets", "imagenet-10pct")
    assert code == 0, err
    assert "fine-tuned on a part of the labels, imagenet-10pct, top-5 (%)" in out
    (record,) = scores_in(tmp_path)
    assert len(record["runs"]) == 3


# Plans --------------------------------------------------------------------------------------------


def test_a_plan_tells_what_would_run_and_writes_nothing(score, encoder_file, tmp_path):
    code, out, _ = score(encoder_file, "--plan", "--skip", "detection")
    assert code == 0
    assert "knn imagenet             to run, about 3 s" in out
    assert "in all: " in out
    assert "tsne" not in out, "no table has a column of it"
    assert not (tmp_path / "scores").exists()


def test_long_evaluations_on_bundled_data_are_left_out_unless_they_are_named(
    score, encoder_file, monkeypatch
):
    monkeypatch.setattr(score_plan, "_seconds_per_image", lambda encoder: 10.0)
    _, out, _ = score(encoder_file, "--plan", "--skip", "detection")
    assert "linear imagenet          left out: about 6 h; --only linear runs it" in out
    assert "knn imagenet             to run" in out
    _, out, _ = score(encoder_file, "--plan", "--only", "linear")
    assert "linear imagenet          to run, about 6 h" in out


def test_a_part_of_a_data_set_is_scored_where_it_is_named():
    whole = score_plan.chosen(("knn",), (), (), on_bundled=False)
    assert [one.dataset for one in whole] == ["imagenet", "cifar10"]
    part = score_plan.chosen(("knn",), (), ("cifar10-10k",), on_bundled=False)
    assert [one.dataset for one in part] == ["cifar10-10k"]
    names = {one.evaluation.name for one in score_plan.chosen((), ("linear",), (), on_bundled=True)}
    in_tables = {one.evaluation for table in tables().values() for one in table.columns}
    assert names == in_tables - {"linear", *history.KINDS}


# Bad input ----------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_among_good_ones(score, encoder_file, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not a checkpoint")
    code, out, err = score(encoder_file, bad, "--only", "knn")
    assert code == 2
    assert "at: " + str(bad) in err
    assert "not scored: bad.pth: " in out
    assert len(scores_in(tmp_path)) == 1
    code, _, err = score(bad, tmp_path / "absent.pth", "--only", "knn")
    assert code == 2
    assert err.count("at: ") == 2, "each once"
    assert "absent.pth" in err


def test_one_file_twice_and_one_encoder_in_two_files(score, encoder_file, tmp_path):
    code, _, err = score(encoder_file, encoder_file)
    assert code == 2
    assert "given twice" in err
    copy = tmp_path / "copy.safetensors"
    shutil.copy(encoder_file, copy)
    code, _, err = score(encoder_file, copy)
    assert code == 2
    assert "encoder.safetensors and copy.safetensors hold the same encoder" in err
    link = tmp_path / "link.safetensors"
    link.symlink_to(encoder_file)
    code, _, err = score(encoder_file, link)
    assert code == 2
    assert "are one file" in err


def test_two_files_of_one_name_are_told_apart_by_their_paths(
    score, encoder_file, moco_file, tmp_path
):
    for folder, file in (("a", encoder_file), ("b", moco_file)):
        (tmp_path / folder).mkdir()
        shutil.copy(file, tmp_path / folder / "net.safetensors")
    code, out, err = score(
        *(tmp_path / folder / "net.safetensors" for folder in "ab"), "--only", "knn"
    )
    assert code == 0, err
    assert "A  a/net.safetensors: resnet10-mini" in out
    assert "B  b/net.safetensors: resnet10-mini" in out
    assert len(scores_in(tmp_path)) == 2
    # one has a head, the other none, so their neighbours are of different features
    assert "not compared: " in out


def test_the_shortest_ends_that_tell_paths_apart(tmp_path):
    paths = [tmp_path / name for name in ("x/1/a.pth", "x/2/a.pth", "y/2/a.pth", "b.pth")]
    assert score_plan.short_names(paths) == ["1/a.pth", "x/2/a.pth", "y/2/a.pth", "b.pth"]
    assert score_plan.short_names(paths[:1]) == ["a.pth"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--only", "nkn"), "did you mean 'knn'"),
        (("--skip", "knn2"), "unknown evaluation 'knn2'"),
        (("--datasets", "imagnet"), "did you mean 'imagenet'"),
        (("--only", "fullsvm", "--datasets", "imagenet"), "nothing is left to score"),
        (("--world", 2), "--world is one of the bundled data"),
        (("--skip-bad-images", -1), "--skip-bad-images is at least 0"),
        (("--workers", -1, "--plan"), "--workers must not be negative"),
    ],
)
def test_flags_that_make_no_sense(score, encoder_file, args, said):
    code, _, err = score(encoder_file, *args)
    assert code == 2
    assert said in err


def test_a_root_with_nothing(score, encoder_file, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = score(encoder_file, data=tmp_path / "empty")
    assert code == 2
    assert "nothing can be scored" in err
    lines = [line for line in err.splitlines() if line.startswith("  imagenet (")]
    assert len(lines) == 1, "one line for all evaluations that lack it"
    assert "knn" in lines[0]
    code, _, err = score(encoder_file, data=tmp_path / "absent")
    assert code == 2
    assert "no such folder" in err


def test_what_was_named_and_is_not_there_makes_the_run_incomplete(
    score, encoder_file, world, tmp_path
):
    root = tmp_path / "root"
    shutil.copytree(world / "VOCdevkit", root / "VOCdevkit")
    code, out, err = score(encoder_file, "--only", "fullsvm", "knn", data=root)
    assert code == 3, err
    assert "not scored: imagenet (knn): " in out
    code, out, _ = score(encoder_file, "--only", "fullsvm", data=root)
    assert code == 0
    code, out, err = score(encoder_file, "--datasets", "voc07", "imagenet", "--plan", data=root)
    assert code == 3
    assert "nothing can be scored on imagenet, which was named\n" in err
    assert "on voc07" not in err


def test_a_record_counts_where_the_gpu_is_too_small_to_make_it(
    score, encoder_file, world, tmp_path, monkeypatch
):
    """Made by torchrun on several, for one."""
    assert score(encoder_file, "--only", "knn")[0] == 0
    have = records.read_all(tmp_path / "scores")
    monkeypatch.setattr("protobench.runtime.devices.memory_gib", lambda device: 10.0)
    large = replace(knn.EVALUATION, least_gib=lambda config, gpus: 16.0 / gpus)
    where = score_plan.Where(world, device="cuda")
    checkpoint = score_plan.load(encoder_file, "a", where)
    choice = score_plan.Choice(large, "imagenet", named=True)
    (done,) = score_plan.make_plan([checkpoint], [choice], where, have)
    assert done.state == "done"
    (other,) = score_plan.make_plan([checkpoint], [choice], where, {})
    assert other.state == "impossible"
    assert "needs at least 16 GiB a GPU (computed), and the GPU has 10.0; use 2 GPUs" in other.why


def test_torchrun_is_refused(score, encoder_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = score(encoder_file)
    assert code == 2
    assert "one process" in err


# The card -----------------------------------------------------------------------------------------


def _record(name, runs, evaluation="lowshot", data="voc07", encoder="a", **more):
    return {
        "unit": {
            "evaluation": evaluation,
            "data_name": data,
            "version": 1,
            "encoder": encoder,
            "data": ["x"],
            "params": {},
        },
        "subject": {"row": name, "seed": None, "source": name, "recipe": None},
        "runs": runs,
        "metric": {"name": "top-1", "unit": "%", "test_images": 8, "higher_is_better": True},
        "checkpoint": {
            "arch": "resnet50",
            "origin": "MoCo",
            "sha256": encoder * 64,
            "input": {"crop": 224},
        },
        "data": {"name": data, "embedded": False},
        **more,
    }


def test_a_card_by_hand():
    runs = [
        {"k": k, "draw": draw, "value": value}
        for k, values in ((1, (10.0, 14.0)), (3, (20.0, 20.0)))
        for draw, value in enumerate(values)
    ]
    card = report_card.card({"a.pth": [_record("a", runs)]}, ["b.pth: broken"])
    (section,) = card.sections
    # of the tables' k those that were scored, and one that is in no table
    assert [one.heading for one in section.measures] == ["k=1", "k=3"]
    one, _ = section.ours["a.pth"]
    assert (one.mean, one.draws) == (12.0, 2)
    assert one.sd == pytest.approx(np.sqrt(8))
    rows = {row.title: row.numbers for row in section.papers}
    assert rows["MoCo"] == ("31.4", "")
    text = report_card.text(card)
    assert "12.0 ±2.8" in text
    assert "not scored: b.pth: broken" in text
    assert json.loads(report_card.as_json(card))["sections"][0]["ours"]["a.pth"][0]["mean"] == 12.0


def test_rows_that_two_papers_print_alike_stand_once():
    runs = [{"draw": 0, "value": 50.0, "right": {"value": outcomes.pack(np.arange(8) < 4)}}]
    card = report_card.card({"a": [_record("a", runs, "linear", "imagenet")]})
    rows = {row.title: row.where for row in card.sections[0].papers}
    assert rows["PCL v2"] == "PCL Table 3, SPCL Table 1"
    assert rows["SPCL"] == "SPCL Table 1"


def test_several_checkpoints_are_compared_image_by_image():
    right = {"a": np.arange(8) < 6, "b": np.arange(8) < 2}
    scored = {
        name: [
            _record(
                name,
                [{"draw": 0, "value": 100 * of.mean(), "right": {"value": outcomes.pack(of)}}],
                "linear",
                "imagenet",
                encoder=name,
            )
        ]
        for name, of in right.items()
    }
    card = report_card.card(scored)
    (pair,) = card.compared
    (found,) = pair.found
    assert (found.found.only_a, found.found.only_b) == (4, 0)
    assert "A - B" in report_card.text(card)


def test_names_are_escaped_in_every_form():
    odd = "<script>|x`*"
    card = report_card.card({odd: [_record("a", [{"k": 1, "draw": 0, "value": 1.0}])]})
    markdown = report_card.markdown(card)
    assert "<script>" not in markdown
    assert "\\<script\\>\\|x" in markdown
    lines = [*csv.reader(io.StringIO(report_card.as_csv(card)))]
    assert lines[1][4] == odd
    assert odd in json.loads(report_card.as_json(card))["checkpoints"]


def test_letters():
    assert [report_card.letter(i) for i in (0, 25, 26, 27, 701)] == ["A", "Z", "AA", "AB", "ZZ"]


# Progress -----------------------------------------------------------------------------------------


def test_one_bar_over_several_pieces(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.whole("all", 30.0) as bar:
        with bar.piece("a", 10.0):
            for _ in progress.progress(range(4), desc="inner", unit=" x", total=4):
                now[0] += 5.0
        assert bar.bar.n == pytest.approx(10.0), "done, whatever it took"
        # it took twice its estimate, and so will the other 20 seconds
        assert bar._left() == pytest.approx(40.0)
        with bar.piece("b", 20.0):
            now[0] += 10.0
            bar.show("b")
            assert bar.bar.n == pytest.approx(15.0)
            assert bar._left() == pytest.approx(30.0)
    with pytest.raises(UserError), progress.whole("all", 1.0):
        raise UserError("passes")
