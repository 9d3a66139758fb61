"""Images of clusters, a fine one within a coarse one: PCL's Figure 6.

Examples:

    python evaluate/gallery.py --ckpt pcl_v1.pth.tar --data /data/imagenet --device cuda
    python evaluate/gallery.py --ckpt encoder.safetensors  # no data at hand: the embedded images

k-means of the momentum embedding twice, as in training (faiss, 20 iterations, 5 starts). For fine
clusters drawn by seed, among those of five images or more: the five images nearest the prototype,
then images drawn from the coarse cluster that holds most of the five. The record keeps a small
picture of each, with path and class, so that the gallery can be made from the record alone."""

import base64
import io
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from protobench import keyed, records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import decoding, imagenet
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from protobench.runtime.errors import UserError, printable

VERSION = 1
"""Raise when the images chosen change for equal features and parameters."""

NEAREST = 5
"""Images shown of a fine cluster."""
SIDE = 96
"""Pixels of a small picture's longer side, at most."""


@dataclass(frozen=True)
class Config:
    """Images of fine and coarse clusters."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to look at, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder, or the one that holds it as imagenet/; without it the embedded images"""
    fine: int | None = None
    """K of the fine clustering; default 100000, on embedded data 200"""
    coarse: int | None = None
    """of the coarse one; default 50000, on embedded data 100"""
    clusters: int = 6
    """shown"""
    coarse_images: int = 10
    """shown of each coarse cluster"""
    seed: int = 0
    """of clusters and images drawn"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """What determines the gallery of a checkpoint on given images."""
        embedded = bundled.is_used(self.data)
        return {
            "fine": self.fine or (200 if embedded else 100_000),
            "coarse": self.coarse or (100 if embedded else 50_000),
            "clusters": self.clusters,
            "coarse_images": self.coarse_images,
            "seed": self.seed,
        }


def choose(
    fine: Any, coarse: Any, clusters: int, coarse_images: int, seed: int
) -> list[dict[str, Any]]:
    """``{"fine", "coarse", "near", "around"}`` for each cluster drawn; near and around are image
    indices, disjoint.

    ``fine`` and ``coarse`` are k-means results over the same images (assignment [N], distance [N]).
    """
    sizes = np.bincount(fine.assignment, minlength=len(fine.centroids))
    large = np.flatnonzero(sizes >= NEAREST)
    groups = []
    for cluster in keyed.generator(seed, "clusters").permutation(large)[:clusters]:
        members = np.flatnonzero(fine.assignment == cluster)
        near = members[np.argsort(fine.distance[members], kind="stable")[:NEAREST]]
        parent = Counter(coarse.assignment[near].tolist()).most_common(1)[0][0]
        others = np.setdiff1d(np.flatnonzero(coarse.assignment == parent), near)
        around = keyed.generator(seed, "around", int(cluster)).permutation(others)[:coarse_images]
        groups.append(
            {
                "fine": int(cluster),
                "coarse": int(parent),
                "near": near.tolist(),
                "around": around.tolist(),
            }
        )
    return groups


def picture(images: ImageList, index: int) -> dict[str, Any]:
    """An image as a record keeps it: path, class and a small JPEG in base64."""
    small, buffer = images.read(index), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, format="JPEG", quality=88)
    return {
        "path": printable(images.paths[index]),
        "class": printable(images.classes[images.labels[index]]),
        "jpeg": base64.b64encode(buffer.getvalue()).decode(),
    }


def data_lists(
    data: Path | None, dataset: str = "imagenet", skip_bad_images: int = 0
) -> tuple[ImageList]:
    """The training images; the embedded ones where ``data`` is None. See Config for
    ``skip_bad_images``."""
    return decoding.leave_out((imagenet.read(data or bundled.ensure(), "train"),), skip_bad_images)


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "gallery",
        "data_name": "imagenet",
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Chooses the images and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.kmeans import kmeans
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    params = config.params()
    if (
        min(params["fine"], params["coarse"], config.clusters, config.coarse_images) < 1
        or params["coarse"] >= params["fine"]
    ):
        raise UserError(
            "--fine, --coarse, --clusters and --coarse-images are at least 1, and --coarse is less"
            " than --fine"
        )
    started = time.perf_counter()
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading, prefer="momentum")
    print(encoder.summary())
    with distributed.main_process_first():
        lists = data_lists(config.data, skip_bad_images=config.skip_bad_images)
    (train,) = lists
    if params["fine"] > len(train):
        raise UserError(
            f"{params['fine']} clusters asked of {len(train)} images",
            at=train.root,
            hint="lower --fine and --coarse",
        )
    x_ND = features.extract(
        encoder, train, pooling="embedding", device=device, workers=config.workers
    )
    if not distributed.is_main():
        return None
    x_ND = features.unit_norm(x_ND)
    fine, coarse = (
        kmeans(x_ND, params[which], seed=params["seed"], gpu=device != "cpu")
        for which in ("fine", "coarse")
    )
    groups = choose(fine, coarse, config.clusters, config.coarse_images, config.seed)
    if not groups:
        raise UserError(f"no fine cluster has {NEAREST} images", hint="lower --fine and --coarse")
    shown = [
        {
            **group,
            **{
                which: [picture(train, index) for index in group[which]]
                for which in ("near", "around")
            },
        }
        for group in groups
    ]
    purity = float(
        np.mean([max(Counter(train.labels[group["near"]]).values()) / NEAREST for group in groups])
    )
    return records.write(
        config.results,
        unit(encoder.key, lists, config),
        [{"draw": 0, "value": round(100 * purity, 4)}],
        subject=subject or records.subject_of(config.ckpt),
        checkpoint=encoder.report.to_json(),
        groups=shown,
        metric={
            "name": "nearest five of one class",
            "unit": "%",
            "higher_is_better": True,
            "test_images": len(train),
        },
        data=records.data_of("imagenet", lists),
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    params = record["unit"]["params"]
    lines = [
        f"clusters of {record['metric']['test_images']} training images, fine K = {params['fine']},"
        f" coarse K = {params['coarse']}"
    ]
    if record["data"]["embedded"]:
        lines.append(
            "EMBEDDED DATA: not comparable with any paper's picture (give --data for the real one)"
        )
    for group in record["groups"]:
        counts = {
            which: Counter(image["class"] for image in group[which]).most_common()
            for which in ("near", "around")
        }
        told = {
            which: ", ".join(f"{count} {name}" for name, count in of)
            for which, of in counts.items()
        }
        lines.append(
            f"fine {group['fine']}: {told['near']}; coarse {group['coarse']}:"
            f" {told['around'] or 'nothing else'}"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
