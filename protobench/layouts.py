"""Where the public code bases keep a backbone in their checkpoints, as one list of facts; imports no torch.

Names are compared without the wrappers ``module.`` and ``_orig_mod.``, which may stand anywhere, and begin with the
dictionaries that hold them: ``state_dict/encoder_q.conv1.weight``. A layout fits a file if it explains every ResNet in
it. Exactly one must fit; none or two is an error, never a guess.
"""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from protobench.errors import UserError
from protobench.transforms import NORMALISATIONS, EvalInput

Copy = Literal["query", "momentum"]


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is read, where the file itself leaves a choice."""

    weights: Literal["auto", "query", "momentum"] = "auto"
    """query: the trained encoder. momentum: its moving average or teacher. auto: the one that its authors evaluate"""
    prefix: str | None = None
    """what stands before conv1.weight, for files of no known layout"""
    drop: tuple[str, ...] = ()
    """names beside layer1 … layer4 that are heads and may be left out"""
    arch: str | None = None
    """refuse any other architecture than this, resnet50 for example; it is always read from the weights"""
    normalisation: str | None = None
    """imagenet, 0-1 (none), cifar10, cifar100, or three means and three deviations separated by commas"""
    resize: int | None = None
    """pixels of the shorter side; default 256, or 32 for a CIFAR stem"""
    crop: int | None = None
    """pixels of the centre crop; default 224, or 32 for a CIFAR stem"""
    sha256: str | None = None
    """refuse the file unless its hash begins so"""


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
    """patterns and what to put for them; the first that matches a name (behind the prefix) is used"""
    heads: tuple[str, ...] = ()
    """names behind the prefix that may be left out, beside HEADS"""
    twins: tuple[str, ...] = ()
    """further prefixes of the very same tensors"""
    evaluated: Copy = "query"
    """the copy that the authors evaluate"""
    normalisation: str | None = "imagenet"
    """of the inputs; None: the file does not tell, and it must be given"""
    wide_normalisation: str | None = "imagenet"
    """the same for 2x and 4x wide networks"""
    cifar_normalisation: str | dict[str, str] | None = None
    """the same for a CIFAR stem; by data set where the file holds the name of that (``opt.dataset``)"""
    cifar_stem: str = "cifar"
    """what a 3x3 stem stands for (backbones.STEMS)"""
    refused: str = ""
    """why such a file cannot be evaluated, if it cannot"""


HEADS = ("fc", "fc1", "fc2", "head", "heads", "classifier", "linear", "projector", "projection_head", "predictor", "prototypes",
         "queue", "queue_ptr")
"""Names beside the backbone's own that belong to heads wherever they stand."""

TENSORFLOW = "(convolutions lie in memory as TensorFlow writes them)"
"""A fact about the tensors that counts among the entries: no name tells a converted file, its strides do."""
_TF = re.escape(TENSORFLOW)
_LIGHTNING = r"^pytorch-lightning_version$"
_SOLO = r"^state_dict/(projector|classifier|momentum_classifier)\."
_SWAV = r"^(\w+/)?(prototypes|projection_head)\."
_SIMCLR2 = r"^net\.(\d)\.blocks\.(\d+)\."
_SEQUENTIAL = ((r"^0\.", "conv1."), (r"^1\.", "bn1."), (r"^4\.", "layer1."), (r"^5\.", "layer2."), (r"^6\.", "layer3."),
               (r"^7\.", "layer4."))

