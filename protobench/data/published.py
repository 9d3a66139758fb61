"""How the images at hand differ from the data set as published.

A folder is read by its layout, and the layouts of different data sets are alike. So what was read
is compared with what the list's name stands for: another known data set is refused, and any other
difference is printed before the work starts and kept in the record."""

from typing import TypeVar

from protobench.data.dataset import Dataset, Split, class_hash
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

List = TypeVar("List", bound=ImageList)


def split_of(images: ImageList) -> Split | None:
    """The split that the list's name stands for. None for a name that is no data set's, and for
    the bundled synthetic data."""
    if (known := _known(images)) is None:
        return None
    return known[1]


def check(images: List) -> List:
    """Returns the list itself, after a warning about what is not as published. UserError where
    these are the images of another known data set."""
    if (known := _known(images)) is None:
        return images
    dataset, split = known
    if other := _other_family(images, dataset, split):
        raise UserError(
            f"{images.name}: this is {other}, not {split.family}",
            at=images.root,
            hint=(
                f"give the folder of {split.family}; nothing is scored under another data set's"
                " name"
            ),
        )
    if differences := counts(images) + departures(images):
        notice(
            f"warning: {images.name} is not as published: {'; '.join(differences)}. Numbers made"
            " with it are not comparable with any paper's"
        )
    return images


def counts(images: ImageList) -> list[str]:
    """How the numbers of images and classes differ from the published ones."""
    if (known := _known(images)) is None:
        return []
    split, differences = known[1], []
    if (n := len(images) + len(images.unreadable)) != split.images:
        differences.append(f"{images.name} has {n} images, not {split.images}")
    if len(images.classes) != split.classes:
        differences.append(f"{len(images.classes)} classes, not {split.classes}")
    return differences


def departures(images: ImageList) -> list[str]:
    """What else differs from the published data: the classes or their order, and the form."""
    if (known := _known(images)) is None:
        return []
    (dataset, split), differences = known, []
    if (
        split.class_hash
        and len(images.classes) == split.classes
        and class_hash(images.classes) != split.class_hash
    ):
        differences.append(
            "the classes are not the published ones in their order, so labels mean something else"
        )
    return differences + dataset.departures(images)


def _known(images: ImageList) -> tuple[Dataset, Split] | None:
    from protobench.data.datasets import DATASETS  # imports the readers, which import this module

    name = images.name.removesuffix("-boxes")
    for dataset in DATASETS.values():
        for split in dataset.splits:
            if split.name == name:
                return None if bundled.holds(images.classes) else (dataset, split)
    return None


def _other_family(images: ImageList, dataset: Dataset, split: Split) -> str:
    """The data set other than the split's that the images are known to be of; else empty."""
    recognised = dataset.edition(images) or family_of(images.classes)
    return "" if recognised == split.family else recognised


def family_of(classes: tuple[str, ...]) -> str:
    """The data set that the classes belong to; empty where no data set recognises them."""
    from protobench.data.datasets import DATASETS  # as above

    recognised = (dataset.recognise(classes) for dataset in DATASETS.values())
    return next(filter(None, recognised), "")
