"""How an image becomes an encoder's input at evaluation: resize, centre crop, normalise."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
