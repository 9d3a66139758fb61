"""Where public code bases keep a backbone in their checkpoints, as one list of facts. Imports no
torch.

Names are compared without the wrappers ``module.`` and ``_orig_mod.``, which may be anywhere in
them, and begin with the dictionaries that hold them: ``state_dict/encoder_q.conv1.weight``. A
layout fits a file if it explains every ResNet, or every vision transformer, in it (see
recognise.py)."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime.errors import UserError

Copy = Literal["query", "momentum"]
Feature = Literal["class", "patches", "class+patches", "last4"]


@dataclass(frozen=True)
class LoadOptions:
    """How to read a checkpoint, as far as the file leaves a choice."""

    weights: Literal["auto", "query", "momentum"] = "auto"
    """query: the trained encoder. momentum: its moving average, or the teacher. auto: the one that
    its authors evaluate"""
    prefix: str | None = None
    """what comes before conv1.weight in the file; needed if it fits no layout or several, or for
    another copy"""
    drop: tuple[str, ...] = ()
    """names beside layer1 … layer4 that are heads, to be left out"""
    arch: str | None = None
    """refuse any architecture but this one, for example resnet50; the weights tell which it is"""
    normalisation: str | None = None
    """imagenet, 0-1 (none), cifar10, cifar100, or three means and three standard deviations,
    separated by commas"""
    resize: int | None = None
    """pixels of the shorter side; default 256, or 32 for a CIFAR stem; for a vision transformer 8/7
    of the crop"""
    crop: int | None = None
    """pixels of the centre crop; default 224, or 32 for a CIFAR stem; for a vision transformer of
    timm what its positions are for"""
    vit_feature: Feature | None = None
    """a vision transformer's feature, after its last norm: its class token (the default), the mean
    of its patches, both, or the class tokens of its last four blocks"""
    sha256: str | None = None
    """refuse the file unless its hash begins with this"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """precision of the network's arithmetic. fp32 is IEEE's, on GPUs too. tf32 (of convolutions on
    a GPU) and bf16 are faster; how far features extracted in bf16 differ is measured, printed and
    recorded"""


@dataclass(frozen=True)
class Transformer:
    """What the tensors of a code base's vision transformers do not show."""

    positions: Literal["dino", "mae", "timm"]
    """how it makes position embeddings for images of another size (vit.INTERPOLATION)"""
    sides: tuple[int, ...] = ()
    """pixels of the images that its position embeddings are for; empty: any"""
    crop: int | None = None
    """pixels at which it evaluates; None: those that the position embeddings are for"""
    heads: tuple[tuple[int, int], ...] = ()
    """widths whose number of attention heads is not the usual one (vit.SIZES), and that number"""


@dataclass(frozen=True)
class Layout:
    """One way of naming a backbone's tensors."""

    origin: str
    query: str = ""
    """what comes before conv1, or before patch_embed, in the trained copy, inside a container"""
    momentum: str | None = None
    """the same for the moving average, or the teacher"""
    containers: tuple[str, ...] = ("state_dict/", "", "model/", "model_state_dict/")
    """dictionaries that may hold it; the momentum copy is in the same one unless it names its
    own"""
    marks: tuple[str, ...] = ()
    """patterns that must each match an entry or a name"""
    without: tuple[str, ...] = ()
    """patterns that must not"""
    rename: tuple[tuple[str, str], ...] = ()
    """patterns and replacements; the first that matches a name (after the prefix) is used"""
    heads: tuple[str, ...] = ()
    """names after the prefix that may be left out, beside HEADS"""
    projection: str = ""
    """what comes before the projection head's names, after the prefix, if its shape is known
    (heads.py)"""
    others: tuple[str, ...] = ()
    """prefixes of further ResNets in such files: duplicates, and copies that nobody evaluates"""
    evaluated: Copy = "query"
    """the copy that the authors evaluate"""
    normalisation: str | None = "imagenet"
    """of the inputs; None: unknown, so the user must give it"""
    wide_normalisation: str | None = "imagenet"
    """the same, for 2x and 4x wide networks"""
    cifar_normalisation: str | dict[str, str] | None = None
    """the same, for a CIFAR stem; by data set if the file names that (``opt.dataset``)"""
    cifar_stem: str = "cifar"
    """what a 3x3 stem means (resnet.STEMS)"""
    refused: str = ""
    """why such a file cannot be evaluated"""
    transformer: Transformer | None = None
    """facts about its vision transformers; None: its networks are ResNets"""


