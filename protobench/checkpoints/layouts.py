"""Where the public code bases keep a backbone in their checkpoints, as one list of facts; imports
no torch.

Names are compared without the wrappers ``module.`` and ``_orig_mod.``, which may stand anywhere,
and begin with the dictionaries that hold them: ``state_dict/encoder_q.conv1.weight``. A layout fits
a file if it explains every ResNet in it. Exactly one must fit; none or two is an error, never a
guess."""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime.errors import UserError

Copy = Literal["query", "momentum"]


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is read, where the file itself leaves a choice."""

    weights: Literal["auto", "query", "momentum"] = "auto"
    """query: the trained encoder. momentum: its moving average or teacher. auto: the one that its
    authors evaluate"""
    prefix: str | None = None
    """what stands before conv1.weight, where a file fits no layout or several, or another copy is
    wanted"""
    drop: tuple[str, ...] = ()
    """names beside layer1 … layer4 that are heads and may be left out"""
    arch: str | None = None
    """refuse any other architecture than this, resnet50 for example; it is always read from the
    weights"""
    normalisation: str | None = None
    """imagenet, 0-1 (none), cifar10, cifar100, or three means and three deviations separated by
    commas"""
    resize: int | None = None
    """pixels of the shorter side; default 256, or 32 for a CIFAR stem"""
    crop: int | None = None
    """pixels of the centre crop; default 224, or 32 for a CIFAR stem"""
    sha256: str | None = None
    """refuse the file unless its hash begins so"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the network's arithmetic. bf16 is faster; how far extracted features differ is measured,
    printed and recorded"""


@dataclass(frozen=True)
class Layout:
    """One way of naming a backbone's tensors."""

    origin: str
    query: str = ""
    """what stands before conv1 in the trained copy, inside a container"""
    momentum: str | None = None
    """the same for the moving average, or the teacher"""
    containers: tuple[str, ...] = ("state_dict/", "", "model/", "model_state_dict/")
    """dictionaries around it; the momentum copy lies in the same one unless it names its own"""
    marks: tuple[str, ...] = ()
    """patterns of which each must match an entry or a name"""
    without: tuple[str, ...] = ()
    """patterns of which none may"""
    rename: tuple[tuple[str, str], ...] = ()
    """patterns and what to put for them; the first that matches a name (behind the prefix) is
    used"""
    heads: tuple[str, ...] = ()
    """names behind the prefix that may be left out, beside HEADS"""
    projection: str = ""
    """what stands before the projection head behind the prefix, where its shape is known: linear,
    or two layers with a ReLU"""
    others: tuple[str, ...] = ()
    """prefixes of further ResNets that such files hold, duplicates and copies that nobody
    evaluates"""
    evaluated: Copy = "query"
    """the copy that the authors evaluate"""
    normalisation: str | None = "imagenet"
    """of the inputs; None: the file does not tell, and it must be given"""
    wide_normalisation: str | None = "imagenet"
    """the same for 2x and 4x wide networks"""
    cifar_normalisation: str | dict[str, str] | None = None
    """the same for a CIFAR stem; by data set where the file holds the name of that
    (``opt.dataset``)"""
    cifar_stem: str = "cifar"
    """what a 3x3 stem stands for (backbones.STEMS)"""
    refused: str = ""
    """why such a file cannot be evaluated, if it cannot"""


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
"""Names beside the backbone's own that belong to heads wherever they stand."""

TENSORFLOW = "(convolutions lie in memory as TensorFlow writes them)"
"""A fact about the tensors that counts among the entries: no name tells a converted file, its
strides do."""
_TF = re.escape(TENSORFLOW)
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
    # mmengine's EMAHook swaps the two as it saves: the averaged weights, which it evaluates, lie in
    # state_dict. (mmcv 1.x swaps too, and keeps the others as buffers named
    # ema_backbone_conv1_weight; BatchNorm's statistics have none, so none is loaded.)
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
    # Elsewhere the names are believed. Who evaluates which is not known, so it is the trained copy,
    # as where there is but one.
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
            "its convolutions pad one side only, as TensorFlow's do; no network here does, and"
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
    ),  # what is named "backbone" there is the teacher
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
        refused="that network has no ReLU behind its first convolution; no other does",
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
)


# Recognition --------------------------------------------------------------------------------------

BACKBONE = re.compile(r"(conv1|bn1|layer[1-4])\.")
_BLOCK = re.compile(r"^(|.*?[./])layer[1-4]\.\d+\.\w+")
_WRAPPER = re.compile(r"(?:^|(?<=[./]))(?:module|_orig_mod)\.")
_TRANSFORMER = re.compile(r"cls_token|class_token|patch_embed|pos_embed|(^|[./])blocks\.\d")


