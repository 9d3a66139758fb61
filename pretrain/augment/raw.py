"""Crops for the raw profile: cut by OpenCV from images that are kept decoded and shrunk; the device
then makes colours and blur (tensor.py).

The crop boxes are those of the faithful profile. The pixels are not: the source was shrunk before,
and resizing is bilinear without antialiasing, or by areas where the box shrinks by more than a
quarter. An encoder trained on them does not reproduce a paper's row: its run key says so, and
tables call its cells off protocol."""

from dataclasses import replace

import cv2
import numpy as np

from pretrain.augment.params import AugmentParams


def crop(
    pixels: np.ndarray, original: tuple[int, int], params: AugmentParams, size: int
) -> np.ndarray:
    """The crop, flipped and resized, uint8 [size, size, 3], of a shrunk image [H, W, 3]; ``params``
    were sampled for its ``original`` width and height."""
    scale = [now / before for now, before in zip(pixels.shape[1::-1], original, strict=True)]
    (left, top), (right, bottom) = (
        [round(x * s) for x, s in zip(corner, scale, strict=True)]
        for corner in (
            (params.left, params.top),
            (params.left + params.width, params.top + params.height),
        )
    )
    left, top = min(left, pixels.shape[1] - 1), min(top, pixels.shape[0] - 1)
    width, height = max(right - left, 1), max(bottom - top, 1)
    return _resized_crop(
        pixels, replace(params, left=left, top=top, width=width, height=height), size
    )


def _resized_crop(pixels: np.ndarray, params: AugmentParams, size: int) -> np.ndarray:
    box = pixels[params.top : params.top + params.height, params.left : params.left + params.width]
    shrinks = min(params.width, params.height) > 4 / 3 * size
    view: np.ndarray = cv2.resize(
        box, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(view, 1) if params.flip else view
