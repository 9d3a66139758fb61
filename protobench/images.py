"""A list of labelled images: what every data set is turned into, and how one image is read."""

import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from protobench import failures, files, keyed
from protobench.errors import UserError, decodable, printable

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read() refuses what Pillow would only warn about

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
SAMPLED_FILES = 256


@dataclass(frozen=True, eq=False)
class ImageList:
    """Images in a fixed order.

    labels: int64 [N] (one class each) or int64 [N, C] with 1 present, -1 absent, 0 difficult (VOC). UserError where they do
    not fit the classes, or the pixels not the paths.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    """paths that were left out because they cannot be decoded (readable.py)"""
    pixels: np.ndarray | None = None
    """uint8 [N, H, W, 3], of a data set that is kept in arrays; no file is read then, and paths are mere names"""

    def __post_init__(self) -> None:
        shape = (len(self.paths),) if self.labels.ndim == 1 else (len(self.paths), len(self.classes))
        low, high = (0, len(self.classes) - 1) if self.labels.ndim == 1 else (-1, 1)
        if self.labels.shape != shape or (self.labels.size and not low <= self.labels.min() <= self.labels.max() <= high):
            raise UserError(f"{self.name}: labels of shape {self.labels.shape} for {len(self.paths)} images and "
                            f"{len(self.classes)} classes, or outside {low} to {high}", at=self.root)
        if (found := self.pixels) is not None and (found.dtype != np.uint8 or found.shape != (len(self), *found.shape[1:3], 3)):
            raise UserError(f"{self.name}: pixels of shape {found.shape} and type {found.dtype} for {len(self)} images",
                            at=self.root)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> "ImageList":
        """The images at ``indices``, in that order."""
        return replace(self, paths=tuple(self.paths[i] for i in indices), labels=self.labels[indices],
                       pixels=None if self.pixels is None else self.pixels[indices])

    @property
    def names(self) -> tuple[str, ...]:
        """The paths as text that can be hashed and recorded: a file system's names need not be UTF-8."""
        return tuple(map(decodable, self.paths))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all names and labels and of the contents of up to 256 files spread over the list, or of all pixels.

        A sample, because reading 1.28 M files to name a data set would take as long as evaluating on it.
        """
        if self.pixels is not None:
            contents = [str(self.pixels.shape), hashlib.sha256(self.pixels.tobytes()).hexdigest()]
            return files.sha256([self.paths, self.labels.tolist(), self.classes, contents])
        chosen = range(len(self)) if len(self) <= SAMPLED_FILES else sorted(
            keyed.generator("fingerprint", len(self)).choice(len(self), SAMPLED_FILES, replace=False).tolist())
        try:
            contents = [files.sha256_file(self.root / self.paths[i]) for i in chosen]
        except OSError as failure:
            raise failures.explained(failure) or UserError(
                f"{self.name}: cannot read an image of the list: {failure.strerror}", at=failure.filename,
                hint="unpack the data set again, or correct the list") from failure
        return files.sha256([self.names, self.labels.tolist(), self.classes, contents])

    def read(self, index: int) -> Image.Image:
        """The image as RGB, fully decoded. UserError naming the file where it cannot be."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than any photograph has")
                if image.mode[0] in "IF":
                    raise ValueError(f"mode {image.mode} has more than 8 bits a channel, which RGB would clip")
                return image.convert("RGB")
        except FileNotFoundError as failure:
            raise UserError(f"{self.name}: image not found", at=path, hint="unpack the data set again") from failure
        except Exception as failure:  # decoders raise whatever they like
            if failures.explained(failure):  # of little memory the file is not to blame, and must not be left out for it
                raise
            raise UserError(f"{self.name}: cannot decode image {index}: {failure}", at=path,
                            hint="replace the file; a half-read image is never evaluated") from failure


def pair(train: ImageList, test: ImageList) -> tuple[ImageList, ImageList]:
    """Both, once it is sure that they have the same classes and that every class has a test image."""
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise UserError(f"{train.name} and {test.name} have different classes: {', '.join(odd[:5])}", at=train.root,
                        hint="unpack the data set again; classes are matched by name")
    present = (test.labels == 1).any(0) if test.labels.ndim == 2 else np.isin(np.arange(len(test.classes)), test.labels)
    if empty := [title for title, there in zip(test.classes, present, strict=True) if not there]:
        raise UserError(f"{test.name} has no image of {', '.join(empty[:5])}", at=test.root,
                        hint="a score needs positives of every class; unpack the data set again")
    return train, test


def text_of(path: Path) -> str:
    """A list file's text; UserError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError as failure:
        raise UserError(f"this list is not UTF-8 text: {failure}", at=path, hint="take the released list") from failure
    except OSError as failure:
        raise UserError(f"cannot read this list: {failure.strerror}", at=path) from failure


def image_folder(root: Path, name: str) -> ImageList:
    """``root/<class>/*.jpg`` as ImageNet's train and val are kept; classes in sorted order. UserError for a folder that is
    missing, cannot be read, is flat, or holds an empty class."""
    try:
        return _image_folder(root, name)
    except OSError as failure:
        raise UserError(f"{name}: cannot read this folder: {failure.strerror}", at=failure.filename or root,
                        hint="check permissions, links and the disk") from failure


def _image_folder(root: Path, name: str) -> ImageList:
    if not root.is_dir():
        raise UserError(f"{name}: no such folder", at=root, hint="expected one folder per class below it")
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        flat = any(path.suffix.lower() in EXTENSIONS for path in root.iterdir())
        raise UserError(f"{name}: {'images lie flat in this folder, not' if flat else 'no images'} in class folders",
                        at=root, hint="sort the images into one folder per class (ImageNet's val too)")
    paths, labels = [], []
    for label, title in enumerate(classes):
        found = sorted(f"{title}/{name}" for name in os.listdir(root / title) if Path(name).suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"{name}: class {title!r} has no image", at=root / title,
                            hint="remove the empty folder or unpack the class again")
        paths += found
        labels += [label] * len(found)
    return ImageList(name, root, tuple(paths), np.array(labels), tuple(map(printable, classes)))
