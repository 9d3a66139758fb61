"""The collision dial: MoCo and PCL with class collisions made rarer or more frequent. An experiment
of this suite; labels set the dial and nothing else.

Examples:

    python pretrain/collisions.py mini --weight 16  # PCL on bundled synthetic data
    python pretrain/collisions.py mini-moco --weight 0  # MoCo without collisions

A class collision (Arora et al., ICML 2019) is a negative of the query's own class, which InfoNCE
pushes away although it is semantically alike; PCL's paper names it as the weakness that prototypes
mend (section 1). Images and their number per class stay as they are: a weight w on the terms of
InfoNCE's sum that are of the query's class stands for that many times as many such negatives.

Prototypes are PCL's, or those of two controls. Permuted: centroids, phi and the sizes of clusters
are kept, but which image belongs to which prototype is drawn at random, so that what is left is the
second loss without its meaning. Classes: k-means within each class, as far as better clusters could
bring PCL.

Shapes: N batch, n this process's share of it, C embedding, I images, K queue or prototypes."""

if __name__ == "__main__":  # before torch is imported, so that --help is instant
    from pretrain import command
    from pretrain.recipes import collisions as recipes

    command.main(__doc__, recipes.RECIPES)

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pretrain.moco import info_nce
from pretrain.pcl import PCL, check_prototypes
from pretrain.recipes import collisions as recipes
from protobench import keyed
from protobench.kmeans import Clustering, kmeans
from protobench.runtime import distributed
from protobench.runtime.errors import UserError

UNKNOWN = -1
"""The label of the random keys that a queue starts with: they are of no image."""


def log_weights(label_N: Tensor, queue_label_K: Tensor, weight: float) -> Tensor:
    """log w where query and negative are of one class, 0 elsewhere; float32 [N, K]. Minus infinity
    for w = 0."""
    log_weight = math.log(weight) if weight else -math.inf
    return torch.where(label_N[:, None] == queue_label_K, log_weight, 0.0)


def clusters_within_classes(
    features_IC: np.ndarray, label_I: np.ndarray, k: int, *, seed: int, niter: int, nredo: int
) -> Clustering:
    """k-means of each class by itself, with as equal shares of the ``k`` clusters as whole numbers
    allow: of 50 for 20 classes, two or three. UserError for a class with fewer images than
    clusters."""
    classes = np.unique(label_I)
    firsts = [k * c // len(classes) for c in range(len(classes) + 1)]
    centroids_KC = np.empty((k, features_IC.shape[1]), np.float32)
    assignment_I = np.empty(len(label_I), np.int64)
    distance_I = np.empty(len(label_I), np.float32)
    for label, (first, end) in zip(classes, pairwise(firsts), strict=True):
        of = label_I == label
        found = kmeans(features_IC[of], end - first, seed=seed, niter=niter, nredo=nredo)
        centroids_KC[first:end] = found.centroids
        assignment_I[of], distance_I[of] = found.assignment + first, found.distance
    return Clustering(centroids_KC, assignment_I, distance_I)


class Collisions(PCL):
    """PCL that knows the classes of its queue. Without prototypes it is MoCo."""

    def __init__(self, recipe: recipes.Collisions, labels: Tensor, seed: int):
        super().__init__(recipe, seed)
        self.recipe: recipes.Collisions = recipe
        self.labels: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.queue_label: Tensor
        self.register_buffer("queue_label", torch.full((recipe.queue,), UNKNOWN))

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """That of PCL, or of MoCo. The labels of the keys take their places in the queue."""
        enqueued = slice(self.pointer, self.pointer + len(index_N))
        loss = super().loss(views, index_N)
        self.queue_label[enqueued] = self.labels[index_N]
        return loss

    def instance_loss(self, q_NC: Tensor, k_NC: Tensor, index_N: Tensor) -> Tensor:
        """InfoNCE with the negatives of the query's class weighted."""
        label_n = self.labels[distributed.shard_of(index_N)]
        return info_nce(
            q_NC,
            distributed.shard_of(k_NC),
            self.queue.clone(),
            self.recipe.temperature,
            log_weights(label_n, self.queue_label, self.recipe.weight),
        )

    def _kmeans(self, features_IC: np.ndarray, m: int, k: int) -> Clustering:
        if self.recipe.prototypes != "classes":
            return super()._kmeans(features_IC, m, k)
        return clusters_within_classes(
            features_IC,
            self.labels.cpu().numpy(),
            k,
            seed=m,
            niter=self.recipe.niter,
            nredo=self.recipe.nredo,
        )

    def _cluster(
        self, features_IC: np.ndarray, m: int, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centroids_KC, phi_K, prototype_I = super()._cluster(features_IC, m, k)
        if self.recipe.prototypes == "permuted":
            drawn = keyed.generator(self.seed, self.steps, "permutation", m)
            prototype_I = drawn.permutation(prototype_I)
        return centroids_KC, phi_K, prototype_I


def build(recipe: recipes.Collisions, labels: Tensor, num_classes: int, seed: int) -> Collisions:
    """See method.py; labels set the dial, and make the prototypes only where the recipe says so.
    UserError for a weight that is none, for images of a single class, and for more or fewer
    prototypes than can be made."""
    if not 0 <= recipe.weight < math.inf:
        raise UserError(f"--weight {recipe.weight:g}: it is finite and not negative")
    if recipe.train.epochs and num_classes < 2:
        raise UserError(
            "the dial for class collisions needs labels, and these images are all of one class",
            hint="sort the images into one folder per class",
        )
    check_prototypes(recipe, labels)
    fewest = min(recipe.num_prototypes, default=num_classes)
    if recipe.prototypes == "classes" and fewest < num_classes:
        raise UserError(
            f"{fewest} prototypes, each of one class, for {num_classes} classes",
            hint="raise --num-prototypes, or choose other --prototypes",
        )
    return Collisions(recipe, labels, seed)
