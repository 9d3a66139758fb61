"""The part of ImageNet's labels that fine-tuning sees: drawn at random, or named by a list such as
SimCLR's."""

from pathlib import Path

import numpy as np

from protobench import keyed
from protobench.data.image_list import ImageList, text_of
from protobench.runtime.errors import UserError


def drawn(images: int, percent: int, seed: int, draw: int) -> np.ndarray:
    """A random subset's indices, rising: int(N * percent / 100) of N, without regard to their
    classes."""
    return np.sort(
        keyed.generator(seed, "subset", percent, draw).permutation(images)[
            : images * percent // 100
        ]
    )


def names(listing: Path) -> list[str]:
    """The images that a list names: by path below train/, or by file name alone."""
    return [
        word.removeprefix("train/")
        for line in text_of(listing).splitlines()
        if (word := line.strip())
    ]


def listed(images: ImageList, listing: Path, percent: int) -> np.ndarray:
    """The indices of the images that a file names. UserError for names that are unknown or given
    twice, and for a list that is nowhere near ``percent`` of the images."""
    left_out = {*images.unreadable, *(path.rpartition("/")[2] for path in images.unreadable)}
    given = names(listing)
    words = [word for word in given if word not in left_out]
    place: dict[str, int] = {}
    for i, path in enumerate(images.paths):
        name = path.rpartition("/")[2]
        place[name] = -1 if name in place else i  # one name in two folders says nothing
    place |= {path: i for i, path in enumerate(images.paths)}
    if not words:
        raise UserError(
            (
                "this list is empty"
                if not given
                else "every image of this list was left out as unreadable"
            ),
            at=listing,
        )
    if unknown := [word for word in words if place.get(word, -1) < 0]:
        foreign = sorted({word.split("/")[0].split("_")[0] for word in unknown} - {*images.classes})
        what = (
            f"of unknown classes ({', '.join(foreign[:3])})"
            if foreign
            else "unknown or in several classes"
        )
        raise UserError(
            f"{len(unknown)} of {len(words)} images of this list are {what}, the first"
            f" {unknown[0]!r}",
            at=listing,
            hint=f"the names must be those below {images.root}",
        )
    rows = np.array([place[word] for word in words])
    if len(np.unique(rows)) < len(rows):
        raise UserError(
            f"this list names {len(rows) - len(np.unique(rows))} images twice", at=listing
        )
    if not 0.5 < 100 * len(given) / (percent * (len(images) + len(images.unreadable))) < 2:
        raise UserError(
            f"this list names {len(given)} of {len(images)} images, which is not {percent} %",
            at=listing,
            hint="--dataset imagenet-1pct and imagenet-10pct have lists of their own",
        )
    return np.sort(rows)
