"""Detectors around our backbones, their samples, schedule and training."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faked_device
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evaluate import detection
from evaluate.mmdet_adapter import gpu_memory, models, training
from evaluate.mmdet_adapter.training import Samples, Schedule
from protobench.checkpoints import encoders, resnet
from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import coco, voc_boxes
from protobench.data.boxes import BoxList
from protobench.data.transforms import EvalInput
from protobench.runtime.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask", reason="needs the extra detection")
pytestmark = pytest.mark.usefixtures("mmdet")


@pytest.fixture(scope="module")
def encoder(moco_file) -> Encoder:
    return encoders.load(moco_file)


@pytest.fixture(scope="module")
def test_list(scene_data) -> BoxList:
    return voc_boxes.read(scene_data, 2007, "test")


def wide(images: BoxList) -> np.ndarray:
    return np.array([objects.width >= objects.height for objects in images.objects])


# Detectors ----------------------------------------------------------------------------------------


def test_our_stages_are_mmdetections_resnet():
    """The same weights in MMDetection's own ResNet-50 (torchvision's style) give the same four
    maps."""
    from mmdet.models.backbones import ResNet

    torch.manual_seed(0)
    ours = resnet.build("resnet50").eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.running_mean, std=0.1)
    theirs = ResNet(depth=50, style="pytorch", norm_eval=True)
    theirs.eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = models.Stages(ours, (1, 2, 3, 4), frozen=True, bf16=False)(x)
        for found, expected in zip(maps, theirs(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_has_nothing_to_train_in_any_mode(encoder):
    torch.manual_seed(0)
    detector = models.faster_rcnn(encoder, 20, small=True)
    before = models.frozen(detector)
    detector.train()
    assert models.frozen(detector) == before
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    assert any(parameter.requires_grad for parameter in detector.roi_head.parameters())
    for name, tensor in encoder.backbone.state_dict().items():
        torch.testing.assert_close(
            detector.backbone.state_dict()[f"resnet.{name}"], tensor, rtol=0, atol=0
        )
    next(detector.backbone.parameters()).requires_grad_()
    with pytest.raises(RuntimeError, match="should be frozen"):
        models.frozen(detector)


def test_a_changed_backbone_is_noticed(encoder):
    detector = models.faster_rcnn(encoder, 20, small=True)
    before = models.frozen(detector)
    detector.backbone.resnet.layer2[0].bn1.running_mean[0] += 1e-6
    assert models.frozen(detector) != before


def test_the_real_detector_is_mmdetections(monkeypatch):
    """ResNet-50's channels and strides, 256 and 512 sampled of 2000 and 1000, 20 classes, RGB."""
    network = resnet.ResNet(resnet.named("resnet50"))
    detector = models.faster_rcnn(Encoder(network, EvalInput(), "", {}), 20, small=False)
    assert sum(p.numel() for p in detector.parameters() if p.requires_grad) == pytest.approx(
        17.85e6, rel=0.01
    )
    assert detector.neck.in_channels == [256, 512, 1024, 2048]
    assert [stride[0] for stride in detector.rpn_head.prior_generator.strides] == [4, 8, 16, 32, 64]
    extractor = detector.roi_head.bbox_roi_extractor
    assert (extractor.featmap_strides, extractor.finest_scale) == ([4, 8, 16, 32], 56)
    assert detector.roi_head.bbox_head.num_classes == 20
    assert detector.train_cfg.rcnn.sampler.num == 512
    assert (
        detector.train_cfg.rpn_proposal.nms_pre,
        detector.train_cfg.rpn_proposal.max_per_img,
    ) == (2000, 1000)
    assert detector.test_cfg.rcnn.to_dict() == {
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": 100,
    }
    torch.testing.assert_close(
        detector.data_preprocessor.mean.flatten(), torch.tensor([123.675, 116.28, 103.53])
    )
    assert not detector.data_preprocessor._channel_conversion, "pixels are RGB already"
    assert detector.data_preprocessor._non_blocking, "batches lie in pinned memory"


def test_mask_rcnn_trains_everything_and_starts_from_the_checkpoint(encoder):
    detector = models.mask_rcnn(encoder, 20, small=True).train()
    assert all(parameter.requires_grad for parameter in detector.parameters())
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    ours = encoder.backbone.state_dict()
    head = detector.roi_head.shared_head
    for name, tensor in ours.items():
        part = head.stage if name.startswith("layer4.") else detector.backbone.resnet
        stage = name.removeprefix("layer4.")
        torch.testing.assert_close(part.state_dict()[stage], tensor, rtol=0, atol=0)
    assert head(torch.randn(2, 64, 14, 14)).shape == (2, 128, 7, 7)
    assert isinstance(head.norm, nn.BatchNorm2d), "MoCo's one more behind conv5"
    assert [stride[0] for stride in detector.rpn_head.prior_generator.strides] == [8]


