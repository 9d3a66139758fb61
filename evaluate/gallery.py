"""Images of clusters, a fine one within a coarse one: PCL's Figure 6.

Examples:

    python evaluate/gallery.py --ckpt pcl_v1.pth.tar --data /data/imagenet --device cuda
    python evaluate/gallery.py --ckpt encoder.safetensors  # bundled synthetic data

The momentum embedding is clustered twice by k-means, as in training (faiss, 20 iterations, 5
starts). For fine clusters of at least five images, drawn by seed, the gallery shows the five images
nearest the prototype, then images drawn from the coarse cluster that holds most of those five. The
record keeps a small picture of each, with its path and class, so that the gallery can be drawn from
the record alone."""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evaluate.evaluation import (
    Context,
    EvalConfig,
    Evaluation,
    Metric,
    Scores,
    Wanted,
    training_only,
)
from protobench import keyed
from protobench.checkpoints.layouts import Copy
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.records import Record
from protobench.runtime import cli
from protobench.runtime.errors import UserError, printable

NEAREST = 5
"""Images shown of a fine cluster."""
SIDE = 96
"""Longer side of a small picture in pixels, at most."""


@dataclass(frozen=True)
class Config(EvalConfig):
    """Images of fine and coarse clusters."""

    dataset: Literal["imagenet"] = "imagenet"
    fine: int | None = None
    """K of the fine clustering; default 100000, on the bundled data 200"""
    coarse: int | None = None
    """K of the coarse clustering; default 50000, on the bundled data 100"""
    clusters: int = 6
    """fine clusters shown"""
    coarse_images: int = 10
    """images shown of each coarse cluster"""
    seed: int = 0
    """seed of the clusters and images drawn"""

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """The momentum encoder, whose embedding PCL's training clusters."""
        return ("momentum",)

    def params(self) -> dict[str, Any]:
        """Return what determines the gallery of an encoder on given images."""
        on_bundled = bundled.is_used(self.data)
        return {
            "fine": self.fine or (200 if on_bundled else 100_000),
            "coarse": self.coarse or (100 if on_bundled else 50_000),
            "clusters": self.clusters,
            "coarse_images": self.coarse_images,
            "seed": self.seed,
        }

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        fine, coarse = self.params()["fine"], self.params()["coarse"]
        if min(fine, coarse, self.clusters, self.coarse_images) < 1 or coarse >= fine:
            raise UserError(
                "--fine, --coarse, --clusters and --coarse-images must be at least 1, and --coarse"
                " less than --fine"
            )


def choose(
    fine: Any, coarse: Any, clusters: int, coarse_images: int, seed: int
) -> list[dict[str, Any]]:
    """Return ``{"fine", "coarse", "near", "around"}`` for each cluster drawn; near and around are
    disjoint lists of image indices.

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
    """Return an image as a record keeps it: path, class and a small JPEG in base64."""
    small, buffer = images.read(index), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, format="JPEG", quality=88)
    return {
        "path": printable(images.paths[index]),
        "class": printable(images.classes[images.labels[index]]),
        "jpeg": base64.b64encode(buffer.getvalue()).decode(),
    }


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features that are clustered."""
    return [Wanted(lists[0], "embedding")]


def run(config: Config, context: Context) -> Scores | None:
    """Cluster the training images and choose the pictures to show."""
    from protobench import features
    from protobench.kmeans import kmeans
    from protobench.runtime import distributed

    params, (train,) = config.params(), context.lists
    if params["fine"] > len(train):
        raise UserError(
            f"{params['fine']} clusters of only {len(train)} images",
            at=train.root,
            hint="lower --fine and --coarse",
        )
    (x_ND,) = context.all_features(wanted(config, context.lists))
    if not distributed.is_main():
        return None
    x_ND = features.unit_norm(x_ND)
    fine, coarse = (
        kmeans(x_ND, params[which], seed=params["seed"], gpu=context.device != "cpu")
        for which in ("fine", "coarse")
    )
    groups = choose(fine, coarse, config.clusters, config.coarse_images, config.seed)
    if not groups:
        raise UserError(f"no fine cluster has {NEAREST} images", hint="lower --fine and --coarse")
    shown = [
        group | {which: [picture(train, i) for i in group[which]] for which in ("near", "around")}
        for group in groups
    ]
    purity = np.mean(
        [max(Counter(train.labels[group["near"]]).values()) / NEAREST for group in groups]
    )
    return Scores(
        [{"draw": 0, "value": round(100 * float(purity), 4)}],
        Metric("nearest five of one class", "%", len(train)),
        details={"groups": shown},
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    params = record["unit"]["params"]
    lines = [
        f"clusters of {record['metric']['test_images']} training images, fine K = {params['fine']},"
        f" coarse K = {params['coarse']}"
    ]
    for group in record["groups"]:
        near, around = (
            ", ".join(
                f"{count} {name}"
                for name, count in Counter(image["class"] for image in group[which]).most_common()
            )
            for which in ("near", "around")
        )
        lines.append(
            f"fine {group['fine']}: {near}; coarse {group['coarse']}: {around or 'nothing else'}"
        )
    return lines


EVALUATION = Evaluation(
    name="gallery",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    read=training_only,
    minutes={"imagenet": 90},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