HEADS = (
    "fc",
    "fc1",
    "fc2",
    "head",
    "heads",
    "classifier",
    "linear",
    "projector",
    "projection_head",
    "predictor",
    "prototypes",
    "queue",
    "queue_ptr",
)
"""Names beside the backbone's own that belong to heads in any layout."""

TENSORFLOW = "(convolutions have TensorFlow's memory layout)"
"""A fact about the tensors that counts as an entry: no name marks a converted file, but its strides
do."""
SAFETENSORS = "(a safetensors file)"
FIXED_POSITIONS = "(position embeddings: {}'s fixed ones)"
"""Further facts that count as entries; vit.fixed_positions recognises the second."""
_TF, _SAFETENSORS = map(re.escape, (TENSORFLOW, SAFETENSORS))
_LIGHTNING = r"^pytorch-lightning_version$"
_SOLO = (_LIGHTNING, r"^state_dict/(momentum_)?projector\.", r"^state_dict/classifier\.")
_DETECTOR = r"(^|/)(rpn_head|roi_head|bbox_head|mask_head|decode_head)\."
_SWAV = r"^(\w+/)?(prototypes|projection_head)\."
_SIMCLR2 = r"^net\.(\d)\.blocks\.(\d+)\."
_SEQUENTIAL = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^4\.", "layer1."),
    (r"^5\.", "layer2."),
    (r"^6\.", "layer3."),
    (r"^7\.", "layer4."),
)

_AVERAGED = r"^ema_state_dict/(.*\.)?layer1\."

_HEAD = r"(^|/)head\.weight$"
_MAE_POSITIONS, _MOCO_POSITIONS = (
    re.escape(FIXED_POSITIONS.format(origin)) for origin in ("MAE", "MoCo v3")
)
_DINO = Transformer("dino", sides=(224,))
_DINOV2 = Transformer("dino", sides=(518, 224), crop=224)
_MOCO_V3 = Transformer("timm", sides=(224,), heads=((384, 12),))
_MAE = Transformer("mae", sides=(224, 448))
_TIMM = Transformer("timm")

