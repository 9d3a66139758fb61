"""What a run measures of itself on the way: how clusters and embeddings of the training images
agree with their classes.

Figures 3 and 4 of the PCL paper are made of it. Labels are used for measuring only; nothing here
touches the training. A probe takes one pass over the centre crops, as PCL's E-step does, and a
clustering per K: about a tenth of an embedded run's time for all nine, some minutes each at
ImageNet's size on a GPU. Methods without an embedding (Supervised) have none."""

from typing import Any

import numpy as np
import torch
from torch import nn

from protobench import keyed
from protobench.kmeans import kmeans
from protobench.mutual_information import agreement, contingency, mutual_information, ross

PROBES = 8
"""The training is divided into so many parts, with a probe before, between and after."""
SUBSAMPLE = 100_000
"""Images whose features enter the mutual information; its cost grows with the square."""


def due(epochs_done: int, epochs: int) -> bool:
    """Whether a probe belongs here."""
    return epochs_done in {round(part * epochs / PROBES) for part in range(PROBES + 1)}


def embeds(method: Any) -> bool:
    """Whether there is an embedding to look at."""
    return hasattr(method, "momentum_encoder") or hasattr(method, "projection")


def cluster_numbers(images: int) -> tuple[int, ...]:
    """The paper's K for a data set of ImageNet's size, else one cluster per 80, 40 and 20
    images."""
    return (
        (25_000, 50_000, 100_000)
        if images > 1_000_000
        else tuple(max(images // n, 1) for n in (80, 40, 20))
    )


def embedding(method: Any) -> nn.Module:
    """What is looked at: the momentum encoder's embedding where there is one, as in PCL's
    clustering."""
    backbone, head = getattr(method, "momentum_encoder", None) or (
        method.backbone,
        getattr(method, "projection", None),
    )
    return nn.Sequential(backbone, *([head] if head is not None else []))


def probe(x_IC: np.ndarray, labels: np.ndarray, epochs_done: int, *, device: str) -> dict[str, Any]:
    """``{"epochs", "feature_mi", "upper_bound", "clusters": {K: …}}``, mutual information in nats,
    of the ``embedding``'s output [I, C] for the centre crops of all images, which are divided by
    their norm in place. k-means as in PCL."""
    x_IC /= np.maximum(np.linalg.norm(x_IC, axis=1, keepdims=True), 1e-12)
    chosen = keyed.generator("probe").permutation(len(labels))[:SUBSAMPLE]
    clusters = {}
    for m, k in enumerate(cluster_numbers(len(labels))):
        found = kmeans(x_IC, k, seed=m, gpu=device != "cpu").assignment
        sizes = np.bincount(found, minlength=k)
        clusters[str(k)] = {
            "ami": round(agreement(found, labels)["ami"], 6),
            "mi": round(mutual_information(*contingency(found, labels)), 6),
            **balance(sizes),
        }
    return {
        "epochs": epochs_done,
        "feature_mi": round(ross(torch.from_numpy(x_IC[chosen]).to(device), labels[chosen]), 6),
        "upper_bound": round(float(np.log(len(np.unique(labels)))), 6),
        "clusters": clusters,
    }


def balance(sizes: np.ndarray) -> dict[str, Any]:
    """Of cluster sizes [K]: mean, standard deviation, the largest, how many are empty, the Gini
    coefficient (0: all equal), and how many clusters there are of each size."""
    rising, k = np.sort(sizes).astype(np.float64), len(sizes)
    gini = float(((2 * np.arange(1, k + 1) - k - 1) * rising).sum() / (k * rising.sum()))
    size, count = np.unique(sizes, return_counts=True)
    return {
        "mean": round(float(sizes.mean()), 4),
        "sd": round(float(sizes.std()), 4),
        "max": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "gini": round(gini, 6),
        "histogram": {str(s): int(c) for s, c in zip(size, count, strict=True)},
    }
