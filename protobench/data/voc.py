"""PASCAL VOC 2007 classification labels from a VOCdevkit, as the challenge distributes it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protobench.data import published
from protobench.data.image_list import ImageList, pair, text_of
from protobench.data.leftovers import is_leftover
from protobench.runtime.errors import UserError, printable
from protobench.runtime.notices import notice, some

CLASSES = published.VOC
TEST_ANNOTATIONS = (
    "VOC 2007's test annotations are a separate download (VOCtest_06-Nov-2007.tar); unpack it over"
    " this VOCdevkit"
)


def devkit(data: Path) -> Path:
    """The VOC2007 folder under ``data``, which may be VOC2007, VOCdevkit or the folder that holds
    VOCdevkit."""
    tried = [data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"]
    for folder in tried:
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise UserError(
        "no VOCdevkit here" if data.is_dir() else "no such folder",
        at=data,
        hint="looked for ImageSets/Main in " + ", ".join(map(str, tried)),
    )


def read(data: Path, split: str) -> ImageList:
    """Split trainval or test; labels int64 [N, C]: 1 present, -1 absent, 0 difficult (only such
    objects are there).

    The classes are VOC's 20, in alphabetical order, or whatever label files the folder holds
    (embedded data). Raises UserError for a missing split (the test annotations are a separate
    download) and malformed lines."""
    voc = devkit(data)
    main = voc / "ImageSets" / "Main"
    listed, titles = names(main, split), classes(main, split)
    labels = np.stack([_labels(main / f"{title}_{split}.txt", listed) for title in titles], axis=1)
    return published.check(ImageList(f"voc07-{split}", voc, pictures(voc, listed), labels, titles))


def pictures(voc: Path, names: list[str]) -> tuple[str, ...]:
    """The images' paths below ``voc``: JPEGImages/<name>.jpg, or the same with .jpeg or .JPG where
    only that is there."""
    try:
        there = os.listdir(voc / "JPEGImages")
    except OSError:  # reading the first image says why
        there = []
    spelt = {
        name.rpartition(".")[0]: name
        for name in sorted(there, key=lambda name: (name.endswith(".jpg"), name))
        if name.lower().endswith((".jpg", ".jpeg"))
    }  # of two spellings the last one, .jpg
    return tuple("JPEGImages/" + spelt.get(name, f"{name}.jpg") for name in names)


def names(main: Path, split: str) -> list[str]:
    """The images that ``main``/<split>.txt lists, one a line. UserError where it is missing, empty
    or names an image twice."""
    listing, year = main / f"{split}.txt", main.parents[1].name
    if not listing.is_file():
        raise UserError(
            f"{year} has no {split} list",
            at=listing,
            hint=TEST_ANNOTATIONS if split == "test" else f"unpack {year} again",
        )
    lines = list(_lines(listing))
    if not lines:
        raise UserError(f"{year}'s {split} list is empty", at=listing, hint=f"unpack {year} again")
    first: dict[str, int] = {}
    for number, name in lines:
        if name in first:
            raise UserError(
                f"{printable(name)} is listed twice, in line {first[name]} already",
                at=f"{listing}, line {number}",
                hint=f"unpack {year} again, or remove one of the lines",
            )
        first[name] = number
    return list(first)


def classes(main: Path, split: str) -> tuple[str, ...]:
    """The classes that have a label file <class>_<split>.txt: VOC's 20, or others (embedded data).
    What a system or an editor left beside them is named and not read. UserError where some of the
    20 lack theirs, and where others stand beside them."""
    year, suffix = main.parents[1].name, f"_{split}.txt"
    there = sorted(path.name for path in main.glob(f"*{suffix}*"))
    if left := [name for name in there if is_leftover(name)]:
        notice(
            f"left out of {year} {split}: {len(left)} files of systems or tools among its label"
            f" files ({some(left)})"
        )
    found = [
        name.removesuffix(suffix)
        for name in there
        if name.endswith(suffix) and not is_leftover(name)
    ]
    if set(CLASSES) & set(found):
        if missing := [name for name in CLASSES if name not in found]:
            raise UserError(
                f"{year} {split} has no labels for {', '.join(missing)}",
                at=main,
                hint=f"unpack {year} again",
            )
        if more := [name for name in found if name not in CLASSES]:
            raise UserError(
                f"{year} {split} has label files beside those of VOC's 20 classes: "
                + ", ".join(f"{printable(name)}{suffix}" for name in more[:5]),
                at=main,
                hint="move them to another folder; a second copy of a file would count as a class",
            )
    if not found:
        raise UserError(
            f"{year} {split} has no label files <class>_{split}.txt",
            at=main,
            hint=f"unpack {year} again",
        )
    return tuple(sorted(found))


def read_both(data: Path) -> tuple[ImageList, ImageList]:
    """trainval and test."""
    return pair(read(data, "trainval"), read(data, "test"))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """A list's lines that are not blank, each with its number."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _labels(path: Path, names: list[str]) -> np.ndarray:
    """The labels in a class's file, in the order of ``names``, whatever the file's own."""
    found: dict[str, int] = {}
    for number, line in _lines(path):
        name, label = [*line.rsplit(None, 1), ""][:2]
        at, hint = f"{path}, line {number}", "unpack VOC 2007 again"
        if label not in ("1", "-1", "0"):
            raise UserError(
                f"labels must be 1, -1 or 0 (difficult), found {printable(label)!r}",
                at=at,
                hint=hint,
            )
        if name in found:
            raise UserError(
                f"{printable(name)} has a label in an earlier line already", at=at, hint=hint
            )
        found[name] = int(label)
    if odd := set(names) ^ found.keys():
        one = min(odd)
        raise UserError(
            f"the label file does not list the images of its split: {printable(one)} is only in "
            + ("this file" if one in found else "the split's list")
            + (f", {len(odd) - 1} more differ" if len(odd) > 1 else ""),
            at=path,
            hint="unpack VOC 2007 again",
        )
    return np.array([found[name] for name in names], dtype=np.int64)