def test_the_real_mask_rcnn_is_of_mocos_size():
    detector = models.mask_rcnn(
        Encoder(resnet.ResNet(resnet.named("resnet50")), EvalInput(), "", {}), 80, small=False
    )
    assert [stride[0] for stride in detector.rpn_head.prior_generator.strides] == [16]
    assert detector.rpn_head.prior_generator.num_base_priors == [15]
    assert detector.roi_head.bbox_roi_extractor.out_channels == 1024
    assert detector.roi_head.mask_head.num_classes == 80
    assert (detector.test_cfg.rpn.nms_pre, detector.test_cfg.rpn.max_per_img) == (6000, 1000)
    assert detector.roi_head.mask_head.conv_logits.weight.std().item() == pytest.approx(
        1e-3, rel=0.05
    )


def test_bf16_stays_inside_the_backbone(encoder):
    x = torch.randn(1, 3, 32, 48)
    exact, rough = (
        models.faster_rcnn(replace(encoder, precision=precision), 20, small=True).backbone(x)
        for precision in ("fp32", "bf16")
    )
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


# Samples, batches, rates --------------------------------------------------------------------------


def test_samples_are_resized_and_flipped_with_their_objects(scene_data):
    train = coco.read(scene_data, "train")
    samples = Samples(train, [[256, 192]], 0, masks=True)
    pixels, found = samples[None, 3]
    objects = train.objects[3]
    assert pixels.shape == (3, 2 * objects.height, 2 * objects.width)
    np.testing.assert_allclose(
        found.gt_instances.bboxes.tensor.numpy(), 2 * objects.boxes_N4, atol=1e-4
    )
    flipped = next(epoch for epoch in range(20) if not torch.equal(samples[epoch, 3][0], pixels))
    mirrored, other = samples[flipped, 3]
    torch.testing.assert_close(mirrored, pixels.flip(2))
    x1, y1, x2, y2 = found.gt_instances.bboxes.tensor.T
    np.testing.assert_allclose(
        other.gt_instances.bboxes.tensor.T, [2 * objects.width - x2, y1, 2 * objects.width - x1, y2]
    )
    np.testing.assert_array_equal(
        other.gt_instances.masks.masks, found.gt_instances.masks.masks[:, :, ::-1]
    )
    assert torch.equal(samples[flipped, 3][0], mirrored), "a function of the epoch"


def test_scales_are_drawn_in_training_and_the_last_one_tests(scene_data):
    train = coco.read(scene_data, "train")
    samples = Samples(train, [[256, 192], [128, 96], [64, 48]], 0, masks=False)
    assert {
        samples[epoch, 0][0].shape[1] * 2 // train.objects[0].height for epoch in range(12)
    } == {1, 2, 4}
    assert samples[None, 0][0].shape[1] * 2 == train.objects[0].height


def test_ignored_objects_are_handed_over_as_such(test_list):
    index = next(i for i, objects in enumerate(test_list.objects) if objects.ignored_N.any())
    _, found = Samples(test_list, [[128, 96]], 0, masks=False)[None, index]
    assert len(found.ignored_instances) == test_list.objects[index].ignored_N.sum()
    assert len(found.gt_instances) == (~test_list.objects[index].ignored_N).sum()


def test_a_broken_image_is_an_error_that_names_it(scene_data, tmp_path):
    train = coco.read(scene_data, "train")
    broken = replace(train, root=tmp_path)
    assert isinstance(Samples(broken, [[128, 96]], 0, masks=False)[0, 0], UserError)
    with pytest.raises(UserError, match="image not found"):
        training.predict(
            nn.Identity(),
            Samples(broken, [[128, 96]], 0, masks=False),
            batch_size=8,
            device="cpu",
            workers=0,
        )


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_every_image_once_and_keeps_shapes_apart(landscape, size, epoch):
    found = training.epoch_batches(np.array(landscape), size, 0, "order", 0, epoch)
    assert sorted(index for batch in found for index in batch) == list(range(len(landscape)))
    assert all(len(batch) == size for batch in found[:-1])
    left = landscape.count(True) % size + landscape.count(False) % size
    whole = found[: len(found) - -(-left // size)]
    assert all(len({landscape[index] for index in batch}) == 1 for batch in whole)
    schedule = Schedule(
        np.array(landscape), {"batch_size": size, "seed": 0, "iterations": 0, "epochs": 3}, 0
    )
    assert schedule.per_epoch == len(found)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 30))
