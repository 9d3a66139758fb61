"""What a run measures of itself: how clusters and embeddings of the training images agree with
their classes.

Figures 3 and 4 of the PCL paper are made of it. Labels are used for measuring only; nothing here
affects the training. A measurement takes one pass over the centre crops, as PCL's E-step does, and
a clustering per K: a second on the bundled data, where all five take a seventh of a run's time, and
some minutes at ImageNet's size on a GPU. Methods without an embedding (Supervised) are not
measured."""

from typing import Any

import numpy as np
import torch

from protobench import keyed
from protobench.kmeans import kmeans
from protobench.mutual_information import agreement, contingency, mutual_information, ross

PARTS, OF_SHORT, SHORT = 8, 4, 40
"""The training is divided into 8 parts, with a measurement before, between and after them; into 4
where it has fewer than 40 epochs, which cost little beside a measurement."""
SUBSAMPLE = 100_000
"""How many images enter the mutual information of features, whose cost is quadratic."""


def due(epochs_done: int, epochs: int) -> bool:
    """Whether a measurement is due after this many epochs."""
    parts = OF_SHORT if epochs < SHORT else PARTS
    return epochs_done in {round(part * epochs / parts) for part in range(parts + 1)}


def cluster_numbers(images: int) -> tuple[int, ...]:
    """The paper's K for a data set of ImageNet's size, else one cluster per 80, 40 and 20
    images."""
    return (
        (25_000, 50_000, 100_000)
        if images > 1_000_000
        else tuple(max(images // n, 1) for n in (80, 40, 20))
    )


def measure(
    x_IC: np.ndarray, labels: np.ndarray, epochs_done: int, *, device: str
) -> dict[str, Any]:
    """Measures embeddings of the centre crops of all images, [I, C], which are divided by their
    norms in place. Clustering is by k-means as in PCL.

    Returns ``{"epochs", "feature_mi", "upper_bound", "clusters": {K: …}}``, with mutual information
    in nats."""
    x_IC /= np.maximum(np.linalg.norm(x_IC, axis=1, keepdims=True), 1e-12)
    subsample = keyed.generator("probe").permutation(len(labels))[:SUBSAMPLE]
    clusters = {}
    for m, k in enumerate(cluster_numbers(len(labels))):
        cluster_I = kmeans(x_IC, k, seed=m, gpu=device != "cpu").assignment
        sizes = np.bincount(cluster_I, minlength=k)
        clusters[str(k)] = {
            "ami": round(agreement(cluster_I, labels)["ami"], 6),
            "mi": round(mutual_information(*contingency(cluster_I, labels)), 6),
            **balance(sizes),
        }
    return {
        "epochs": epochs_done,
        "feature_mi": round(
            ross(torch.from_numpy(x_IC[subsample]).to(device), labels[subsample]), 6
        ),
        "upper_bound": round(float(np.log(len(np.unique(labels)))), 6),
        "clusters": clusters,
    }


def balance(sizes: np.ndarray) -> dict[str, Any]:
    """Describes cluster sizes [K]: mean, standard deviation, the largest, how many are empty, the
    Gini coefficient (0: all equal), and how many clusters there are of each size."""
    ascending, k = np.sort(sizes).astype(np.float64), len(sizes)
    gini = float(((2 * np.arange(1, k + 1) - k - 1) * ascending).sum() / (k * ascending.sum()))
    size, count = np.unique(sizes, return_counts=True)
    return {
        "mean": round(float(sizes.mean()), 4),
        "sd": round(float(sizes.std()), 4),
        "max": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "gini": round(gini, 6),
        "histogram": {str(s): int(c) for s, c in zip(size, count, strict=True)},
    }
