"""Measures how well the check of the input's normalisation (protobench/checkpoints/input_check.py)
tells right from wrong; its limits rest on these numbers.

    python benchmarks/normalisation.py     # bundled synthetic data alone: 3 minutes on one core
    PROTOBENCH_REAL_INPUTS=DIR python benchmarks/normalisation.py     # real images, too

DIR may hold cifar10-jpeg/, photos/ and augnet/model.pth. Encoders are trained for three epochs
under each of five normalisations, and also on every twelfth of CIFAR's images if they are there.
The ratio of variances is measured for each encoder, and for AugNet's published ResNet-50, on every
kind of images and under every normalisation. The table shows the range of the ratio over encoders
and images, by the normalisation that was trained with and the one that is assumed."""

import contextlib
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from pretrain import loop
from pretrain.recipes import moco, simclr, supervised
from protobench.checkpoints import encoders
from protobench.checkpoints.input_check import IMAGES, OTHERS, variance_ratio
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import cifar, coco, imagenet, places, voc
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches
from protobench.data.synthetic import bundled, scenes

METHODS = {
    "supervised": supervised.MINI,
    "simclr": simclr.MINI,
    "moco": moco.MINI,
}
# cifar100's is nearly the same as cifar10's
NORMALISATIONS = {name: value for name, value in OTHERS.items() if name != "cifar100"}


def image_lists(real: Path | None) -> tuple[list[ImageList], list[ImageList]]:
    """Returns what encoders are trained on, and what they are measured on."""
    root = bundled.ensure()
    training = [imagenet.read(root, "train")]
    measured = [
        imagenet.read(root, "val"),
        voc.read(root, "test"),
        places.read(root, "val"),
        coco.read(scenes.ensure(), "val"),
    ]
    if real and (real / "cifar10-jpeg").is_dir():
        train = cifar.read(real / "cifar10-jpeg", "cifar10", "train")
        training.append(train.subset(np.arange(0, len(train), 12)))
        measured.append(cifar.read(real / "cifar10-jpeg", "cifar10", "test"))
    if real and (paths := sorted(path.name for path in (real / "photos").glob("*.JPEG"))):
        measured.append(
            ImageList(
                "photos", real / "photos", tuple(paths), np.zeros(len(paths), np.int64), ("photo",)
            )
        )
    return training, measured


def ratios(encoder: encoders.Encoder, measured: list[ImageList]) -> dict[str, list[float]]:
    """Returns, for each assumed normalisation, the ratio on each list of images."""
    found, backbone = defaultdict(list), encoder.resnet("its first BatchNorm is measured")
    for images in measured:
        sample = images.subset(np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int)))
        (pixels,) = batches(
            CentreCrops(sample, encoder.input), workers=0, device="cpu", batch_size=len(sample)
        )
        for name, (mean, std) in NORMALISATIONS.items():
            found[name].append(variance_ratio(backbone, pixels, mean, std))
    return found


def main() -> None:
    """Trains, measures and prints the table."""
    if sys.argv[1:]:
        print(__doc__)
        return
    torch.set_num_threads(1)
    real = (
        Path(os.environ["PROTOBENCH_REAL_INPUTS"])
        if "PROTOBENCH_REAL_INPUTS" in os.environ
        else None
    )
    training, measured = image_lists(real)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        for images, (method, recipe), trained in itertools.product(
            training, METHODS.items(), NORMALISATIONS
        ):
            mean, std = NORMALISATIONS[trained]
            run = replace(
                recipe,
                input=replace(recipe.input, mean=mean, std=std),
                train=replace(recipe.train, epochs=3),
            )
            path = Path(folder) / f"{images.name}-{method}-{len(os.listdir(folder))}"
            print(f"{images.name}, {method}, {trained}", file=sys.stderr)
            with contextlib.redirect_stdout(sys.stderr):
                for assumed, values in ratios(
                    encoders.load(loop.pretrain(run, images, path, seed=1)), measured
                ).items():
                    found[trained][assumed] += values
    if real and (augnet := real / "augnet" / "model.pth").is_file():
        for assumed, values in ratios(encoders.load(augnet, LoadOptions()), measured).items():
            found["imagenet (AugNet)"][assumed] += values
    rows = [
        [
            trained,
            *(f"{min(of[assumed]):.2g} to {max(of[assumed]):.2g}" for assumed in NORMALISATIONS),
        ]
        for trained, of in found.items()
    ]
    print(
        f"ratio of variances on {len(measured)} kinds of images:"
        f" {', '.join(images.name for images in measured)}\n"
    )
    print(
        tabulate(rows, headers=["trained with \\ assumed", *NORMALISATIONS], disable_numparse=True)
    )


if __name__ == "__main__":
    main()
