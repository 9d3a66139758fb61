"""Images with objects in them: boxes, classes and, where a data set has them, masks."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from protobench.data.image_list import ImageList, Paths
from protobench.runtime import files
from protobench.runtime.errors import UserError


@dataclass(frozen=True, eq=False)
class Objects:
    """The annotated objects of one image.

    boxes_N4: float32, (x1, y1, x2, y2) in pixels from 0. labels_N: int64. ignored_N: bool, objects
    that count neither as detected nor as missed (VOC's difficult ones, COCO's crowds)."""

    width: int
    height: int
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    ignored_N: np.ndarray
    masks: tuple[Any, ...] = ()
    """one per object where the data set has masks: float64 polygons [x y x y …], or run lengths
    {size, counts: [int, …]} as COCO writes them"""

    def __len__(self) -> int:
        return len(self.labels_N)

    def of_classes(self, first: int) -> "Objects":
        """The objects of the ``first`` classes alone."""
        kept = np.flatnonzero(self.labels_N < first)
        return replace(
            self,
            boxes_N4=self.boxes_N4[kept],
            labels_N=self.labels_N[kept],
            ignored_N=self.ignored_N[kept],
            masks=tuple(self.masks[i] for i in kept) if self.masks else (),
        )

    @property
    def content(self) -> list[Any]:
        """All fields as JSON values, for hashing."""
        masks = [
            mask if isinstance(mask, dict) else [part.tolist() for part in mask]
            for mask in self.masks
        ]
        return [
            self.width,
            self.height,
            self.boxes_N4.tolist(),
            self.labels_N.tolist(),
            self.ignored_N.tolist(),
            masks,
        ]


@dataclass(frozen=True, eq=False)
class BoxList(ImageList):
    """Images in a fixed order, each with its ``objects``. Labels are int64 [N, C] as VOC's: 1
    present, 0 only ignored objects, -1 absent."""

    objects: tuple[Objects, ...] = ()

    def subset(self, indices: np.ndarray) -> "BoxList":
        """The images at ``indices``, in that order."""
        return replace(
            self,
            paths=Paths(self.paths[i] for i in indices),
            labels=self.labels[indices],
            objects=tuple(self.objects[i] for i in indices),
        )

    def with_ignored(self) -> "BoxList":
        """The same images with all objects, none of them ignored."""
        return replace(
            self,
            objects=tuple(
                replace(one, ignored_N=np.zeros_like(one.ignored_N)) for one in self.objects
            ),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the images (see ImageList), all boxes and all masks."""
        content = files.sha256_text("\n".join(files.sha256(one.content) for one in self.objects))
        return files.sha256([ImageList.fingerprint.func(self), content])  # type: ignore[attr-defined]

    def sized(self, index: int) -> np.ndarray:
        """The image as uint8 [H, W, 3] in RGB. UserError where its size is not the one in its
        annotation, since boxes would then be misplaced."""
        pixels, annotation = np.asarray(self.read(index)), self.objects[index]
        if pixels.shape[:2] != (annotation.height, annotation.width):
            raise UserError(
                f"{self.name}: the image is {pixels.shape[1]} x {pixels.shape[0]} pixels, its"
                f" annotation says {annotation.width} x {annotation.height}",
                at=self.root / self.paths[index],
                hint=(
                    "images and annotations belong to different releases, or the image was resized"
                ),
            )
        return pixels


def presence(objects: list[Objects], classes: int) -> np.ndarray:
    """int64 [N, C]: 1 where an image has an object of the class, 0 where all such objects are
    ignored, -1 where it has none."""
    labels_NC = np.full((len(objects), classes), -1, dtype=np.int64)
    for row, image in zip(labels_NC, objects, strict=True):
        row[image.labels_N[image.ignored_N]] = 0
        row[image.labels_N[~image.ignored_N]] = 1
    return labels_NC
