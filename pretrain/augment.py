"""Random views: per image from a PIL picture (the paper's tier), or on a whole batch of tensors (the embedded tier).

Both are functions of a key (seed, epoch, image, view), so a view does not depend on workers, batches or resume. The batch
path differs from torchvision's in three ways: it jitters in a fixed order (brightness, contrast, saturation, hue) instead of
a random one, turns hue in YIQ instead of HSV, and crops at fractions of a pixel, bilinearly without antialiasing.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from pretrain.recipes import Augment
from protobench import keyed

_TRIES = 10
"""A crop box that does not fit the image is drawn again, at most this often; then the whole image is taken."""
_DRAWS = 11 + 2 * _TRIES
"""Uniforms per view: x, y, flip, jitter?, b, c, s, h, grey?, blur?, sigma, then area and aspect of every try."""
_GREY = (0.2989, 0.587, 0.114)
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def of_picture(recipe: Augment) -> v2.Compose:
    """torchvision's transforms for one view of a PIL image, to uint8 [3, size, size]; draws from torch's global RNG."""
    colour = [v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_p), v2.RandomGrayscale(recipe.grayscale)]
    return v2.Compose([
        v2.RandomResizedCrop(recipe.size, scale=(recipe.min_area, 1.0), interpolation=v2.InterpolationMode.BILINEAR),
        *(reversed(colour) if recipe.grayscale_first else colour),
        v2.RandomApply([_PILBlur()], p=recipe.blur),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.PILToTensor(),
    ])


class _PILBlur(torch.nn.Module):
    """Gaussian blur with sigma uniform in 0.1 to 2 pixels (SimCLR; MoCo v2 uses the same through PIL)."""

    def forward(self, image: Image.Image) -> Image.Image:
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def keyed_view(transform: v2.Compose, image: Image.Image, *key: int | str) -> Tensor:
    """One view whose randomness is the key's alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.seed(*key))
        return transform(image)


def of_batch(recipe: Augment, images_N3HW: Tensor, index_N: np.ndarray, *key: int | str) -> Tensor:
    """A view of every image: float [N, 3, size, size] in 0..1 from uint8 [N, 3, H, W] (square)."""
    draws = torch.from_numpy(keyed.uniforms(_DRAWS, index_N, *key)).to(images_N3HW.device, torch.float32)
    left, top, flip, jitter, b, c, s, h, grey, blur, sigma = draws.unbind(1)[:11]
    width, height = _box(recipe.min_area, draws[:, 11:])
    x = _crop(images_N3HW.float() / 255, recipe, width, height, left, top, flip)
    brightness, contrast, saturation, hue = recipe.jitter

    def jittered(x: Tensor) -> Tensor:
        changed = _jitter(x, 1 + brightness * (2 * b - 1), 1 + contrast * (2 * c - 1), 1 + saturation * (2 * s - 1),
                          hue * (2 * h - 1))
        return torch.where((jitter < recipe.jitter_p)[:, None, None, None], changed, x)

    def greyed(x: Tensor) -> Tensor:
        return torch.where((grey < recipe.grayscale)[:, None, None, None], _luma(x).expand_as(x), x)

    x = jittered(greyed(x)) if recipe.grayscale_first else greyed(jittered(x))
    if recipe.blur > 0:
        x = torch.where((blur < recipe.blur)[:, None, None, None], _blur(x, 0.1 + 1.9 * sigma), x)
    return x


def _box(min_area: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height [N] as shares of a square image's side: area uniform in (min_area, 1), log-aspect in +-log 4/3.

    The first of the tries that fits into the image, as torchvision's RandomResizedCrop rejects and draws again.
    """
    area, aspect = draws.view(len(draws), -1, 2).unbind(2)
    area = min_area + (1 - min_area) * area
    ratio = torch.exp((2 * aspect - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    return tuple(torch.where(found, side.gather(1, first)[:, 0], 1.0) for side in (width, height))  # type: ignore[return-value]


def _crop(x: Tensor, recipe: Augment, width: Tensor, height: Tensor, left: Tensor, top: Tensor, flip: Tensor) -> Tensor:
    """Crop to the box, flip and resize in one resampling."""
    sign = torch.where(flip < recipe.flip, -1.0, 1.0)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
    grid = F.affine_grid(theta, [len(x), 3, recipe.size, recipe.size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(_GREY).view(3, 1, 1)).sum(1, keepdim=True)


def _jitter(x: Tensor, b: Tensor, c: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """torchvision's brightness, contrast and saturation; hue as a rotation of the chroma plane by h turns.

    The rotation (YIQ) replaces torchvision's way through HSV: it is one 3x3 matrix per image and keeps luma.
    """
    b, c, s = (value[:, None, None, None] for value in (b, c, s))
    x = (x * b).clamp(0, 1)
    x = (x * c + (1 - c) * _luma(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    x = (x * s + (1 - s) * _luma(x)).clamp(0, 1)
    to_yiq, from_yiq = x.new_tensor(_YIQ), x.new_tensor(np.linalg.inv(_YIQ))
    cos, sin, one, zero = torch.cos(h * 2 * math.pi), torch.sin(h * 2 * math.pi), torch.ones_like(h), torch.zeros_like(h)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = from_yiq @ turn @ to_yiq
    return torch.bmm(matrix, x.flatten(2)).view_as(x).clamp(0, 1)


def _blur(x: Tensor, sigma_N: Tensor, radius: int = 4) -> Tensor:
    """Separable Gaussian blur with each image's own sigma (pixels), as one grouped convolution per axis."""
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_N[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    n, _, height, width = x.shape
    x = F.pad(x.reshape(1, n * 3, height, width), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * 3)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * 3).view(n, 3, height, width)
