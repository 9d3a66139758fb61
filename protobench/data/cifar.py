"""CIFAR-10 and CIFAR-100 (the 100 fine labels): as published for Python, held in memory, or as
folders of image files. SPCL's ablations and the small tiers use them.

"cifar10-10k" is a part of CIFAR-10 that a CPU can train on: the first 1000 training images of each
class, in the order of the published arrays or of the file names, and all test images.

Many sites redistribute the data as folders, ``train/<class>/*.png`` and ``test/<class>/*.png``. The
files may have been re-encoded (JPEG is lossy), so cells made with them are off protocol."""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protobench.data import imagenet, published
from protobench.data.dataset import Dataset, Split, class_hash
from protobench.data.image_list import ImageList, image_folder
from protobench.data.synthetic import bundled
from protobench.runtime import files
from protobench.runtime.errors import UserError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 (shorter than a hundred literals)
)
CLASSES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
FAMILIES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
PART, PER_CLASS = "cifar10-10k", 1000
"""The part of CIFAR-10, and how many training images of each class it has."""
AGAIN = (
    "unpack the archive again, or fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html"
)


def folder(data: Path, name: str) -> Path:
    """The folder of "cifar10" or "cifar100" with the published arrays, or with train/ and test/:
    ``data`` itself, or within it, or within ``data/cifar10``. UserError names the folders looked
    for."""
    if data.name == FOLDERS[name] and data.is_dir():
        return data
    candidates = [data, data / name]
    for place in candidates:
        if (place / FOLDERS[name]).is_dir():
            return place / FOLDERS[name]
    for place in candidates:
        if all((place / split).is_dir() for split in ("train", "test")):
            return place
    for place in candidates:
        if (archive := place / ARCHIVES[name]).is_file():
            _check_archive(archive, name)
            raise UserError(
                f"{name} lies here as an archive, not unpacked",
                at=archive,
                hint=f"tar xf {ARCHIVES[name]}",
            )
    looked_for = " and ".join(str(place / FOLDERS[name]) for place in candidates)
    raise UserError(
        f"no {name} here: looked for {looked_for}" if data.is_dir() else "no such folder",
        at=data,
        hint=(
            f"give the folder in which {ARCHIVES[name]}, the version for Python, is unpacked, or"
            " one with train/<class>/ and test/<class>/"
        ),
    )


def _check_archive(archive: Path, name: str) -> None:
    """UserError for an archive that is not the published one: it is not worth unpacking."""
    expected = _torchvision_class(name).tgz_md5
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise UserError(
            f"this archive is damaged, or not the published {name}: its MD5 is {found}, not"
            f" {expected}",
            at=archive,
            hint="fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html",
        )


def download(root: Path, name: str = "cifar10") -> Path:
    """Fetches the published archive into ``root``, unless its files are there, and unpacks it:
    torchvision does, which checks the MD5 of all of them. Returns ``root``. UserError where it
    cannot be fetched."""
    with files.exclusive_lock(root.with_name(f"{root.name}.lock")), files.writing(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            _torchvision_class(name)(root, download=True)
        except (OSError, RuntimeError, EOFError, tarfile.TarError) as failure:
            raise UserError(
                f"{name} cannot be fetched: {failure}",
                at=root,
                hint=f"check the network; or fetch {ARCHIVES[name]} elsewhere, and give --data",
            ) from failure
    return root


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets  # slow to import

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def read(data: Path, name: str, split: str) -> ImageList:
    """The images of "cifar10" or "cifar100", train or test. They are held in memory.

    Where ``data`` is the root of the bundled synthetic data, its ImageNet images stand in, val for
    test. UserError where the files are missing, not unpacked, or not the published ones; their MD5
    is checked before anything is unpickled."""
    if bundled.is_used(data) and not any(
        (data / place).is_dir() for place in (FOLDERS[name], name)
    ):
        return replace(
            imagenet.read(data, "train" if split == "train" else "val"), name=f"{name}-{split}"
        )
    if (root := folder(data, name)).name != FOLDERS[name]:
        return _image_files(root, name, split)
    torchvision_class = _torchvision_class(name)
    needed = [
        *(file for file, _ in torchvision_class.train_list + torchvision_class.test_list),
        torchvision_class.meta["filename"],
    ]
    if missing := [file for file in needed if not (root / file).is_file()]:
        raise UserError(f"{name} lacks {', '.join(missing)}", at=root, hint=AGAIN)
    try:
        loaded = torchvision_class(root.parent, train=split == "train", download=False)
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
            tuple(f"{split}/{i:05d}" for i in range(len(loaded))),
            np.array(loaded.targets),
            tuple(loaded.classes),
            pixels=np.ascontiguousarray(loaded.data),
        )
    )


def read_part(data: Path) -> ImageList:
    """The training images of "cifar10-10k": the first ``PER_CLASS`` of each class. UserErrors as
    ``read``."""
    images = read(data, "cifar10", "train")
    classes = range(len(images.classes))
    first = [np.flatnonzero(images.labels == label)[:PER_CLASS] for label in classes]
    return replace(images.subset(np.sort(np.concatenate(first))), name=f"{PART}-train")


def _image_files(root: Path, name: str, split: str) -> ImageList:
    """A folder of image files per class. UserError for classes other than the data set's."""
    images = published.check(image_folder(root / split, f"{name}-{split}"))
    if odd := sorted({title.lower() for title in images.classes} ^ set(CLASSES[name])):
        raise UserError(
            f"{images.name}: these are not {name}'s {len(CLASSES[name])} classes:"
            f" {', '.join(odd[:5])} {'is' if len(odd) == 1 else 'are'} missing or unknown",
            at=images.root,
            hint=f"the folders must be named {', '.join(CLASSES[name][:3])}, …",
        )
    return images


def _recognise(classes: Sequence[str], *, name: str) -> str:
    same = {title.lower() for title in classes} == set(CLASSES[name])
    return FAMILIES[name] if same else ""


def _departures(images: ImageList) -> list[str]:
    if images.pixels is not None:
        return []
    return [
        "the images are files, whose encoding may have changed pixels, and not the published arrays"
    ]


def _dataset(name: str) -> Dataset:
    classes, family = CLASSES[name], FAMILIES[name]
    return Dataset(
        name,
        partial(read, name=name, split="train"),
        partial(read, name=name, split="test"),
        splits=(
            Split(f"{name}-train", family, 50_000, len(classes), class_hash(classes)),
            Split(f"{name}-test", family, 10_000, len(classes), class_hash(classes)),
        ),
        folders=(name, FOLDERS[name]),
        own_folder=FOLDERS[name],
        recognise=partial(_recognise, name=name),
        departures=_departures,
    )


def _part() -> Dataset:
    """The part as a data set; its test images are those of the whole."""
    whole = _dataset("cifar10")
    train = replace(
        whole.splits[0], name=f"{PART}-train", images=PER_CLASS * len(CLASSES["cifar10"])
    )
    return replace(
        whole, name=PART, read_train=read_part, splits=(train,), folders=(), part_of="cifar10"
    )


DATASETS = (_dataset("cifar10"), _dataset("cifar100"), _part())