@settings(max_examples=40)
def test_a_schedule_goes_on_in_the_middle(images, size, first):
    params = {"batch_size": size, "seed": 3, "iterations": 0, "epochs": 3}
    schedule = Schedule(np.arange(images) % 3 > 0, params, 1)
    whole = list(schedule.where(0))
    assert len(whole) == schedule.steps
    assert list(schedule.where(min(first, schedule.steps))) == whole[first:]
    counted = Schedule(schedule.landscape_N, params | {"iterations": 7}, 1)
    assert [*counted.where(0)][:5] == [
        *Schedule(schedule.landscape_N, params | {"epochs": 9}, 1).where(0)
    ][:5]
    assert len([*counted.where(0)]) == 7


def test_rates_are_the_papers():
    """Appendix E: 0.05, a tenth after 12 of 15 epochs; COCO's 2x: 0.02, a tenth at 120 000 and at
    160 000 of 180 000."""
    config = detection.Config(Path("x"), Path("data"))
    voc = Schedule(np.ones(5011, bool), config.params(), 0)
    assert voc.per_epoch == 627
    assert [
        voc.rate(step) for step in (500, 12 * 627 - 1, 12 * 627, voc.steps - 1)
    ] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert voc.rate(0) == pytest.approx(5e-5)
    assert voc.rate(250) == pytest.approx(0.025, rel=0.01)
    assert Schedule(np.ones(9, bool), config.params() | {"warmup": 0}, 0).rate(0) == 0.05
    coco_2x = Schedule(np.ones(117_266, bool), replace(config, dataset="coco").params(), 0)
    assert coco_2x.steps == 180_000
    assert [coco_2x.rate(step) for step in (119_999, 120_000, 159_999, 160_000)] == pytest.approx(
        [0.02, 2e-3, 2e-3, 2e-4]
    )


def test_defaults_are_the_papers():
    voc, on_coco = (
        detection.Config(Path("x"), Path("data"), dataset).params() for dataset in ("voc07", "coco")
    )
    for name, value in {
        "draws": 3,
        "batch_size": 8,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-4,
        "epochs": 15,
        "iterations": 0,
        "test_scale": [1000, 600],
        "small": False,
        "precise_bn": 0,
    }.items():
        assert voc[name] == value, name
    for name, value in {
        "draws": 1,
        "batch_size": 16,
        "iterations": 180_000,
        "test_scale": [1333, 800],
        "precise_bn": 200,
    }.items():
        assert on_coco[name] == value, name
    assert [scale[1] for scale in on_coco["scales"]] == [640, 672, 704, 736, 768, 800]
    assert detection.Config(Path("x")).params()["small"]


# Training -----------------------------------------------------------------------------------------