VISION_TRANSFORMERS: tuple[Layout, ...] = (
    Layout("MoCo v3", "base_encoder.", "momentum_encoder.", transformer=_MOCO_V3),
    Layout(  # after its linear probe, or its convert_to_deit.py
        "MoCo v3",
        marks=(_MOCO_POSITIONS,),
        without=(r"(^|[./])(base|momentum)_encoder\.",),
        transformer=_MOCO_V3,
    ),
    Layout(
        "MAE",
        containers=("model/", "state_dict/", ""),
        marks=(_MAE_POSITIONS,),
        heads=(
            "mask_token",
            "decoder_embed",
            "decoder_pos_embed",
            "decoder_blocks",
            "decoder_norm",
            "decoder_pred",
        ),
        transformer=_MAE,
    ),
    Layout(
        "DINO",
        "student/backbone.",
        "teacher/backbone.",
        ("",),
        without=(r"^ibot_loss(/|$)", r"^teacher/dino_head\."),
        evaluated="momentum",
        transformer=_DINO,
    ),
    Layout(
        "iBOT",
        "student/backbone.",
        "teacher/backbone.",
        ("",),
        marks=(r"^ibot_loss(/|$)",),
        heads=("masked_embed",),
        evaluated="momentum",
        transformer=_DINO,
    ),
    # What both publish beside that: one copy of the backbone without a head, DINO's as it is,
    # iBOT's in a dictionary (its extract_backbone_weights.py).
    *(
        Layout(
            origin,
            containers=(container,),
            without=(
                _HEAD,
                _SAFETENSORS,
                _MAE_POSITIONS,
                _MOCO_POSITIONS,
                r"(^|/)mask_token$",
                r"^state_dict_ema/",
                r"\.ls1\.",
            ),
            heads=("masked_embed",),
            transformer=_DINO,
        )
        for origin, container in (("DINO", ""), ("iBOT", "state_dict/"))
    ),
    Layout(
        "DINOv2",
        containers=("",),
        marks=(r"^mask_token$", r"^blocks\.0\.ls1\.gamma$"),
        heads=("mask_token",),
        transformer=_DINOV2,
    ),
    Layout(  # its blocks are in chunks, for FSDP: blocks.0.3.norm1.weight
        "DINOv2",
        momentum="backbone.",
        containers=("teacher/",),
        marks=(r"^teacher/dino_head\.",),
        rename=((r"^blocks\.\d+\.(?=\d+\.)", "blocks."),),
        heads=("mask_token",),
        evaluated="momentum",
        transformer=_DINOV2,
    ),
    *(
        Layout(
            "timm",
            containers=("", "model/", "state_dict/"),
            marks=(mark,),
            without=(*without, _MAE_POSITIONS, _MOCO_POSITIONS, r"(^|/)mask_token$", _DETECTOR),
            normalisation=None,
            transformer=_TIMM,
        )
        for mark, without in (
            (_HEAD, (r"^state_dict_ema/",)),
            (_SAFETENSORS, (_HEAD,)),
        )
    ),
    Layout(
        "timm, with averaged weights",
        "state_dict/",
        "state_dict_ema/",
        ("",),
        (r"^state_dict_ema/",),
        evaluated="momentum",
        normalisation=None,
        transformer=_TIMM,
    ),
)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "protobench",
        "",
        "momentum.",
        ("",),
        (r"^projection\.",),
        heads=("projection", "momentum"),
        projection="projection.",
    ),
    Layout(
        "torchvision's names",
        without=(_TF, _SWAV, r"^state_dict_ema/", r"^projection\."),
        wide_normalisation=None,
    ),
    Layout(
        "timm, with averaged weights",
        "state_dict/",
        "state_dict_ema/",
        ("",),
        (r"^state_dict_ema/",),
        evaluated="momentum",
    ),
    # mmengine's EMAHook swaps the two when it saves: the averaged weights, which it evaluates, are
    # in state_dict. (mmcv 1.x swaps too, and keeps the others as buffers named
    # ema_backbone_conv1_weight; they lack BatchNorm's statistics, so they are not loaded.)
    *(
        Layout(
            "mmengine, with averaged weights",
            f"ema_state_dict/{prefix}",
            f"state_dict/{prefix}",
            ("",),
            (r"^meta$", _AVERAGED),
            (_DETECTOR,),
            evaluated="momentum",
        )
        for prefix in ("backbone.", "")
    ),
    # Elsewhere the names are taken at their word. Which copy is evaluated is unknown, so it is the
    # trained one, as in files that hold only one.
    *(
        Layout(
            "another, with averaged weights",
            f"state_dict/{prefix}",
            f"ema_state_dict/{prefix}",
            ("",),
            (_AVERAGED,),
            (r"^meta$", _DETECTOR),
        )
        for prefix in ("backbone.", "")
    ),
    Layout("MoCo, PCL or MoPro", "encoder_q.", "encoder_k.", projection="fc."),
    Layout("MoCo v3", "base_encoder.", "momentum_encoder."),
    Layout("SimSiam", "encoder.", marks=(r"^\w+/predictor\.",), without=(_LIGHTNING,)),
    Layout(
        "SwAV or DeepCluster v2",
        marks=(_SWAV,),
        normalisation="0.485,0.456,0.406,0.228,0.224,0.225",  # .228: as there
        wide_normalisation="0.485,0.456,0.406,0.228,0.224,0.225",
    ),
    Layout("DINO", "student/backbone.", "teacher/backbone.", ("",), evaluated="momentum"),
    Layout(
        "Barlow Twins or VICReg",
        "backbone.",
        containers=("model/",),
        marks=(r"^model/projector\.",),
    ),
    Layout(
        "PyContrast or CMC", "model/encoder.", "model_ema/encoder.", ("",), (r"^contrast(/|$)",)
    ),
    Layout(
        "SupContrast",
        "encoder.",
        containers=("model/",),
        marks=(r"^opt$", r"\.shortcut\."),
        rename=((r"\bshortcut\.", "downsample."),),
        cifar_normalisation={
            "cifar10": "0.4914,0.4822,0.4465,0.2023,0.1994,0.2010",
            "cifar100": "0.5071,0.4867,0.4408,0.2675,0.2565,0.2761",
        },
    ),
    Layout(
        "sthalles/SimCLR",
        "backbone.",
        marks=(r"^arch$", r"/backbone\.fc\.2\."),
        normalisation="0-1",
    ),
    Layout(
        "SimCLR, converted from TensorFlow",
        containers=("state_dict/",),
        marks=(_TF,),
        normalisation="0-1",
        wide_normalisation="0-1",
    ),
    Layout(
        "SimCLR v2, converted from TensorFlow",
        containers=("resnet/",),
        normalisation="0-1",
        wide_normalisation="0-1",
        marks=(r"^resnet/net\.4\.",),
        rename=(
            (r"^net\.0\.0\.", "conv1."),
            (r"^net\.0\.1\.0\.", "bn1."),
            (_SIMCLR2 + r"projection\.shortcut\.", r"layer\1.\2.downsample.0."),
            (_SIMCLR2 + r"projection\.bn\.0\.", r"layer\1.\2.downsample.1."),
            *(
                (_SIMCLR2 + rf"net\.{2 * n - 2}\.(?=weight)", rf"layer\1.\2.conv{n}.")
                for n in (1, 2, 3)
            ),
            *((_SIMCLR2 + rf"net\.{2 * n - 1}\.0\.", rf"layer\1.\2.bn{n}.") for n in (1, 2, 3)),
        ),
    ),
    Layout(
        "BYOL, or another, converted from JAX or TensorFlow",
        containers=("",),
        marks=(_TF,),
        refused=(
            "its convolutions pad one side only, as TensorFlow's do; no network here does, so"
            " features would be shifted"
        ),
    ),
    Layout("AugNet", "pre.", containers=("", "state_dict/"), marks=(r"^(state_dict/)?pre\.fc\.",)),
    Layout(
        "SPCL",
        containers=("encoder/",),
        marks=(r"^encoder/stem\.conv0\.",),
        heads=("unused",),
        cifar_normalisation="cifar10",
        rename=(
            (r"^bn1\.", "unused.bn1."),
            (r"^stem\.conv0\.", "conv1."),
            (r"^stem\.BN1\.", "bn1."),
        ),
    ),
    Layout(
        "VISSL",
        "classy_state_dict/base_model/model/trunk/_feature_blocks.",
        "loss/moco_encoder.trunk._feature_blocks.",
        ("",),
        others=("classy_state_dict/ema_model/model/trunk/_feature_blocks.",),
    ),
    Layout("VISSL, trunk alone", "_feature_blocks."),
    Layout(
        "mmselfsup or mmpretrain",
        "backbone.",
        marks=(r"^meta$",),
        others=("encoder.0.",),
        without=(r"(^|/)(encoder_k|target_net)\.0\.", _DETECTOR),
    ),
    Layout(
        "mmselfsup or mmpretrain, MoCo",
        "backbone.",
        "encoder_k.0.",
        marks=(r"(^|/)encoder_k\.0\.",),
        others=("encoder_q.0.",),
    ),
    Layout(
        "mmselfsup or mmpretrain, BYOL",
        "backbone.",
        "target_net.0.",
        marks=(r"(^|/)target_net\.0\.",),
        others=("online_net.0.",),
    ),
    Layout(
        "solo-learn",
        "backbone.",
        "momentum_backbone.",
        ("state_dict/",),
        _SOLO,
        cifar_stem="cifar-padded",
        cifar_normalisation="0.4914,0.4822,0.4465,0.247,0.243,0.261",
    ),
    Layout(
        "solo-learn, before 2022",
        "encoder.",
        "momentum_encoder.",
        ("state_dict/",),
        _SOLO,
        cifar_stem="cifar-padded",
        cifar_normalisation="0.4914,0.4822,0.4465,0.247,0.243,0.261",
    ),
    Layout(
        "lightly or another Lightning module",
        "backbone.",
        None,
        ("state_dict/",),
        (_LIGHTNING,),
        (_SOLO[1],),
    ),
    Layout(
        "lightly, MoCo",
        "backbone.",
        "key_backbone.",
        ("state_dict/",),
        (r"^state_dict/key_backbone\.",),
    ),
    Layout(
        "lightly, BYOL",
        "backbone.",
        "teacher_backbone.",
        ("state_dict/",),
        (r"^state_dict/teacher_backbone\.",),
    ),
    Layout(
        "lightly, DINO",
        "student_backbone.",
        "backbone.",
        ("state_dict/",),
        (r"^state_dict/student_backbone\.",),
        evaluated="momentum",
    ),  # "backbone" is the teacher there
    Layout(
        "lightly, before 2021",
        "backbone.",
        "momentum_backbone.",
        ("state_dict/",),
        (r"^state_dict/momentum_backbone\.",),
        (_SOLO[1],),
    ),
    Layout(
        "lightly, CIFAR benchmark",
        "backbone.",
        "backbone_momentum.",
        ("state_dict/",),
        (r"^state_dict/backbone_momentum\.",),
    ),
    Layout(
        "lightly, sequential backbone",
        "backbone.",
        "backbone_momentum.",
        marks=(r"(^|/)backbone\.7\.0\.conv1\.",),
        rename=_SEQUENTIAL,
    ),
    Layout(
        "lightly, sequential ResNetGenerator",
        "backbone.",
        marks=(r"(^|/)backbone\.2\.0\.conv1\.",),
        rename=((r"^2\.", "layer1."),),
        refused="that network, unlike all others, has no ReLU after its first convolution",
    ),
    Layout("sequential", marks=(r"^(\w+/)?7\.0\.conv1\.",), rename=_SEQUENTIAL),
    Layout(
        "detectron2",
        containers=("model/", ""),
        marks=(r"^(model/)?stem\.conv1\.norm\.",),
        rename=(
            (r"^stem\.fc\.", "fc."),
            (r"^stem\.conv1\.norm\.", "bn1."),
            (r"^stem\.conv1\.", "conv1."),
            *(
                (rf"^res{n + 1}\.(\d+)\.shortcut\.norm\.", rf"layer{n}.\1.downsample.1.")
                for n in range(1, 5)
            ),
            *(
                (rf"^res{n + 1}\.(\d+)\.shortcut\.", rf"layer{n}.\1.downsample.0.")
                for n in range(1, 5)
            ),
            *(
                (rf"^res{n + 1}\.(\d+)\.conv(\d)\.norm\.", rf"layer{n}.\1.bn\2.")
                for n in range(1, 5)
            ),
            *((rf"^res{n + 1}\.", f"layer{n}.") for n in range(1, 5)),
        ),
    ),
    *VISION_TRANSFORMERS,
)
"""All layouts. Those of ResNets explain ResNets alone, and the others vision transformers."""


