"""Times two views of every image of the bundled data: operation by operation over whole batches,
and in place in blocks that stay in the cache, with the parameters of an epoch drawn at once."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from alternate import Ratio, alternate, ratio, show
from torch import Tensor

from pretrain.augment import tensor
from pretrain.augment.tensor import Drawn
from pretrain.recipes import moco
from protobench.data.transforms import EvalInput

IMAGES, BATCH, SIDE = 3968, 128, 40


def usual(pixels: Tensor, drawn: Drawn, size: int, input_: EvalInput) -> Tensor:
    """Returns the views of a batch, a new tensor for every operation: floats, crop, brightness,
    contrast, saturation, hue, grey, normalisation, layout."""
    grid = torch.stack(
        [
            drawn.x_NS[:, None, :].expand(-1, size, size),
            drawn.y_NS[:, :, None].expand(-1, size, size),
        ],
        3,
    )
    x = F.grid_sample(
        pixels.float() / 255, grid, padding_mode="border", align_corners=False
    ).flatten(2)
    grey = torch.tensor([0.2989, 0.587, 0.114])[:, None]
    x = (x * drawn.brightness_N11).clamp(0, 1)
    mean = (x * grey).sum(1, keepdim=True).mean(2, keepdim=True)
    x = (x * drawn.contrast_N11 + mean * (1 - drawn.contrast_N11)).clamp(0, 1)
    x = (drawn.saturation_N33 @ x).clamp(0, 1)
    x = (drawn.hue_N33 @ x).clamp(0, 1)
    x = (drawn.grey_N33 @ x).view(-1, 3, size, size)
    mean, std = (torch.tensor(value)[:, None, None] for value in (input_.mean, input_.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def rows() -> Iterator[Ratio]:
    """Yields the row; both ways draw the same views."""
    torch.set_num_threads(1)
    recipe, input_ = moco.MINI.augment, moco.MINI.input
    pixels = torch.randint(
        256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    index = np.arange(IMAGES)
    batches = [slice(start, start + BATCH) for start in range(0, IMAGES, BATCH)]
    furthest = 0.0

    def batch_by_batch() -> None:
        for view in range(2):
            for of in batches:
                drawn = tensor.draw(recipe, "cpu", index[of], 0, 0, view)
                usual(pixels[of], drawn, recipe.size, input_)

    def at_once() -> None:
        for view in range(2):
            drawn = tensor.draw(recipe, "cpu", index, 0, 0, view)
            for of in batches:
                tensor.render(recipe, pixels[of], drawn.of(of), input_)

    drawn = tensor.draw(recipe, "cpu", index, 0, 0, 0)
    for of in batches:
        theirs = usual(pixels[of], drawn.of(of), recipe.size, input_)
        ours = tensor.render(recipe, pixels[of], drawn.of(of), input_)
        furthest = max(furthest, float((ours - theirs).abs().max()))
    yield ratio(
        f"two views of {IMAGES} tensors of {SIDE} pixels (an epoch of the mini tier)",
        alternate(batch_by_batch, at_once),
        f"equal to {furthest:.1e} of a standard deviation",
        target=1.5,
    )


if __name__ == "__main__":
    show(rows())
