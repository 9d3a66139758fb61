"""PASCAL VOC 2007 classification labels from a VOCdevkit, as the challenge distributes it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protobench.data import published
from protobench.data.image_list import ImageList, text_of
from protobench.data.leftovers import is_leftover
from protobench.runtime.errors import UserError, printable
from protobench.runtime.notices import notice, some

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
TEST_ANNOTATIONS = (
    "VOC 2007's test annotations are a separate download (VOCtest_06-Nov-2007.tar); unpack it over"
    " this VOCdevkit"
)


def devkit(data: Path) -> Path:
    """The VOC2007 folder under ``data``, which may be VOC2007, VOCdevkit or the folder that holds
    VOCdevkit."""
    candidates = [data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"]
    for folder in candidates:
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise UserError(
        "no VOCdevkit here" if data.is_dir() else "no such folder",
        at=data,
        hint="looked for ImageSets/Main in " + ", ".join(map(str, candidates)),
    )


def read(data: Path, split: str) -> ImageList:
    """The images of trainval or test; labels int64 [N, C]: 1 present, -1 absent, 0 where all
    objects of the class are marked difficult.

    The classes are VOC's 20, in alphabetical order, or those of the label files in the folder
    (bundled synthetic data). UserError for a missing split (the test annotations are a separate
    download) and for malformed lines."""
    voc = devkit(data)
    main = voc / "ImageSets" / "Main"
    listed, titles = names(main, split), classes(main, split)
    labels = np.stack([_labels(main / f"{title}_{split}.txt", listed) for title in titles], axis=1)
    return published.check(ImageList(f"voc07-{split}", voc, pictures(voc, listed), labels, titles))


def pictures(voc: Path, names: list[str]) -> tuple[str, ...]:
    """The images' paths under ``voc``: JPEGImages/<name>.jpg, or with the suffix .jpeg or .JPG
    where no .jpg exists."""
    try:
        existing = os.listdir(voc / "JPEGImages")
    except OSError:  # reading the first image reports the reason
        existing = []
    file_of = {
        name.rpartition(".")[0]: name
        for name in sorted(existing, key=lambda name: (name.endswith(".jpg"), name))
        if name.lower().endswith((".jpg", ".jpeg"))
    }  # .jpg comes last and so wins
    return tuple("JPEGImages/" + file_of.get(name, f"{name}.jpg") for name in names)


def names(main: Path, split: str) -> list[str]:
    """The image names in ``main``/<split>.txt, one per line. UserError where the list is missing or
    empty, or names an image twice."""
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
                f"{printable(name)} is listed twice; it is in line {first[name]} already",
                at=f"{listing}, line {number}",
                hint=f"unpack {year} again, or remove one of the lines",
            )
        first[name] = number
    return list(first)


def classes(main: Path, split: str) -> tuple[str, ...]:
    """The classes that have a label file <class>_<split>.txt: VOC's 20, or others (bundled
    synthetic data). Files that a system or an editor left there are reported and not read.
    UserError where some of the 20 lack their file, and where files of other classes lie there too.
    """
    year, suffix = main.parents[1].name, f"_{split}.txt"
    files = sorted(path.name for path in main.glob(f"*{suffix}*"))
    if leftovers := [name for name in files if is_leftover(name)]:
        notice(
            f"left out of {year} {split}: {len(leftovers)} files of systems or tools among its"
            f" label files ({some(leftovers)})"
        )
    titles = [
        name.removesuffix(suffix)
        for name in files
        if name.endswith(suffix) and not is_leftover(name)
    ]
    if set(CLASSES) & set(titles):
        if missing := [name for name in CLASSES if name not in titles]:
            raise UserError(
                f"{year} {split} has no labels for {', '.join(missing)}",
                at=main,
                hint=f"unpack {year} again",
            )
        if more := [name for name in titles if name not in CLASSES]:
            raise UserError(
                f"{year} {split} has label files beside those of VOC's 20 classes: "
                + ", ".join(f"{printable(name)}{suffix}" for name in more[:5]),
                at=main,
                hint="move them to another folder; a second copy of a file would count as a class",
            )
    if not titles:
        raise UserError(
            f"{year} {split} has no label files <class>_{split}.txt",
            at=main,
            hint=f"unpack {year} again",
        )
    return tuple(sorted(titles))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list that are not blank, each with its number."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


_LABELS = {"1", "-1", "0"}


def _labels(path: Path, names: list[str]) -> np.ndarray:
    """The labels in a class's file, in the order of ``names``, whatever the order of the file."""
    words = text_of(path).split()
    if words[::2] == names and {*words[1::2]} <= _LABELS:  # a whole file at once, as VOC's are
        return np.array([*map(int, words[1::2])], dtype=np.int64)
    label_of: dict[str, int] = {}
    for number, line in _lines(path):
        name, label = [*line.rsplit(None, 1), ""][:2]
        at, hint = f"{path}, line {number}", "unpack VOC 2007 again"
        if label not in _LABELS:
            raise UserError(
                f"labels must be 1, -1 or 0 (difficult), not {printable(label)!r}",
                at=at,
                hint=hint,
            )
        if name in label_of:
            raise UserError(
                f"{printable(name)} has a label in an earlier line already", at=at, hint=hint
            )
        label_of[name] = int(label)
    if odd := set(names) ^ label_of.keys():
        one = min(odd)
        raise UserError(
            f"the label file does not list the images of its split: {printable(one)} is only in "
            + ("this file" if one in label_of else "the split's list")
            + (f", {len(odd) - 1} more differ" if len(odd) > 1 else ""),
            at=path,
            hint="unpack VOC 2007 again",
        )
    return np.array([label_of[name] for name in names], dtype=np.int64)


def edition(images: ImageList) -> str:
    """The other year's VOC that the file names of a list show it to be; empty where they do not.
    VOC2007 numbers its images 000001, the later years 2008_000001."""
    later_year = re.fullmatch(r"(20\d\d)_\d{6}\.\w+", images.sample_name)
    if images.name.startswith("voc07-") and later_year and later_year[1] != "2007":
        return f"VOC{later_year[1]} or a later year's"
    if images.name.startswith("voc12-") and re.fullmatch(r"\d{6}\.\w+", images.sample_name):
        return "VOC2007"
    return ""
