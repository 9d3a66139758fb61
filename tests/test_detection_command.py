"""`evaluate/detection.py` as a command: its record and pictures, stopped and resumed, bad input."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCENES
from PIL import Image

from evaluate import detection
from evaluate.mmdet_adapter import training
from protobench import records
from protobench.runtime.errors import UserError

pytest.importorskip("pycocotools.mask", reason="needs the extra detection")
pytestmark = pytest.mark.usefixtures("mmdet")

FEW = ("--iterations", 40, "--batch-size", 2, "--workers", 0)


def of(folder: Path) -> dict:
    (path,) = folder.glob("*.json")
    return records.read(path)


@pytest.fixture(scope="module")
def whole_run(moco_file, scene_data, tmp_path_factory) -> dict:
    """An uninterrupted training of two draws."""
    folder = tmp_path_factory.mktemp("whole")
    config = detection.Config(
        moco_file, scene_data, iterations=40, batch_size=2, workers=0, draws=2, results=folder
    )
    return records.read(detection.EVALUATION.execute(config))


def test_a_run_leaves_a_record_and_pictures(command, moco_file, scene_data, tmp_path):
    code, out, err = command(
        detection.EVALUATION.main,
        "--ckpt",
        moco_file,
        "--data",
        scene_data,
        "--results",
        tmp_path,
        *FEW,
    )
    assert (code, err) == (0, "")
    assert f"operators of torchvision: 16 training and {SCENES['voc2007-test']} test images" in out
    assert "BUNDLED SYNTHETIC DATA" in out
    record = of(tmp_path)
    assert len(record["runs"]) == 1
    (run,) = record["runs"]
    assert run["steps"] == 40
    assert run["backbone"].startswith("frozen, unchanged")
    assert len(run["losses"]) == 2
    assert 0 <= run["value"] <= 100
    assert len(record["shown"]) == detection.SHOWN
    assert record["cost"]["images_per_second"] > 0
    assert 0.1 < record["cost"]["peak_memory_gib"] < 4
    assert record["metric"] == {
        "name": "mAP@0.5",
        "unit": "%",
        "higher_is_better": True,
        "test_images": SCENES["voc2007-test"],
    }
    for name in ("detections", "curves"):
        (picture,) = tmp_path.glob(f"*-{name}.png")
        with Image.open(picture) as image:
            assert np.asarray(image.convert("L")).std() > 10
    assert not list(tmp_path.glob(".detection*")), "the state of a finished run is gone"


def test_both_trainings_and_coco_by_the_flags_of_the_papers(
    command, moco_file, scene_data, tmp_path
):
    code, out, _ = command(
        detection.EVALUATION.main,
        "--ckpt",
        moco_file,
        "--data",
        scene_data,
        "--train",
        "voc07+12",
        "--results",
        tmp_path / "a",
        *FEW,
    )
    assert code == 0
    assert of(tmp_path / "a")["data"]["train_images"] == 24
    code, out, _ = command(
        detection.EVALUATION.main,
        "--ckpt",
        moco_file,
        "--data",
        scene_data,
        "--task",
        "coco",
        "--results",
        tmp_path / "b",
        *FEW,
    )
    assert code == 0
    assert "Mask R-CNN C4, everything trains" in out
    (run,) = of(tmp_path / "b")["runs"]
    assert run["backbone"] == "fine-tuned"
    assert {"value", "box50", "box75", "mask", "mask50", "mask75"} <= set(run)


@pytest.mark.parametrize("stopped_at", [7, 27, 40 + 27])
def test_a_stopped_training_goes_on_to_the_same_weights(
    moco_file, scene_data, tmp_path, monkeypatch, whole_run, stopped_at
):
    """Stopped before the first state was saved, after it, and within the second of two draws."""
    config = detection.Config(
        moco_file, scene_data, iterations=40, batch_size=2, workers=0, draws=2, results=tmp_path
    )
    monkeypatch.setattr(detection, "SAVE_SECONDS", 0.0)
    step, done = training.loss_of, []

    def stops(*args):
        if len(done) == stopped_at:
            raise KeyboardInterrupt
        done.append(0)
        return step(*args)

    monkeypatch.setattr(training, "loss_of", stops)
    with pytest.raises(KeyboardInterrupt):
        detection.EVALUATION.execute(config)
    assert not list(tmp_path.glob("*.json"))
    redone = []
    monkeypatch.setattr(training, "loss_of", lambda *args: (redone.append(0), step(*args))[1])
    record = records.read(detection.EVALUATION.execute(config))
    assert len(redone) == 80 - stopped_at // 20 * 20
    assert record["runs"] == whole_run["runs"]
    assert record["curves"] == whole_run["curves"]
    assert whole_run["runs"][0]["losses"] != whole_run["runs"][1]["losses"], "draws differ"


def test_what_is_done_is_not_done_again(
    moco_file, scene_data, tmp_path, monkeypatch, capsys, whole_run
):
    config = detection.Config(
        moco_file, scene_data, iterations=20, batch_size=2, workers=0, results=tmp_path
    )
    path = detection.EVALUATION.execute(config)
    monkeypatch.setattr(training, "loss_of", None)
    assert detection.EVALUATION.execute(config) == path
    assert "done before" in capsys.readouterr().out
    with pytest.raises(TypeError):
        detection.EVALUATION.execute(replace(config, seed=1))


def test_precision_is_told_and_recorded(command, encoder_file, scene_data, tmp_path):
    code, out, _ = command(
        detection.EVALUATION.main,
        "--ckpt",
        encoder_file,
        "--data",
        scene_data,
        "--results",
        tmp_path,
        "--precision",
        "bf16",
        "--iterations",
        20,
        "--batch-size",
        2,
        "--workers",
        0,
    )
    assert code == 0
    assert "backbone in bf16" in out
    assert "looks like an untrained network" in out
    assert "input: shorter side" not in out, "that is a classifier's"
    assert of(tmp_path)["precision"] == "bf16"


def test_a_backbone_that_changes_in_training_stops_the_run(
    moco_file, scene_data, tmp_path, monkeypatch
):
    def touches(losses, *_):
        losses.detector.backbone.resnet.layer1[0].bn1.running_var += 1e-6
        return torch.tensor(1.0)

    monkeypatch.setattr(training, "loss_of", touches)
    with pytest.raises(RuntimeError, match="the frozen backbone changed"):
        detection.EVALUATION.execute(
            detection.Config(
                moco_file, scene_data, iterations=20, batch_size=2, workers=0, results=tmp_path
            )
        )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(("dataset", "batches"), [("voc07", []), ("coco", [20])])
def test_batchnorm_statistics_are_made_anew_on_coco_alone(
    moco_file, scene_data, tmp_path, monkeypatch, dataset, batches
):
    asked = []
    monkeypatch.setattr(training, "loss_of", lambda *_: torch.tensor(1.0))
    monkeypatch.setattr(training, "precise_batch_norm", lambda *args, **how: asked.append(args[3]))
    detection.EVALUATION.execute(
        detection.Config(
            moco_file, scene_data, dataset, iterations=20, batch_size=2, workers=0, results=tmp_path
        )
    )
    assert asked == batches


def test_draws_start_from_heads_of_their_own(moco_file, scene_data, tmp_path, monkeypatch):
    heads = []
    monkeypatch.setattr(
        training,
        "loss_of",
        lambda losses, *_: (
            heads.append(losses.detector.rpn_head.rpn_conv.weight.detach().sum().item()),
            torch.tensor(1.0),
        )[1],
    )
    detection.EVALUATION.execute(
        detection.Config(
            moco_file, scene_data, iterations=1, batch_size=2, draws=2, workers=0, results=tmp_path
        )
    )
    assert len(set(heads)) == 2


def test_a_damaged_state_is_told(moco_file, scene_data, tmp_path, monkeypatch):
    config = detection.Config(
        moco_file, scene_data, iterations=20, batch_size=2, workers=0, results=tmp_path
    )
    monkeypatch.setattr(
        training, "predict", lambda *args, **how: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    monkeypatch.setattr(detection, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        detection.EVALUATION.execute(config)
    (state,) = tmp_path.glob(".detection*.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        detection.EVALUATION.execute(config)


def test_worker_processes_change_nothing(moco_file, scene_data, tmp_path, whole_run):
    config = detection.Config(
        moco_file, scene_data, iterations=40, batch_size=2, workers=2, draws=1, results=tmp_path
    )
    assert records.read(detection.EVALUATION.execute(config))["runs"][0] == whole_run["runs"][0]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--lr", 0), "--lr must be positive"),
        (("--lr", "nan"), "--lr must be positive"),
        (("--draws", 0), "--draws, --batch-size"),
        (("--epochs", 2, "--iterations", 3), "exclude one another"),
        (("--epochs", 0), "at least 1"),
        (("--warmup", -1), "--warmup must not be negative"),
        (("--sgd-momentum", 1), "--sgd-momentum must lie in"),
        (("--weight-decay", -1), "--weight-decay in"),
        (("--iterations", 0), "at least 1"),
        (("--task", "coco", "--epochs", 0), "at least 1"),
        (("--workers", -1), "--workers must not be negative"),
        (("--device", "tpu"), "unknown device"),
        (("--resize", 64), "mean nothing to a detector"),
        (("--data", "/nowhere"), "no such folder"),
        (("--arch", "resnet50"), "resnet50"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, moco_file, tmp_path, flags, told):
    code, _, err = command(
        detection.EVALUATION.main, "--ckpt", moco_file, "--results", tmp_path, *flags
    )
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.json"))


def test_the_report_warns_where_the_loss_did_not_fall(whole_run):
    """On losses set by hand: whether those of so short a training fall is luck."""

    def told(losses):
        runs = [run | {"losses": losses} for run in whole_run["runs"]]
        return "\n".join(detection.report(whole_run | {"runs": runs}))

    assert "did not fall" not in told([2.0, 1.0])
    assert "did not fall" not in told([2.0])
    assert "the loss did not fall" in told([1.0, 1.0])


@pytest.mark.parametrize("dataset", ["voc07", "coco"])
def test_a_gpu_that_is_too_small_is_told(
    command, moco_file, scene_data, tmp_path, monkeypatch, dataset
):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "loss_of", full)
    code, _, err = command(
        detection.EVALUATION.main,
        "--ckpt",
        moco_file,
        "--data",
        scene_data,
        "--dataset",
        dataset,
        "--results",
        tmp_path,
        *FEW,
    )
    assert code == 2
    assert "too small for batches of 2" in err
    assert "--precision bf16 needs less, and torchrun shares a batch among GPUs" in err


@pytest.mark.gpu
@pytest.mark.parametrize("dataset", ["voc07", "coco"])
def test_detectors_train_on_a_gpu_in_bf16(moco_file, scene_data, tmp_path, dataset):
    config = detection.Config(
        moco_file,
        scene_data,
        dataset,
        iterations=40,
        batch_size=4,
        workers=2,
        results=tmp_path,
        device="cuda",
    )
    config = replace(config, load_options=replace(config.load_options, precision="bf16"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = records.read(detection.EVALUATION.execute(config))
    assert record["cost"]["images_per_second"] > 0
    assert np.isfinite(record["runs"][0]["loss"])