def normalisation(text: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns mean and std for a name or six numbers; raises UserError for anything else."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        a, b, c, d, e, f = map(float, text.split(","))
        if min(d, e, f) <= 0 or not all(map(math.isfinite, (a, b, c, d, e, f))):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--normalisation {text!r} is not a normalisation",
            hint=f"{', '.join(NORMALISATIONS)}, or six numbers: 0.49,0.48,0.45,0.25,0.24,0.26",
        ) from None
    return (a, b, c), (d, e, f)


def eval_input(
    path: Path, layout: Layout, *, cifar: bool, wide: bool, dataset: object, given: str | None
) -> EvalInput:
    """Returns the input that the encoder expects. Raises UserError if neither the file nor
    ``given`` tells the normalisation."""
    known = (
        layout.cifar_normalisation
        if cifar
        else layout.wide_normalisation
        if wide
        else layout.normalisation
    )
    known = given or (known.get(str(dataset)) if isinstance(known, dict) else known)
    if known is None:
        kind = "CIFAR-stem network" if cifar else "wide network" if wide else "network"
        raise UserError(
            f"the file does not say how the inputs of this {kind} were normalised",
            at=path,
            hint=f"give --normalisation: {', '.join(NORMALISATIONS)}, or six numbers",
        )
    mean, std = normalisation(known)
    return EvalInput(32, 32, mean, std) if cifar else EvalInput(mean=mean, std=std)