@dataclass(frozen=True)
class Match:
    """Where a file keeps its backbone. prefix: container and prefix of the copy taken, without
    wrappers."""

    layout: Layout
    copy: Copy
    prefix: str


def strip(name: str) -> str:
    """A name without what DataParallel, DistributedDataParallel and torch.compile put into it."""
    return _WRAPPER.sub("", name)


def recognise(
    path: Path,
    names: Collection[str],
    entries: Collection[str],
    reading: LoadOptions,
    prefer: Copy | None = None,
) -> Match:
    """The one layout that explains the file, and the copy that ``reading`` asks for; where it
    leaves that open, the one to ``prefer`` if the file holds it.

    ``names`` are stripped, ``entries`` those at the file's top level. Raises UserError where no
    layout fits or several do, and where the copy asked for is not in the file."""
    found = sorted({match[1] for name in names if (match := _BLOCK.match(name))})
    fitting = [
        (layout, container)
        for layout in LAYOUTS
        if _marked(layout, [*entries, *names])
        for container in layout.containers
        if _explains(layout, container, names, found)
    ]
    if reading.prefix is not None and (len(fitting) != 1 or reading.weights != "auto"):
        return _given(path, reading, found, entries)
    if not fitting:
        raise _unknown(path, names, found)
    if len(fitting) > 1:
        raise UserError(
            "two layouts fit: "
            + " and ".join(
                f"{layout.origin} ({container}{layout.query})" for layout, container in fitting
            ),
            at=path,
            hint=(
                "--prefix says where the backbone lies, "
                "--normalisation how its inputs were normalised"
            ),
        )
    ((layout, container),) = fitting
    if layout.refused:
        raise UserError(f"{layout.origin}: {layout.refused}", at=path)
    places: dict[Copy, str] = {}
    for copy, prefix in (("query", layout.query), ("momentum", layout.momentum)):
        if prefix is not None and _has_blocks(layout, container + prefix, names):
            places[copy] = container + prefix  # type: ignore[index]
    if reading.prefix is not None:
        chosen = [
            copy
            for copy, place in places.items()
            if strip(reading.prefix) in (place, place.rpartition("/")[2])
        ]
        if not chosen:
            return _given(path, reading, found, entries)
        return Match(layout, chosen[0], places[chosen[0]])
    copy = (
        reading.weights
        if reading.weights != "auto"
        else prefer
        if prefer in places
        else layout.evaluated
    )
    if copy not in places:
        raise UserError(
            f"this {layout.origin} file holds no {copy} copy of the backbone",
            at=path,
            hint=(
                f"--weights {'query' if copy == 'momentum' else 'momentum'} takes the one it holds"
            ),
        )
    return Match(layout, copy, places[copy])


def backbone(layout: Layout, prefix: str, names: Iterable[str]) -> dict[str, str]:
    """torchvision's name -> the file's, of everything behind the prefix; whether it belongs to the
    backbone or not.

    UserError where two names become one.
    """
    found: dict[str, str] = {}
    for name in names:
        behind = name.startswith(prefix) and "/" not in name[len(prefix) :]
        if (
            behind
            and (other := found.setdefault(_renamed(layout, name[len(prefix) :]), name)) != name
        ):
            raise UserError(
                f"two tensors of a {layout.origin} file are one in the backbone: {other} and {name}"
            )
    return found


def _renamed(layout: Layout, name: str) -> str:
    for pattern, replacement in layout.rename:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _marked(layout: Layout, keys: list[str]) -> bool:
    def there(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in keys)

    return all(map(there, layout.marks)) and not any(map(there, layout.without))


def _explains(layout: Layout, container: str, names: Collection[str], found: list[str]) -> bool:
    """Whether there is a backbone where the layout has it, and no other ResNet in the file."""
    prefixes = [
        container + prefix
        for prefix in (layout.query, layout.momentum, *layout.others)
        if prefix is not None
    ]
    if not set(found) <= set(prefixes) or not any(
        _has_blocks(layout, prefix, names) for prefix in prefixes[:2]
    ):
        return False
    renamed = (
        (name[:end], name[end:], _renamed(layout, name[end:]))
        for name in names
        if layout.rename
        for end in _splits(name)
    )
    return {
        root
        for root, tail, new in renamed
        if new != tail and BACKBONE.match(new) and _BLOCK.match(new)
    } <= set(prefixes)


