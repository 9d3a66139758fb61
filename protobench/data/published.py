"""The data sets as they were published, and what is not as published about the images at hand.

A folder is read by its layout, and the layouts of different data sets are alike. So what was read
is compared with what the name stands for: another known data set is refused, and anything else that
differs is told before the work and kept in the record."""

import re
from dataclasses import dataclass
from typing import TypeVar

from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import files
from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

List = TypeVar("List", bound=ImageList)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    re.findall(
        r"\w+",
        """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
""",
    )
)
VOC = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class Published:
    """One split of a data set. ``order``: SHA-256 of its classes in order, one a line; empty where
    they have no one spelling."""

    family: str
    images: int
    classes: int
    order: str = ""


def _order(titles: tuple[str, ...]) -> str:
    return files.sha256_text("\n".join(titles))


_IMAGENET = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"  # the 1000 wnids
_COCO = (  # the 80 names, by the ids of their categories
    "d7654b26101572841ed1cd80aa03aa60e35f1b8acb4aea6906c4066886f16e07"
)

SPLITS = {
    "imagenet-train": Published("ImageNet", 1_281_167, 1000, _IMAGENET),
    "imagenet-val": Published("ImageNet", 50_000, 1000, _IMAGENET),
    "places205-train": Published("Places205", 2_448_873, 205),
    "places205-val": Published("Places205", 20_500, 205),
    "cifar10-train": Published("CIFAR-10", 50_000, 10, _order(CIFAR10)),
    "cifar10-test": Published("CIFAR-10", 10_000, 10, _order(CIFAR10)),
    "cifar100-train": Published("CIFAR-100", 50_000, 100, _order(CIFAR100)),
    "cifar100-test": Published("CIFAR-100", 10_000, 100, _order(CIFAR100)),
    "voc07-trainval": Published("VOC2007", 5011, 20, _order(VOC)),
    "voc07-test": Published("VOC2007", 4952, 20, _order(VOC)),
    "voc12-trainval": Published("VOC2012", 11_540, 20, _order(VOC)),
    "voc07+12-trainval": Published("VOC2007 and VOC2012", 16_551, 20, _order(VOC)),
    "coco-train2017": Published("COCO 2017", 117_266, 80, _COCO),
    "coco-val2017": Published("COCO 2017", 5000, 80, _COCO),
}
"""By the name of an image list; lists with boxes have "-boxes" behind it."""

WNID = re.compile(r"n\d{8}")


def split_of(images: ImageList) -> Published | None:
    """What the list's name stands for; None for a name that is no data set's, and for the bundled
    synthetic data."""
    known = SPLITS.get(images.name.removesuffix("-boxes"))
    return None if known is None or bundled.holds(images.classes) else known


def check(images: List) -> List:
    """The list itself. Prints what is not as published; UserError where these are the images of
    another known data set."""
    if (known := split_of(images)) is None:
        return images
    if other := another(images, known.family):
        raise UserError(
            f"{images.name}: this is {other}, not {known.family}",
            at=images.root,
            hint=(
                f"give the folder of {known.family}; nothing is scored under another data set's"
                " name"
            ),
        )
    if told := counts(images) + departures(images):
        notice(
            f"warning: {images.name} is not as published: {'; '.join(told)}. Numbers made with it"
            " are not comparable with any paper's"
        )
    return images


def another(images: ImageList, family: str) -> str:
    """The data set, other than ``family``, that the images are known to be of by their classes or
    names; else empty."""
    titles = {title.lower() for title in images.classes}
    found = ""
    if titles == set(CIFAR10):
        found = "CIFAR-10"
    elif titles == set(CIFAR100):
        found = "CIFAR-100"
    elif all(WNID.fullmatch(title) for title in images.classes):
        found = "ImageNet"
    elif all(len(title) == 1 and title.isalpha() for title in images.classes):
        found = "Places, whose classes lie one folder deeper"
    elif len(images.classes) in (205, 365) and family != "Places205":
        found = f"Places{len(images.classes)}"
    name = images.paths[len(images) // 2].rpartition("/")[2] if len(images) else ""
    if (
        (year := re.fullmatch(r"(20\d\d)_\d{6}\.\w+", name))
        and family == "VOC2007"
        and year[1] != "2007"
    ):
        found = f"VOC{year[1]} or a later year's"
    elif re.fullmatch(r"\d{6}\.\w+", name) and family == "VOC2012":
        found = "VOC2007"
    elif (year := re.match(r"COCO_(train|val)(\d{4})_", name)) and family == "COCO 2017":
        found = f"COCO {year[2]}"
    return "" if found == family else found


def counts(images: ImageList) -> list[str]:
    """How the numbers of images and classes differ from the published ones."""
    if (known := split_of(images)) is None:
        return []
    told = []
    if (n := len(images) + len(images.unreadable)) != known.images:
        told.append(f"{images.name} has {n} images, not {known.images}")
    if len(images.classes) != known.classes:
        told.append(f"{len(images.classes)} classes, not {known.classes}")
    return told


def departures(images: ImageList) -> list[str]:
    """What else is not as published: the classes or their order, the file names, the form."""
    if (known := split_of(images)) is None:
        return []
    told = []
    if (
        known.order
        and len(images.classes) == known.classes
        and _order(images.classes) != known.order
    ):
        told.append(
            "the classes are not the published ones in their order, so labels mean something else"
        )
    name = images.paths[len(images) // 2].rpartition("/")[2] if len(images) else ""
    if known.family == "ImageNet" and (
        found := re.match(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)\.", name)
    ):
        split = "val" if found[1].startswith("ILSVRC") else "train"
        if images.name != f"imagenet-{split}":
            told.append(f"by their names these are images of ImageNet's {split} split")
    if known.family.startswith("CIFAR") and images.pixels is None:
        told.append(
            "the images are files, whose encoding may have changed pixels, and not the published"
            " arrays"
        )
    return told
