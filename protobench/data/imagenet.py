"""ImageNet (ILSVRC 2012) as folders, one per class, in train/ and val/."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from protobench.data import published
from protobench.data.dataset import Dataset, Split
from protobench.data.image_list import ImageList, image_folder
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError

ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
WNID = re.compile(r"n\d{8}")
CLASS_HASH = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""Of the 1000 wnids."""


def folder(data: Path) -> Path:
    """The folder with train/ and val/: ``data`` itself or ``data/imagenet``. UserError names the
    folders looked for."""
    candidates = [data, data / "imagenet"]
    for place in candidates:
        if (place / "train").is_dir():
            return place
    if archives := [name for place in candidates for name in ARCHIVES if (place / name).is_file()]:
        raise UserError(
            f"ImageNet lies here as archives ({', '.join(archives)}), not unpacked",
            at=data,
            hint=(
                "torchvision.datasets.ImageNet(folder, 'train') and (…, 'val') unpack them into"
                " train/ and val/"
            ),
        )
    looked_for = " and ".join(str(place / "train") for place in candidates)
    raise UserError(
        f"no ImageNet here: looked for {looked_for}" if data.is_dir() else "no such folder",
        at=data,
        hint="one folder per class is expected in train/ and in val/",
    )


def read(data: Path, split: str) -> ImageList:
    """The images of train or val, classes in sorted order (that of the wnids). UserError for a
    flat or missing folder, and for another known data set in this layout."""
    return published.check(image_folder(folder(data) / split, f"imagenet-{split}"))


def _recognise(classes: Sequence[str]) -> str:
    if bundled.holds(classes) or any(map(WNID.fullmatch, classes)):
        return "ImageNet"
    return ""


def _departures(images: ImageList) -> list[str]:
    """Images whose file names belong to the other split."""
    name = images.sample_name
    if file := re.match(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)\.", name):
        split = "val" if file[1].startswith("ILSVRC") else "train"
        if images.name != f"imagenet-{split}":
            return [f"by their names these are images of ImageNet's {split} split"]
    return []


DATASET = Dataset(
    "imagenet",
    partial(read, split="train"),
    partial(read, split="val"),
    splits=(
        Split("imagenet-train", "ImageNet", 1_281_167, 1000, CLASS_HASH),
        Split("imagenet-val", "ImageNet", 50_000, 1000, CLASS_HASH),
    ),
    folders=("imagenet",),
    recognise=_recognise,
    departures=_departures,
)
