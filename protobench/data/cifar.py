"""CIFAR-10 and CIFAR-100 (the 100 fine labels): as published for Python, held in memory, or as
folders of pictures. SPCL's ablations are on them.

Folders, ``train/<class>/*.png`` and ``test/<class>/*.png``, are the layout in which many sites pass
the data on. The pictures may have been encoded anew (JPEG is lossy), so cells made with them are
off protocol."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from protobench.data import imagenet, published
from protobench.data.image_list import ImageList, image_folder, pair
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
AGAIN = (
    "unpack the archive again, or fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html"
)


CLASSES = {"cifar10": published.CIFAR10, "cifar100": published.CIFAR100}


def folder(data: Path, name: str) -> Path:
    """The folder of "cifar10" or "cifar100", of the published arrays or with train/ and test/:
    ``data``, or in it, or in ``data/cifar10``. UserError names what was looked for."""
    if data.name == FOLDERS[name] and data.is_dir():
        return data
    tried = [data, data / name]
    for place in tried:
        if (place / FOLDERS[name]).is_dir():
            return place / FOLDERS[name]
    for place in tried:
        if all((place / split).is_dir() for split in ("train", "test")):
            return place
    for place in tried:
        if (place / ARCHIVES[name]).is_file():
            raise UserError(
                f"{name} lies here as an archive, not unpacked",
                at=place / ARCHIVES[name],
                hint=f"tar xf {ARCHIVES[name]}",
            )
    looked = " and ".join(str(place / FOLDERS[name]) for place in tried)
    raise UserError(
        f"no {name} here: looked for {looked}" if data.is_dir() else "no such folder",
        at=data,
        hint=(
            f"give the folder in which {ARCHIVES[name]}, the version for Python, is unpacked, or"
            " one with train/<class>/ and test/<class>/"
        ),
    )


def read(data: Path, name: str, split: str) -> ImageList:
    """The images of "cifar10" or "cifar100", train or test. No file is touched once they are read.

    Where ``data`` is the root of the embedded data, its ImageNet images stand in, val for test.
    UserError where the files are missing, not unpacked or not the published ones, which their MD5
    tells before anything is unpickled."""
    if bundled.is_used(data) and not any(
        (data / place).is_dir() for place in (FOLDERS[name], name)
    ):
        return replace(
            imagenet.read(data, "train" if split == "train" else "val"), name=f"{name}-{split}"
        )
    if (root := folder(data, name)).name != FOLDERS[name]:
        return _pictures(root, name, split)
    from torchvision import datasets  # waits for torch

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    needed = [file for file, _ in source.train_list + source.test_list] + [source.meta["filename"]]
    if missing := [file for file in needed if not (root / file).is_file()]:
        raise UserError(f"{name} lacks {', '.join(missing)}", at=root, hint=AGAIN)
    try:
        found = source(root.parent, train=split == "train", download=False)
    except RuntimeError as failure:
        raise UserError(
            f"these files are damaged, or not the published {name}: their MD5 differs",
            at=root,
            hint=AGAIN,
        ) from failure
    except OSError as failure:
        raise UserError(
            f"{name}: cannot read these files: {failure.strerror}",
            at=failure.filename or root,
            hint="check their permissions, and the disk",
        ) from failure
    return published.check(
        ImageList(
            f"{name}-{split}",
            root,
            tuple(f"{split}/{i:05d}" for i in range(len(found))),
            np.array(found.targets),
            tuple(found.classes),
            pixels=np.ascontiguousarray(found.data),
        )
    )


def _pictures(root: Path, name: str, split: str) -> ImageList:
    """A folder of pictures per class. UserError for other classes than the data set's."""
    images = published.check(image_folder(root / split, f"{name}-{split}"))
    if odd := sorted({title.lower() for title in images.classes} ^ set(CLASSES[name])):
        raise UserError(
            f"{images.name}: these are not {name}'s {len(CLASSES[name])} classes:"
            f" {', '.join(odd[:5])} {'is' if len(odd) == 1 else 'are'} missing or unknown",
            at=images.root,
            hint=f"the folders must be named {', '.join(CLASSES[name][:3])}, …",
        )
    return images


def read_both(data: Path, name: str) -> tuple[ImageList, ImageList]:
    """train and test."""
    return pair(read(data, name, "train"), read(data, name, "test"))
