"""The random parameters of one view: those that torchvision's transforms draw, in the same order,
from a generator that belongs to the view.

The transforms, as PCL's and MoCo's code stacks them: RandomResizedCrop, RandomGrayscale and
ColorJitter (in the recipe's order), a Gaussian blur with sigma uniform in 0.1 to 2 pixels (SimCLR;
MoCo v2 uses the same), RandomHorizontalFlip. Sampled apart from the pixels they cost a tenth of
what torchvision's transforms spend on them, and pillow.py and raw.py can render the same view."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.recipes.common import Augment

RATIO = (3 / 4, 4 / 3)
TRIES = 10
"""How often a crop box is sampled until it fits the image; then the whole image, or its middle, is
taken."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class AugmentParams:
    """What is done to one image. The crop box is in pixels."""

    left: int
    top: int
    width: int
    height: int
    grey: bool
    grey_first: bool
    """before the jitter"""
    jitter: tuple[tuple[int, float], ...]
    """(BRIGHTNESS, CONTRAST, SATURATION or HUE; factor) in the order of their application"""
    sigma: float
    """standard deviation of the blur, pixels; 0: none"""
    flip: bool


class ParamSampler:
    """Samples the parameters of views. It holds a generator, so each process and thread needs its
    own."""

    def __init__(self, recipe: Augment):
        self._generator, self._real, self._whole = (
            torch.Generator(),
            torch.empty(1),
            torch.empty(1, dtype=torch.int64),
        )
        self._min_area, self._grey_first = recipe.min_area, recipe.grayscale_first
        self._log_ratio = tuple(torch.log(torch.tensor(RATIO)).tolist())
        # torchvision compares in single precision
        self._grey, self._jitter_p, self._blur, self._flip = (
            float(np.float32(p))
            for p in (recipe.grayscale, recipe.jitter_p, recipe.blur, recipe.flip)
        )
        *scales, hue = recipe.jitter
        ranges = [(max(1.0 - x, 0.0), 1.0 + x) for x in scales] + [(-hue, hue)]
        self._ranges = [
            (kind, *ends)
            for kind, (ends, x) in enumerate(zip(ranges, recipe.jitter, strict=True))
            if x
        ]

    def __call__(self, width: int, height: int, seed: int) -> AugmentParams:
        """The parameters that this seed gives for an image of this size."""
        self._generator.manual_seed(seed)
        left, top, box_width, box_height = self._box(width, height)
        grey = self._grey_first and self._chance(self._grey)
        jitter = self._jitter() if self._chance(self._jitter_p) else ()
        if not self._grey_first:
            grey = self._chance(self._grey)
        sigma = self._uniform(0.1, 2.0) if self._chance(self._blur) else 0.0
        return AugmentParams(
            left,
            top,
            box_width,
            box_height,
            grey,
            self._grey_first,
            jitter,
            sigma,
            self._chance(self._flip),
        )

    def _uniform(self, low: float, high: float) -> float:
        return self._real.uniform_(low, high, generator=self._generator).item()

    def _chance(self, p: float) -> bool:
        return self._uniform(0.0, 1.0) < p

    def _below(self, end: int) -> int:
        return int(self._whole.random_(0, end, generator=self._generator).item())

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width, height: area uniform in (min_area, 1), log-aspect uniform in +-log 4/3,
        position uniform."""
        for _ in range(TRIES):
            area = width * height * self._uniform(self._min_area, 1.0)
            self._uniform(*self._log_ratio)
            aspect = self._real.exp_().item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = self._below(height - h + 1)
                return self._below(width - w + 1), top, w, h
        if width / height < min(RATIO):
            w, h = width, round(width / min(RATIO))
        elif width / height > max(RATIO):
            w, h = round(height * max(RATIO)), height
        else:
            w, h = width, height
        return (width - w) // 2, (height - h) // 2, w, h

    def _jitter(self) -> tuple[tuple[int, float], ...]:
        order = torch.randperm(4, generator=self._generator).tolist()
        factors = {kind: self._uniform(low, high) for kind, low, high in self._ranges}
        return tuple((kind, factors[kind]) for kind in order if kind in factors)
