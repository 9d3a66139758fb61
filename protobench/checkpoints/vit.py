"""Vision transformers (Dosovitskiy et al., ICLR 2021) as encoders, with timm's parameter names and
timm's forward pass. timm is the optional extra ``vit``; only building a network needs it.

Shapes: N batch, T tokens (the class token, then the patches), D width, S grid side."""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protobench.checkpoints.layouts import Feature, Transformer
from protobench.runtime.errors import UserError

State = dict[str, Tensor]

SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
"""Width, blocks and attention heads. No tensor shows the number of heads."""

FEATURES: dict[Feature, str] = {
    "class": "class token",
    "patches": "mean of the patches",
    "class+patches": "class token and mean of the patches",
    "last4": "class tokens of the last four blocks",
}
"""What each choice of --vit-feature is, always after the last norm."""

INTERPOLATION = {
    "dino": "bicubic by scale factor, as in DINO's code",
    "mae": "bicubic, as in MAE's code",
    "timm": "bicubic with antialiasing, as in timm",
}
"""How position embeddings become those of another grid."""


@dataclass(frozen=True)
class ViTArch:
    """The shape of a vision transformer, and which of its outputs is the feature."""

    width: int
    depth: int
    heads: int
    patch: int
    """pixels of a patch's side"""
    grid: int
    """patches along a side of the images that the position embeddings are for"""
    layer_scale: bool = False
    """whether each block's two outputs are scaled per channel (DINOv2)"""
    feature: Feature = "class"

    @property
    def side(self) -> int:
        """Pixels of the images that the position embeddings are for."""
        return self.grid * self.patch

    @property
    def name(self) -> str:
        """The usual name, for example vit_small_patch16."""
        names = {(width, depth): name for name, (width, depth, _) in SIZES.items()}
        return f"{names[self.width, self.depth]}_patch{self.patch}"


