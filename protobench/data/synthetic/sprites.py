"""The pixels of the bundled data: handwritten digits, ten procedural shapes, ten textures, and how
they are composed.

Everything is float64 until the last rounding, so that differences between platforms in the last
digit do not reach the pixels."""

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

MASK = 24
"""Side of a sprite's mask, pixels; masks are soft, in 0..1."""

SHAPES = (
    "ring",
    "square",
    "triangle",
    "star",
    "plus",
    "heart",
    "crescent",
    "arrow",
    "hourglass",
    "tee",
)
TEXTURES = (
    "stripes",
    "checker",
    "dots",
    "blobs",
    "rings",
    "gradient",
    "bricks",
    "waves",
    "noise",
    "grid",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CATEGORIES = DIGITS + SHAPES


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 handwritten digits as masks [1797, 24, 24] (uint8, 255 = ink) and their
    classes."""
    from sklearn.datasets import load_digits  # slow to import, needed only while the data is made

    data = load_digits()
    masks = [
        Image.fromarray((image * (255 / 16)).round().astype(np.uint8)).resize(
            (MASK, MASK), Image.Resampling.BICUBIC
        )
        for image in data.images
    ]
    ink = np.stack([np.asarray(mask) for mask in masks]) / 255.0
    return (255 / (1 + np.exp(-(ink - 0.45) * 10))).round().astype(np.uint8), data.target


def shape(name: str, rng: np.random.Generator) -> np.ndarray:
    """One variant of a shape as a mask [24, 24], with rotation, aspect, shear and thickness of its
    own."""
    y, x = (np.mgrid[0:MASK, 0:MASK] + 0.5) / MASK * 2 - 1
    angle, shear = rng.normal(0, 0.1), rng.normal(0, 0.12)
    aspect, thick = np.exp(rng.normal(0, 0.1)), rng.uniform(0.75, 1.3)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = _distance(name, (x + shear * y) * aspect * 1.2, y / aspect * 1.2, thick)
    return np.clip(0.5 - distance * MASK / 2, 0, 1)


def _distance(name: str, x: np.ndarray, y: np.ndarray, thick: float) -> np.ndarray:
    """The approximate signed distance (negative inside) to the shape in the square -1..1, with y
    downwards."""
    radius = np.hypot(x, y)
    match name:
        case "ring":
            return np.abs(radius - 0.72) - 0.18 * thick
        case "square":
            return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.68) - 0.18 * thick
        case "triangle":
            return np.maximum(0.866 * np.abs(x) - 0.5 * y - 0.42, y - 0.75)
        case "star":
            return radius - (0.62 + 0.28 * np.cos(5 * np.arctan2(x, -y)))
        case "plus":
            arm = 0.22 * thick
            return np.minimum(
                np.maximum(np.abs(x) - 0.9, np.abs(y) - arm),
                np.maximum(np.abs(x) - arm, np.abs(y) - 0.9),
            )
        case "heart":
            u, v = np.abs(x), 0.15 - y
            return np.where(u + v > 0.75, np.hypot(u - 0.4, v - 0.35) - 0.5, (u - v - 0.8) * 0.707)
        case "crescent":
            return np.maximum(radius - 0.9, 0.72 - np.hypot(x - 0.42, y))
        case "arrow":
            shaft = np.maximum(np.abs(y) - 0.16 * thick, np.abs(x + 0.2) - 0.65)
            return np.minimum(shaft, np.maximum(0.707 * (np.abs(y) + x) - 0.62, 0.15 - x))
        case "hourglass":
            return np.maximum(np.abs(y) - 0.85, np.abs(x) - np.abs(y) * 0.85 - 0.05 * thick)
        case "tee":
            stem = 0.18 * thick
            bar = np.maximum(np.abs(y + 0.68) - stem, np.abs(x) - 0.85)
            return np.minimum(bar, np.maximum(np.abs(x) - stem, np.abs(y) - 0.86))
    raise ValueError(name)


def texture(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A background pattern [size, size] in 0..1 with random phase, angle and period (5 to 10
    pixels)."""
    x = np.arange(size, dtype=float)
    y = x[:, None]
    period, angle, (px, py) = rng.uniform(5, 10), rng.uniform(0, np.pi), rng.uniform(0, 100, 2)
    u = (np.cos(angle) * x + np.sin(angle) * y + px) / period
    v = (np.cos(angle) * y - np.sin(angle) * x + py) / period
    match name:
        case "stripes":
            return (u % 1 < 0.5).astype(float)
        case "checker":
            return ((np.floor(u) + np.floor(v)) % 2 == 0).astype(float)
        case "dots":
            return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(float)
        case "blobs":
            return _smooth(rng.random((size, size)), 3) > 0.5
        case "rings":
            centre = rng.uniform(0, size, 2)
            return (np.hypot(x - centre[0], y - centre[1]) / period % 1 < 0.5).astype(float)
        case "gradient":
            ramp = np.cos(angle) * x + np.sin(angle) * y
            return (ramp - ramp.min()) / (ramp.max() - ramp.min())
        case "bricks":
            row = np.floor(v)
            return ((v % 1 > 0.2) & ((u / 2 + row % 2 / 2) % 1 > 0.1)).astype(float)
        case "waves":
            return 0.5 + 0.5 * np.sin(2 * np.pi * (u + 0.35 * np.sin(2 * np.pi * v / 1.5)))
        case "noise":
            return rng.random((size, size))
        case "grid":
            return ((u % 1 < 0.18) | (v % 1 < 0.18)).astype(float)
    raise ValueError(name)


def _smooth(field: np.ndarray, passes: int) -> np.ndarray:
    for _ in range(passes):
        for axis in (0, 1):
            field = (np.roll(field, 1, axis) + field + np.roll(field, -1, axis)) / 3
    return (field - field.min()) / (field.max() - field.min())


@dataclass(frozen=True)
class Sprite:
    """An object to draw: its mask, centre (x, y), side of its box in pixels, rotation in radians
    and colour (RGB, 0..1)."""

    mask: np.ndarray
    centre: tuple[float, float]
    side: float
    rotation: float
    colour: tuple[float, float, float]

    def alpha(self, size: int) -> np.ndarray:
        """Coverage [size, size] in 0..1: the mask rotated and scaled, bilinear."""
        alpha = np.zeros((size, size))
        scale = MASK / self.side
        cos, sin = np.cos(self.rotation) * scale, np.sin(self.rotation) * scale
        # outside this square around the centre the mask, with its border of zeros, does not reach
        reach = (MASK / 2 + 1) * (abs(cos) + abs(sin)) / scale**2
        (left, right), (top, bottom) = (
            (max(int(at - reach), 0), max(min(int(at + reach) + 1, size), 0)) for at in self.centre
        )
        dx = np.arange(left, right) + (0.5 - self.centre[0])
        dy = np.arange(top, bottom)[:, None] + (0.5 - self.centre[1])
        column = (cos * dx + (MASK / 2 + 0.5)) + sin * dy
        row = (cos * dy + (MASK / 2 + 0.5)) - sin * dx
        padded = np.zeros((MASK + 2, MASK + 2))
        padded[1:-1, 1:-1] = self.mask
        for place in (column, row):
            np.minimum(np.maximum(place, 0, out=place), MASK + 0.999, out=place)
        c, r = column.astype(int), row.astype(int)
        fc, fr = column - c, row - r
        values, at = padded.ravel(), r * (MASK + 2) + c
        upper, lower = values[at], values[at + (MASK + 2)]
        upper += (values[at + 1] - upper) * fc
        lower += (values[at + (MASK + 3)] - lower) * fc
        alpha[top:bottom, left:right] = upper + (lower - upper) * fr
        return alpha


def bright(rng: np.random.Generator) -> tuple[float, float, float]:
    """A random colour of an object: any hue and saturation, value at least 0.6."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.6, 1))


def compose(
    background: str,
    sprites: list[Sprite],
    alphas: list[np.ndarray],
    rng: np.random.Generator,
    size: int,
) -> np.ndarray:
    """The image, uint8 [size, size, 3]: a dark texture, the sprites over it in order (``alphas`` is
    their coverage), and sensor noise."""
    dark, other = (
        np.array(colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.uniform(0.12, 0.42)))
        for _ in range(2)
    )
    pattern = texture(background, rng, size)[..., None] * 0.7
    image = dark + (other - dark) * pattern
    for sprite, alpha in zip(sprites, alphas, strict=True):
        image += (np.array(sprite.colour) - image) * alpha[..., None]
    image += rng.normal(0, 0.03, image.shape)
    np.minimum(np.maximum(image, 0, out=image), 1, out=image)
    return (image * 255).round().astype(np.uint8)
