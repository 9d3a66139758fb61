"""Views with torchvision's pixels, bit for bit, in about half the time: the faithful profile, which
is the default.

``render`` makes the pixels that torchvision's transforms make through Pillow. Three things are done
differently, with equal results on x86-64 (tests/test_views.py compares them, on your machine too):
hue is changed without images in HSV, the blur is a filter in single precision where no pixel can
come near a tie, and grey images have one channel."""

import math
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageFilter, ImageStat

from pretrain.augment.params import BRIGHTNESS, CONTRAST, SATURATION, AugmentParams

MARGIN = 1e-4
"""An upper bound on the error of a weighted mean of five bytes in single precision: nine roundings
of up to 2**-17."""


def render(image: Image.Image, params: AugmentParams, size: int) -> np.ndarray:
    """One view of an RGB image: uint8 [size, size, 3]."""
    left, top = params.left, params.top
    view = image.crop((left, top, left + params.width, top + params.height))
    if view.size != (size, size):
        view = view.resize((size, size), Image.Resampling.BILINEAR)
    if params.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.grey and params.grey_first:
        view = view.convert("L")
    for kind, factor in params.jitter:
        view = _jittered(view, kind, factor)
    if params.grey and not params.grey_first:
        view = view.convert("L")
    pixels = _blurred(view, params.sigma) if params.sigma else np.asarray(view)
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))


def _jittered(view: Image.Image, kind: int, factor: float) -> Image.Image:
    """One step of ColorJitter. A grey image has neither saturation nor hue."""
    if kind == BRIGHTNESS:
        return _blended(view, 0, factor)
    if kind == CONTRAST:
        grey = view if view.mode == "L" else view.convert("L")
        return _blended(view, int(ImageStat.Stat(grey).mean[0] + 0.5), factor)
    if view.mode == "L":
        return view
    if kind == SATURATION:
        grey = view.convert("L")
        return Image.blend(Image.merge("RGB", (grey, grey, grey)), view, factor)
    return Image.fromarray(hue_shifted(np.asarray(view), int(factor * 255) % 256))


def _blended(view: Image.Image, level: int, factor: float) -> Image.Image:
    """Scales the distance of every value from ``level`` by the factor, as Image.blend does: in
    single precision, truncated to a byte."""
    table = level + np.float32(factor) * (np.arange(256) - level).astype(np.float32)
    return view.point(table.clip(0, 255).astype(np.uint8).tolist() * len(view.getbands()))


# Hue ----------------------------------------------------------------------------------------------


def hue_shifted(rgb: np.ndarray, steps: int) -> np.ndarray:
    """uint8 [H, W, 3] with its hue shifted by ``steps`` of 256, as through Pillow's HSV in bytes.

    Saturation and hue come from tables. On the way back a channel loses v * s * (0 to 85) / (85 *
    255) of the value v, which single precision rounds as Pillow does for every v, s and hue."""
    hues, saturations = _hsv_tables()
    r, g, b = cv2.split(rgb)
    high, low = cv2.max(cv2.max(r, g), b), cv2.min(cv2.min(r, g), b)
    span = high - low
    middle = r + g + b - high - low  # modulo 256
    order = (g > r).view(np.uint8) + 2 * (b > g).view(np.uint8) + 4 * (b > r).view(np.uint8)
    where = cv2.merge([high - middle, span, order, np.zeros_like(r)]).view("<u4")[..., 0]
    hue = hues.take(where) + np.uint8(steps)
    saturation = saturations.take(cv2.merge([low, high]).view("<u2")[..., 0])
    value = high.astype(np.float32)
    lost = value * saturation
    return cv2.merge([_rounded(value - lost * cv2.LUT(hue, table)) for table in _lost()])


def _rounded(x: np.ndarray) -> np.ndarray:
    return (x + np.float32(0.5)).astype(np.uint8)


@cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    """Tables of Pillow's hue, by (order of the channels, largest - smallest, largest - middle), and
    saturation, by (largest, smallest)."""
    high, low = np.meshgrid(*[np.arange(256, dtype=np.float32)] * 2, indexing="ij")
    saturation = np.where(high > low, ((high - low) / np.maximum(high, 1)).astype(float) * 255, 0)
    span, first = high, low
    # a float in Pillow; the sums with it are doubles
    part = (first / np.maximum(span, 1)).astype(float)
    sixths = {
        0b000: 1 - part,
        0b010: part - 1,
        0b001: 1 + part,
        0b101: 3 - part,
        0b111: 3 + part,
        0b110: 5 - part,
    }
    hue = np.zeros((8, 256, 256), np.uint8)  # order of the channels in bits: g > r, b > g, b > r
    for order, x in sixths.items():
        turns = (x.astype(np.float32).astype(float) / 6.0 + 1.0) % 1.0
        hue[order] = np.where(
            (span > 0) & (first <= span), turns.astype(np.float32).astype(float) * 255, 0
        )
    return hue.ravel(), saturation.astype(np.uint8).ravel()


@cache
def _lost() -> tuple[np.ndarray, ...]:
    """For red, green and blue: the fraction of value * saturation that is lost at each of 256 hues,
    float32."""
    hue = np.arange(256)
    sector, part = 6 * hue // 255 % 6, 6 * hue % 255 // 3  # the part in 85ths
    rise, fall, none, whole = 85 - part, part, 0 * part, 0 * part + 85
    channels = (
        [none, fall, whole, whole, rise, none],
        [rise, none, none, fall, whole, whole],
        [whole, whole, rise, none, none, fall],
    )
    return tuple((np.choose(sector, channel) / 21675).astype(np.float32) for channel in channels)


# Blur ---------------------------------------------------------------------------------------------


def _blurred(view: Image.Image, sigma: float) -> np.ndarray:
    """Pillow's GaussianBlur: three box filters along each axis, rounded to bytes in between.

    Single precision rounds to the same bytes as Pillow's integers where no sum of a filter can come
    near a half (``_box``); the other sigmas, one in six or seven, are left to Pillow."""
    box = _box(sigma)
    if box is None:
        return np.asarray(view.filter(ImageFilter.GaussianBlur(sigma)))
    pixels = np.asarray(view)
    for kernel in (box[None],) * 3 + (box[:, None],) * 3:
        pixels = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return pixels


def _box(sigma: float) -> np.ndarray | None:
    """Pillow's box filter for sigma below 2.4: three or five weights, float32; None where a sum may
    come near a half.

    Three weights f, n, f give x + f * e with e = left + right - 2 x. Five weights f, n, n, n, f
    give (outer + n * e) / 2 with e = 2 * inner - 3 * outer, which is odd where ``outer`` is. So
    whether a sum can be near a half depends on the whole number e alone."""
    single = np.float32  # as the C code has it
    variance = single(sigma) * single(sigma) / single(3)
    whole = single((math.sqrt(12.0 * float(variance) + 1.0) - 1.0) // 2.0)
    part = (single(2) * whole + single(1)) * (whole * (whole + single(1)) - single(3) * variance)
    part /= single(6) * (variance - (whole + single(1)) ** 2)
    radius = int(whole + part)
    if radius > 1:
        return None
    near = int(single(1 << 24) / ((whole + part) * single(2) + single(1)))
    far = ((1 << 24) - (2 * radius + 1) * near) // 2
    e = np.arange(1, 1531 if radius else 511)
    remainder = e * (near / 2**25) + e % 2 / 2 if radius else e * (far / 2**24)
    if np.abs(remainder % 1 - 0.5).min() < MARGIN:
        return None
    return np.array([far, *[near] * (2 * radius + 1), far], np.float32) / single(1 << 24)
