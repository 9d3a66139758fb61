"""MMDetection's Faster R-CNN (R50-FPN) and Mask R-CNN (R50-C4), as its own configurations define
them, on one of our backbones.

The backbone is the very network that the checkpoint loader filled; MMDetection builds the rest. For
the narrow network of the bundled synthetic data, strides, anchors, heads and the numbers of
proposals shrink as well."""

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
"""MMDetection's file is for Caffe's weights. Ours have torchvision's strides (in the 3x3
convolution) and their own input normalisation."""

SMALL = {"rpn": 64, "nms_pre": 200, "proposals": 100, "rois": 32, "channels": 32, "fc": 256}
"""Sizes on the bundled synthetic data: the anchors sampled per image, the proposals before and
after suppression, the regions sampled per image, and the widths of the heads."""


class Stages(nn.Module):
    """A ResNet's stages as a detector's backbone: from images [N, 3, H, W] to one float32 feature
    map for each stage in ``out``.

    ``frozen``: no parameter trains and BatchNorm keeps its statistics, whatever mode the detector
    is in. ``bf16``: the stages are computed in bfloat16."""

    def __init__(self, resnet: ResNet, out: tuple[int, ...], *, frozen: bool, bf16: bool):
        super().__init__()
        self.resnet, self.out, self.frozen, self.bf16 = resnet, out, frozen, bf16
        for stage in range(max(out) + 1, 5):
            setattr(resnet, f"layer{stage}", nn.Identity())
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> "Stages":
        """Set the training mode; a frozen backbone always stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps, from the finest to the coarsest."""
        maps = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.resnet.stage1_input(x.contiguous(memory_format=torch.channels_last))
            for stage in range(1, max(self.out) + 1):
                x = getattr(self.resnet, f"layer{stage}")(x)
                if stage in self.out:
                    maps.append(x)
        # bfloat16 is too coarse for boxes: its 8 bits place a corner near pixel 1000 to within 4
        return tuple(map_.float() for map_ in maps)


class Res5(nn.Module):
    """The last stage, applied to every region, and an extra BatchNorm, as in MoCo's C4 detectors:
    from [R, C, 14, 14] to [R, 2C, 7, 7]."""

    def __init__(self, stage: nn.Module, channels: int, *, bf16: bool):
        super().__init__()
        self.stage, self.norm, self.bf16 = stage, nn.BatchNorm2d(channels), bf16

    def forward(self, x: Tensor) -> Tensor:
        """Return the regions' features in float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            # 8192 regions; as cuDNN computes them fastest
            x = self.stage(x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x)
        normalised: Tensor = self.norm(x.float())
        return normalised


def frozen(detector: nn.Module) -> str:
    """Return the SHA-256 of the backbone's tensors. Raises RuntimeError if a parameter or a
    BatchNorm of it can train."""
    backbone = detector.get_submodule("backbone")
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
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
    """Build Faster R-CNN with FPN on the frozen backbone (PCL, appendix E: "all the conv layers",
    BatchNorm included)."""
    config = _config(FASTER_RCNN_FPN, encoder)
    backbone, bf16 = (
        deepcopy(encoder.resnet("detectors take its stages")),
        encoder.precision == "bf16",
    )
    channels, stride = _stage_channels(backbone), _first_stride(backbone)
    config.backbone = {"type": lambda: Stages(backbone, (1, 2, 3, 4), frozen=True, bf16=bf16)}
    config.neck.in_channels = channels
    config.rpn_head.anchor_generator.strides = [stride * 2**level for level in range(5)]
    extractor = config.roi_head.bbox_roi_extractor
    extractor.featmap_strides = [stride * 2**level for level in range(4)]
    # the largest region that the finest map takes: 56 pixels at ResNet-50's stride of 4
    extractor.finest_scale = 14 * stride
    config.roi_head.bbox_head.num_classes = num_classes
    if small:
        config.neck.out_channels = extractor.out_channels = SMALL["channels"]
        config.rpn_head.feat_channels = SMALL["channels"]
        config.rpn_head.in_channels = config.roi_head.bbox_head.in_channels = SMALL["channels"]
        config.roi_head.bbox_head.fc_out_channels = SMALL["fc"]
        _sample_less(config)
    detector: nn.Module = _build(config)
    return detector


def mask_rcnn(encoder: Encoder, num_classes: int, *, small: bool) -> nn.Module:
    """Build Mask R-CNN on conv4 with conv5 as its head (C4). Everything trains, BatchNorm included,
    as in MoCo's configuration; the extra BatchNorm is also from there."""
    detector = _c4(encoder, num_classes, small=small, masks=True)
    # as Detectron2 initialises its masks
    mask_logits = detector.get_submodule("roi_head.mask_head.conv_logits")
    nn.init.normal_(mask_logits.get_parameter("weight"), std=0.001)
    return detector


def faster_rcnn_c4(encoder: Encoder, num_classes: int, *, small: bool) -> nn.Module:
    """Build the same without masks: Faster R-CNN, as in MoCo's configuration for VOC."""
    return _c4(encoder, num_classes, small=small, masks=False)


def _c4(encoder: Encoder, num_classes: int, *, small: bool, masks: bool) -> nn.Module:
    config = _config(MASK_RCNN_C4, encoder)
    backbone, bf16 = (
        deepcopy(encoder.resnet("detectors take its stages")),
        encoder.precision == "bf16",
    )
    channels, stride = _stage_channels(backbone), _first_stride(backbone)
    layer4 = backbone.layer4  # taken before Stages removes it
    config.backbone = {"type": lambda: Stages(backbone, (3,), frozen=False, bf16=bf16)}
    config.roi_head.shared_head = {"type": lambda **_: Res5(layer4, channels[3], bf16=bf16)}
    config.rpn_head.in_channels = config.rpn_head.feat_channels = channels[2]
    config.rpn_head.anchor_generator.strides = [4 * stride]
    extractor = config.roi_head.bbox_roi_extractor
    extractor.featmap_strides, extractor.out_channels = [4 * stride], channels[2]
    for head in (config.roi_head.bbox_head, config.roi_head.mask_head):
        head.in_channels, head.num_classes = channels[3], num_classes
    if not masks:
        config.roi_head.mask_head = None
    config.train_cfg.rpn.allowed_border = -1
    # as in Detectron2, every object gets its best anchors, however poor
    config.train_cfg.rpn.assigner.min_pos_iou = 1e-6
    if small:
        config.rpn_head.anchor_generator.scales = [1, 2, 4, 8]
        if masks:
            config.roi_head.mask_head.conv_out_channels = SMALL["channels"]
        _sample_less(config)
    detector: nn.Module = _build(config)
    return detector


def _stage_channels(backbone: ResNet) -> list[int]:
    last = backbone.out_channels
    return [last // 8, last // 4, last // 2, last]


def _first_stride(backbone: ResNet) -> int:
    """Return the stride of the first stage's map in pixels."""
    return 4 if backbone.arch.stem == "imagenet" else backbone.conv1.stride[0]


def _config(name: str, encoder: Encoder) -> Any:
    """Return the model part of MMDetection's configuration ``name``, with RGB input normalised as
    ``encoder`` expects."""
    operators.provide()
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / name).model
    config.data_preprocessor.update(
        mean=[255 * value for value in encoder.input.mean],
        std=[255 * value for value in encoder.input.std],
        bgr_to_rgb=False,
        non_blocking=True,  # batches lie in pinned memory
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
    if detector.with_neck:
        detector.neck.init_weights()
    detector.rpn_head.init_weights()
    detector.roi_head.init_weights()
    return detector
