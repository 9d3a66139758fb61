"""Two views of a JPEG: Pillow and torchvision's transforms, as published, and the two profiles of
pretraining.

Measured is a worker's part: the published way's ends with normalised floats, ours with bytes, which
the device normalises; in two rows both end alike. In the raw profile the device makes colours and
blur, too. Images are synthetic, 500 x 375, about 60 KB each."""

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from alternate import Figure, Ratio, alternate, ratio, show
from PIL import Image, ImageFilter
from torchvision import transforms

from pretrain.augment import loader, pillow
from pretrain.augment.params import ParamSampler
from pretrain.recipes import moco, simclr
from pretrain.recipes.common import Augment
from protobench import keyed
from protobench.data import image_list, raw_pictures
from protobench.data.loading import normaliser
from protobench.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalInput

PICTURES = 48


def jpeg(number: int) -> bytes:
    """Smooth fields, edges and noise, quality 88."""
    rng = np.random.default_rng(number)
    field = cv2.resize(
        rng.uniform(0, 255, (12, 16, 3)).astype(np.float32),
        (500, 375),
        interpolation=cv2.INTER_CUBIC,
    )
    for _ in range(25):
        corner = rng.integers(0, (460, 340))
        cv2.rectangle(
            field,
            corner.tolist(),
            (corner + rng.integers(8, 120, 2)).tolist(),
            rng.uniform(0, 255, 3).tolist(),
            -1,
        )
    field += rng.normal(0, 9, field.shape)
    buffer = io.BytesIO()
    Image.fromarray(field.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def published(recipe: Augment) -> transforms.Compose:
    """The transforms in the order of the released code."""

    def blurred(picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))

    colour = [
        transforms.RandomApply([transforms.ColorJitter(*recipe.jitter)], p=recipe.jitter_p),
        transforms.RandomGrayscale(recipe.grayscale),
    ]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(recipe.size, scale=(recipe.min_area, 1.0)),
            *(reversed(colour) if recipe.grayscale_first else colour),
            transforms.RandomApply([blurred], p=recipe.blur),
            transforms.RandomHorizontalFlip(recipe.flip),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def rows() -> Iterator[Ratio | Figure]:
    """A worker's part in every recipe and profile, then where both ways end alike."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROTOBENCH_CACHE"] = folder
        photos = Path(folder) / "photos" / "one"
        photos.mkdir(parents=True)
        for number in range(PICTURES):
            (photos / f"{number:03d}.jpg").write_bytes(jpeg(number))
        source = image_list.image_folder(photos.parent, "photos")
        for name, recipe in (
            ("MoCo v2", moco.V2_AUGMENT),
            ("MoCo v1", moco.V1.augment),
            ("SimCLR", simclr.PAPER.augment),
        ):
            yield _row(source, f"{name}, faithful", recipe, 1.5, _equal(source, recipe))
        yield _row(
            source,
            "MoCo v2, faithful, both to bytes",
            moco.V2_AUGMENT,
            None,
            "as above",
            theirs_end=-2,
        )
        yield _row(
            source,
            "MoCo v2, faithful, both to floats",
            moco.V2_AUGMENT,
            None,
            "as above",
            ours_to_floats=True,
        )
        kept = raw_pictures.keep(source, 0)
        yield _row(
            source,
            "MoCo v2, raw",
            replace(moco.V2_AUGMENT, profile="raw"),
            15,
            "crops alone, of pictures shrunk before, in memory",
            kept,
        )


def _row(
    source: image_list.ImageList,
    name: str,
    recipe: Augment,
    target: float | None,
    agreement: str,
    kept: raw_pictures.RawPictures | None = None,
    *,
    theirs_end: int | None = None,
    ours_to_floats: bool = False,
) -> Ratio:
    transform = transforms.Compose(
        published(recipe).transforms[:theirs_end]
        + ([transforms.PILToTensor()] if theirs_end else [])
    )
    ours = loader._RandomViews(source, recipe, 0, 0, (0, 1), kept)
    normalise = normaliser(EvalInput(), "cpu")

    def theirs() -> None:
        for path in source.paths:
            with Image.open(source.root / path) as file:
                picture = file.convert("RGB")
            torch.stack([transform(picture) for _ in range(2)])

    def mine() -> None:
        for number in range(PICTURES):
            pixels = ours[number]
            if ours_to_floats:
                normalise(pixels.permute(0, 3, 1, 2))

    each = ([seconds / PICTURES for seconds in way] for way in alternate(theirs, mine, 5))
    return ratio(f"two views of a JPEG, {name}", tuple(each), agreement, target=target)  # type: ignore[arg-type]


def _both(source: image_list.ImageList, recipe: Augment) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The published way's bytes and ours for the same random parameters, two views per image."""
    transform = transforms.Compose(published(recipe).transforms[:-2])
    sample = ParamSampler(recipe)
    for number in range(2 * PICTURES):
        picture, seed = source.read(number // 2), keyed.seed("benchmark", number)
        torch.manual_seed(seed)
        yield (
            np.asarray(transform(picture)),
            pillow.render(picture, sample(*picture.size, seed), recipe.size),
        )


def _equal(source: image_list.ImageList, recipe: Augment) -> str:
    different = sum(int((theirs != ours).sum()) for theirs, ours in _both(source, recipe))
    return f"{different} of {2 * PICTURES * 3 * recipe.size**2 / 1e6:.0f} million values differ"


if __name__ == "__main__":
    show(rows())
