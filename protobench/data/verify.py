"""Verifies data sets: layout, classes and their order, counts, every image decoded, and files that
occur in both splits."""

import os
from pathlib import Path

import numpy as np

from protobench.data import decoding, published
from protobench.data.dataset import Dataset
from protobench.data.datasets import DATASETS
from protobench.data.decoding import DecodeReport
from protobench.data.image_list import ImageList
from protobench.data.leftovers import is_leftover
from protobench.data.synthetic import bundled
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError, choose, printable

SHOWN = 20
"""How many bad files are named on the terminal; all of them are written to a list."""


def check(data: Path | None, chosen: tuple[str, ...], workers: int) -> int:
    """Prints what is found under ``data`` (None: the bundled synthetic data) and returns the exit
    code: 0 as published, or bundled and readable; 1 readable, but other images or classes than
    published; 2 missing, unreadable or misplaced."""
    root = data or bundled.ensure()
    if not root.is_dir():
        raise UserError("no such folder", at=root)
    whole = {name: dataset for name, dataset in DATASETS.items() if not dataset.part_of}
    for name in chosen:
        choose("data set", name, tuple(whole))
    to_check = chosen or tuple(name for name, dataset in whole.items() if is_here(dataset, root))
    if not to_check:
        raise UserError(
            "none of the data sets is here",
            at=root,
            hint="looked for "
            + ", ".join(f"{name} as {' or '.join(d.folders)}" for name, d in whole.items()),
        )
    code = cli.SAME
    for name, dataset in whole.items():
        if name not in to_check:
            if not chosen:
                print(f"{name}: not here")
            continue
        try:
            code = max(code, _report(name, dataset.read_both(root), workers))
        except UserError as mistake:
            print(f"{name}: {mistake}")
            code = cli.TROUBLE
    return code


def has_folder(dataset: Dataset, root: Path) -> bool:
    """Whether a folder that the data set is known by is in ``root``, complete or not."""
    return any((root / folder).is_dir() for folder in dataset.folders)


def is_here(dataset: Dataset, root: Path) -> bool:
    """Whether the data set's folder is ``root`` or in it, complete or not. A folder train/ right in
    the root belongs to the data set that recognises its classes."""
    if has_folder(dataset, root) or root.name == (dataset.own_folder or None):
        return True
    others = (other for other in DATASETS.values() if not other.own_folder)
    if not (root / "train").is_dir() or any(has_folder(other, root) for other in others):
        return False
    titles = [entry.name for entry in (root / "train").iterdir() if not is_leftover(entry.name)]
    family = published.family_of(tuple(titles))
    owners = [other for other in DATASETS.values() if family and other.family == family]
    return dataset in owners if owners else dataset.takes_unrecognised


def _report(name: str, lists: tuple[ImageList, ImageList], workers: int) -> int:
    """Prints the state of one data set and returns its exit code, as ``check`` does."""
    train = lists[0]
    place = os.path.commonpath([images.root.absolute() for images in lists])
    print(f"{name} at {printable(place)}")
    for images in lists:
        _print_size(images)
    if bundled.holds(train.classes):
        print("  bundled synthetic data: numbers made with it are not comparable with any paper's")
    reports = [decoding.check(images, workers) for images in lists]
    bad = [
        printable(f"{images.root / images.paths[i]}: {why}")
        for images, report in zip(lists, reports, strict=True)
        for i, why in report.bad.items()
    ]
    print(f"  {sum(map(len, lists)) - len(bad)} images decoded, {len(bad)} unreadable")
    _print_bad(name, bad)
    if not bad:
        sampled = " ".join(images.fingerprint[:16] for images in lists)
        contents = files.sha256([report.digests.tolist() for report in reports])
        print(f"  fingerprints {sampled} (as in records), all contents {contents[:16]}")
    _print_duplicates(lists, reports)
    differences = list(
        dict.fromkeys(
            difference
            for images in lists
            for difference in published.counts(images) + published.departures(images)
        )
    )
    for line in differences:
        print(f"  not as published: {line}; cells made with it are off protocol")
    if not differences and not bad and (split := published.split_of(train)):
        classes = ", classes and their order" if split.class_hash else " and number of classes"
        print(f"  as published: counts{classes}")
    return cli.TROUBLE if bad else cli.DIFFERS if differences else cli.SAME


def _print_size(images: ImageList) -> None:
    if images.labels.ndim == 2:
        per_class = (images.labels == 1).sum(0)
    else:
        per_class = np.bincount(images.labels)
    print(
        f"  {images.name:<16} {len(images):>8} images, {len(images.classes)} classes, "
        f"{per_class.min()} to {per_class.max()} images each"
    )


def _print_bad(name: str, bad: list[str]) -> None:
    """Names the first bad files; all of them go into a list in the cache."""
    for line in bad[:SHOWN]:
        print(f"    unreadable: {line}")
    if len(bad) > SHOWN:
        listing = files.cache_dir() / "readable" / f"{name}-unreadable.txt"
        files.write_text(listing, "\n".join(bad) + "\n")
        print(f"    … all in {listing}")


def _print_duplicates(lists: tuple[ImageList, ImageList], reports: list[DecodeReport]) -> None:
    (train_name, test_name), unit = (
        (images.name for images in lists),
        "files" if lists[0].pixels is None else "images",
    )
    train, test = (report.digests[report.digests > 0] for report in reports)
    if shared := len(np.intersect1d(train, test)):
        print(f"  {shared} {unit} occur in both {train_name} and {test_name}, byte for byte")
    if repeated := len(train) - len(np.unique(train)):
        print(f"  {repeated} {unit} of {train_name} repeat another, byte for byte")
