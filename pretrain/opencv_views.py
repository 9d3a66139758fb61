"""Views by OpenCV: the fast profile. The draws are those of the faithful one, the pixels are not.

How far off they are, ``python benchmarks/augmentation.py`` measures. The differences come from resizing (bilinear without
antialiasing, or by areas where the box shrinks by more than a quarter), from colour steps applied as one matrix without rounding
in between, and from a hue in OpenCV's HSV. An encoder trained on them is no reproduction of a paper's row: its run key says so,
and tables call its cells off protocol.
"""

import cv2
import numpy as np

from pretrain.draws import BRIGHTNESS, CONTRAST, SATURATION, Draw

_LUMA = np.array([[0.299, 0.587, 0.114]])
_CUT = 0.5
"""Pillow cuts to whole bytes after every colour step, OpenCV rounds."""


def render(picture: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """One view of uint8 [H, W, 3]: uint8 [size, size, 3]."""
    return coloured(resized_crop(picture, draw, size), draw)


def resized_crop(picture: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The box, flipped and resized, in its own colours."""
    part = picture[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    shrinks = min(draw.width, draw.height) > 4 / 3 * size
    view = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.flip(view, 1) if draw.flip else view


def coloured(view: np.ndarray, draw: Draw) -> np.ndarray:
    """Jitter, grey and blur. Brightness, contrast and saturation between two turns of hue are one matrix, clipped once."""
    if draw.grey and draw.grey_first:
        view = _grey(view)
    matrix = np.eye(3, 4)
    for kind, factor in draw.jitter:
        if kind == BRIGHTNESS:
            matrix *= factor
        elif kind == CONTRAST:
            mean = float((_LUMA @ (matrix[:, :3] @ cv2.mean(view)[:3] + matrix[:, 3]))[0])
            matrix *= factor
            matrix[:, 3] += (1 - factor) * mean
        elif kind == SATURATION:
            matrix = (factor * np.eye(3) + (1 - factor) * np.repeat(_LUMA, 3, 0)) @ matrix
        else:
            view, matrix = _turned(_transformed(view, matrix), factor), np.eye(3, 4)
            continue
        matrix[:, 3] -= _CUT
    view = _transformed(view, matrix)
    if draw.grey and not draw.grey_first:
        view = _grey(view)
    side = 2 * int(2.5 * draw.sigma + 0.5) + 1
    return cv2.GaussianBlur(view, (side, side), draw.sigma, borderType=cv2.BORDER_REPLICATE) if side > 1 else view


def _transformed(view: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return view if (matrix == np.eye(3, 4)).all() else cv2.transform(view, matrix)


def _grey(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _turned(view: np.ndarray, turns: float) -> np.ndarray:
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    same = np.arange(256, dtype=np.uint8)
    cv2.LUT(hsv, np.dstack([same + np.uint8(round(turns * 256) % 256), same, same]).reshape(1, 256, 3), hsv)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
