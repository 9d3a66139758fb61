"""PASCAL VOC 2007 classification labels from a VOCdevkit, as the challenge distributes it."""

from pathlib import Path

import numpy as np

from protobench.errors import UserError
from protobench.images import ImageList, pair, text_of

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
TEST_ANNOTATIONS = "VOC 2007's test annotations are a separate download (VOCtest_06-Nov-2007.tar); unpack it over this VOCdevkit"


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
    listed, titles = names(main, split), classes(main, split)
    labels = np.stack([_labels(main / f"{title}_{split}.txt", listed) for title in titles], axis=1)
    return ImageList(f"voc07-{split}", voc, tuple(f"JPEGImages/{name}.jpg" for name in listed), labels, titles)


def names(main: Path, split: str) -> list[str]:
    """The images that ``main``/<split>.txt lists. UserError where it is missing or empty."""
    listing, year = main / f"{split}.txt", main.parents[1].name
    if not listing.is_file():
        raise UserError(f"{year} has no {split} list", at=listing,
                        hint=TEST_ANNOTATIONS if split == "test" else f"unpack {year} again")
    if not (found := text_of(listing).split()):
        raise UserError(f"{year}'s {split} list is empty", at=listing, hint=f"unpack {year} again")
    return found


def classes(main: Path, split: str) -> tuple[str, ...]:
    """The classes that have a label file <class>_<split>.txt: VOC's 20, or others (embedded data). UserError where some of the
    20 lack theirs."""
    found = sorted(path.name.removesuffix(f"_{split}.txt") for path in main.glob(f"*_{split}.txt"))
    year = main.parents[1].name
    if missing := [name for name in CLASSES if name not in found] if set(CLASSES) & set(found) else []:
        raise UserError(f"{year} {split} has no labels for {', '.join(missing)}", at=main, hint=f"unpack {year} again")
    if not found:
        raise UserError(f"{year} {split} has no label files <class>_{split}.txt", at=main, hint=f"unpack {year} again")
    return tuple(found)


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
