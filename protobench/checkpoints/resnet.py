"""ResNets with torchvision's parameter names, from ResNet-200 down to the mini tier's narrow
ResNet-10."""

import copy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from protobench.runtime.errors import UserError, choose

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Arch:
    """The shape of a ResNet (He et al., CVPR 2016)."""

    block: str = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    """channels of the stem and the first stage: 64 in plain networks, 128 and 256 in SimCLR's and
    SwAV's 2x and 4x"""
    stem: str = "imagenet"
    """see STEMS"""
    inner: int = 1
    """how many times wider a bottleneck's 3x3 convolution is than in the plain network: 2 in Wide
    ResNets"""


STEMS = {"imagenet": (7, 2, 3), "cifar": (3, 1, 1), "cifar-padded": (3, 1, 2), "mini": (3, 2, 1)}
"""Kernel, stride and padding of conv1. Only the ImageNet stem has a max-pool after it. solo-learn
pads its CIFAR stem by 2."""


ARCHS = {
    "resnet10-mini": Arch("basic", (1, 1, 1, 1), 16, "mini"),
    "resnet18": Arch("basic", (2, 2, 2, 2)),
    "resnet34": Arch("basic", (3, 4, 6, 3)),
    "resnet50": Arch("bottleneck", (3, 4, 6, 3)),
    "resnet101": Arch("bottleneck", (3, 4, 23, 3)),
    "resnet152": Arch("bottleneck", (3, 8, 36, 3)),
    "resnet200": Arch("bottleneck", (3, 24, 36, 3)),
    "resnet50x2": Arch("bottleneck", (3, 4, 6, 3), 128),
    "resnet50x4": Arch("bottleneck", (3, 4, 6, 3), 256),
    "resnet101x2": Arch("bottleneck", (3, 4, 23, 3), 128),
    "resnet152x2": Arch("bottleneck", (3, 8, 36, 3), 128),
    "resnet200x2": Arch("bottleneck", (3, 24, 36, 3), 128),
    "wide_resnet50_2": Arch("bottleneck", (3, 4, 6, 3), inner=2),
    "wide_resnet101_2": Arch("bottleneck", (3, 4, 23, 3), inner=2),
}

CIFAR = {f"{name}-cifar": replace(ARCHS[name], stem="cifar") for name in ("resnet18", "resnet50")}
"""Further names to build networks by. They are not in ARCHS because ``arch_name``, and so every
report, says "resnet18, cifar stem"."""


def named(name: str) -> Arch:
    """Returns the shape of this name; raises UserError with "did you mean" for an unknown one."""
    known = ARCHS | CIFAR
    return known[choose("architecture", name, list(known))]


def build(name: str, *, zero_gamma: bool = False) -> "ResNet":
    """Returns a new network of this name. With ``zero_gamma`` the last BatchNorm of every residual
    block has the scale 0, so that the block starts as the identity (Goyal et al. 2017)."""
    network = ResNet(named(name))
    if zero_gamma:
        for block in network.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
                nn.init.zeros_(last.weight)
    return network


