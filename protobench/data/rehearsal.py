"""A rehearsal's data: the real folders, of which a few images of each class are used.

A rehearsal folder holds one file, ``rehearsal.json``, which names the folder of the real data and
how much of it is used. It is given as ``--data`` like any other. A reader reads the real folder
whole, with all its checks, and then keeps a few images: those whose names come first, so that every
row, run and machine uses the same."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from protobench.data.boxes import BoxList
from protobench.data.image_list import ImageList
from protobench.runtime import files
from protobench.runtime.errors import UserError

FILE = "rehearsal.json"

List = TypeVar("List", bound=ImageList)


@dataclass(frozen=True)
class Limits:
    """How much of a data set is used."""

    classes: int | None
    """the first so many classes; None: all"""
    train: int
    """training images of each class"""
    test: int
    """test images of each class"""


def write(folder: Path, source: Path, limits: Limits) -> None:
    """Makes ``folder`` the rehearsal folder of the data in ``source``."""
    content = {"source": str(source.absolute()), **asdict(limits)}
    files.write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def source_of(root: Path) -> tuple[Path, Limits | None]:
    """The folder of the real data that ``root`` stands for, and how much of it is used; ``root``
    itself and None where it is no rehearsal folder. UserError where its file is damaged."""
    if not os.path.isfile(root / FILE):
        return root, None
    try:
        content = json.loads((root / FILE).read_bytes())
        return Path(content.pop("source")), Limits(**content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as failure:
        raise UserError(
            f"not what a rehearsal writes: {failure}",
            at=root / FILE,
            hint="delete the folder; reproduce … --rehearse makes it again",
        ) from failure


def read(
    root: Path, read_all: Callable[[Path], tuple[List, ...]], splits: tuple[str, ...]
) -> tuple[List, ...]:
    """What ``read_all`` reads in ``root``, or a few images of each list where that is a rehearsal
    folder; ``splits`` says which of the lists are "train" and which "test"."""
    source, limits = source_of(root)
    lists = read_all(source)
    if limits is None:
        return lists
    each = {"train": limits.train, "test": limits.test}
    return tuple(
        few(images, limits.classes, each[split])
        for images, split in zip(lists, splits, strict=True)
    )


def few(images: List, classes: int | None, per_class: int) -> List:
    """The images of the first ``classes`` classes whose names come first, ``per_class`` of each (of
    lists with several labels per image: at least so many), in the order of the list. UserError
    where a class has none."""
    titles = images.classes[:classes]
    kept: set[int] = set()
    for label, title in enumerate(titles):
        of_class = np.flatnonzero(
            images.labels == label if images.labels.ndim == 1 else images.labels[:, label] == 1
        )
        if not of_class.size:
            raise UserError(
                f"{images.name} has no image of {title}",
                at=images.root,
                hint="unpack the data set again; every class is rehearsed",
            )
        kept |= set(sorted(of_class.tolist(), key=lambda i: images.paths[i])[:per_class])
    fewer: ImageList = images.subset(np.array(sorted(kept)))
    labels = fewer.labels if fewer.labels.ndim == 1 else fewer.labels[:, : len(titles)]
    if isinstance(fewer, BoxList):
        fewer = replace(fewer, objects=tuple(one.of_classes(len(titles)) for one in fewer.objects))
    return cast(List, replace(fewer, labels=labels, classes=titles, rehearsed_of=len(images)))
