"""t-SNE of a checkpoint's embeddings of training images, coloured by class: PCL's Figure 5.

Examples:

    python evaluate/tsne.py --ckpt pcl_v1.pth.tar --data /data/imagenet
    python evaluate/tsne.py --ckpt encoder.safetensors  # bundled synthetic data

The unit-norm embedding of the momentum encoder, which is what PCL clusters; the first 60 classes
(the paper's caption; its authors' blog says 40), at most 200 images of each, drawn by seed.
scikit-learn's t-SNE (van der Maaten and Hinton, JMLR 2008) with perplexity 30 (the paper states
none), initialised with the first two principal components. Distances between groups mean little in
a t-SNE, so the record also holds a number that means something: how often an image's nearest
neighbour in the plane has its class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError

if TYPE_CHECKING:
    from protobench.features import Pooling


@dataclass(frozen=True)
class Config(EvalConfig):
    """t-SNE of embeddings."""

    dataset: Literal["imagenet"] = "imagenet"
    classes: int = 60
    """the first so many classes in sorted order; all where there are fewer"""
    per_class: int = 200
    """images of each class, at most"""
    perplexity: float = 30.0
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is shown"""
    seed: int = 0
    """seed of the images drawn"""

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """The momentum encoder, whose embedding PCL's training clusters."""
        return ("momentum" if self.feature == "embedding" else None,)

    def params(self) -> dict[str, Any]:
        """Return what determines the picture of an encoder on given images."""
        return {
            "classes": self.classes,
            "per_class": self.per_class,
            "perplexity": self.perplexity,
            "feature": self.feature,
            "seed": self.seed,
        }

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        if self.classes < 1 or self.per_class < 1 or not 1 <= self.perplexity < float("inf"):
            raise UserError("--classes, --per-class and --perplexity must be at least 1")


def sample(labels: np.ndarray, classes: int, per_class: int, seed: int) -> np.ndarray:
    """Return the indices of the images shown: of each of the first classes up to ``per_class``,
    drawn by seed."""
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


def score(x_ND: np.ndarray, labels: np.ndarray, perplexity: float) -> tuple[np.ndarray, Run]:
    """Return positions [N, 2] and a run ``{"draw", "value"}``, whose value is the share (%) of
    images with a nearest neighbour in the plane of their own class."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    xy_N2 = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(x_ND)
    neighbours = NearestNeighbors(n_neighbors=2).fit(xy_N2)
    nearest_N = neighbours.kneighbors(xy_N2, return_distance=False)[:, 1]
    share = 100 * float((labels[nearest_N] == labels).mean())
    return xy_N2, {"draw": 0, "value": round(share, 4)}


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features of the images shown."""
    (train,) = lists
    shown = train.subset(sample(train.labels, config.classes, config.per_class, config.seed))
    pooling: Pooling = "embedding" if config.feature == "embedding" else "average"
    return [Wanted(shown, pooling)]


def run(config: Config, context: Context) -> Scores | None:
    """Draw images and place their embeddings in the plane."""
    from protobench import features
    from protobench.runtime import distributed

    (train,), (placed,) = context.lists, wanted(config, context.lists)
    shown = placed.images
    if config.perplexity >= len(shown):
        raise UserError(
            f"a perplexity of {config.perplexity:g} needs more than {len(shown)} images",
            hint="lower --perplexity, or raise --per-class",
        )
    (x_ND,) = context.all_features([placed])
    if not distributed.is_main():
        return None
    xy_N2, found = score(features.unit_norm(x_ND), shown.labels, config.perplexity)
    return Scores(
        [found],
        Metric("nearest neighbour of the same class", "%", len(shown)),
        details={
            "places": [[round(float(x), 1), round(float(y), 1)] for x, y in xy_N2],
            "labels": shown.labels.tolist(),
            "class_names": train.classes[: int(shown.labels.max()) + 1],
        },
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    names = record["class_names"]
    return [
        f"t-SNE of {record['metric']['test_images']} training images of {len(names)} classes;"
        f" {record['runs'][0]['value']:.1f} % have their nearest neighbour in their class"
    ]


EVALUATION = Evaluation(
    name="tsne",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    read=training_only,
    minutes={"imagenet": 5},
    seconds={"imagenet": 20},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
