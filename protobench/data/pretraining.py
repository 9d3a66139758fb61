"""The images that a recipe is trained on, by the name of their data set."""

from pathlib import Path

from protobench.data import cifar, decoding, imagenet
from protobench.data.image_list import ImageList


def images(root: Path, dataset: str, skip_bad_images: int = 0) -> ImageList:
    """Training images of ``imagenet``, ``cifar10`` or ``cifar100`` below ``root``, less up to
    ``skip_bad_images`` that cannot be decoded. UserError where they are not there, or more are
    bad."""
    train = (
        imagenet.read(root, "train")
        if dataset == "imagenet"
        else cifar.read(root, dataset, "train")
    )
    return decoding.leave_out((train,), skip_bad_images)[0]