LAYOUTS: tuple[Layout, ...] = (
    Layout("torchvision's names", without=(_TF, _SWAV, r"^state_dict_ema/"), wide_normalisation=None),
    Layout("timm, with averaged weights", "state_dict/", "state_dict_ema/", ("",), (r"^state_dict_ema/",), evaluated="momentum"),
    Layout("MoCo, PCL or MoPro", "encoder_q.", "encoder_k."),
    Layout("MoCo v3", "base_encoder.", "momentum_encoder."),
    Layout("SimSiam", "encoder.", marks=(r"^\w+/predictor\.",), without=(_LIGHTNING,)),
    Layout("SwAV or DeepCluster v2", marks=(_SWAV,), normalisation="0.485,0.456,0.406,0.228,0.224,0.225",  # .228: as there
           wide_normalisation="0.485,0.456,0.406,0.228,0.224,0.225"),
    Layout("DINO", "student/backbone.", "teacher/backbone.", ("",), evaluated="momentum"),
    Layout("Barlow Twins or VICReg", "backbone.", containers=("model/",), marks=(r"^model/projector\.",)),
    Layout("PyContrast or CMC", "model/encoder.", "model_ema/encoder.", ("",), (r"^contrast(/|$)",)),
    Layout("SupContrast", "encoder.", containers=("model/",), marks=(r"^opt$", r"\.shortcut\."),
           rename=((r"\bshortcut\.", "downsample."),),
           cifar_normalisation={"cifar10": "0.4914,0.4822,0.4465,0.2023,0.1994,0.2010",
                                "cifar100": "0.5071,0.4867,0.4408,0.2675,0.2565,0.2761"}),
    Layout("sthalles/SimCLR", "backbone.", marks=(r"^arch$", r"/backbone\.fc\.2\."), normalisation="0-1"),
    Layout("SimCLR, converted from TensorFlow", containers=("state_dict/",), marks=(_TF,), normalisation="0-1",
           wide_normalisation="0-1"),
    Layout("SimCLR v2, converted from TensorFlow", containers=("resnet/",), normalisation="0-1", wide_normalisation="0-1",
           marks=(r"^resnet/net\.4\.",),
           rename=((r"^net\.0\.0\.", "conv1."), (r"^net\.0\.1\.0\.", "bn1."),
                   (_SIMCLR2 + r"projection\.shortcut\.", r"layer\1.\2.downsample.0."),
                   (_SIMCLR2 + r"projection\.bn\.0\.", r"layer\1.\2.downsample.1."),
                   *((_SIMCLR2 + rf"net\.{2 * n - 2}\.(?=weight)", rf"layer\1.\2.conv{n}.") for n in (1, 2, 3)),
                   *((_SIMCLR2 + rf"net\.{2 * n - 1}\.0\.", rf"layer\1.\2.bn{n}.") for n in (1, 2, 3)))),
    Layout("BYOL, converted from JAX", containers=("",), marks=(_TF,),
           refused="its convolutions pad one side only, as TensorFlow's do; no network here does, and features would be shifted"),
    Layout("SPCL", containers=("encoder/",), marks=(r"^encoder/stem\.conv0\.",), heads=("unused",), cifar_normalisation="cifar10",
           rename=((r"^bn1\.", "unused.bn1."), (r"^stem\.conv0\.", "conv1."), (r"^stem\.BN1\.", "bn1."))),
    Layout("VISSL", "classy_state_dict/base_model/model/trunk/_feature_blocks.", "loss/moco_encoder.trunk._feature_blocks.",
           ("",)),
    Layout("VISSL, trunk alone", "_feature_blocks."),
    Layout("mmselfsup or mmpretrain", "backbone.", marks=(r"^meta$",), twins=("encoder.0.",),
           without=(r"(^|/)(encoder_k|target_net)\.0\.",)),
    Layout("mmselfsup or mmpretrain, MoCo", "backbone.", "encoder_k.0.", marks=(r"(^|/)encoder_k\.0\.",),
           twins=("encoder_q.0.",)),
    Layout("mmselfsup or mmpretrain, BYOL", "backbone.", "target_net.0.", marks=(r"(^|/)target_net\.0\.",),
           twins=("online_net.0.",)),
    Layout("solo-learn", "backbone.", "momentum_backbone.", ("state_dict/",), (_LIGHTNING, _SOLO), cifar_stem="cifar-padded",
           cifar_normalisation="0.4914,0.4822,0.4465,0.247,0.243,0.261"),
    Layout("solo-learn, before 2022", "encoder.", "momentum_encoder.", ("state_dict/",), (_LIGHTNING,),
           cifar_stem="cifar-padded", cifar_normalisation="0.4914,0.4822,0.4465,0.247,0.243,0.261"),
    Layout("lightly", "backbone.", None, ("state_dict/",), (_LIGHTNING,), (_SOLO,)),
    Layout("lightly, MoCo", "backbone.", "key_backbone.", ("state_dict/",), (r"^state_dict/key_backbone\.",)),
    Layout("lightly, BYOL", "backbone.", "teacher_backbone.", ("state_dict/",), (r"^state_dict/teacher_backbone\.",)),
    Layout("lightly, DINO", "student_backbone.", "backbone.", ("state_dict/",), (r"^state_dict/student_backbone\.",),
           evaluated="momentum"),  # what is named "backbone" there is the teacher
    Layout("lightly, before 2021", "backbone.", "momentum_backbone.", ("state_dict/",), (r"^state_dict/momentum_backbone\.",),
           (_SOLO,)),
    Layout("lightly, CIFAR benchmark", "backbone.", "backbone_momentum.", ("state_dict/",),
           (r"^state_dict/backbone_momentum\.",)),
    Layout("lightly, sequential backbone", "backbone.", "backbone_momentum.", marks=(r"(^|/)backbone\.7\.0\.conv1\.",),
           rename=_SEQUENTIAL),
    Layout("lightly, sequential ResNetGenerator", "backbone.", marks=(r"(^|/)backbone\.2\.0\.conv1\.",),
           rename=((r"^2\.", "layer1."),), refused="that network has no ReLU behind its first convolution; no other does"),
    Layout("sequential", marks=(r"^(\w+/)?7\.0\.conv1\.",), rename=_SEQUENTIAL),
    Layout("detectron2", containers=("model/", ""), marks=(r"^(model/)?stem\.conv1\.norm\.",),
           rename=((r"^stem\.fc\.", "fc."), (r"^stem\.conv1\.norm\.", "bn1."), (r"^stem\.conv1\.", "conv1."),
                   *((rf"^res{n + 1}\.(\d+)\.shortcut\.norm\.", rf"layer{n}.\1.downsample.1.") for n in range(1, 5)),
                   *((rf"^res{n + 1}\.(\d+)\.shortcut\.", rf"layer{n}.\1.downsample.0.") for n in range(1, 5)),
                   *((rf"^res{n + 1}\.(\d+)\.conv(\d)\.norm\.", rf"layer{n}.\1.bn\2.") for n in range(1, 5)),
                   *((rf"^res{n + 1}\.", f"layer{n}.") for n in range(1, 5)))),
)


