"""t-SNE of a checkpoint's embeddings of training images, coloured by class: PCL's Figure 5.

Examples:

    python evaluate/tsne.py --ckpt pcl_v1.pth.tar --data /data/imagenet
    python evaluate/tsne.py --ckpt encoder.safetensors  # no data at hand: the embedded images

The unit-norm embedding of the momentum encoder, as PCL clusters it; the first 60 classes (the
paper's caption; its authors' blog says 40), at most 200 images of each, drawn by seed.
scikit-learn's t-SNE (van der Maaten and Hinton, JMLR 2008), perplexity 30 (the paper tells none),
initialised by the first two principal components. Distances between groups mean little in a t-SNE;
beside the picture stands a number that means something: how often an image's nearest neighbour in
the plane is of its class."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from protobench import keyed, records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import decoding, imagenet
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from protobench.runtime.errors import UserError

VERSION = 1
"""Raise when the picture changes for equal features and parameters."""


@dataclass(frozen=True)
class Config:
    """t-SNE of embeddings."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to look at, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder, or the one that holds it as imagenet/; without it the embedded images"""
    classes: int = 60
    """the first so many in sorted order; all where there are fewer"""
    per_class: int = 200
    """images of each, at most"""
    perplexity: float = 30.0
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is shown"""
    seed: int = 0
    """of the images drawn"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """What determines the picture of a checkpoint on given images."""
        return {
            "classes": self.classes,
            "per_class": self.per_class,
            "perplexity": self.perplexity,
            "feature": self.feature,
            "seed": self.seed,
        }


def chosen(labels: np.ndarray, classes: int, per_class: int, seed: int) -> np.ndarray:
    """Indices of the images shown: of each of the first classes up to ``per_class``, drawn by
    seed."""
    return np.concatenate(
        [
            np.sort(
                keyed.generator(seed, "tsne", label).permutation(np.flatnonzero(labels == label))[
                    :per_class
                ]
            )
            for label in range(min(classes, int(labels.max()) + 1))
        ]
    )


def score(
    x_ND: np.ndarray, labels: np.ndarray, perplexity: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Places [N, 2], and a run: ``{"draw", "value"}``, the share (%) whose nearest neighbour in the
    plane is of their class."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    places_N2 = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(x_ND)
    nearest = (
        NearestNeighbors(n_neighbors=2)
        .fit(places_N2)
        .kneighbors(places_N2, return_distance=False)[:, 1]
    )
    return places_N2, {
        "draw": 0,
        "value": round(100 * float((labels[nearest] == labels).mean()), 4),
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
        "evaluation": "tsne",
        "data_name": "imagenet",
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Places the images and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    if config.classes < 1 or config.per_class < 1 or not 1 <= config.perplexity < float("inf"):
        raise UserError("--classes, --per-class and --perplexity are at least 1")
    started = time.perf_counter()
    embedding = config.feature == "embedding"
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading, prefer="momentum" if embedding else None)
    print(encoder.summary())
    with distributed.main_process_first():
        lists = data_lists(config.data, skip_bad_images=config.skip_bad_images)
    (train,) = lists
    shown = train.subset(chosen(train.labels, config.classes, config.per_class, config.seed))
    if config.perplexity >= len(shown):
        raise UserError(
            f"a perplexity of {config.perplexity:g} needs more than {len(shown)} images",
            hint="lower --perplexity, or raise --per-class",
        )
    x_ND = features.extract(
        encoder,
        shown,
        pooling="embedding" if embedding else "average",
        device=device,
        workers=config.workers,
    )
    if not distributed.is_main():
        return None
    places_N2, run = score(features.unit_norm(x_ND), shown.labels, config.perplexity)
    return records.write(
        config.results,
        unit(encoder.key, lists, config),
        [run],
        subject=subject or records.subject_of(config.ckpt),
        metric={
            "name": "nearest neighbour of the same class",
            "unit": "%",
            "higher_is_better": True,
            "test_images": len(shown),
        },
        checkpoint=encoder.report.to_json(),
        data=records.data_of("imagenet", lists),
        places=[[round(float(x), 1), round(float(y), 1)] for x, y in places_N2],
        labels=shown.labels.tolist(),
        class_names=train.classes[: int(shown.labels.max()) + 1],
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    lines = [
        f"t-SNE of {record['metric']['test_images']} training images of"
        f" {len(record['class_names'])} classes; {record['runs'][0]['value']:.1f} % have their"
        " nearest neighbour in their class"
    ]
    if record["data"]["embedded"]:
        lines.append(
            "EMBEDDED DATA: not comparable with any paper's picture (give --data for the real one)"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
