"""Random views: per image from a PIL picture (the paper's tier), or on a whole batch of tensors (the embedded tier).

Both are functions of a key (seed, epoch, image, view), so a view does not depend on workers, batches or resume. They
draw from the same distributions with two differences: the batch path jitters in a fixed order (brightness, contrast,
saturation, hue) instead of a random one, and resamples crops bilinearly without antialiasing.
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

_DRAWS = 16
"""Uniforms per view: area, aspect, x, y, flip, jitter?, b, c, s, h, grey?, blur?, sigma, and spares."""
_GREY = (0.2989, 0.587, 0.114)


def of_picture(recipe: Augment) -> v2.Compose:
    """torchvision's transforms for one view of a PIL image, to uint8 [3, size, size]; draws from torch's global RNG."""
    return v2.Compose([
        v2.RandomResizedCrop(recipe.size, scale=(recipe.min_area, 1.0), interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_p),
        v2.RandomGrayscale(recipe.grayscale),
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
    area, aspect, left, top, flip, jitter, b, c, s, h, grey, blur, sigma = draws.unbind(1)[:13]
    x = _crop(images_N3HW.float() / 255, recipe, area, aspect, left, top, flip)
    brightness, contrast, saturation, hue = recipe.jitter
    jittered = _jitter(x, 1 + brightness * (2 * b - 1), 1 + contrast * (2 * c - 1), 1 + saturation * (2 * s - 1),
                       hue * (2 * h - 1))
    x = torch.where((jitter < recipe.jitter_p)[:, None, None, None], jittered, x)
    x = torch.where((grey < recipe.grayscale)[:, None, None, None], _luma(x).expand_as(x), x)
    if recipe.blur > 0:
        x = torch.where((blur < recipe.blur)[:, None, None, None], _blur(x, 0.1 + 1.9 * sigma), x)
    return x


def _crop(x: Tensor, recipe: Augment, area: Tensor, aspect: Tensor, left: Tensor, top: Tensor, flip: Tensor) -> Tensor:
    """Random resized crop and flip in one resampling: a box of area in (min_area, 1) and aspect in (3/4, 4/3)."""
    area = recipe.min_area + (1 - recipe.min_area) * area
    ratio = torch.exp((2 * aspect - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # shares of the image's side
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
    to_yiq = x.new_tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin, one, zero = torch.cos(h * 2 * math.pi), torch.sin(h * 2 * math.pi), torch.ones_like(h), torch.zeros_like(h)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq
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
