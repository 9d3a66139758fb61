"""Random views of a whole batch of tensors: for the mini tier and CIFAR, and the colours and blur
of the raw profile.

Views are functions of a key (seed, epoch, image, view), as those of image files are (params.py), so
they do not depend on workers, batches or resuming. They differ from torchvision's in three ways:
the jitter has a fixed order (brightness, contrast, saturation, hue) instead of a random one, hue is
rotated in YIQ instead of HSV, and crops are at fractions of a pixel, bilinear without
antialiasing.

On a CPU a batch is worked off in blocks that stay in the cache, in place; most of the time would
otherwise go to memory.

Shapes: N batch, S side of a view."""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.augment.params import TRIES
from pretrain.recipes.common import Augment
from protobench import keyed
from protobench.data.transforms import EvalInput

_UNIFORMS = 11 + 2 * TRIES
"""Uniforms per view: x, y, flip, jitter?, b, c, s, h, grey?, blur?, sigma, then area and aspect of
every try."""
_GREY = (0.2989, 0.587, 0.114)
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_BLOCK_BYTES = 2**19
"""Size of a block's views; a core's own cache holds one or two MiB."""


class Drawn(NamedTuple):
    """What is done to each of N images: a crop, then torchvision's brightness, contrast and
    saturation, hue as a rotation of the chroma plane, grey, and a blur.

    The rotation in YIQ replaces torchvision's conversion to HSV: it is one 3x3 matrix per image and
    keeps luma."""

    x_NS: Tensor
    """where a crop's columns of pixels lie, as fractions of a square image's side: from -1 to 1"""
    y_NS: Tensor
    """and its rows"""
    brightness_N11: Tensor
    contrast_N11: Tensor
    saturation_N33: Tensor
    hue_N33: Tensor
    grey_N33: Tensor
    """the matrix to grey, or the identity"""
    blurred_N111: Tensor
    sigma_N: Tensor
    """of the blur, pixels"""

    def of(self, rows: slice) -> "Drawn":
        """What is done to some of the images."""
        return Drawn(*(value[rows] for value in self))


def draw(
    recipe: Augment, device: str | torch.device, index_N: np.ndarray, *key: int | str
) -> Drawn:
    """Draws the view named by ``key`` of every image, on the device."""
    uniforms = _uniforms(torch.device(device), index_N, *key)
    return Drawn(*_places(recipe, uniforms), *_colours(recipe, uniforms))


def render(
    recipe: Augment, images_N3HW: Tensor, drawn: Drawn, input_: EvalInput | None = None
) -> Tensor:
    """The views of images, uint8 [N, 3, H, W] (square): float [N, 3, S, S] in channels last, in
    0..1 or, with ``input_``, normalised."""
    views = _empty(recipe, images_N3HW)
    for rows in _blocks(views):
        crops = _crop(images_N3HW[rows].float(), drawn.x_NS[rows], drawn.y_NS[rows])
        views[rows] = _coloured(recipe, crops, drawn.of(rows), input_)
    return views


def recolour(
    recipe: Augment, crops_N3SS: Tensor, drawn: Drawn, input_: EvalInput | None = None
) -> Tensor:
    """The views whose crops are given, uint8: as from ``render``."""
    views = _empty(recipe, crops_N3SS)
    for rows in _blocks(views):
        crops = crops_N3SS[rows].to(torch.float32, memory_format=torch.contiguous_format)
        views[rows] = _coloured(recipe, crops, drawn.of(rows), input_)
    return views


def _uniforms(device: torch.device, index_N: np.ndarray, *key: int | str) -> Tensor:
    """Uniforms [N, _UNIFORMS] on the device, transferred without synchronising."""
    uniforms = torch.from_numpy(keyed.uniforms(_UNIFORMS, index_N, *key).astype(np.float32))
    if device.type == "cuda":
        return uniforms.pin_memory().to(device, non_blocking=True)
    return uniforms.to(device)


def _empty(recipe: Augment, images_N3HW: Tensor) -> Tensor:
    return torch.empty(
        (len(images_N3HW), 3, recipe.size, recipe.size),
        device=images_N3HW.device,
        memory_format=torch.channels_last,
    )


