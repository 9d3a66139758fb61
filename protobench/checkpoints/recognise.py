"""Recognises the layout of a checkpoint by its parameter names. Imports no torch.

Exactly one layout must explain every ResNet in the file or, if it holds none, every vision
transformer; none or several is an error, never a guess."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from protobench.checkpoints.layouts import LAYOUTS, TENSORFLOW, Copy, Layout, LoadOptions
from protobench.runtime.errors import UserError

_WRAPPER = re.compile(r"(?:^|(?<=[./]))(?:module|_orig_mod)\.")
_TRANSFORMER = re.compile(r"cls_token|class_token|patch_embed|pos_embed|(^|[./])blocks\.\d")


@dataclass(frozen=True)
class Family:
    """How the names of one kind of network are known."""

    name: str
    named: re.Pattern[str]
    """what the names of a backbone's tensors begin with"""
    block: re.Pattern[str]
    """matches a block's tensors; its first group is what comes before the backbone's own names"""
    first: str
    """the network's first tensor, as an example"""


RESNET = Family(
    "ResNet",
    re.compile(r"(conv1|bn1|layer[1-4])\."),
    re.compile(r"^(|.*?[./])layer[1-4]\.\d+\.\w+"),
    "conv1.weight",
)
VIT = Family(
    "vision transformer",
    re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks|norm)\."),
    re.compile(r"^(|.*?[./])blocks\.\d+\.(\d+\.)?(norm\d|attn|mlp|ls\d)\."),
    "patch_embed.proj.weight",
)

UNSUPPORTED = (
    (r"(^|[./])reg(ister)?_tokens?$", "register tokens"),
    (r"(^|[./])(dist_token$|head_dist\.)", "a distilled network's second token (DeiT)"),
    (r"(^|[./])layers\.\d+\.blocks\.", "windows of attention (Swin)"),
    (r"rel_pos|relative_pos", "relative positions (BEiT; ViTDet and other detectors)"),
    (r"(^|[./])attn\.(q_norm|k_norm|q_bias|v_bias)", "another kind of attention"),
    (r"(^|[./])mlp\.(w12|w3|fc1_g)\.", "a gated feed-forward (SwiGLU, as in ViT-g)"),
    (r"(^|[./])patch_embed\.(proj\.\d|backbone\.)", "a convolutional stem"),
    (r"(^|[./])norm_pre\.", "a norm before the blocks (CLIP)"),
    (r"(^|[./])fc_norm\.", "its last norm behind the mean of the patches (fine-tuned so)"),
)
"""Patterns of names, and the parts of vision transformers that they tell of, without which the
features would be others and which are not supported."""


@dataclass(frozen=True)
class Match:
    """Where a file keeps its backbone."""

    layout: Layout
    copy: Copy
    prefix: str
    """container and prefix of this copy, without wrappers"""


def strip(name: str) -> str:
    """Removes what DataParallel, DistributedDataParallel and torch.compile put into a name."""
    return _WRAPPER.sub("", name)


