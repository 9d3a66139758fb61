"""Random views of a whole batch of tensors: for the mini tier and CIFAR, and the colours and blur
of the raw profile.

Views are functions of a key (seed, epoch, image, view), as those of image files are (params.py), so
they do not depend on workers, batches or resuming. They differ from torchvision's in three ways:
the jitter has a fixed order (brightness, contrast, saturation, hue) instead of a random one, hue is
rotated in YIQ instead of HSV, and crops are at fractions of a pixel, bilinear without
antialiasing."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.augment.params import TRIES
from pretrain.recipes.common import Augment
from protobench import keyed

_UNIFORMS = 11 + 2 * TRIES
"""Uniforms per view: x, y, flip, jitter?, b, c, s, h, grey?, blur?, sigma, then area and aspect of
every try."""
_GREY = (0.2989, 0.587, 0.114)
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def of_batch(recipe: Augment, images_N3HW: Tensor, index_N: np.ndarray, *key: int | str) -> Tensor:
    """A view of every image: float [N, 3, size, size] in 0..1 from uint8 [N, 3, H, W] (square)."""
    uniforms = _uniforms(images_N3HW.device, index_N, *key)
    left, top, flip = uniforms.unbind(1)[:3]
    width, height = _box(recipe.min_area, uniforms[:, 11:])
    crops = _crop(images_N3HW.float() / 255, recipe, width, height, left, top, flip)
    return _coloured(recipe, crops, uniforms)


def coloured(recipe: Augment, x_N3HW: Tensor, index_N: np.ndarray, *key: int | str) -> Tensor:
    """Crops, float in 0..1, with the colours and the blur of a view."""
    return _coloured(recipe, x_N3HW, _uniforms(x_N3HW.device, index_N, *key))


def _uniforms(device: torch.device, index_N: np.ndarray, *key: int | str) -> Tensor:
    """Uniforms [N, _UNIFORMS] on the device, transferred without synchronising."""
    uniforms = torch.from_numpy(keyed.uniforms(_UNIFORMS, index_N, *key).astype(np.float32))
    if device.type == "cuda":
        return uniforms.pin_memory().to(device, non_blocking=True)
    return uniforms.to(device)


def _coloured(recipe: Augment, x: Tensor, uniforms: Tensor) -> Tensor:
    jitter, b, c, s, h, grey, blur, sigma = uniforms.unbind(1)[3:11]
    brightness, contrast, saturation, hue = recipe.jitter

    def jittered(x: Tensor) -> Tensor:
        changed = _jitter(
            x,
            1 + brightness * (2 * b - 1),
            1 + contrast * (2 * c - 1),
            1 + saturation * (2 * s - 1),
            hue * (2 * h - 1),
        )
        return torch.where((jitter < recipe.jitter_p)[:, None, None, None], changed, x)

    def greyed(x: Tensor) -> Tensor:
        return torch.where((grey < recipe.grayscale)[:, None, None, None], _luma(x).expand_as(x), x)

    x = jittered(greyed(x)) if recipe.grayscale_first else greyed(jittered(x))
    if recipe.blur > 0:
        x = torch.where((blur < recipe.blur)[:, None, None, None], _blur(x, 0.1 + 1.9 * sigma), x)
    return x


def _box(min_area: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height [N] as fractions of a square image's side: area uniform in (min_area, 1),
    log-aspect uniform in +-log 4/3.

    The first try that fits into the image is taken, as in the rejection sampling of torchvision's
    RandomResizedCrop; the whole image where none does."""
    area, aspect = uniforms.view(len(uniforms), -1, 2).unbind(2)
    area = min_area + (1 - min_area) * area
    ratio = torch.exp((2 * aspect - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    any_fits = fits.any(1)
    width, height = (
        torch.where(any_fits, side.gather(1, first)[:, 0], 1.0) for side in (width, height)
    )
    return width, height


def _crop(
    x: Tensor,
    recipe: Augment,
    width: Tensor,
    height: Tensor,
    left: Tensor,
    top: Tensor,
    flip: Tensor,
) -> Tensor:
    """Crops, flips and resizes in one resampling."""
    sign = torch.where(flip < recipe.flip, -1.0, 1.0)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
    grid = F.affine_grid(theta, [len(x), 3, recipe.size, recipe.size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _luma(x: Tensor) -> Tensor:
    return (x * _matrices(x.device)[0]).sum(1, keepdim=True)


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of grey [3, 1, 1], the matrix from RGB to YIQ, and its inverse. They are sent to
    a device once, because sending synchronises."""
    grey, to_yiq, from_yiq = (
        torch.tensor(np.array(m), dtype=torch.float32) for m in (_GREY, _YIQ, np.linalg.inv(_YIQ))
    )
    return grey.view(3, 1, 1).to(device), to_yiq.to(device), from_yiq.to(device)


def _jitter(x: Tensor, b: Tensor, c: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """torchvision's brightness, contrast and saturation, and hue as a rotation of the chroma plane
    by h turns.

    The rotation in YIQ replaces torchvision's conversion to HSV: it is one 3x3 matrix per image and
    keeps luma."""
    b, c, s = (value[:, None, None, None] for value in (b, c, s))
    x = (x * b).clamp(0, 1)
    x = (x * c + (1 - c) * _luma(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    x = (x * s + (1 - s) * _luma(x)).clamp(0, 1)
    _, to_yiq, from_yiq = _matrices(x.device)
    cos, sin, one, zero = (
        torch.cos(h * 2 * math.pi),
        torch.sin(h * 2 * math.pi),
        torch.ones_like(h),
        torch.zeros_like(h),
    )
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = from_yiq @ turn @ to_yiq
    return torch.bmm(matrix, x.flatten(2)).view_as(x).clamp(0, 1)


def _blur(x: Tensor, sigma_N: Tensor, radius: int = 4) -> Tensor:
    """Separable Gaussian blur with each image's own sigma (pixels), as one grouped convolution per
    axis."""
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_N[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    n, _, height, width = x.shape
    x = F.pad(x.reshape(1, n * 3, height, width), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * 3)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * 3).view(n, 3, height, width)
