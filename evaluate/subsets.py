"""The subset of ImageNet's labels that fine-tuning uses: drawn at random, or named by a list such
as SimCLR's."""

from pathlib import Path

import numpy as np

from protobench import keyed
from protobench.data.image_list import ImageList, text_of
from protobench.runtime.errors import UserError


def drawn(images: int, percent: int, seed: int, draw: int) -> np.ndarray:
    """Return the sorted indices of a random subset: int(N * percent / 100) of N images, regardless
    of their classes."""
    order = keyed.generator(seed, "subset", percent, draw).permutation(images)
    return np.sort(order[: images * percent // 100])


def names(listing: Path) -> list[str]:
    """Return the images that a list names, by their path under train/ or by file name alone."""
    lines = (line.strip() for line in text_of(listing).splitlines())
    return [line.removeprefix("train/") for line in lines if line]


def listed(images: ImageList, listing: Path, percent: int) -> np.ndarray:
    """Return the sorted indices of the images that a file names. Raises UserError if a name is
    unknown or given twice, and if the list is nowhere near ``percent`` of the images."""
    unreadable = {*images.unreadable, *map(_file_name, images.unreadable)}
    given = names(listing)
    wanted = [name for name in given if name not in unreadable]
    if not wanted:
        if given:
            raise UserError("every image of this list was left out as unreadable", at=listing)
        raise UserError("this list is empty", at=listing)
    index_of = _index_of_name(images)
    if unknown := [name for name in wanted if name not in index_of]:
        folders = {name.split("/")[0].split("_")[0] for name in unknown}
        foreign = sorted(folders - {*images.classes})
        what = "unknown or in several classes"
        if foreign:
            what = f"of unknown classes ({', '.join(foreign[:3])})"
        raise UserError(
            f"{len(unknown)} of {len(wanted)} images of this list are {what}, the first"
            f" {unknown[0]!r}",
            at=listing,
            hint=f"the names must be those under {images.root}",
        )
    index_N = np.array([index_of[name] for name in wanted])
    if repeats := len(index_N) - len(np.unique(index_N)):
        raise UserError(f"this list names {repeats} images twice", at=listing)
    expected = percent * (len(images) + len(images.unreadable)) / 100
    if not 0.5 < len(given) / expected < 2:
        raise UserError(
            f"this list names {len(given)} of {len(images)} images, which is not {percent} %",
            at=listing,
            hint="--dataset imagenet-1pct and imagenet-10pct have lists of their own",
        )
    return np.sort(index_N)


def _index_of_name(images: ImageList) -> dict[str, int]:
    """Return the index of each image by its path, and by its file name where no other image has
    the same."""
    index_of: dict[str, int] = {}
    ambiguous = set()
    for index, path in enumerate(images.paths):
        name = _file_name(path)
        if name in index_of:
            ambiguous.add(name)
        index_of[name] = index
    for name in ambiguous:
        del index_of[name]
    return index_of | {path: index for index, path in enumerate(images.paths)}


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]