# Recognition ----------------------------------------------------------------------------------------------------------

BACKBONE = re.compile(r"(conv1|bn1|layer[1-4])\.")
_BLOCK = re.compile(r"^(|.*?[./])layer[1-4]\.\d+\.\w+")
_WRAPPER = re.compile(r"(?:^|(?<=[./]))(?:module|_orig_mod)\.")
_TRANSFORMER = re.compile(r"cls_token|class_token|patch_embed|pos_embed|(^|[./])blocks\.\d")


@dataclass(frozen=True)
class Match:
    """Where a file keeps its backbone. prefix: container and prefix of the copy taken, without wrappers."""

    layout: Layout
    copy: Copy
    prefix: str


def strip(name: str) -> str:
    """A name without what DataParallel, DistributedDataParallel and torch.compile put into it."""
    return _WRAPPER.sub("", name)


def recognise(path: Path, names: Collection[str], entries: Collection[str], reading: Reading) -> Match:
    """The one layout that explains the file, and the copy that ``reading`` asks for.

    ``names`` are stripped, ``entries`` those at the file's top level. Raises UserError where no layout fits or several do,
    and where the copy asked for is not in the file.
    """
    found = sorted({match[1] for name in names if (match := _BLOCK.match(name))})
    if reading.prefix is not None:
        return Match(Layout("prefix given", normalisation="imagenet"), "query", _given(path, reading.prefix, found))
    fitting = [(layout, container) for layout in LAYOUTS if _marked(layout, [*entries, *names])
               for container in layout.containers if _explains(layout, container, names, found)]
    if not fitting:
        raise _unknown(path, names, found)
    if len(fitting) > 1:
        raise UserError("two layouts fit: " + " and ".join(f"{layout.origin} ({container}{layout.query})" for layout, container in
                                                          fitting), at=path, hint="--prefix says where the backbone lies")
    (layout, container), = fitting
    copy = layout.evaluated if reading.weights == "auto" else reading.weights
    prefix = layout.query if copy == "query" else layout.momentum
    if prefix is None or not backbone(layout, container + prefix, names):
        raise UserError(f"this {layout.origin} file holds no {copy} copy of the backbone", at=path,
                        hint=f"--weights {'query' if copy == 'momentum' else 'momentum'} takes the one it holds")
    return Match(layout, copy, container + prefix)


