"""ImageNet (ILSVRC 2012) as folders, one per class: where it lies, and what is wrong where it does
not."""

from pathlib import Path

from protobench.data import published
from protobench.data.image_list import ImageList, image_folder, pair
from protobench.runtime.errors import UserError

ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


def folder(data: Path) -> Path:
    """The folder with train/ and val/: ``data`` itself or ``data/imagenet``. UserError names what
    was looked for."""
    tried = [data, data / "imagenet"]
    for place in tried:
        if (place / "train").is_dir():
            return place
    if archives := [name for place in tried for name in ARCHIVES if (place / name).is_file()]:
        raise UserError(
            f"ImageNet lies here as archives ({', '.join(archives)}), not unpacked",
            at=data,
            hint=(
                "torchvision.datasets.ImageNet(folder, 'train') and (…, 'val') unpack them into"
                " train/ and val/"
            ),
        )
    looked = " and ".join(str(place / "train") for place in tried)
    raise UserError(
        f"no ImageNet here: looked for {looked}" if data.is_dir() else "no such folder",
        at=data,
        hint="one folder per class is expected in train/ and in val/",
    )


def read(data: Path, split: str) -> ImageList:
    """The images of train or val, classes in sorted order (that of the wnids). UserError for a flat
    or missing folder, and for another known data set in this layout."""
    return published.check(image_folder(folder(data) / split, f"imagenet-{split}"))


def read_both(data: Path) -> tuple[ImageList, ImageList]:
    """train and val."""
    return pair(read(data, "train"), read(data, "val"))