class ResNet(nn.Module):
    """A backbone: maps images [N, 3, H, W] to a feature map [N, C, h, w] (``features``) or its
    average [N, C] (call)."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.arch = arch
        block: type[BasicBlock | Bottleneck] = {"basic": BasicBlock, "bottleneck": Bottleneck}[
            arch.block
        ]
        kernel, stride, padding = STEMS[arch.stem]
        self.conv1 = nn.Conv2d(3, arch.width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(arch.width)
        self.out_channels = arch.width
        self.layer1 = self._stage(block, arch.width, arch.depths[0], stride=1)
        self.layer2 = self._stage(block, arch.width * 2, arch.depths[1], stride=2)
        self.layer3 = self._stage(block, arch.width * 4, arch.depths[2], stride=2)
        self.layer4 = self._stage(block, arch.width * 8, arch.depths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(
        self, block: type[BasicBlock | Bottleneck], planes: int, depth: int, stride: int
    ) -> nn.Sequential:
        blocks = []
        for step in (stride, *[1] * (depth - 1)):
            channels, self.out_channels = self.out_channels, planes * block.expansion
            shortcut = None
            if step != 1 or channels != self.out_channels:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, self.out_channels, 1, step, bias=False),
                    nn.BatchNorm2d(self.out_channels),
                )
            blocks.append(block(channels, planes, step, shortcut, base_width=64 * self.arch.inner))
        return nn.Sequential(*blocks)

    def stage1_input(self, x: Tensor) -> Tensor:
        """Returns the stem's output."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return nn.functional.max_pool2d(x, 3, 2, 1) if self.arch.stem == "imagenet" else x

    def features(self, x: Tensor) -> Tensor:
        """Returns the last stage's feature map, conv5 in the papers."""
        y: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stage1_input(x)))))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pooled feature, 2048-D for a ResNet-50."""
        return self.features(x).mean((2, 3))


def fuse_batchnorm(backbone: Network) -> Network:
    """Returns a copy for evaluation only, with each BatchNorm fused into the convolution before it:
    the same function up to rounding, but faster, with less memory traffic."""
    fused = copy.deepcopy(backbone).eval()
    for module in list(fused.modules()):
        for (name, conv), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return fused


def arch_of(state: dict[str, Any], cifar_stem: str = "cifar") -> Arch:
    """Reads a ResNet's shape from tensors with torchvision's names; ``cifar_stem`` is what a 3x3
    stem means.

    Raises UserError if they are no ResNet, or one of an unusual depth: that may be a network that
    lacks a block."""
    depths = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{s}.")})
        for s in range(1, 5)
    )
    needed = ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight")
    if missing := [name for name in needed if name not in state]:
        deep = (
            "a deep stem (conv1.0, …) is not supported"
            if "conv1.0.weight" in state
            else f"{', '.join(missing)} missing"
        )
        raise UserError(f"no ResNet that can be built here: {deep}")
    stem, first, second = (tuple(state[name].shape) for name in needed)
    if (
        not len(stem) == len(first) == len(second) == 4
        or stem[1] != 3
        or stem[2:] not in ((7, 7), (3, 3))
        or not stem[0]
    ):
        raise UserError(
            f"no ResNet that can be built here: a stem of shape {stem}, then {first}, {second}"
        )
    bottleneck = "layer1.0.conv3.weight" in state
    if second[1] != first[0]:
        raise UserError("grouped convolutions (ResNeXt) are not supported")
    if (inner := first[0] // stem[0]) * stem[0] != first[0] or (inner != 1 and not bottleneck):
        raise UserError(
            f"no ResNet that can be built here: {first[0]} channels behind a stem of {stem[0]}"
        )
    kind = "imagenet" if stem[2] == 7 else cifar_stem
    arch = Arch("bottleneck" if bottleneck else "basic", depths, stem[0], kind, inner)  # type: ignore[arg-type]
    # the mini tier's network has stride 2, which no weight shows; no other is so narrow
    if kind != "imagenet" and replace(arch, stem="mini") == ARCHS["resnet10-mini"]:
        arch = ARCHS["resnet10-mini"]
    if (arch.block, depths) not in {(known.block, known.depths) for known in ARCHS.values()}:
        raise UserError(
            f"no usual ResNet has {'-'.join(map(str, depths))} {arch.block} blocks: some are"
            " missing, or too many"
        )
    return arch


def arch_name(arch: Arch) -> str:
    """Returns the usual name, with the stem if that differs ("resnet18, cifar stem"), or the shape
    spelled out."""
    known = {value: name for name, value in ARCHS.items()}
    if arch in known:
        return known[arch]
    if name := known.get(replace(arch, stem="imagenet")):
        return f"{name}, {arch.stem} stem"
    return "resnet(" + ", ".join(f"{key}={value}" for key, value in asdict(arch).items()) + ")"