def backbone(layout: Layout, prefix: str, names: Iterable[str]) -> dict[str, str]:
    """torchvision's name -> the file's, of everything behind the prefix; whether it belongs to the backbone or not."""
    return {_renamed(layout, tail): name for name in names
            if name.startswith(prefix) and "/" not in (tail := name[len(prefix):])}


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
    prefixes = [container + prefix for prefix in (layout.query, layout.momentum, *layout.twins) if prefix is not None]
    return set(found) <= set(prefixes) and any(
        BACKBONE.match(name) and _BLOCK.match(name) for prefix in prefixes[:2] for name in backbone(layout, prefix, names))


def _given(path: Path, prefix: str, found: list[str]) -> str:
    wanted = strip(prefix)
    chosen = [root for root in found if wanted in (root, root.rpartition("/")[2])]
    if len(chosen) != 1:
        raise UserError(f"{len(chosen) or 'no'} ResNets under --prefix {prefix!r}", at=path,
                        hint=f"the file has: {', '.join(map(repr, chosen or found)) or 'none'}")
    return chosen[0]


def _unknown(path: Path, names: Collection[str], found: list[str]) -> UserError:
    if not names:
        return UserError("no known layout: the file holds no tensors", at=path, hint="save the network's state_dict()")
    if not found:
        first = ", ".join(sorted(names)[:3])
        if any(_TRANSFORMER.search(name) for name in names):
            return UserError("this is a vision transformer; the papers' evaluations are of ResNets", at=path,
                             hint=f"its first names are {first}")
        if all(name.startswith("optim") for name in names):
            return UserError("the file holds the state of an optimiser, and no network", at=path,
                             hint=f"its first names are {first}")
        return UserError(f"no known layout: none of its {len(names)} tensors belongs to a ResNet", at=path,
                         hint=f"its first names are {first}")
    layout, prefix = max(((layout, container + prefix) for layout in LAYOUTS for container in layout.containers
                          for prefix in (layout.query, layout.momentum) if prefix is not None),
                         key=lambda place: max(SequenceMatcher(None, place[1], root).ratio() for root in found))
    nearest = f"nearest: {layout.origin}, which has {prefix}conv1.weight"
    if prefix in found and len(found) == 1:
        nearest += f" too, and also a name like {' and '.join(layout.marks) or 'it'}"
    elif prefix in found:
        nearest += ", but no further ResNet"
    which = found[0].rpartition("/")[2] if len(found) == 1 else "PREFIX"
    return UserError(f"no known layout: ResNets lie under {', '.join(repr(root) for root in found)}", at=path,
                     hint=f"{nearest}. If you know which one is to be evaluated: --prefix {which or repr('')}")


def normalisation(text: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation from a name or six numbers; UserError for anything else."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        a, b, c, d, e, f = map(float, text.split(","))
        if min(d, e, f) <= 0 or not all(map(math.isfinite, (a, b, c, d, e, f))):
            raise ValueError
    except ValueError:
        raise UserError(f"--normalisation {text!r} is no normalisation", hint=f"{', '.join(NORMALISATIONS)}, or six numbers: "
                        "0.49,0.48,0.45,0.25,0.24,0.26") from None
    return (a, b, c), (d, e, f)


def eval_input(path: Path, layout: Layout, *, cifar: bool, wide: bool, dataset: str | None, given: str | None) -> EvalInput:
    """What the encoder expects. UserError where neither the file nor ``given`` tells the normalisation."""
    known = layout.cifar_normalisation if cifar else layout.wide_normalisation if wide else layout.normalisation
    known = given or (known.get(dataset or "") if isinstance(known, dict) else known)
    if known is None:
        kind = "CIFAR-stem network" if cifar else "wide network" if wide else "network"
        raise UserError(f"the file does not tell how the inputs of this {kind} were normalised", at=path,
                        hint=f"say it with --normalisation: {', '.join(NORMALISATIONS)}, or six numbers")
    mean, std = normalisation(known)
    return EvalInput(32, 32, mean, std) if cifar else EvalInput(mean=mean, std=std)
