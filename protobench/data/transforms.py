"""How an image becomes an encoder's input at evaluation: resize, centre crop, normalise."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALISATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "0-1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Name -> mean and standard deviation by which inputs in 0 to 1 are normalised. "0-1": not
normalised."""


@dataclass(frozen=True)
class EvalInput:
    """The input that an encoder expects. It belongs to the checkpoint, not to the evaluation.

    ``warp`` resizes the whole image to crop x crop instead of cropping (Goyal et al., ICCV 2019).
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    warp: bool = False

    def random_pixels(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """uint8 [crop, crop, 3]: a random crop with 8 to 100 % of the area and an aspect of 3/4 to
        4/3, resized, and flipped half of the time. Linear probes and fine-tuning train on it
        (torchvision's RandomResizedCrop and flip, at their defaults)."""
        width, height = image.size
        for _ in range(10):
            area, aspect = (
                width * height * rng.uniform(0.08, 1),
                math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))),
            )
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = (
                    int(rng.integers(0, width - w + 1)),
                    int(rng.integers(0, height - h + 1)),
                )
                break
        else:  # as in torchvision: the largest centred part of an allowed aspect
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            left, top = (width - w) // 2, (height - h) // 2
        part = image.crop((left, top, left + w, top + h))
        pixels = np.asarray(part.resize((self.crop, self.crop), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [crop, crop, 3]: the shorter side is resized to ``resize`` (PIL bilinear,
        antialiased), then the centre is cropped."""
        if self.warp:
            return np.asarray(image.resize((self.crop, self.crop), Image.Resampling.BILINEAR))
        width, height = image.size
        if width <= height:
            size = (self.resize, int(self.resize * height / width))
        else:
            size = (int(self.resize * width / height), self.resize)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - self.crop) / 2), round((size[1] - self.crop) / 2)
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))
