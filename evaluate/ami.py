"""Adjusted mutual information between k-means clusters of the training images and their classes:
PCL's Table 7.

Examples:

    python evaluate/ami.py --ckpt pcl_v1.pth.tar --data /data/imagenet --num-clusters 25000
    python evaluate/ami.py --ckpt moco_v1_200ep.pth.tar --data /data/imagenet --num-clusters 25000 50000 100000
    python evaluate/ami.py --ckpt encoder.safetensors  # bundled synthetic data

Unit-norm features of centre crops of all training images are clustered as in PCL's training (faiss,
20 iterations, the best of 5 starts). The value is the AMI normalised by the arithmetic mean of the
entropies, scikit-learn's default since 0.22 and the one to compare with the paper. The record also
holds the AMI normalised by their maximum, the default before 0.22 (the paper's 0.410 would read
0.317 there), NMI (arithmetic), ARI and purity.

The paper does not state which feature it clusters. ``--feature embedding`` (the default) is what
PCL's training clusters: the output of the projection head, of the momentum encoder where the
checkpoint has one. ``--feature pooled`` is the backbone's pooled feature, which every checkpoint
has."""  # noqa: E501 (examples are one line each)

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
from protobench.checkpoints.layouts import Copy
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.mutual_information import agreement
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

if TYPE_CHECKING:
    from protobench.features import Pooling


@dataclass(frozen=True)
class Config(EvalConfig):
    """Adjusted mutual information of k-means clusters."""

    dataset: Literal["imagenet", "cifar10", "cifar10-10k"] = "imagenet"
    num_clusters: tuple[int, ...] = ()
    """K, one or several; default 25 per class as in the paper: 25000 on ImageNet, 250 on
    CIFAR-10; on the bundled data 100"""
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is clustered"""
    iterations: int = 20
    """iterations of k-means"""
    restarts: int = 5
    """random starts; the one with the least inertia counts"""
    seed: int = 0
    """seed of the starts"""

    @property
    def clusters(self) -> tuple[int, ...]:
        """The values of K to try."""
        if self.num_clusters:
            return self.num_clusters
        if bundled.is_used(self.data):
            return (100,)
        return (25_000,) if self.dataset == "imagenet" else (250,)

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """The momentum encoder, whose embedding PCL's training clusters."""
        return ("momentum" if self.feature == "embedding" else None,)

    def params(self) -> dict[str, Any]:
        """Return what determines the scores of an encoder on given images."""
        return {
            "num_clusters": self.clusters,
            "feature": self.feature,
            "iterations": self.iterations,
            "restarts": self.restarts,
            "seed": self.seed,
        }

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        ks = self.num_clusters
        if min(ks, default=1) < 1 or len(set(ks)) < len(ks):
            raise UserError(f"--num-clusters must be different numbers of at least 1, not {ks}")
        if self.iterations < 1 or self.restarts < 1:
            raise UserError("--iterations and --restarts must be at least 1")


def score(x_ND: np.ndarray, labels: np.ndarray, config: Config, *, gpu: bool = False) -> list[Run]:
    """Return one run per K: ``{"k", "draw", "value", "ami_max", "nmi", "ari", "purity",
    "non_empty"}``, all but the counts from 0 to 1.

    x_ND are unit vectors; ``value`` is the AMI normalised by the arithmetic mean."""
    from protobench.kmeans import kmeans

    runs = []
    for k in progress(config.clusters, desc="k-means", unit=" K", total=len(config.clusters)):
        cluster_N = kmeans(
            x_ND, k, seed=config.seed, niter=config.iterations, nredo=config.restarts, gpu=gpu
        ).assignment
        scores = {name: round(value, 6) for name, value in agreement(cluster_N, labels).items()}
        value, non_empty = scores.pop("ami"), len(np.unique(cluster_N))
        runs.append({"k": k, "draw": 0, "value": value, **scores, "non_empty": non_empty})
    return runs


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features that are clustered."""
    pooling: Pooling = "embedding" if config.feature == "embedding" else "average"
    return [Wanted(lists[0], pooling)]


def run(config: Config, context: Context) -> Scores | None:
    """Cluster the training images' features and compare the clusters with the classes."""
    from protobench import features
    from protobench.runtime import distributed

    (train,) = context.lists
    if (k := max(config.clusters)) > len(train):
        hint = "lower --num-clusters"
        raise UserError(f"{k} clusters of only {len(train)} images", at=train.root, hint=hint)
    (x_ND,) = context.all_features(wanted(config, context.lists))
    if not distributed.is_main():
        return None
    return Scores(
        score(features.unit_norm(x_ND), train.labels, config, gpu=context.device != "cpu"),
        Metric("AMI", "", len(train)),
        details={
            "feature": {
                "dim": int(x_ND.shape[1]),
                "pooling": config.feature,
                "copy": context.encoder.report.copy,
            }
        },
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    feature, data = record["feature"], record["data"]
    title = (
        f"k-means of {data['train_images']} training images against {data['classes']} classes;"
        f" {feature['dim']}-D {feature['pooling']} feature of the {feature['copy']} encoder"
    )
    rows = [
        f"{run['k']:<8}{run['value']:6.3f}{run['ami_max']:9.3f}{run['nmi']:8.3f}{run['ari']:7.3f}"
        f"{run['purity']:9.3f}{run['non_empty']:11d}"
        for run in record["runs"]
    ]
    return [title, "K         AMI   AMI(max)   NMI    ARI    purity   non-empty", *rows]


EVALUATION = Evaluation(
    name="ami",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    read=training_only,
    minutes={"imagenet": 60},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
