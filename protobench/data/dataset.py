"""A data set as a value: how it is read, where it may lie, and what was published of it.

Each reader module beside this file ends in ``DATASET = Dataset(…)`` (or ``DATASETS``, a tuple of
them), which datasets.py finds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from protobench.data import decoding, rehearsal
from protobench.data.boxes import BoxList
from protobench.data.image_list import ImageList, pair
from protobench.runtime import files
from protobench.runtime.errors import UserError

Read = TypeVar("Read", bound=ImageList | tuple[BoxList, BoxList])
_READ: ContextVar[dict[tuple[Any, Path], Any] | None] = ContextVar("lists read", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Within the block a list is read, compared with what was published, and hashed once, however
    many evaluations and pretrainings ask for it: a plan asks once for each. The lists are kept, so
    the files must not change meanwhile."""
    before = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(before)


def _once(read: Callable[[Path], Read], root: Path) -> Read:
    """What ``read`` reads in ``root``, or has read there in a block of ``read_once``."""
    if (known := _READ.get()) is None:
        return read(root)
    if (read, root) not in known:
        known[read, root] = read(root)
    return cast(Read, known[read, root])


@dataclass(frozen=True)
class Split:
    """A split as published, by the name of its image list ("-boxes" is appended to the name of a
    list with boxes)."""

    name: str
    family: str
    """the data set's name in messages: "ImageNet" """
    images: int
    classes: int
    class_hash: str = ""
    """``class_hash`` of its classes; empty where their spelling is not fixed"""


def class_hash(classes: Sequence[str]) -> str:
    """SHA-256 of class names in order, one per line."""
    return files.sha256_text("\n".join(classes))


@dataclass(frozen=True)
class Dataset:
    """A data set of this suite. ``read_train`` and ``read_test`` take the root that ``--data``
    names, and raise UserError for missing, malformed or foreign files. The methods also take a
    rehearsal folder (rehearsal.py) as the root, and then keep a few images."""

    name: str
    """as in flags and records"""
    read_train: Callable[[Path], ImageList]
    read_test: Callable[[Path], ImageList]
    splits: tuple[Split, ...]
    """as published; the training split comes first"""
    folders: tuple[str, ...]
    """folders under a root that it is known by"""
    own_folder: str = ""
    """the name of the folder in which it is distributed, where that folder may be the root"""
    read_boxes: Callable[[Path], tuple[BoxList, BoxList]] | None = None
    """training and test images with boxes; None where it has none"""
    recognise: Callable[[Sequence[str]], str] = lambda classes: ""
    """the family that these classes show images to be of, wherever they lie; empty where they show
    nothing"""
    takes_unrecognised: bool = False
    """whether class folders in train/ that no data set recognises are taken for this one"""
    edition: Callable[[ImageList], str] = lambda images: ""
    """the other edition (another year) that the file names of a list show it to be; empty where
    they do not"""
    departures: Callable[[ImageList], list[str]] = lambda images: []
    """how a list's form differs from the published one, beyond counts and classes"""
    part_of: str = ""
    """the data set of which it is a part, in the same folders; only that one is checked"""

    @property
    def family(self) -> str:
        """Its name in messages."""
        return self.splits[0].family

    def read_both(self, root: Path, skip_bad_images: int = 0) -> tuple[ImageList, ImageList]:
        """Training and test images, less up to ``skip_bad_images`` that cannot be decoded.

        UserError also where the two lists have different classes or a class has no test image."""
        train, test = rehearsal.read(
            root,
            lambda real: pair(_once(self.read_train, real), _once(self.read_test, real)),
            ("train", "test"),
        )
        return decoding.leave_out((train, test), skip_bad_images)

    def read_both_with_boxes(self, root: Path, skip_bad_images: int = 0) -> tuple[BoxList, BoxList]:
        """As ``read_both``, with the objects in each image. UserError where it has no boxes."""
        if self.read_boxes is None:
            raise UserError(f"{self.name} has no boxes", hint="choose a detection data set")
        read = self.read_boxes
        train, test = rehearsal.read(root, lambda real: _once(read, real), ("train", "test"))
        return decoding.leave_out((train, test), skip_bad_images)

    def training_images(self, root: Path, skip_bad_images: int = 0) -> ImageList:
        """The training images alone, less up to ``skip_bad_images`` that cannot be decoded."""
        lists = rehearsal.read(root, lambda real: (_once(self.read_train, real),), ("train",))
        return decoding.leave_out(lists, skip_bad_images)[0]