def _splits(name: str) -> list[int]:
    """Where a prefix may end: before the first letter, and behind every dot and slash."""
    return [0, *(place.end() for place in re.finditer(r"[./]", name))]


def _has_blocks(layout: Layout, prefix: str, names: Collection[str]) -> bool:
    return any(
        BACKBONE.match(renamed) and _BLOCK.match(renamed)
        for name in names
        if name.startswith(prefix)
        and "/" not in name[len(prefix) :]
        and (renamed := _renamed(layout, name[len(prefix) :]))
    )


def _given(path: Path, reading: LoadOptions, found: list[str], entries: Collection[str]) -> Match:
    """A backbone under torchvision's names where no layout says what it is: its normalisation must
    be given as well."""
    wanted = strip(reading.prefix or "")
    chosen = [root for root in found if wanted in (root, root.rpartition("/")[2])]
    if len(chosen) != 1:
        raise UserError(
            f"{len(chosen) or 'no'} ResNets under --prefix {reading.prefix!r}",
            at=path,
            hint=f"the file has: {', '.join(map(repr, chosen or found)) or 'none'}",
        )
    if TENSORFLOW in entries:
        raise UserError(
            "the file was converted from TensorFlow, whose networks may pad one side only; no"
            " layout says so here",
            at=path,
            hint=(
                "bring it in the layout of a converter that is known: python -m protobench layouts"
            ),
        )
    return Match(
        Layout("prefix given", normalisation=None, wide_normalisation=None), "query", chosen[0]
    )


def _unknown(path: Path, names: Collection[str], found: list[str]) -> UserError:
    if not names:
        return UserError(
            "no known layout: the file holds no tensors",
            at=path,
            hint="save the network's state_dict()",
        )
    if not found:
        first = ", ".join(sorted(names)[:3])
        if any(_TRANSFORMER.search(name) for name in names):
            return UserError(
                "this is a vision transformer; the papers' evaluations are of ResNets",
                at=path,
                hint=f"its first names are {first}",
            )
        if all(name.startswith("optim") for name in names):
            return UserError(
                "the file holds the state of an optimiser, and no network",
                at=path,
                hint=f"its first names are {first}",
            )
        return UserError(
            f"no known layout: none of its {len(names)} tensors belongs to a ResNet",
            at=path,
            hint=f"its first names are {first}",
        )
    places = [
        (layout, container + prefix)
        for layout in LAYOUTS
        for container in layout.containers
        for prefix in (layout.query, layout.momentum)
        if prefix is not None
    ]
    layout, prefix = max(
        places, key=lambda place: SequenceMatcher(None, place[1], found[0]).ratio()
    )
    nearest = f"nearest: {layout.origin}, which has {prefix}conv1.weight"
    sharing = {layout.origin for layout, place in places if place == prefix}
    if len(found) > 1:
        nearest = "no layout has a ResNet in each of these places"
    elif len(sharing) > 2:  # none of them is nearer than the others
        nearest = (
            f"{len(sharing)} known layouts have {prefix}conv1.weight, each with other things"
            " beside it"
        )
    elif prefix in found:
        nearest += " too, but other things beside it"
    which = (
        (found[0].rpartition("/")[2] or "''")
        if len(found) == 1
        else f"one of {', '.join(map(repr, found))}"
    )
    return UserError(
        f"no known layout: ResNets lie under {', '.join(repr(root) for root in found)}",
        at=path,
        hint=(
            f"{nearest}. If you know better: --prefix {which} --normalisation imagenet (or how its"
            " inputs were)"
        ),
    )


def normalisation(text: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation from a name or six numbers; UserError for anything else."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        a, b, c, d, e, f = map(float, text.split(","))
        if min(d, e, f) <= 0 or not all(map(math.isfinite, (a, b, c, d, e, f))):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--normalisation {text!r} is no normalisation",
            hint=f"{', '.join(NORMALISATIONS)}, or six numbers: 0.49,0.48,0.45,0.25,0.24,0.26",
        ) from None
    return (a, b, c), (d, e, f)


def eval_input(
    path: Path, layout: Layout, *, cifar: bool, wide: bool, dataset: object, given: str | None
) -> EvalInput:
    """What the encoder expects. UserError where neither the file nor ``given`` tells the
    normalisation."""
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
            f"the file does not tell how the inputs of this {kind} were normalised",
            at=path,
            hint=f"say it with --normalisation: {', '.join(NORMALISATIONS)}, or six numbers",
        )
    mean, std = normalisation(known)
    return EvalInput(32, 32, mean, std) if cifar else EvalInput(mean=mean, std=std)
