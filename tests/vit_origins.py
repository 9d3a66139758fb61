"""Vision transformers as each code base writes them: containers, names, heads, other copies, from
the facts of its public code. ``mine`` are the weights that its authors evaluate, ``other`` those of
a further copy, both with timm's names."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from origins import head, linear, optimizer, training, under
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """``build(mine, other)`` gives the file's content; the rest is what loading it must find."""

    layout: str
    build: Callable[[State, State], Any]
    dropped: str = ""
    copy: str = "query"
    other: bool = False
    """whether the other copy can be had with --weights"""
    network: tuple[str, int, int] = ("vit_tiny", 16, 224)
    """name, patch, and pixels of the images that the positions are for"""
    positions: str = ""
    """whose fixed position embeddings it has"""
    layer_scale: bool = False
    heads: int | None = None
    normalisation: str | None = "imagenet"
    """None: must be given"""
    suffix: str = ".pth"


WIDTH_HEADS = {"vit_tiny": (192, 3), "vit_small": (384, 6)}


@cache
def network(origin: Origin, seed: int) -> nn.Module:
    """timm's network of this origin, with weights and norms unlike any initialisation's."""
    from timm.models.vision_transformer import VisionTransformer

    (size, patch, side), generator = origin.network, torch.Generator().manual_seed(seed)
    width, usual = WIDTH_HEADS[size]
    made = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=width,
        num_heads=origin.heads or usual,
        init_values=1.0 if origin.layer_scale else None,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
    ).eval()
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            spread = 0.03 if tensor.ndim == 2 or name == "patch_embed.proj.weight" else 0.2
            tensor.normal_(0, spread, generator=generator)
            if tensor.ndim == 1 and name.endswith(("weight", "gamma")):
                tensor.add_(1)
        if origin.positions:
            made.pos_embed.copy_(fixed(origin.positions, side // patch, width))
    return made


def fixed(origin: str, grid: int, width: int) -> Tensor:
    """Fixed position embeddings [1, 1 + grid * grid, width], number by number."""
    rows = [torch.zeros(width, dtype=torch.float64)]
    for row in range(grid):
        for column in range(grid):
            places = (column, row) if origin == "MAE" else (row, column)
            quarter = width // 4
            angle = [[place / 10_000 ** (i / quarter) for i in range(quarter)] for place in places]
            (a, b) = torch.tensor(angle, dtype=torch.float64)
            rows.append(torch.cat([a.sin(), a.cos(), b.sin(), b.cos()]))
    return torch.stack(rows)[None].float()


def dino(mine: State, other: State, loss: str, **more: Any) -> dict[str, Any]:
    """What DINO's and iBOT's training scripts save."""
    heads = head("head.mlp.", 192, 64, 32) | {"head.last_layer.weight_v": torch.ones(16, 32)}
    return {
        "student": under("module.backbone.", other) | under("module.", heads),
        "teacher": under("backbone.", mine) | heads,
        "optimizer": optimizer(other),
        "epoch": 100,
        "args": Namespace(arch="vit_tiny", patch_size=16),
        loss: {"center": torch.zeros(1, 16)},
        **more,
    }


def decoder(width: int) -> State:
    """MAE's, of one block and width 8."""
    block = {
        "norm1.weight": 8,
        "attn.qkv.weight": (24, 8),
        "attn.proj.weight": (8, 8),
        "mlp.fc1.weight": (32, 8),
    }
    return {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.ones(8, width),
        "decoder_pos_embed": fixed("MAE", 14, 8),
        **{f"decoder_blocks.0.{name}": torch.ones(shape) for name, shape in block.items()},
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(768, 8),
    }


def in_chunks(state: State, blocks: int = 3) -> State:
    """DINOv2's names while it trains: block 4 is the second of chunk 1, blocks.1.4."""

    def name_of(name: str) -> str:
        words = name.split(".")
        if words[0] == "blocks":
            words.insert(1, str(int(words[1]) // blocks))
        return ".".join(words)

    return {name_of(name): tensor for name, tensor in state.items()}


MASK = {"mask_token": torch.zeros(1, 192)}
HEAD = linear("head.", width=192)

ORIGINS = {
    "DINO": Origin("DINO", lambda m, o: m),
    "DINO, patches of 8": Origin("DINO", lambda m, o: m, network=("vit_tiny", 8, 224)),
    "DINO, full checkpoint": Origin(
        "DINO",
        lambda m, o: dino(m, o, "dino_loss", fp16_scaler={"scale": 1.0}),
        "dino_loss head optimizer student",
        "momentum",
        other=True,
    ),
    "iBOT": Origin("iBOT", lambda m, o: {"state_dict": m}),
    "iBOT, student": Origin(
        "iBOT",
        lambda m, o: {"state_dict": m | {"masked_embed": torch.zeros(1, 192)}},
        "masked_embed",
    ),
    "iBOT, full checkpoint": Origin(
        "iBOT",
        lambda m, o: dino(m, o | {"masked_embed": torch.zeros(1, 192)}, "ibot_loss"),
        "head ibot_loss optimizer student",
        "momentum",
        other=True,
    ),
    "MoCo v3, ViT-S": Origin(
        "MoCo v3",
        lambda m, o: training(
            under("module.base_encoder.", m)
            | head("module.base_encoder.head.", 384, 64, 16)
            | under("module.momentum_encoder.", o)
            | head("module.momentum_encoder.head.", 384, 64, 16)
            | head("module.predictor.", 16, 16),
            scaler={"scale": 1.0},
        ),
        "base_encoder.head momentum_encoder optimizer predictor",
        other=True,
        network=("vit_small", 16, 224),
        positions="MoCo v3",
        heads=12,
    ),
    "MoCo v3, its linear probe": Origin(
        "MoCo v3",
        lambda m, o: training(under("module.", m | HEAD)),
        "head optimizer",
        positions="MoCo v3",
    ),
    "MoCo v3, converted for DeiT": Origin(
        "MoCo v3", lambda m, o: {"model": m}, positions="MoCo v3"
    ),
    "MAE": Origin("MAE", lambda m, o: {"model": m}, positions="MAE"),
    "MAE, with decoder": Origin(
        "MAE",
        lambda m, o: {"model": m | decoder(192), "optimizer": optimizer(m), "epoch": 800},
        "decoder_blocks decoder_embed decoder_norm decoder_pos_embed decoder_pred mask_token"
        " optimizer",
        positions="MAE",
    ),
    "DINOv2": Origin(
        "DINOv2",
        lambda m, o: m | MASK,
        "mask_token",
        network=("vit_tiny", 14, 518),
        layer_scale=True,
    ),
    "DINOv2, training": Origin(
        "DINOv2",
        lambda m, o: {
            "teacher": under("backbone.", in_chunks(m | MASK)) | head("dino_head.mlp.", 192, 64)
        },
        "backbone.mask_token dino_head",
        "momentum",
        network=("vit_tiny", 14, 224),
        layer_scale=True,
    ),
    "timm": Origin("timm", lambda m, o: m | HEAD, "head", normalisation=None),
    "timm, 384 pixels": Origin(
        "timm",
        lambda m, o: m | HEAD,
        "head",
        network=("vit_tiny", 16, 384),
        normalisation=None,
    ),
    "timm, safetensors without a head": Origin(
        "timm", lambda m, o: m, normalisation=None, suffix=".safetensors"
    ),
    "timm, training": Origin(
        "timm, with averaged weights",
        lambda m, o: training(
            o | HEAD, state_dict_ema=m | HEAD, args=Namespace(model="vit_tiny_patch16_224")
        ),
        "head optimizer state_dict",
        "momentum",
        other=True,
        normalisation=None,
    ),
    "DeiT": Origin("timm", lambda m, o: {"model": m | HEAD}, "head", normalisation=None),
}
