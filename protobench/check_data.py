"""Verifies data sets: layout, classes and their order, counts, every image decoded, files that stand in two splits."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from protobench import cifar, cli, coco, files, imagenet, mini, places, readable, voc, voc_boxes
from protobench.errors import UserError, printable
from protobench.images import ImageList

SHOWN = 20
"""Bad files that are named on the terminal; all of them go into the list."""


@dataclass(frozen=True)
class Known:
    """A data set as it was published."""

    read_both: Callable[[Path], tuple[ImageList, ImageList]]
    images: tuple[int, int]
    classes: int
    order: str = ""
    """SHA-256 of the classes in order, one a line, where they have one name everywhere"""


PLACES = {"imagenet": ("imagenet",), "voc07": ("VOCdevkit", "VOC2007", "ImageSets"),
          "voc07+12": ("VOCdevkit/VOC2012", "VOC2012"), "coco": ("coco", "train2017"),
          "places205": ("places205", "trainvalsplit_places205"), "cifar10": ("cifar10", cifar.FOLDERS["cifar10"]),
          "cifar100": ("cifar100", cifar.FOLDERS["cifar100"])}
"""The folders below a root that a data set is known by."""

DATASETS = {
    "imagenet": Known(imagenet.read_both, (1_281_167, 50_000), 1000,
                      "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"),
    "voc07": Known(voc.read_both, (5011, 4952), 20, files.sha256_text("\n".join(voc.CLASSES))),
    "voc07+12": Known(partial(voc_boxes.read_both, training="voc07+12"), (16_551, 4952), 20,
                      files.sha256_text("\n".join(voc.CLASSES))),
    "coco": Known(coco.read_both, (117_266, 5000), 80),
    "places205": Known(places.read_both, (2_448_873, 20_500), 205),
    "cifar10": Known(partial(cifar.read_both, name="cifar10"), (50_000, 10_000), 10),
    "cifar100": Known(partial(cifar.read_both, name="cifar100"), (50_000, 10_000), 100),
}


def check(data: Path | None, chosen: tuple[str, ...], workers: int) -> int:
    """Prints what is found below ``data`` (None: the embedded data) and returns the exit code: 0 as published (embedded: as
    made), 1 readable but other images or classes than published, 2 missing, unreadable or misplaced."""
    root = data or mini.ensure()
    if not root.is_dir():
        raise UserError("no such folder", at=root)
    there = [name for name in chosen or DATASETS if chosen or _is_here(name, root)]
    if not there:
        raise UserError("none of the data sets is here", at=root, hint="looked for " + ", ".join(
            f"{name} as {' or '.join(places)}" for name, places in PLACES.items()))
    code = cli.SAME
    for name in DATASETS:
        if name not in there:
            if not chosen:
                print(f"{name}: not here")
            continue
        try:
            code = max(code, _report(name, DATASETS[name].read_both(root), published=data is not None, workers=workers))
        except UserError as mistake:
            print(f"{name}: {mistake}")
            code = cli.TROUBLE
    return code


def _is_here(name: str, root: Path) -> bool:
    """Whether a data set's folder is there, whole or not. train/ right in the root is ImageNet's if its classes are wnids."""
    if any((root / place).is_dir() for place in PLACES[name]) or root.name == cifar.FOLDERS.get(name):
        return True
    folders = (of for other, of in PLACES.items() if not other.startswith("cifar"))  # those hold no train/
    if (name not in ("imagenet", "places205") or not (root / "train").is_dir()
            or any((root / place).is_dir() for of in folders for place in of)):
        return False
    wnids = any(re.fullmatch(r"n\d{8}", entry.name) for entry in (root / "train").iterdir())
    return wnids == (name == "imagenet")


def _report(name: str, lists: tuple[ImageList, ImageList], *, published: bool, workers: int) -> int:
    known, odd = DATASETS[name], []
    print(f"{name} at {printable(os.path.commonpath([images.root.absolute() for images in lists]))}")
    for images, expected in zip(lists, known.images, strict=True):
        per_class = (images.labels == 1).sum(0) if images.labels.ndim == 2 else np.bincount(images.labels)
        print(f"  {images.name:<16} {len(images):>8} images, {len(images.classes)} classes, "
              f"{per_class.min()} to {per_class.max()} images each")
        if published and len(images) != expected:
            odd.append(f"{images.name} has {len(images)} images, not {expected}")
    if published and len(lists[0].classes) != known.classes:
        odd.append(f"{len(lists[0].classes)} classes, not {known.classes}")
    elif published and known.order and files.sha256_text("\n".join(lists[0].classes)) != known.order:
        odd.append("the classes are not the published ones in their order, so labels mean something else")
    found = [readable.check(images, workers) for images in lists]
    bad = [printable(f"{images.root / images.paths[i]}: {why}") for images, of in zip(lists, found, strict=True)
           for i, why in of.bad.items()]
    print(f"  {sum(map(len, lists)) - len(bad)} images decoded, {len(bad)} unreadable")
    for line in bad[:SHOWN]:
        print(f"    unreadable: {line}")
    if len(bad) > SHOWN:
        listing = files.cache_dir() / "readable" / f"{name}-unreadable.txt"
        files.write_text(listing, "\n".join(bad) + "\n")
        print(f"    … all in {listing}")
    if not bad:
        sampled, contents = (images.fingerprint[:16] for images in lists), files.sha256([of.digests.tolist() for of in found])
        print(f"  fingerprints {' '.join(sampled)} (as in records), all contents {contents[:16]}")
    train, test = (of.digests[of.digests > 0] for of in found)
    things = "files" if lists[0].pixels is None else "images"
    if shared := len(np.intersect1d(train, test)):
        print(f"  {shared} {things} stand in both {lists[0].name} and {lists[1].name}, byte for byte")
    if repeated := len(train) - len(np.unique(train)):
        print(f"  {repeated} {things} of {lists[0].name} repeat another, byte for byte")
    for line in odd:
        print(f"  not as published: {line}; cells made with it are off protocol")
    if not odd and not bad and published:
        print("  as published: counts" + (", classes and their order" if known.order else " and number of classes"))
    return cli.TROUBLE if bad else cli.DIFFERS if odd else cli.SAME
