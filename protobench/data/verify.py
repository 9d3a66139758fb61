"""Verifies data sets: layout, classes and their order, counts, every image decoded, files that
stand in two splits."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from protobench.data import cifar, coco, decoding, imagenet, places, published, voc, voc_boxes
from protobench.data.image_list import ImageList
from protobench.data.leftovers import is_leftover
from protobench.data.synthetic import bundled
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError, printable

SHOWN = 20
"""Bad files that are named on the terminal; all of them go into the list."""


PLACES = {
    "imagenet": ("imagenet",),
    "voc07": ("VOCdevkit", "VOC2007", "ImageSets"),
    "voc07+12": ("VOCdevkit/VOC2012", "VOC2012"),
    "coco": ("coco", "train2017"),
    "places205": ("places205", "trainvalsplit_places205"),
    "cifar10": ("cifar10", cifar.FOLDERS["cifar10"]),
    "cifar100": ("cifar100", cifar.FOLDERS["cifar100"]),
}
"""The folders below a root that a data set is known by."""

DATASETS: dict[str, Callable[[Path], tuple[ImageList, ImageList]]] = {
    "imagenet": imagenet.read_both,
    "voc07": voc.read_both,
    "voc07+12": partial(voc_boxes.read_both, training="voc07+12"),
    "coco": coco.read_both,
    "places205": places.read_both,
    "cifar10": partial(cifar.read_both, name="cifar10"),
    "cifar100": partial(cifar.read_both, name="cifar100"),
}
"""What reads both splits of a data set below a root; what they should hold is in published.py."""


def check(data: Path | None, chosen: tuple[str, ...], workers: int) -> int:
    """Prints what is found below ``data`` (None: the embedded data) and returns the exit code: 0 as
    published, or embedded and readable, 1 readable but other images or classes than published, 2
    missing, unreadable or misplaced."""
    root = data or bundled.ensure()
    if not root.is_dir():
        raise UserError("no such folder", at=root)
    there = [name for name in chosen or DATASETS if chosen or _is_here(name, root)]
    if not there:
        raise UserError(
            "none of the data sets is here",
            at=root,
            hint="looked for "
            + ", ".join(f"{name} as {' or '.join(places)}" for name, places in PLACES.items()),
        )
    code = cli.SAME
    for name in DATASETS:
        if name not in there:
            if not chosen:
                print(f"{name}: not here")
            continue
        try:
            code = max(code, _report(name, DATASETS[name](root), workers))
        except UserError as mistake:
            print(f"{name}: {mistake}")
            code = cli.TROUBLE
    return code


def _is_here(name: str, root: Path) -> bool:
    """Whether a data set's folder is there, whole or not. train/ right in the root belongs to the
    data set that its classes tell: CIFAR's by their names, ImageNet's if they are wnids, else
    Places205's."""
    if any((root / place).is_dir() for place in PLACES[name]) or root.name == cifar.FOLDERS.get(
        name
    ):
        return True
    folders = (
        of for other, of in PLACES.items() if not other.startswith("cifar")
    )  # those hold no train/
    if (
        name not in ("imagenet", "places205", *cifar.CLASSES)
        or not (root / "train").is_dir()
        or any((root / place).is_dir() for of in folders for place in of)
    ):
        return False
    titles = {entry.name for entry in (root / "train").iterdir() if not is_leftover(entry.name)}
    if own := next((of for of, classes in cifar.CLASSES.items() if titles == set(classes)), None):
        return name == own
    if name in cifar.CLASSES:
        return False
    return (name == "imagenet") == (
        bundled.holds(list(titles)) or any(map(published.WNID.fullmatch, titles))
    )


def _report(name: str, lists: tuple[ImageList, ImageList], workers: int) -> int:
    print(
        f"{name} at {printable(os.path.commonpath([images.root.absolute() for images in lists]))}"
    )
    for images in lists:
        per_class = (
            (images.labels == 1).sum(0) if images.labels.ndim == 2 else np.bincount(images.labels)
        )
        print(
            f"  {images.name:<16} {len(images):>8} images, {len(images.classes)} classes, "
            f"{per_class.min()} to {per_class.max()} images each"
        )
    if bundled.holds(lists[0].classes):
        print("  the embedded data: numbers made with it are not comparable with any paper's")
    odd = list(
        dict.fromkeys(
            told
            for images in lists
            for told in published.counts(images) + published.departures(images)
        )
    )
    found = [decoding.check(images, workers) for images in lists]
    bad = [
        printable(f"{images.root / images.paths[i]}: {why}")
        for images, of in zip(lists, found, strict=True)
        for i, why in of.bad.items()
    ]
    print(f"  {sum(map(len, lists)) - len(bad)} images decoded, {len(bad)} unreadable")
    for line in bad[:SHOWN]:
        print(f"    unreadable: {line}")
    if len(bad) > SHOWN:
        listing = files.cache_dir() / "readable" / f"{name}-unreadable.txt"
        files.write_text(listing, "\n".join(bad) + "\n")
        print(f"    … all in {listing}")
    if not bad:
        sampled, contents = (
            (images.fingerprint[:16] for images in lists),
            files.sha256([of.digests.tolist() for of in found]),
        )
        print(f"  fingerprints {' '.join(sampled)} (as in records), all contents {contents[:16]}")
    train, test = (of.digests[of.digests > 0] for of in found)
    things = "files" if lists[0].pixels is None else "images"
    if shared := len(np.intersect1d(train, test)):
        print(
            f"  {shared} {things} stand in both {lists[0].name} and {lists[1].name}, byte for byte"
        )
    if repeated := len(train) - len(np.unique(train)):
        print(f"  {repeated} {things} of {lists[0].name} repeat another, byte for byte")
    for line in odd:
        print(f"  not as published: {line}; cells made with it are off protocol")
    if not odd and not bad and (known := published.split_of(lists[0])):
        print(
            "  as published: counts"
            + (", classes and their order" if known.order else " and number of classes")
        )
    return cli.TROUBLE if bad else cli.DIFFERS if odd else cli.SAME
