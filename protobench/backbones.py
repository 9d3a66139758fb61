"""ResNets under torchvision's parameter names, from ResNet-152 down to the embedded tier's narrow ResNet-10."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from protobench.cli import choose
from protobench.errors import UserError


@dataclass(frozen=True)
class Arch:
    """The shape of a ResNet (He et al., CVPR 2016).

    width: channels of the stem and the first stage. stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1)
    or "mini" (3x3 stride 2).
    """

    block: str = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    stem: str = "imagenet"


ARCHS = {
    "resnet10-mini": Arch("basic", (1, 1, 1, 1), 16, "mini"),
    "resnet18": Arch("basic", (2, 2, 2, 2)),
    "resnet34": Arch("basic", (3, 4, 6, 3)),
    "resnet50": Arch("bottleneck", (3, 4, 6, 3)),
    "resnet101": Arch("bottleneck", (3, 4, 23, 3)),
    "resnet152": Arch("bottleneck", (3, 8, 36, 3)),
}


def build(name: str) -> "ResNet":
    """A new network by its usual name; UserError with "did you mean" for an unknown one."""
    return ResNet(ARCHS[choose("architecture", name, list(ARCHS))])


class ResNet(nn.Module):
    """A backbone: images [N, 3, H, W] to a feature map [N, C, h, w] (``features``) or its average [N, C] (call)."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.arch = arch
        block: type[BasicBlock | Bottleneck] = {"basic": BasicBlock, "bottleneck": Bottleneck}[arch.block]
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1), "mini": (3, 2)}[arch.stem]
        self.conv1 = nn.Conv2d(3, arch.width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(arch.width)
        self.out_channels = arch.width
        self.layer1 = self._stage(block, arch.width, arch.depths[0], stride=1)
        self.layer2 = self._stage(block, arch.width * 2, arch.depths[1], stride=2)
        self.layer3 = self._stage(block, arch.width * 4, arch.depths[2], stride=2)
        self.layer4 = self._stage(block, arch.width * 8, arch.depths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, block: type[BasicBlock | Bottleneck], planes: int, depth: int, stride: int) -> nn.Sequential:
        blocks = []
        for step in (stride, *[1] * (depth - 1)):
            channels, self.out_channels = self.out_channels, planes * block.expansion
            shortcut = None
            if step != 1 or channels != self.out_channels:
                shortcut = nn.Sequential(nn.Conv2d(channels, self.out_channels, 1, step, bias=False),
                                         nn.BatchNorm2d(self.out_channels))
            blocks.append(block(channels, planes, step, shortcut))
        return nn.Sequential(*blocks)

    def features(self, x: Tensor) -> Tensor:
        """The last stage's feature map, conv5 in the papers."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.arch.stem == "imagenet":
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        """The pooled feature, 2048-D for a ResNet-50."""
        return self.features(x).mean((2, 3))


def arch_of(state: dict[str, Any]) -> Arch:
    """Reads a ResNet's shape from tensors under torchvision's names. UserError where there is no ResNet."""
    try:
        stem, block_weight = state["conv1.weight"], state["layer1.0.conv1.weight"]
        depths = tuple(len({name.split(".")[1] for name in state if name.startswith(f"layer{s}.")}) for s in range(1, 5))
        kernel, width = stem.shape[-1], stem.shape[0]
        bottleneck = "layer1.0.conv3.weight" in state
    except (KeyError, IndexError, AttributeError) as failure:
        raise UserError("no ResNet in this checkpoint: conv1 and layer1 … layer4 are needed") from failure
    if bottleneck and block_weight.shape[0] != width:
        raise UserError(f"a wide bottleneck ResNet ({block_weight.shape[0]} channels behind a stem of {width}) is not supported")
    # 3x3 stems of stride 1 and 2 have equal weights; only the embedded tier's narrow network uses stride 2
    stem_kind = "imagenet" if kernel == 7 else "mini" if width < 64 else "cifar"
    return Arch("bottleneck" if bottleneck else "basic", depths, width, stem_kind)  # type: ignore[arg-type]


def arch_name(arch: Arch) -> str:
    """The usual name, or the shape spelled out."""
    known = {value: name for name, value in ARCHS.items()}
    return known.get(arch) or "resnet(" + ", ".join(f"{key}={value}" for key, value in asdict(arch).items()) + ")"