def _blocks(views: Tensor) -> Iterator[slice]:
    """The rows of a batch in blocks; on a GPU a single one."""
    size = len(views)
    if views.device.type == "cpu":
        size = max(_BLOCK_BYTES // (4 * views[:1].numel()), 1)
    return (slice(start, start + size) for start in range(0, len(views), size))


# Crops --------------------------------------------------------------------------------------------


def _places(recipe: Augment, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """``Drawn.x_NS`` and ``y_NS``. A flip reverses the columns."""
    left, top, flip = uniforms.unbind(1)[:3]
    width, height = _box(recipe.min_area, uniforms[:, 11:])
    sign = 1 - 2 * (flip < recipe.flip).to(uniforms.dtype)
    odd_S = torch.arange(1, 2 * recipe.size, 2, dtype=uniforms.dtype, device=uniforms.device)
    centre_S = odd_S / recipe.size - 1

    def places(side: Tensor, place: Tensor, sign: Tensor | float = 1.0) -> Tensor:
        return ((1 - side) * (2 * place - 1))[:, None] + (side * sign)[:, None] * centre_S

    return places(width, left, sign), places(height, top)


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


def _crop(images: Tensor, x_NS: Tensor, y_NS: Tensor) -> Tensor:
    """Crops, flips and resizes in one resampling. Between the edge of an image and the centre of
    its outermost pixel, values are that pixel's."""
    n, size = x_NS.shape
    grid = torch.stack(
        [x_NS[:, None].expand(n, size, size), y_NS[:, :, None].expand(n, size, size)], 3
    )
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


# Colours ------------------------------------------------------------------------------------------


def _colours(recipe: Augment, uniforms: Tensor) -> tuple[Tensor, ...]:
    """The other fields of ``Drawn``, in order."""
    jitter, b, c, s, h, grey, blur, sigma = uniforms.unbind(1)[3:11]
    jittered = jitter < recipe.jitter_p

    def factor(strength: float, uniform: Tensor) -> Tensor:
        return torch.where(jittered, 1 + strength * (2 * uniform - 1), 1.0)[:, None, None]

    brightness, contrast, saturation, hue = recipe.jitter
    identity, to_grey, to_yiq, from_yiq = _matrices(uniforms.device)
    kept = factor(saturation, s)
    angle = torch.where(jittered, hue * (2 * h - 1), 0.0) * (2 * math.pi)
    cos, sin = torch.cos(angle), torch.sin(angle)
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    return (
        factor(brightness, b),
        factor(contrast, c),
        kept * identity + (1 - kept) * to_grey,
        from_yiq @ turn @ to_yiq,
        torch.where((grey < recipe.grayscale)[:, None, None], to_grey, identity),
        (blur < recipe.blur)[:, None, None, None],
        0.1 + 1.9 * sigma,
    )


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The identity, the matrix to grey, that from RGB to YIQ, and its inverse. They are sent to a
    device once, because sending synchronises."""
    identity, to_grey, to_yiq, from_yiq = (
        torch.tensor(matrix, dtype=torch.float32).to(device)
        for matrix in (np.eye(3), np.tile(_GREY, (3, 1)), _YIQ, np.linalg.inv(_YIQ))
    )
    return identity, to_grey, to_yiq, from_yiq


@cache
def _normalisation(input_: EvalInput, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [3, 1] each, likewise."""
    mean, std = (
        torch.tensor(value, dtype=torch.float32)[:, None].to(device)
        for value in (input_.mean, input_.std)
    )
    return mean, std


def _coloured(recipe: Augment, crops: Tensor, drawn: Drawn, input_: EvalInput | None) -> Tensor:
    """Crops [N, 3, S, S] in 0..255, which are overwritten, in their colours, blurred and
    normalised."""
    x = crops.flatten(2)
    if recipe.grayscale_first:
        x = torch.bmm(drawn.grey_N33, x)
    x = _jittered(x, drawn)
    if not recipe.grayscale_first:
        x = torch.bmm(drawn.grey_N33, x)
    if input_:
        mean_31, std_31 = _normalisation(input_, x.device)
        x.sub_(mean_31).div_(std_31)
    x = x.view_as(crops)
    return torch.where(drawn.blurred_N111, _blur(x, drawn.sigma_N), x) if recipe.blur > 0 else x


def _jittered(x: Tensor, drawn: Drawn) -> Tensor:
    """Pixels [N, 3, P] in 0..255, which are overwritten, to 0..1."""
    x.mul_(drawn.brightness_N11 / 255).clamp_(0, 1)
    _, to_grey, _, _ = _matrices(x.device)
    luma_N11 = (x.mean(2) @ to_grey[0])[:, None, None]
    x.mul_(drawn.contrast_N11).add_((1 - drawn.contrast_N11) * luma_N11).clamp_(0, 1)
    x = torch.bmm(drawn.saturation_N33, x).clamp_(0, 1)
    return torch.bmm(drawn.hue_N33, x).clamp_(0, 1)


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
