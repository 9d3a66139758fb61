"""MMDetection's Faster R-CNN (R50-FPN) and Mask R-CNN (R50-C4) around a backbone of ours, as its
own configurations have them.

The backbone stays the network that the checkpoint loader filled, tensor by tensor; MMDetection
builds the rest. For the embedded tier's narrow network strides, anchors and heads shrink with it,
and so do the numbers of proposals."""

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.mmdet_adapter import operators
from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.resnet import ResNet

FASTER_RCNN_FPN = "pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py"
MASK_RCNN_C4 = "mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py"
"""Caffe names its source's weights; ours have torchvision's strides (in the 3x3 convolution), and
their own normalisation."""

SMALL = {"rpn": 64, "nms_pre": 200, "proposals": 100, "rois": 32, "channels": 32, "fc": 256}
"""The embedded tier's sampling (anchors, proposals before and after suppression, regions per image)
and widths of heads."""


class Stages(nn.Module):
    """A ResNet's stages as a detector's backbone: images [N, 3, H, W] to a feature map per stage of
    ``out``, in float32.

    ``frozen``: no parameter trains and BatchNorm keeps its statistics, in whatever mode the
    detector is."""

    def __init__(self, resnet: ResNet, out: tuple[int, ...], *, frozen: bool, bf16: bool):
        super().__init__()
        self.resnet, self.out, self.frozen, self.bf16 = resnet, out, frozen, bf16
        for stage in range(max(out) + 1, 5):
            setattr(resnet, f"layer{stage}", nn.Identity())
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> "Stages":
        """As ever, unless frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps, fine to coarse."""
        found = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.resnet.stage1_input(x.contiguous(memory_format=torch.channels_last))
            for stage in range(1, max(self.out) + 1):
                x = getattr(self.resnet, f"layer{stage}")(x)
                if stage in self.out:
                    found.append(x)
        # boxes do not bear bfloat16: its 8 bits place a corner at pixel 1000 to within 4
        return tuple(map_.float() for map_ in found)


class Res5(nn.Module):
    """The last stage on every region, then one BatchNorm more, as in MoCo's C4 detectors: [R, C,
    14, 14] to [R, 2C, 7, 7]."""

    def __init__(self, stage: nn.Module, channels: int, *, bf16: bool):
        super().__init__()
        self.stage, self.norm, self.bf16 = stage, nn.BatchNorm2d(channels), bf16

    def forward(self, x: Tensor) -> Tensor:
        """The regions' features."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.stage(x)
        return self.norm(x.float())


def frozen(detector: nn.Module) -> str:
    """SHA-256 of the backbone's tensors, once it is sure that none of them can train. RuntimeError
    where one can."""
    backbone = detector.get_submodule("backbone")
    trainable = sum(
        parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad
    )
    if trainable or any(module.training for module in backbone.modules()):
        raise RuntimeError(
            f"the backbone should be frozen: {trainable} of its parameters train, or its BatchNorm"
            " does"
        )
    digest = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def faster_rcnn(encoder: Encoder, num_classes: int, *, small: bool) -> nn.Module:
    """Faster R-CNN with FPN on the frozen backbone (PCL, appendix E: "all the conv layers",
    BatchNorm included)."""
    config, (channels, stride) = _config(FASTER_RCNN_FPN, encoder), _shape(encoder.backbone)
    bf16 = encoder.precision == "bf16"
    config.backbone = {
        "type": lambda: Stages(deepcopy(encoder.backbone), (1, 2, 3, 4), frozen=True, bf16=bf16)
    }
    config.neck.in_channels = channels
    config.rpn_head.anchor_generator.strides = [stride * 2**level for level in range(5)]
    extractor = config.roi_head.bbox_roi_extractor
    extractor.featmap_strides = [stride * 2**level for level in range(4)]
    extractor.finest_scale = (
        14 * stride
    )  # 56 pixels, the finest map's largest region, at ResNet-50's stride of 4
    config.roi_head.bbox_head.num_classes = num_classes
    if small:
        for part in (config.neck, config.rpn_head, extractor):
            part["out_channels" if "out_channels" in part else "feat_channels"] = SMALL["channels"]
        config.rpn_head.in_channels = config.roi_head.bbox_head.in_channels = SMALL["channels"]
        config.roi_head.bbox_head.fc_out_channels = SMALL["fc"]
        _sample_less(config)
    return _build(config)


def mask_rcnn(encoder: Encoder, num_classes: int, *, small: bool) -> nn.Module:
    """Mask R-CNN on conv4 with conv5 as its head (C4); everything trains, BatchNorm too, as in
    MoCo's configuration, whose extra BatchNorm it has."""
    config, (channels, stride) = _config(MASK_RCNN_C4, encoder), _shape(encoder.backbone)
    bf16, backbone = encoder.precision == "bf16", deepcopy(encoder.backbone)
    layer4 = backbone.layer4  # before Stages takes it away
    config.backbone = {"type": lambda: Stages(backbone, (3,), frozen=False, bf16=bf16)}
    config.roi_head.shared_head = {"type": lambda **_: Res5(layer4, channels[3], bf16=bf16)}
    config.rpn_head.in_channels = config.rpn_head.feat_channels = channels[2]
    config.rpn_head.anchor_generator.strides = [4 * stride]
    extractor = config.roi_head.bbox_roi_extractor
    extractor.featmap_strides, extractor.out_channels = [4 * stride], channels[2]
    for head in (config.roi_head.bbox_head, config.roi_head.mask_head):
        head.in_channels, head.num_classes = channels[3], num_classes
    config.train_cfg.rpn.allowed_border = -1
    config.train_cfg.rpn.assigner.min_pos_iou = (
        1e-6  # Detectron2 gives every object its best anchors, however poor
    )
    if small:
        config.rpn_head.anchor_generator.scales = [1, 2, 4, 8]
        config.roi_head.mask_head.conv_out_channels = SMALL["channels"]
        _sample_less(config)
    detector = _build(config)
    nn.init.normal_(
        detector.roi_head.mask_head.conv_logits.weight, std=0.001
    )  # as Detectron2 starts its masks
    return detector


def _shape(backbone: ResNet) -> tuple[list[int], int]:
    """Channels of the four stages, and the stride of the first."""
    last = backbone.out_channels
    return [
        last // 8,
        last // 4,
        last // 2,
        last,
    ], (4 if backbone.arch.stem == "imagenet" else backbone.conv1.stride[0])


def _config(name: str, encoder: Encoder) -> Any:
    """A model of MMDetection's own configuration ``name``, fed with what ``encoder`` expects
    (RGB)."""
    operators.provide()
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / name).model
    config.data_preprocessor.update(
        mean=[255 * value for value in encoder.input.mean],
        std=[255 * value for value in encoder.input.std],
        bgr_to_rgb=False,
    )
    return config


def _sample_less(config: Any) -> None:
    config.train_cfg.rpn.sampler.num = SMALL["rpn"]
    config.train_cfg.rcnn.sampler.num = SMALL["rois"]
    for part in (config.train_cfg.rpn_proposal, config.test_cfg.rpn):
        part.nms_pre, part.max_per_img = SMALL["nms_pre"], SMALL["proposals"]


def _build(config: Any) -> Any:
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel("ERROR")  # it would print every tensor
    detector = MODELS.build(config)
    for part in (
        detector.neck if detector.with_neck else None,
        detector.rpn_head,
        detector.roi_head,
    ):
        if part is not None:
            part.init_weights()
    return detector
