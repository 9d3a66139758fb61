"""A list of labelled images, which every reader returns, and how one image is read."""

import hashlib
import os
import unicodedata
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from PIL import Image

from protobench import keyed
from protobench.data.leftovers import is_leftover
from protobench.data.synthetic import manifest
from protobench.runtime import files, resource_errors
from protobench.runtime.errors import UserError, decodable, printable
from protobench.runtime.notices import notice, some

warnings.simplefilter(
    "ignore", Image.DecompressionBombWarning
)  # read() refuses what Pillow would only warn about

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
"""Suffixes of image files, in lower case: torchvision's list."""
HASHED_BYTES = 2**30
"""Lists of files up to this total size are hashed completely: VOC07 takes a second, and is read
anyway."""
SAMPLED_FILES = 256
"""How many files of a larger list are hashed."""


List = TypeVar("List", bound="ImageList")


class Paths(Sequence[str]):
    """Texts in one block of bytes instead of a million objects. A forked worker process that looks
    one up copies no memory, which counting a reference to an object would make it do, and a worker
    that is not forked is sent the block."""

    def __init__(self, texts: Iterable[str]):
        written, ends = bytearray(), array("q")
        for text in texts:
            # any text comes back as it was, undecodable bytes of file names included
            written += text.encode("utf-8", "surrogatepass")
            ends.append(len(written))
        self._bytes, self._end_I = bytes(written), np.array(ends)

    def __len__(self) -> int:
        return len(self._end_I)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """A text, or some of them."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        i = range(len(self))[index]
        start, end = int(self._end_I[i - 1]) if i else 0, int(self._end_I[i])
        return self._bytes[start:end].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._end_I.tolist():
            yield self._bytes[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` is a sequence of the same texts, however it holds them."""
        return isinstance(other, Sequence) and len(self) == len(other) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class ImageList:
    """Images in a fixed order.

    labels: int64 [N] (one class each) or int64 [N, C] with 1 present, -1 absent, 0 difficult (VOC).
    UserError where labels do not fit the classes, or pixels do not fit the paths."""

    name: str
    root: Path
    paths: Sequence[str]
    """kept as Paths"""
    labels: np.ndarray
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    """paths that were left out because they cannot be decoded (decoding.py)"""
    pixels: np.ndarray | None = None
    """uint8 [N, H, W, 3], for a data set held in memory; no file is read then, and paths are only
    names"""
    rehearsed_of: int = 0
    """how many images the list has of which a rehearsal took these few (rehearsal.py); 0: this is
    the whole list, or a part that an evaluation chose"""

    def __post_init__(self) -> None:
        if not isinstance(self.paths, Paths):
            object.__setattr__(self, "paths", Paths(self.paths))
        shape = (
            (len(self.paths),) if self.labels.ndim == 1 else (len(self.paths), len(self.classes))
        )
        low, high = (0, len(self.classes) - 1) if self.labels.ndim == 1 else (-1, 1)
        if self.labels.shape != shape or (
            self.labels.size and not low <= self.labels.min() <= self.labels.max() <= high
        ):
            raise UserError(
                f"{self.name}: labels of shape {self.labels.shape} for {len(self.paths)} images and"
                f" {len(self.classes)} classes, or outside {low} to {high}",
                at=self.root,
            )
        if (pixels := self.pixels) is not None and (
            pixels.dtype != np.uint8 or pixels.shape != (len(self), *pixels.shape[1:3], 3)
        ):
            raise UserError(
                f"{self.name}: pixels of shape {pixels.shape} and type {pixels.dtype} for"
                f" {len(self)} images",
                at=self.root,
            )

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> "ImageList":
        """The images at ``indices``, in that order."""
        return replace(
            self,
            paths=Paths(self.paths[i] for i in indices),
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
        )

    @property
    def sample_name(self) -> str:
        """The file name of the image in the middle of the list; empty for an empty list."""
        return self.paths[len(self) // 2].rpartition("/")[2] if len(self) else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The paths as text that can be hashed and recorded: a file system's names need not be
        UTF-8."""
        return tuple(map(decodable, self.paths))

    @cached_property
    def states(self) -> np.ndarray:
        """int64 [N, 2]: size in bytes and modification time in nanoseconds of every file. UserError
        for a missing file. 1.28 million files take seconds, as none is opened."""
        states = np.empty((len(self), 2), np.int64)
        root = str(self.root)
        try:
            # threads would wait for one another longer than for the disk
            for row, path in zip(states, self.paths, strict=True):
                state = os.stat(f"{root}/{path}")
                row[:] = state.st_size, state.st_mtime_ns
        except OSError as failure:
            raise self._cannot_read(failure) from failure
        return states

    @property
    def hashed_whole(self) -> bool:
        """Whether the fingerprint covers the contents of every file."""
        return (
            self.pixels is not None
            or len(self) <= SAMPLED_FILES
            or int(self.states[:, 0].sum()) <= HASHED_BYTES
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all names, labels and contents (pixels, or files of up to 1 GiB in total). It is
        the same on every machine, so that records can be compared.

        A larger data set would take as long to read as to evaluate on. There the size of every
        file and the contents of 256 files spread over the list are hashed."""
        # nothing that is kept of a rehearsal is ever taken for the same images' whole run
        apart = ["rehearsal"] if self.rehearsed_of else []
        if self.pixels is not None:
            contents = [str(self.pixels.shape), hashlib.sha256(self.pixels.tobytes()).hexdigest()]
            return files.sha256(
                [tuple(self.paths), self.labels.tolist(), self.classes, contents, *apart]
            )
        whole = self.hashed_whole
        chosen = (
            range(len(self))
            if whole
            else sorted(
                keyed.generator("fingerprint", len(self))
                .choice(len(self), SAMPLED_FILES, replace=False)
                .tolist()
            )
        )
        noted = manifest.hashes_in(self.root) if whole else {}
        try:
            contents = [self._hash(i, noted) for i in chosen]
        except OSError as failure:
            raise self._cannot_read(failure) from failure
        sizes = [] if whole else [self.states[:, 0].tolist()]
        labels = self.labels.tolist()
        return files.sha256([self.names, labels, self.classes, contents, *sizes, *apart])

    def _hash(self, index: int, noted: dict[str, tuple[int, int, str]]) -> str:
        """The SHA-256 of a file; as noted where the bundled data holds it as it was then."""
        path = self.paths[index]
        if path in noted:
            *state, sha256 = noted[path]
            if self.states[index].tolist() == state:
                return sha256
        return files.sha256_file(self.root / path)

    @cached_property
    def cache_key(self) -> str:
        """The key of what is cached of these images on this machine: the fingerprint and, where
        that does not cover every file's contents, the size and modification time of every file. So
        a replaced file never goes unnoticed."""
        if self.hashed_whole:
            return self.fingerprint
        return files.sha256([self.fingerprint, hashlib.sha256(self.states.tobytes()).hexdigest()])

    def _cannot_read(self, failure: OSError) -> UserError:
        return resource_errors.explained(failure) or UserError(
            f"{self.name}: cannot read an image of the list: {failure.strerror}",
            at=failure.filename,
            hint="unpack the data set again, or correct the list",
        )

    def read(self, index: int) -> Image.Image:
        """The image as RGB, fully decoded. UserError naming the file where it cannot be."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(
                        f"{image.width} x {image.height} pixels are more than any photograph has"
                    )
                if image.mode[0] in "IF":
                    raise ValueError(
                        f"mode {image.mode} has more than 8 bits a channel, which RGB would clip"
                    )
                return image.convert("RGB")
        except FileNotFoundError as failure:
            raise UserError(
                f"{self.name}: image not found", at=path, hint="unpack the data set again"
            ) from failure
        except Exception as failure:  # decoders raise whatever they like
            if resource_errors.explained(failure):  # out of memory: the file is not to blame
                raise
            raise UserError(
                f"{self.name}: cannot decode image {index}: {failure}",
                at=path,
                hint="replace the file; a partly decoded image is never evaluated",
            ) from failure


def pair(train: List, test: List) -> tuple[List, List]:
    """Returns both lists. UserError unless they have the same classes and every class has a test
    image."""
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise UserError(
            f"{train.name} and {test.name} have different classes: {', '.join(odd[:5])}",
            at=train.root,
            hint="unpack the data set again; classes are matched by name",
        )
    present = (
        (test.labels == 1).any(0)
        if test.labels.ndim == 2
        else np.isin(np.arange(len(test.classes)), test.labels)
    )
    if empty := [title for title, there in zip(test.classes, present, strict=True) if not there]:
        raise UserError(
            f"{test.name} has no image of {', '.join(empty[:5])}",
            at=test.root,
            hint="a score needs positives of every class; unpack the data set again",
        )
    return train, test


def text_of(path: Path) -> str:
    """The text of a list file. UserError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as failure:
        raise UserError(
            f"this list is not UTF-8 text: {failure}", at=path, hint="take the released list"
        ) from failure
    except OSError as failure:
        raise UserError(f"cannot read this list: {failure.strerror}", at=path) from failure


def image_folder(root: Path, name: str, *, leaves: bool = False) -> ImageList:
    """Reads ``root/<class>/**/*.jpg`` as torchvision does: classes in sorted order, and the images
    of a class from its folder and the folders within, sorted by path. With ``leaves``, every folder
    that holds images is a class, named by its path under ``root``.

    Files that systems and tools leave there (leftovers.py), and files that are not images, are left
    out with a notice. Names are compared as normalised Unicode. UserError for a folder that is
    missing, cannot be read, is flat, or holds a class without images."""
    try:
        walked = _walk(root, name)
    except OSError as failure:
        raise UserError(
            f"{name}: cannot read this folder: {failure.strerror}",
            at=failure.filename or root,
            hint="check permissions, links and the disk",
        ) from failure
    images_of: dict[str, list[str]] = {} if leaves else {title: [] for title in walked.classes}
    for folder, names in sorted(walked.images.items()):
        images_of.setdefault(folder if leaves else folder.partition("/")[0], []).extend(
            f"{folder}/{name}" for name in names
        )
    for title, paths in images_of.items():
        if not paths:
            others = Counter(
                Path(path).suffix or path for path in walked.others if path.startswith(f"{title}/")
            )
            raise UserError(
                f"{name}: class {title!r} has no image"
                + (
                    f", but {some([f'{n} {kind}' for kind, n in others.items()])}" if others else ""
                ),
                at=root / title,
                hint=(
                    f"images are files with one of the suffixes {' '.join(sorted(EXTENSIONS))}"
                    if others
                    else "remove the empty folder or unpack the class again"
                ),
            )
    titles: dict[str, str] = {}
    for title in images_of:
        if (other := titles.setdefault(unicodedata.normalize("NFC", title), title)) != title:
            raise UserError(
                f"{name}: two folders have the same name, {title!r}, composed in two ways",
                at=root,
                hint=(
                    f"move the images of one into the other: {other!r} and {title!r} differ in"
                    " their bytes alone"
                ),
            )
    ordered = [titles[title] for title in sorted(titles)]
    _report(walked, name, leaves=leaves)
    return ImageList(
        name,
        root,
        Paths(path for title in ordered for path in images_of[title]),
        np.repeat(np.arange(len(ordered)), [len(images_of[title]) for title in ordered]),
        tuple(printable(title) for title in sorted(titles)),
    )


@dataclass
class _Walked:
    """What lies in a root and its folders; paths are relative to the root."""

    classes: list[str]
    images: dict[str, list[str]] = field(default_factory=dict)
    """folder -> names of the images directly in it, sorted"""
    others: list[str] = field(default_factory=list)
    """files that are not images"""
    leftovers: list[str] = field(default_factory=list)


def _walk(root: Path, name: str) -> _Walked:
    if not root.is_dir():
        raise UserError(
            f"{name}: no such folder", at=root, hint="expected one folder per class in it"
        )
    with os.scandir(root) as entries:
        kinds = [(entry.name, entry.is_dir()) for entry in entries]
    folders = sorted(title for title, is_folder in kinds if is_folder)
    walked = _Walked(
        [title for title in folders if not is_leftover(title)],
        leftovers=[f"{title}/" for title in folders if is_leftover(title)],
    )
    if not walked.classes:
        flat = any(
            Path(title).suffix.lower() in EXTENSIONS for title, is_folder in kinds if not is_folder
        )
        raise UserError(
            f"{name}: {'images lie flat in this folder, not' if flat else 'no images'} in class"
            " folders",
            at=root,
            hint="sort the images into one folder per class (ImageNet's val too)",
        )
    for title in walked.classes:
        _walk_class(str(root), title, walked)
    return walked


def _walk_class(root: str, title: str, walked: _Walked) -> None:
    if _leads_back(f"{root}/{title}"):
        return
    for place, inner, names in os.walk(f"{root}/{title}", onerror=_raise, followlinks=True):
        folder = place[len(root) + 1 :]
        walked.leftovers += [f"{folder}/{other}/" for other in inner if is_leftover(other)]
        inner[:] = [
            other
            for other in inner
            if not is_leftover(other) and not _leads_back(f"{place}/{other}")
        ]
        kept = [other for other in names if not is_leftover(other)]
        images = sorted(other for other in kept if os.path.splitext(other)[1].lower() in EXTENSIONS)
        if images:
            walked.images[folder] = images
        if len(images) < len(names):
            walked.leftovers += [f"{folder}/{other}" for other in names if is_leftover(other)]
            walked.others += [
                f"{folder}/{other}"
                for other in kept
                if os.path.splitext(other)[1].lower() not in EXTENSIONS
            ]


def _raise(failure: OSError) -> None:
    raise failure


def _leads_back(path: str) -> bool:
    """Whether a folder is a link to a folder that contains it."""
    return os.path.islink(path) and f"{os.path.realpath(os.path.dirname(path))}/".startswith(
        f"{os.path.realpath(path)}/"
    )


def _report(walked: _Walked, name: str, *, leaves: bool) -> None:
    """Prints what was left out, and where images lie deeper than usual."""
    if walked.leftovers:
        notice(
            f"left out of {name}: {len(walked.leftovers)} files or folders of systems and tools"
            f" ({some(walked.leftovers)})"
        )
    if walked.others:
        kinds = Counter(os.path.splitext(path)[1] or "no suffix" for path in walked.others)
        notice(
            f"left out of {name}: {len(walked.others)} files that are not images"
            f" ({', '.join(f'{n} with {kind}' for kind, n in kinds.most_common(3))}; the first"
            f" {sorted(walked.others)[0]})"
        )
    if not leaves and (deeper := sorted(folder for folder in walked.images if "/" in folder)):
        notice(
            f"{name}: images lie in folders within the class folders ({some(deeper)}); the"
            " outermost folder is their class, as in torchvision"
        )