class Normed(nn.Module):
    """A detector of which only BatchNorm is left."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.2)

    def data_preprocessor(self, data, training):
        return {"inputs": torch.stack(data["inputs"]).float(), "data_samples": data["data_samples"]}

    def loss(self, x, samples):
        self.norm(x)


def test_precise_statistics_are_the_plain_mean_over_batches(scene_data):
    train = coco.read(scene_data, "train")
    samples = Samples(train, [[64, 64]], 0, masks=False)
    params = {"batch_size": 1, "seed": 0, "iterations": 9, "epochs": 0}
    schedule, detector = Schedule(wide(train), params, 0), Normed()
    training.precise_batch_norm(detector, samples, schedule, 4, device="cpu", workers=0)
    seen = [
        samples[batch[0]][0].float() for _, batch in zip(range(4), schedule.where(0), strict=False)
    ]
    torch.testing.assert_close(
        detector.norm.running_mean, torch.stack([x.mean((1, 2)) for x in seen]).mean(0)
    )
    torch.testing.assert_close(
        detector.norm.running_var, torch.stack([x.flatten(1).var(1) for x in seen]).mean(0)
    )
    assert detector.norm.momentum == 0.2


def test_divergence_is_an_error_and_nothing_is_recorded(encoder, scene_data):
    train = voc_boxes.read(scene_data, 2007, "trainval")
    params = detection.Config(Path("x"), lr=1e6, warmup=0, iterations=20, batch_size=2).params()
    detector = models.faster_rcnn(encoder, 20, small=True)
    losses = []
    with pytest.raises(UserError, match=r"diverged by step 20 of 20.*not finite") as mistake:
        training.train(
            detector,
            training.optimizer_of(detector, params),
            Samples(train, [[128, 96]], 0, masks=False),
            Schedule(wide(train), params, 0),
            losses=losses,
            after=lambda steps: None,
            device="cpu",
            workers=0,
            desc="",
        )
    assert "--lr (it is 1e+06)" in mistake.value.hint
    assert losses == []


def test_norms_do_not_decay_and_everything_else_does(encoder):
    detector = models.mask_rcnn(encoder, 20, small=True)
    optimizer = training.optimizer_of(detector, {"sgd_momentum": 0.9, "weight_decay": 1e-4})
    decayed, plain = (
        {id(parameter) for parameter in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    norms = {
        id(p)
        for module in detector.modules()
        if isinstance(module, nn.BatchNorm2d)
        for p in module.parameters()
    }
    assert plain == norms
    assert decayed == {id(parameter) for parameter in detector.parameters()} - norms
    frozen = models.faster_rcnn(encoder, 20, small=True)
    (group,) = training.optimizer_of(
        frozen, {"sgd_momentum": 0.9, "weight_decay": 1e-4}
    ).param_groups
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in frozen.parameters())


def test_a_weight_that_is_not_finite_at_the_end_is_an_error(encoder, scene_data, monkeypatch):
    """The detector would find nothing, and score 0."""
    train = voc_boxes.read(scene_data, 2007, "trainval")
    params = detection.Config(Path("x"), iterations=20, batch_size=1).params()
    detector = models.faster_rcnn(encoder, 20, small=True)

    def loss_of(losses, *_):
        losses.detector.neck.fpn_convs[0].conv.bias.data[0] = float("nan")
        return torch.tensor(1.0)

    monkeypatch.setattr(training, "loss_of", loss_of)
    with pytest.raises(UserError, match="a weight is not finite"):
        training.train(
            detector,
            training.optimizer_of(detector, params),
            Samples(train, [[128, 96]], 0, masks=False),
            Schedule(wide(train), params, 0),
            losses=[],
            after=lambda steps: None,
            device="cpu",
            workers=0,
            desc="",
        )


def test_samples_can_be_sent_to_a_process_that_has_not_imported_mmdetection(scene_data):
    train = coco.read(scene_data, "train")
    sent = pickle.dumps(Samples(train.subset(np.arange(2)), [[128, 96]], 0, masks=False))
    script = (
        "import pickle, sys; samples = pickle.load(sys.stdin.buffer); print(samples[0,"
        " 1][0].shape[0])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], input=sent, capture_output=True, check=True
    )
    assert done.stdout.split() == [b"3"]


def test_coco_s_batch_is_refused_before_the_first_step_where_it_cannot_fit(
    moco_file, scene_data, monkeypatch, capsys
):
    """16 images of 5.65 GiB each (bf16: 4.1) on GPUs of 80 GiB, as computed."""
    monkeypatch.setattr(detection.bundled, "is_used", lambda data: False)
    config = detection.Config(moco_file, scene_data, "coco")

    def check(config, gpus, gib):
        monkeypatch.setattr("protobench.runtime.devices.memory_gib", lambda device: gib)
        detection.EVALUATION.check_memory(config, "cuda", gpus)

    bf16 = replace(config, load_options=LoadOptions(precision="bf16"))
    check(config, 2, 79.1)
    check(bf16, 1, 79.1)
    check(replace(config, dataset="voc07"), 1, 8.0)  # the frozen backbone keeps little
    detection.EVALUATION.check_memory(config, "cpu")
    assert not capsys.readouterr().err
    check(bf16, 1, 70.0)
    assert "warning: detection coco: a batch in bf16 needs at least 66" in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        check(config, 1, 79.1)
    assert "detection coco: a batch in fp32 needs at least 90 GiB a GPU" in error.value.what
    assert error.value.hint == (
        "use 2 GPUs (torchrun --nproc_per_node 2, reproduce --gpus all); --precision bf16 needs"
        " less; the record notes it"
    )
    with pytest.raises(UserError, match="in tf32 on 4 GPUs needs at least 23 GiB") as error:
        check(replace(config, load_options=LoadOptions(precision="tf32")), 4, 3.0)
    assert error.value.hint == "take a GPU with more memory"
    needed = [detection.EVALUATION.gpus_needed(config, gib) for gib in (200.0, 79.1, 24.0, 5.0)]
    assert needed == [1, 2, 6, None]


@pytest.mark.parametrize("build", ["mask_rcnn", "faster_rcnn_c4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.skipif(bool(faked_device.MISSING), reason=faked_device.MISSING)
def test_the_memory_of_an_image_is_what_torch_s_operators_take(build, precision, monkeypatch):
    """A step of backbone and heads on shapes alone, of four images and of two."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmengine.model import BaseModule

    for of in (BaseModule, BaseDenseHead):  # both look at values
        monkeypatch.setattr(of, "init_weights", lambda self: None)

    def step(detector, optimizer, images):
        map_ = detector.backbone(torch.empty(images, 3, 800, 1088, device="cuda"))
        regions = torch.empty(512 * images, 1024, 14, 14, device="cuda", requires_grad=True)
        pooled = detector.roi_head.shared_head(regions)
        outputs = [*detector.rpn_head(map_)[0], *detector.roi_head.bbox_head(pooled)]
        if detector.roi_head.with_mask:
            outputs.append(detector.roi_head.mask_head(pooled[: 128 * images]))
        sum(output.sum() for output in outputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    def peak(images):
        with faked_device.device() as counts:
            encoder = Encoder(resnet.ResNet(resnet.named("resnet50")), EvalInput(), "", {})
            encoder = replace(encoder, precision=precision)
            detector = getattr(models, build)(encoder, 20, small=False).train().cuda()
            optimizer = torch.optim.SGD(detector.parameters(), 0.1, momentum=0.9)
            step(detector, optimizer, images)
            counts.restart()  # momentum is there now
            step(detector, optimizer, images)
            return counts.taken().peak / 2**30

    assert (peak(4) - peak(2)) / 2 == pytest.approx(gpu_memory.least_gib(1, 1, precision), rel=0.02)


@pytest.mark.parametrize("scale", [[128, 96], [256, 192], [64, 48]])
def test_detections_are_in_the_images_own_pixels(encoder, scene_data, scale):
    """Whatever size the detector saw: its predictions, put where the objects are in its input, come
    back where they are."""
    from mmengine.structures import InstanceData

    val = coco.read(scene_data, "val").subset(np.arange(6))
    detector = models.mask_rcnn(encoder, 20, small=True)
    samples = Samples(val, [scale], 0, masks=True)

    def predict(features, proposals, found, rescale):
        """The truth in the input's pixels, brought back by MMDetection's own rescaling."""
        results = []
        for sample in found:
            boxes = torch.from_numpy(val.objects[sample.img_id].boxes_N4) * torch.tensor(
                sample.scale_factor
            ).repeat(2)
            labels = torch.zeros(len(boxes), dtype=torch.long)
            of = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)), labels=labels)
            of.masks = detector.roi_head.mask_head._predict_by_feat_single(
                torch.full((len(of), 20, 14, 14), 9.0),
                of.bboxes,
                labels,
                sample.metainfo,
                detector.roi_head.test_cfg,
                rescale=rescale,
            )  # this divides the boxes too
            results.append(of)
        return results

    detector.roi_head.predict = predict
    detector.rpn_head.predict = lambda *args, **how: None
    found = training.predict(detector, samples, batch_size=2, device="cpu", workers=0)
    for of, objects in zip(found, val.objects, strict=True):
        np.testing.assert_allclose(of.boxes_N4, objects.boxes_N4, atol=0.01)
        for box, mask in zip(objects.boxes_N4.astype(int), of.masks, strict=True):
            pixels = coco_mask.decode(mask)
            assert pixels.shape == (objects.height, objects.width)
            x1, y1, x2, y2 = box
            assert pixels[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
            assert pixels.sum() <= (x2 - x1 + 2) * (y2 - y1 + 2)


def test_the_batch_size_of_the_test_changes_nothing(encoder, test_list):
    torch.manual_seed(0)
    detector = models.faster_rcnn(encoder, 20, small=True)
    few = test_list.subset(np.arange(9))
    one, eight = (
        training.predict(
            detector,
            Samples(few, [[128, 96]], 0, masks=False),
            batch_size=size,
            device="cpu",
            workers=0,
        )
        for size in (1, 8)
    )
    for a, b in zip(one, eight, strict=True):
        near_NM = np.abs(a.boxes_N4[:, None] - b.boxes_N4).max(2) < 0.01
        found_N = (
            near_NM
            & (np.abs(a.scores_N[:, None] - b.scores_N) < 1e-5)
            & (a.labels_N[:, None] == b.labels_N)
        ).any(1)
        assert found_N.mean() >= 0.95, (
            "rounding alone may change which of two boxes of almost equal scores is left"
        )