def recognise(
    path: Path,
    names: Collection[str],
    entries: Collection[str],
    reading: LoadOptions,
    prefer: Copy | None = None,
) -> Match:
    """Returns the one layout that explains the file, and the copy that ``reading`` names or, if it
    names none, the one to ``prefer`` if the file holds it.

    ``names`` are stripped, ``entries`` are at the file's top level. Raises UserError if no layout
    fits or several do, and if that copy is not in the file."""
    family, found = RESNET, _roots(RESNET, names)
    if not found and (transformers := _roots(VIT, names)):
        family, found = VIT, transformers
    for pattern, part in UNSUPPORTED if family is VIT else ():
        if example := next((name for name in sorted(names) if re.search(pattern, name)), None):
            raise UserError(
                f"a vision transformer with {part}, which is not supported: {example}", at=path
            )
    fitting = [
        (layout, container)
        for layout in LAYOUTS
        if family_of(layout) is family and _marked(layout, [*entries, *names])
        for container in layout.containers
        if _explains(layout, container, names, found)
    ]
    if reading.prefix is not None and (len(fitting) != 1 or reading.weights != "auto"):
        return _given(path, reading, family, found, entries)
    if not fitting:
        raise _unknown(path, names, family, found)
    if len(fitting) > 1:
        raise UserError(
            "two layouts fit: "
            + " and ".join(
                f"{layout.origin} ({container}{layout.query})" for layout, container in fitting
            ),
            at=path,
            hint=(
                "--prefix says where the backbone is,"
                " --normalisation how its inputs were normalised"
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
            return _given(path, reading, family, found, entries)
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
            f"this {layout.origin} file has no {copy} copy of the backbone",
            at=path,
            hint=(
                f"--weights {'query' if copy == 'momentum' else 'momentum'} takes the one it has"
            ),
        )
    return Match(layout, copy, places[copy])


def family_of(layout: Layout) -> Family:
    """Returns the kind of network that a layout is about."""
    return VIT if layout.transformer else RESNET


def _roots(family: Family, names: Collection[str]) -> list[str]:
    """Returns what comes before the names of each network of this kind."""
    return sorted({match[1] for name in names if (match := family.block.match(name))})


def backbone(layout: Layout, prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Returns torchvision's or timm's name -> the file's name for everything under the prefix, in
    the backbone or not. Raises UserError if two names become one."""
    found: dict[str, str] = {}
    for name in names:
        behind = name.startswith(prefix) and "/" not in name[len(prefix) :]
        if (
            behind
            and (other := found.setdefault(_renamed(layout, name[len(prefix) :]), name)) != name
        ):
            raise UserError(
                f"two tensors of a {layout.origin} file get one name in the backbone: {other} and"
                f" {name}"
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
    """Whether there is a backbone where the layout has one, and no other in the file."""
    family = family_of(layout)
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
        if new != tail and family.named.match(new) and family.block.match(new)
    } <= set(prefixes)


def _splits(name: str) -> list[int]:
    """Where a prefix may end: at the start, and after every dot and slash."""
    return [0, *(place.end() for place in re.finditer(r"[./]", name))]


def _has_blocks(layout: Layout, prefix: str, names: Collection[str]) -> bool:
    family = family_of(layout)
    return any(
        family.named.match(renamed) and family.block.match(renamed)
        for name in names
        if name.startswith(prefix)
        and "/" not in name[len(prefix) :]
        and (renamed := _renamed(layout, name[len(prefix) :]))
    )


def _given(
    path: Path, reading: LoadOptions, family: Family, found: list[str], entries: Collection[str]
) -> Match:
    """Returns a ResNet with torchvision's names under --prefix. No layout says what it is, so its
    normalisation must be given too."""
    if family is VIT:
        raise UserError(
            "--prefix cannot tell where a vision transformer is from, and no tensor shows how many"
            " attention heads it has",
            at=path,
            hint="the layouts that are known: python -m protobench layouts",
        )
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
            "the file was converted from TensorFlow, whose networks may pad one side only, and no"
            " layout says whether it does",
            at=path,
            hint=(
                "convert it with a converter whose layout is known: python -m protobench layouts"
            ),
        )
    return Match(
        Layout("prefix given", normalisation=None, wide_normalisation=None), "query", chosen[0]
    )


def _unknown(path: Path, names: Collection[str], family: Family, found: list[str]) -> UserError:
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
                "this is a vision transformer, but its tensors do not have timm's names",
                at=path,
                hint=f"its first names are {first}",
            )
        if all(name.startswith("optim") for name in names):
            return UserError(
                "the file holds an optimiser's state, and no network",
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
        if family_of(layout) is family
        for container in layout.containers
        for prefix in (layout.query, layout.momentum)
        if prefix is not None
    ]
    layout, prefix = max(
        places, key=lambda place: SequenceMatcher(None, place[1], found[0]).ratio()
    )
    nearest = f"nearest: {layout.origin}, which has {prefix}{family.first}"
    sharing = {layout.origin for layout, place in places if place == prefix}
    if len(found) > 1:
        nearest = f"no layout has a {family.name} in each of these places"
    elif len(sharing) > 2:  # none is nearer than the others
        nearest = (
            f"{len(sharing)} known layouts have {prefix}{family.first}, each beside other names"
        )
    elif prefix in found:
        nearest += " too, but beside other names"
    which = (
        (found[0].rpartition("/")[2] or "''")
        if len(found) == 1
        else f"one of {', '.join(map(repr, found))}"
    )
    better = (
        f". If you know better: --prefix {which} --normalisation imagenet (or how its inputs were)"
    )
    return UserError(
        f"no known layout: there are {family.name}s under {', '.join(map(repr, found))}",
        at=path,
        hint=nearest + (better if family is RESNET else ""),
    )
