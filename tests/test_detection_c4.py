"""Faster R-CNN C4, fine-tuned on VOC: its network, its protocol, its scores, a run."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluate import detection, detection_c4
from evaluate.mmdet_adapter import models, scoring, training
from evaluate.mmdet_adapter.training import Detections, Schedule
from protobench import records
from protobench.checkpoints import encoders, resnet
from protobench.checkpoints.encoders import Encoder
from protobench.data import voc_boxes
from protobench.data.boxes import BoxList, Objects, presence
from protobench.data.transforms import EvalInput

pytestmark = pytest.mark.usefixtures("mmdet")


def test_the_real_detector_is_mask_rcnn_c4_without_masks():
    """ResNet-50 on conv4 with conv5 as head, MoCo's additional BatchNorm, 15 anchors, 20 classes;
    all of it trains."""
    network = resnet.ResNet(resnet.named("resnet50"))
    detector = models.faster_rcnn_c4(Encoder(network, EvalInput(), "", {}), 20, small=False).train()
    assert not detector.roi_head.with_mask
    assert [stride[0] for stride in detector.rpn_head.prior_generator.strides] == [16]
    assert detector.rpn_head.prior_generator.num_base_priors == [15]
    assert detector.roi_head.bbox_head.num_classes == 20
    assert detector.roi_head.bbox_head.in_channels == 2048
    assert (detector.test_cfg.rpn.nms_pre, detector.test_cfg.rpn.max_per_img) == (6000, 1000)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 53 + 1
    assert all(norm.training for norm in norms)


def test_it_starts_from_the_checkpoint(moco_file):
    encoder = encoders.load(moco_file)
    detector = models.faster_rcnn_c4(encoder, 20, small=True)
    head = detector.roi_head.shared_head
    for name, tensor in encoder.backbone.state_dict().items():
        part = head.stage if name.startswith("layer4.") else detector.backbone.resnet
        stage = name.removeprefix("layer4.")
        torch.testing.assert_close(part.state_dict()[stage], tensor, rtol=0, atol=0)


def test_the_protocol_is_mocos(tmp_path):
    """detection/configs/pascal_voc_R_50_C4_24k.yaml of MoCo's repository."""
    params = detection_c4.Config(tmp_path, tmp_path).params()
    assert params["small"] is False
    assert (params["draws"], params["batch_size"], params["weight_decay"]) == (5, 16, 1e-4)
    assert [scale[1] for scale in params["scales"]] == list(range(480, 801, 32))
    assert {scale[0] for scale in params["scales"]} == {1333}
    assert (params["test_scale"], params["precise_bn"]) == ([1333, 800], 200)
    schedule = Schedule(np.ones(16_551, bool), params, 0)
    assert schedule.steps == 24_000
    assert [schedule.rate(step) for step in (100, 17_999, 18_000, 21_999, 22_000)] == pytest.approx(
        [0.02, 0.02, 2e-3, 2e-3, 2e-4]
    )
    on_bundled, coco = detection_c4.Config(tmp_path), detection.Config(tmp_path, dataset="coco")
    assert on_bundled.params() | {"drops": []} == coco.params() | {"drops": []}


def test_the_protocols_of_pcl_are_as_they_were(tmp_path):
    """Records are found by them."""
    frozen, coco = (detection.Config(tmp_path, dataset=name).params() for name in ("voc07", "coco"))
    common = {"draws": 1, "small": True, "seed": 0, "sgd_momentum": 0.9, "weight_decay": 1e-4}
    scenes = {"scales": [[128, 96]], "test_scale": [128, 96], "batch_size": 8}
    voc = {"lr": 0.02, "warmup": 150, "epochs": 6, "iterations": 0, "drops": [0.8], "precise_bn": 0}
    assert frozen == common | scenes | voc
    assert coco == common | scenes | {
        "lr": 0.05,
        "warmup": 50,
        "epochs": 0,
        "iterations": 200,
        "drops": [2 / 3, 8 / 9],
        "precise_bn": 20,
    }


def test_difficult_objects_are_targets(scene_data):
    images = voc_boxes.read(scene_data, 2007, "trainval")
    assert any(objects.ignored_N.any() for objects in images.objects), "else this tests nothing"
    targets = images.with_ignored()
    assert not any(objects.ignored_N.any() for objects in targets.objects)
    for one, other in zip(images.objects, targets.objects, strict=True):
        assert np.array_equal(one.boxes_N4, other.boxes_N4)
    assert detection_c4.C4.difficult
    assert not detection.FROZEN.difficult


def _one_object(box: list[float]) -> tuple[list[Detections], BoxList]:
    """A detection of ``box`` for an object of 20 x 10 pixels."""
    truth = Objects(
        100,
        80,
        np.array([[0, 0, 19, 9]], np.float32),
        np.array([0], np.int64),
        np.array([False]),
    )
    images = BoxList("x", None, ("a",), presence([truth], 1), ("c",), objects=(truth,))
    found = Detections(
        np.array([box], np.float32), np.array([0.9], np.float32), np.array([0], np.int64)
    )
    return [found], images


@pytest.mark.parametrize(
    ("width", "passed"),
    [(20, 10), (19, 10), (18, 9), (15, 6), (14, 5), (10, 1), (9, 0)],
)
def test_ap_over_ious_by_hand(width, passed):
    """Of the ten thresholds 0.50 to 0.95, a box of so many of 20 columns passes those up to its
    IoU; 19 of 20 pass 0.95."""
    scores = scoring.voc_over_ious(*_one_object([0, 0, width - 1, 9]))
    assert scores["ap"] == pytest.approx(10 * passed, abs=0.01)
    assert scores["value"] == pytest.approx(100 if width >= 10 else 0)
    assert scores["ap75"] == pytest.approx(100 if width >= 15 else 0)


FEW = ("--iterations", 20, "--batch-size", 2, "--workers", 0)


def test_a_run_leaves_a_record(command, moco_file, scene_data, tmp_path):
    flags = ("--ckpt", moco_file, "--data", scene_data, "--results", tmp_path, *FEW)
    code, out, err = command(detection_c4.EVALUATION.main, *flags)
    assert (code, err) == (0, "")
    assert "Faster R-CNN C4, everything trains: 24 training images" in out
    assert "AP50" in out
    (path,) = tmp_path.glob("*.json")
    record = records.read(path)
    assert (record["unit"]["evaluation"], record["unit"]["data_name"]) == (
        "detection_c4",
        "voc07+12",
    )
    (run,) = record["runs"]
    assert run["backbone"] == "fine-tuned"
    assert 0 <= run["ap"] <= run["value"]
    assert run["ap75"] <= run["value"]


def test_batchnorm_statistics_are_made_anew(moco_file, scene_data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "loss_of", lambda *_: torch.tensor(1.0))
    monkeypatch.setattr(training, "precise_batch_norm", lambda *args, **how: asked.append(args[3]))
    detection_c4.EVALUATION.execute(
        detection_c4.Config(
            moco_file, scene_data, iterations=20, batch_size=2, workers=0, results=tmp_path
        )
    )
    assert asked == [20]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--dataset", "coco"), "coco"),
        (("--lr", 0), "--lr must be positive"),
        (("--epochs", 2, "--iterations", 3), "exclude one another"),
        (("--data", "/nowhere"), "no such folder"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, moco_file, tmp_path, flags, told):
    code, _, err = command(
        detection_c4.EVALUATION.main, "--ckpt", moco_file, "--results", tmp_path, *flags
    )
    assert code == 2
    assert told in err
    assert "Traceback" not in err
