"""Places205 from its released lists (``trainvalsplit_places205/{train,val}_places205.csv`` and the
image tree), or as folders, one per scene, in train/ and val/."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from protobench.data import published
from protobench.data.dataset import Dataset, Split
from protobench.data.image_list import ImageList, image_folder, text_of
from protobench.data.leftovers import is_leftover
from protobench.runtime.errors import UserError

IMAGES = Path("data/vision/torralba/deeplearning/images256")


def read(data: Path, split: str) -> ImageList:
    """The images of train or val; labels int64 [N]. Each line of the released list is
    ``path label``.

    UserError where the list or the images are missing, a line is malformed, or the labels are
    those of Places365."""
    root = data / "places205" if (data / "places205").is_dir() else data
    listing = root / "trainvalsplit_places205" / f"{split}_places205.csv"
    if not listing.parent.is_dir() and (root / "train").is_dir():
        folders = [
            place.name
            for place in (root / split).glob("*")
            if place.is_dir() and not is_leftover(place.name)
        ]
        letters = all(len(title) == 1 for title in folders)
        # the archive has a level of initials: train/a/abbey/
        images = image_folder(root / split, f"places205-{split}", leaves=letters)
        _refuse_365(len(images.classes), root)
        return published.check(images)
    if not listing.is_file():
        raise UserError(
            "no Places205 list here" if root.is_dir() else "no such folder",
            at=listing,
            hint=(
                f"expected trainvalsplit_places205/ and {IMAGES.as_posix()}/, or train/ and val/"
                " with a folder per scene, in the folder given"
            ),
        )
    if not (root / IMAGES).is_dir():
        raise UserError(
            "Places205 lists without images",
            at=root / IMAGES,
            hint="unpack imagesPlaces205_resize.tar.gz here",
        )
    paths, labels = [], []
    for number, line in enumerate(text_of(listing).splitlines(), start=1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdigit():
            raise UserError(
                f"line {number} is not 'path label': {line[:60]!r}",
                at=listing,
                hint="take the released list",
            )
        paths.append(path)
        labels.append(int(label))
    count = len(set(labels))
    _refuse_365(count, listing)
    if not labels or max(labels) != count - 1:
        raise UserError(
            (
                f"labels must be 0 to {count - 1} without gaps, found {max(labels)}"
                if labels
                else "the list is empty"
            ),
            at=listing,
            hint="take the released list",
        )
    scenes = [""] * count
    for path, scene in zip(paths, labels, strict=True):
        scenes[scene] = scenes[scene] or Path(path).parent.as_posix()
    return published.check(
        ImageList(
            f"places205-{split}", root / IMAGES, tuple(paths), np.array(labels), tuple(scenes)
        )
    )


def _refuse_365(classes: int, where: Path) -> None:
    if classes == 365:
        raise UserError(
            "this has 365 classes: it is Places365, the table is about Places205",
            at=where,
            hint=(
                "give Places205's folder as --data: another data set, of 2014, with lists of"
                " its own"
            ),
        )


def _recognise(classes: Sequence[str]) -> str:
    if classes and all(len(title) == 1 and title.isalpha() for title in classes):
        return "Places, whose classes lie one folder deeper"
    return f"Places{len(classes)}" if len(classes) in (205, 365) else ""


DATASET = Dataset(
    "places205",
    partial(read, split="train"),
    partial(read, split="val"),
    splits=(
        Split("places205-train", "Places205", 2_448_873, 205),
        Split("places205-val", "Places205", 20_500, 205),
    ),
    folders=("places205", "trainvalsplit_places205"),
    recognise=_recognise,
    takes_unrecognised=True,
)