class ViT(nn.Module):
    """Maps images [N, 3, side, side] to features [N, out_channels]. Raises UserError without
    timm."""

    def __init__(self, arch: ViTArch, side: int):
        super().__init__()
        self.arch = arch
        self.net = _transformer()(
            img_size=side,
            patch_size=arch.patch,
            embed_dim=arch.width,
            depth=arch.depth,
            num_heads=arch.heads,
            init_values=1.0 if arch.layer_scale else None,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_classes=0,
            weight_init="skip",
        )
        """timm's network, whose tensors have the names that files have"""
        self.out_channels = arch.width * {"class+patches": 2, "last4": 4}.get(arch.feature, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the feature."""
        if self.arch.feature == "last4":
            blocks = self.net.forward_intermediates(
                x,
                indices=4,
                return_prefix_tokens=True,
                norm=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            return torch.cat([prefix_NTD[:, 0] for _, prefix_NTD in blocks], dim=1)
        tokens_NTD: Tensor = self.net.forward_features(x)
        class_ND, patches_ND = tokens_NTD[:, 0], tokens_NTD[:, 1:].mean(1)
        match self.arch.feature:
            case "class":
                return class_ND
            case "patches":
                return patches_ND
        return torch.cat([class_ND, patches_ND], dim=1)


def _transformer() -> Any:
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as missing:
        raise UserError(
            "a vision transformer needs the extra vit",
            hint="pip install 'protobench[vit]', or in its folder: pip install -e '.[vit]'",
        ) from missing
    return VisionTransformer


# From a file's tensors ----------------------------------------------------------------------------


def arch_of(state: State, origin: Transformer, feature: Feature) -> ViTArch:
    """Reads the shape from tensors with timm's names; ``origin`` gives the facts that they do not
    show.

    Raises UserError for anything but a usual network with square patches, a class token, and
    positions for a square image of a size that the origin trains with."""
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "norm.weight")
    if missing := [name for name in needed if name not in state]:
        raise UserError(
            f"no vision transformer that can be built here: {', '.join(missing)} missing"
        )
    patches, positions = (tuple(state[name].shape) for name in needed[:2])
    if len(patches) != 4 or patches[1] != 3 or patches[2] != patches[3] or not patches[2]:
        raise UserError(f"the patch embedding is {patches}, not one of square patches in RGB")
    width, patch = patches[0], patches[2]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    usual = {w: (blocks, heads) for w, blocks, heads in SIZES.values()}
    if width not in usual:
        raise UserError(f"no usual vision transformer has the width {width}")
    if depth != usual[width][0]:
        raise UserError(
            f"a vision transformer of width {width} has {usual[width][0]} blocks, not {depth}: some"
            " are missing, or too many"
        )
    return ViTArch(
        width=width,
        depth=depth,
        heads=dict(origin.heads).get(width, usual[width][1]),
        patch=patch,
        grid=_grid(positions, patch, origin.sides),
        layer_scale="blocks.0.ls1.gamma" in state,
        feature=feature,
    )


def _grid(positions: tuple[int, ...], patch: int, sides: tuple[int, ...]) -> int:
    tokens = positions[1] if len(positions) == 3 else 0
    grid = math.isqrt(max(tokens - 1, 0))
    if grid == 0 or grid * grid != tokens - 1:
        raise UserError(
            f"the position embeddings {positions} are not those of a class token and a square grid"
            " of patches: truncated, or of a network that is not supported"
        )
    if sides and grid * patch not in sides:
        raise UserError(
            f"{grid}x{grid} positions of {patch}-pixel patches make an image of {grid * patch}"
            f" pixels, but this code base trains at {' or '.join(map(str, sides))}: a wrong patch"
            " size, or truncated position embeddings"
        )
    return grid


def fitted(network: ViT, state: State, crop: int, how: str) -> tuple[ViT, State, str]:
    """Returns a network for images of ``crop`` pixels, its tensors, and a word about its positions,
    which are interpolated only where that grid is another one than the file's. ``how`` is a key of
    INTERPOLATION. Raises UserError if no whole number of patches fills the crop."""
    arch = network.arch
    if crop % arch.patch:
        raise UserError(
            f"a crop of {crop} pixels is no whole number of patches of {arch.patch}",
            hint=f"--crop {max(crop // arch.patch, 1) * arch.patch}",
        )
    grid, told = crop // arch.patch, f"{arch.grid}x{arch.grid}"
    if grid == arch.grid:
        return network, state, told
    with torch.device("meta"):
        other = ViT(arch, crop)
    positions = interpolated(state["pos_embed"], grid, how)
    return (
        other,
        state | {"pos_embed": positions},
        f"{told}, interpolated to {grid}x{grid} ({INTERPOLATION[how]})",
    )


def interpolated(positions_1TD: Tensor, grid: int, how: str) -> Tensor:
    """Returns position embeddings for ``grid`` x ``grid`` patches; the class token's stays."""
    old = math.isqrt(positions_1TD.shape[1] - 1)
    map_1DSS = positions_1TD[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    size: dict[str, Any] = {"size": (grid, grid)}
    if how == "dino":  # 0.1 too much: a guard of theirs against rounding, which shifts the samples
        size = {"scale_factor": ((grid + 0.1) / old,) * 2}
    map_1DSS = F.interpolate(map_1DSS, mode="bicubic", antialias=how == "timm", **size)
    return torch.cat([positions_1TD[:, :1], map_1DSS.flatten(2).transpose(1, 2)], dim=1)


def fixed_positions(positions_1TD: Tensor) -> Literal["", "MAE", "MoCo v3"]:
    """Whose fixed sine-cosine embeddings these are, if anyone's. Both have a quarter of the
    channels each for the sine and cosine of either coordinate, and zeros for the class token; MAE
    begins with the column, MoCo v3 with the row."""
    usable = positions_1TD.is_floating_point() and not positions_1TD.is_meta
    if positions_1TD.ndim != 3 or positions_1TD.layout != torch.strided or not usable:
        return ""
    count, tokens, width = positions_1TD.shape
    grid = math.isqrt(max(tokens - 1, 0))
    if count != 1 or not grid or grid * grid != tokens - 1 or not width or width % 4:
        return ""
    for origin, column_first in (("MAE", True), ("MoCo v3", False)):
        if torch.allclose(
            positions_1TD[0].float(), sine_cosine(grid, width, column_first), atol=2e-3
        ):
            return origin  # type: ignore[return-value]
    return ""


def sine_cosine(grid: int, width: int, column_first: bool) -> Tensor:
    """Fixed position embeddings [1 + grid * grid, width]."""
    frequency = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    first, second = (column, row) if column_first else (row, column)
    angles = [place[:, None] * frequency for place in (first, second)]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(waves, dim=1), (0, 0, 1, 0))


def untouched(state: State) -> bool:
    """Whether every LayerNorm still has its initial values."""
    norms = {name: t for name, t in state.items() if re.search(r"(^|\.)norm\d?\.", name)}
    return all(bool((t == float(name.endswith("weight"))).all()) for name, t in norms.items())
