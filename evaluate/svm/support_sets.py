"""Support sets of low-shot classification: which training images a repetition uses, and which of
them are positive for each class.

``pcl`` pools k images of each class and trains every class on the pool; ``goyal`` gives each class
images of its own."""

import random
from dataclasses import dataclass

import numpy as np

from protobench import keyed
from protobench.data.image_list import ImageList
from protobench.runtime import files
from protobench.runtime.errors import UserError

GOYAL_NEGATIVES = 19
"""Negatives per positive in the goyal protocol."""
RELEASED_SHOTS, RELEASED_DRAWS = (1, 2, 4, 8, 16), 5
"""What pcl's released script draws, one after another from one generator: other shots or more draws
are none of its own."""


@dataclass(frozen=True)
class SupportSet:
    """The training rows of each class, and which of them are positive."""

    k: int
    draw: int
    """index of the repetition"""
    rows: list[np.ndarray]
    positive: list[np.ndarray]
    subset: str
    """hash of the images; equal for all checkpoints scored on the same support set"""


def all_support_sets(
    train: ImageList, protocol: str, shots: tuple[int, ...], draws: int, seed: int, order: str
) -> list[SupportSet]:
    """Return the support set of every (k, draw), keyed by (seed, k, draw) or in the released
    script's order. Raises UserError if a class has too few images or is in every image of a
    support set."""
    present_NC = presence(train.labels)
    _require_enough_images(train, present_NC, protocol, max(shots))

    def sample(k: int, draw: int) -> SupportSet:
        rng = keyed.generator(seed, "lowshot", k, draw)
        if protocol == "goyal":
            return goyal_support_set(train.labels, k, draw, rng)
        return pcl_support_set(present_NC, k, draw, rng)

    if order == "released":
        return released_support_sets(train, shots, draws)[0]
    support_sets = [sample(k, draw) for k in shots for draw in range(draws)]
    for support in support_sets:
        _require_negatives(train, support)
    return support_sets


def presence(labels: np.ndarray) -> np.ndarray:
    """Return bool [N, C] from labels [N] or [N, C]; a difficult image does not show its class."""
    present_NC: np.ndarray = (
        labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    )
    return present_NC


def pcl_support_set(
    present_NC: np.ndarray, k: int, draw: int, rng: np.random.Generator
) -> SupportSet:
    """Sample pcl's pool: k positives of each class, an image as often as it was sampled. Difficult
    and absent both count as negative."""
    pool = np.concatenate([rng.permutation(np.flatnonzero(column))[:k] for column in present_NC.T])
    return _pooled(present_NC, k, draw, pool)


def released_support_sets(
    train: ImageList, shots: tuple[int, ...], draws: int, costs: int = 1
) -> list[list[SupportSet]]:
    """Return the very pools of pcl's released script, for each of its ``costs`` (today's has one,
    that of July 2020 three, each with pools of its own).

    Python's random, seeded once with 0, shuffles each class's images for each draw of each cost of
    each k in turn. The whole sequence is drawn, and the pools asked for are selected. Raises
    UserError as ``all_support_sets`` does."""
    present_NC, rng = presence(train.labels), random.Random(0)
    _require_enough_images(train, present_NC, "pcl", max(shots))
    support_sets: list[list[SupportSet]] = [[] for _ in range(costs)]
    for k in RELEASED_SHOTS:
        for of_cost in support_sets:
            for draw in range(RELEASED_DRAWS):
                pool: list[int] = []
                for column in present_NC.T:
                    members = np.flatnonzero(column).tolist()
                    rng.shuffle(members)
                    pool += members[:k]
                if k in shots and draw < draws:
                    of_cost.append(_pooled(present_NC, k, draw, np.array(pool)))
                    _require_negatives(train, of_cost[-1])
    return support_sets


def goyal_support_set(
    label_NC: np.ndarray, k: int, draw: int, rng: np.random.Generator
) -> SupportSet:
    """Sample goyal's k positives and 19 k negatives for each class on its own. Difficult images are
    neither."""
    rows, positive = [], []
    for label_N in label_NC.T:
        positives = rng.permutation(np.flatnonzero(label_N == 1))[:k]
        negatives = rng.permutation(np.flatnonzero(label_N == -1))[: GOYAL_NEGATIVES * k]
        rows.append(np.concatenate([positives, negatives]))
        positive.append(np.arange(len(rows[-1])) < k)
    return _support_set(k, draw, rows, positive)


def _pooled(present_NC: np.ndarray, k: int, draw: int, pool: np.ndarray) -> SupportSet:
    classes = present_NC.shape[1]
    return _support_set(k, draw, [pool] * classes, [present_NC[pool, c] for c in range(classes)])


def _support_set(
    k: int, draw: int, rows: list[np.ndarray], positive: list[np.ndarray]
) -> SupportSet:
    subset = files.sha256([of_class.tolist() for of_class in rows])[:16]
    return SupportSet(k, draw, rows, positive, subset)


def _require_enough_images(train: ImageList, present_NC: np.ndarray, protocol: str, k: int) -> None:
    for title, count in zip(train.classes, present_NC.sum(0), strict=True):
        if count < k:
            raise UserError(
                f"{train.name}: class {title!r} has {count} images, {k} are to be drawn",
                at=train.root,
                hint="lower --shots; nothing is drawn twice",
            )
    if protocol != "goyal":
        return
    needed = GOYAL_NEGATIVES * k
    for title, count in zip(train.classes, (train.labels == -1).sum(0), strict=True):
        if count < needed:
            raise UserError(
                f"{train.name}: class {title!r} is absent from {count} images, goyal's protocol"
                f" draws {needed} of them",
                at=train.root,
                hint="lower --shots, or use --protocol pcl",
            )


def _require_negatives(train: ImageList, support: SupportSet) -> None:
    for title, positive in zip(train.classes, support.positive, strict=True):
        if positive.all():
            raise UserError(
                f"{train.name}: every one of the {len(positive)} images drawn shows class"
                f" {title!r}, whose SVM also needs images without it (k = {support.k}, draw"
                f" {support.draw})",
                at=train.root,
                hint="raise --shots, or leave out a class that is in every image",
            )
