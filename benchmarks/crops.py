"""The centre crops that an E-step or an evaluation reads: decoded from JPEGs, and taken from the
crops kept decoded, which the system has in memory here. Measured is a worker's part.

    python benchmarks/crops.py FOLDER    # photographs of your own, in folders of classes

By default the images are synthetic, 500 x 375, about 60 KB each."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import augmentation
import torch
from alternate import Figure, Ratio, alternate, ratio, show

from protobench.data import crop_cache, image_list
from protobench.data.loading import CentreCrops
from protobench.data.transforms import EvalInput


def rows(photos: Path | None = None) -> Iterator[Ratio | Figure]:
    """A worker's crops; then what the disk must give."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROTOBENCH_CACHE"] = folder
        images = image_list.image_folder(photos or _synthetic(Path(folder)), "photos")
        decoded, input_ = CentreCrops(images, EvalInput()), EvalInput()
        crop_cache.keep(images, input_)
        kept = crop_cache.centre_crops(images, input_)
        different = sum(int((decoded[i] != kept[i]).sum()) for i in range(len(images)))
        n = len(images)
        times = alternate(
            lambda: [decoded[i] for i in range(n)], lambda: [kept[i] for i in range(n)], 5
        )
        each = tuple([seconds / n for seconds in way] for way in times)
        size = crop_cache.size_of(images, input_) / n
        files = sum(int(size) for size, _ in images.states) / n
        yield ratio(
            f"centre crop of a JPEG of {files / 1e3:.0f} KB",
            each,  # type: ignore[arg-type]
            f"{different} of {size * n / 1e6:.0f} million values differ",
            target=20,
            bytes_moved=2 * size,
        )
        yield Figure(
            "what a disk must give for 10 000 centre crops a second",
            f"decoding reads {files / 1e5:.2g} GB/s, kept crops {size / 1e5:.2g} GB/s",
        )


def _synthetic(folder: Path) -> Path:
    photos = folder / "photos" / "one"
    photos.mkdir(parents=True)
    for number in range(augmentation.PICTURES):
        (photos / f"{number:03d}.jpg").write_bytes(augmentation.jpeg(number))
    return photos.parent


if __name__ == "__main__":
    own = Path(sys.argv[1]) if sys.argv[1:] and sys.argv[1] != "--rows" else None
    show(rows(own))
