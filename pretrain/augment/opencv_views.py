"""Views by OpenCV: the fast profile. The draws are those of the faithful one, the pixels are not.

How far off they are, ``python benchmarks/augmentation.py`` measures. The differences come from
resizing (bilinear without antialiasing, or by areas where the box shrinks by more than a quarter),
from rounding, from a hue in OpenCV's HSV, and from a blur by a Gaussian where Pillow has three box
filters. An encoder trained on them is no reproduction of a paper's row: its run key says so, and
tables call its cells off protocol."""

from dataclasses import replace

import cv2
import numpy as np

from pretrain.augment.params import BRIGHTNESS, CONTRAST, SATURATION, AugmentParams

_LUMA = np.array([[0.299, 0.587, 0.114]])
_LEVELS = np.arange(256)


def render(picture: np.ndarray, draw: AugmentParams, size: int) -> np.ndarray:
    """One view of uint8 [H, W, 3]: uint8 [size, size, 3]."""
    return coloured(resized_crop(picture, draw, size), draw)


def resized_crop(picture: np.ndarray, draw: AugmentParams, size: int) -> np.ndarray:
    """The box, flipped and resized, in its own colours."""
    part = picture[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    shrinks = min(draw.width, draw.height) > 4 / 3 * size
    view = cv2.resize(
        part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(view, 1) if draw.flip else view


def shrunk_crop(
    picture: np.ndarray, extent: tuple[int, int], draw: AugmentParams, size: int
) -> np.ndarray:
    """``resized_crop`` of a picture that was shrunk, for a draw made for its former width and
    height."""
    scale = [now / before for now, before in zip(picture.shape[1::-1], extent, strict=True)]
    (left, top), (right, bottom) = (
        [round(x * s) for x, s in zip(corner, scale, strict=True)]
        for corner in ((draw.left, draw.top), (draw.left + draw.width, draw.top + draw.height))
    )
    left, top = min(left, picture.shape[1] - 1), min(top, picture.shape[0] - 1)
    box = replace(draw, left=left, top=top, width=max(right - left, 1), height=max(bottom - top, 1))
    return resized_crop(picture, box, size)


def coloured(view: np.ndarray, draw: AugmentParams) -> np.ndarray:
    """Jitter, grey and blur, each step rounded and cut to bytes."""
    if draw.grey and draw.grey_first:
        view = _grey(view)
    for kind, factor in draw.jitter:
        if kind == BRIGHTNESS:
            view = cv2.LUT(view, _bytes(factor * _LEVELS))
        elif kind == CONTRAST:
            mean = int(float((_LUMA @ cv2.mean(view)[:3])[0]) + 0.5)
            view = cv2.LUT(view, _bytes(mean + factor * (_LEVELS - mean)))
        elif kind == SATURATION:
            matrix = factor * np.eye(3) + (1 - factor) * np.repeat(_LUMA, 3, 0)
            view = cv2.transform(
                view, np.column_stack([matrix, np.full(3, -0.5)])
            )  # rounded where Pillow cuts
        else:
            view = _turned(view, factor)
    if draw.grey and not draw.grey_first:
        view = _grey(view)
    if not draw.sigma:
        return view
    side = 2 * int(np.ceil(2.5 * draw.sigma)) + 1
    return cv2.GaussianBlur(view, (side, side), draw.sigma, borderType=cv2.BORDER_REPLICATE)


def _bytes(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255).astype(np.uint8)


def _grey(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _turned(view: np.ndarray, turns: float) -> np.ndarray:
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    same = np.arange(256, dtype=np.uint8)
    cv2.LUT(
        hsv,
        np.dstack([same + np.uint8(round(turns * 256) % 256), same, same]).reshape(1, 256, 3),
        hsv,
    )
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
