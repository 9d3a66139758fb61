"""PASCAL VOC 2007 classification labels from a VOCdevkit, as the challenge distributes it."""

from pathlib import Path

import numpy as np

from protobench.errors import UserError
from protobench.images import ImageList, pair, text_of

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")


def devkit(data: Path) -> Path:
    """The VOC2007 folder under ``data``, which may be VOC2007, VOCdevkit or the folder that holds VOCdevkit."""
    tried = [data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"]
    for folder in tried:
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise UserError("no VOCdevkit here" if data.is_dir() else "no such folder", at=data,
                    hint="looked for ImageSets/Main in " + ", ".join(map(str, tried)))


def read(data: Path, split: str) -> ImageList:
    """Split trainval or test; labels int64 [N, C]: 1 present, -1 absent, 0 difficult (only such objects are there).

    The classes are VOC's 20, in alphabetical order, or whatever label files the folder holds (embedded data).
    Raises UserError for a missing split (the test annotations are a separate download) and malformed lines.
    """
    voc = devkit(data)
    main = voc / "ImageSets" / "Main"
    listing = main / f"{split}.txt"
    if not listing.is_file():
        test = "VOC 2007's test annotations are a separate download (VOCtest_06-Nov-2007.tar); unpack it over this VOCdevkit"
        raise UserError(f"VOC2007 has no {split} list", at=listing, hint=test if split == "test" else "unpack VOC 2007 again")
    names = text_of(listing).split()
    if not names:
        raise UserError(f"VOC2007's {split} list is empty", at=listing, hint="unpack VOC 2007 again")
    classes = sorted(path.name.removesuffix(f"_{split}.txt") for path in main.glob(f"*_{split}.txt"))
    if missing := [name for name in CLASSES if name not in classes] if set(CLASSES) & set(classes) else []:
        raise UserError(f"VOC2007 {split} has no labels for {', '.join(missing)}", at=main, hint="unpack VOC 2007 again")
    if not classes:
        raise UserError(f"VOC2007 {split} has no label files <class>_{split}.txt", at=main, hint="unpack VOC 2007 again")
    labels = np.stack([_labels(main / f"{title}_{split}.txt", names) for title in classes], axis=1)
    return ImageList(f"voc07-{split}", voc, tuple(f"JPEGImages/{name}.jpg" for name in names), labels, tuple(classes))


def read_both(data: Path) -> tuple[ImageList, ImageList]:
    """trainval and test."""
    return pair(read(data, "trainval"), read(data, "test"))


def _labels(path: Path, names: list[str]) -> np.ndarray:
    words = text_of(path).split()
    if words[::2] != names:
        raise UserError("label file does not list the images of its split, in order", at=path, hint="unpack VOC 2007 again")
    if bad := sorted(set(words[1::2]) - {"1", "-1", "0"}):
        raise UserError(f"labels must be 1, -1 or 0 (difficult), found {bad[0]!r}", at=path, hint="unpack VOC 2007 again")
    return np.array(words[1::2], dtype=np.int64)
