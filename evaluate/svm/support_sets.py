"""Low-shot training sets: which images a draw takes, and which of them are positive for each class.

``pcl`` pools k images of each class and trains every class on the pool; ``goyal`` gives each class
images of its own."""

import random
from dataclasses import dataclass

import numpy as np

from protobench import keyed
from protobench.data.image_list import ImageList
from protobench.runtime import files
from protobench.runtime.errors import UserError


@dataclass(frozen=True)
class SupportSet:
    """One training set: for each class its rows, and which of them are positive."""

    k: int
    number: int
    rows: list[np.ndarray]
    positive: list[np.ndarray]
    subset: str
    """hash of the images drawn; equal for all checkpoints scored on the same draw"""


def draw_of(k: int, number: int, rows: list[np.ndarray], positive: list[np.ndarray]) -> SupportSet:
    """A draw with its hash."""
    return SupportSet(k, number, rows, positive, files.sha256([one.tolist() for one in rows])[:16])


def all_support_sets(
    train: ImageList, protocol: str, shots: tuple[int, ...], draws: int, seed: int, order: str
) -> list[SupportSet]:
    """Every (k, draw). Keyed by (seed, k, draw), or in the released script's order. UserError where
    a class is too small, or in every image drawn."""
    present = presence(train.labels)
    for title, count in zip(train.classes, present.sum(0), strict=True):
        if count < max(shots):
            raise UserError(
                f"{train.name}: class {title!r} has {count} images, {max(shots)} are to be drawn",
                at=train.root,
                hint="lower --shots; nothing is drawn twice",
            )
    if protocol == "goyal":
        for title, count in zip(train.classes, (train.labels == -1).sum(0), strict=True):
            if count < 19 * max(shots):
                raise UserError(
                    f"{train.name}: class {title!r} is absent from {count} images, goyal's protocol"
                    f" draws {19 * max(shots)} of them",
                    at=train.root,
                    hint="lower --shots, or use --protocol pcl",
                )
    if order == "released":
        found = released_draws(present, shots, draws)
    else:
        one = goyal_draw if protocol == "goyal" else pooled_draw
        found = [
            one(train.labels, present, k, number, keyed.generator(seed, "lowshot", k, number))
            for k in shots
            for number in range(draws)
        ]
    for draw in found:
        for title, positive in zip(train.classes, draw.positive, strict=True):
            if positive.all():
                raise UserError(
                    f"{train.name}: every one of the {len(positive)} images drawn shows class"
                    f" {title!r}, whose SVM needs others too (k = {draw.k}, draw {draw.number})",
                    at=train.root,
                    hint="raise --shots, or leave out a class that is in every image",
                )
    return found


def presence(labels: np.ndarray) -> np.ndarray:
    """bool [N, C] from labels [N] or [N, C]; difficult is not present."""
    return labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)


def pooled_draw(
    labels: np.ndarray, present: np.ndarray, k: int, number: int, rng: np.random.Generator
) -> SupportSet:
    """pcl: k positives of each class, pooled with their repeats; difficult and absent are negative
    alike."""
    pool = np.concatenate([rng.permutation(np.flatnonzero(column))[:k] for column in present.T])
    return _pool(present, k, number, pool)


def released_draws(present: np.ndarray, shots: tuple[int, ...], draws: int) -> list[SupportSet]:
    """pcl's own sequence: Python's random, seeded once with 0; for each k, for each draw, each
    class's list is shuffled."""
    rng = random.Random(0)
    found = []
    for k in shots:
        for number in range(draws):
            pool: list[int] = []
            for column in present.T:
                members = np.flatnonzero(column).tolist()
                rng.shuffle(members)
                pool += members[:k]
            found.append(_pool(present, k, number, np.array(pool)))
    return found


def _pool(present: np.ndarray, k: int, number: int, pool: np.ndarray) -> SupportSet:
    classes = present.shape[1]
    return draw_of(k, number, [pool] * classes, [present[pool, c] for c in range(classes)])


def goyal_draw(
    labels: np.ndarray, present: np.ndarray, k: int, number: int, rng: np.random.Generator
) -> SupportSet:
    """goyal: per class k positives and 19 k negatives of its own, difficult images among
    neither."""
    rows, positive = [], []
    for column, label in zip(present.T, labels.T, strict=True):
        absent = np.flatnonzero(label == -1)
        rows.append(
            np.concatenate(
                [rng.permutation(np.flatnonzero(column))[:k], rng.permutation(absent)[: 19 * k]]
            )
        )
        positive.append(np.arange(20 * k) < k)
    return draw_of(k, number, rows, positive)
