"""How an image becomes an encoder's input at evaluation: resize, centre crop, normalise."""

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
"""Name: mean and standard deviation that inputs in 0 to 1 are normalised by. "0-1": left as they are."""


@dataclass(frozen=True)
class EvalInput:
    """What an encoder expects. It belongs to the checkpoint, not to the evaluation.

    ``warp`` squeezes the whole image to crop x crop instead of cropping (Goyal et al., ICCV 2019).
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    warp: bool = False

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [crop, crop, 3]: shorter side to ``resize`` (PIL bilinear, antialiased), then the centre."""
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
