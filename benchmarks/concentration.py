"""Times the concentration phi of ImageNet's clusters: by a Python list per cluster, as published,
and by two counts."""

import math
from collections.abc import Iterator

import numpy as np
from alternate import Ratio, alternate, ratio, show

from pretrain.pcl import concentration

IMAGES = 1_281_167


def published(
    distance: np.ndarray, assignment: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Computes eq. 12 over lists of distances, then takes the released code's three steps."""
    members: list[list[float]] = [[] for _ in range(k)]
    for image, cluster in enumerate(assignment):
        members[cluster].append(distance[image])
    phi = np.zeros(k)
    for cluster, own in enumerate(members):
        if len(own) > 1:
            phi[cluster] = np.asarray(own).mean() / math.log(len(own) + 10)
    largest = phi.max()
    for cluster, own in enumerate(members):
        if len(own) <= 1:
            phi[cluster] = largest
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    return temperature * phi / phi.mean()


def rows() -> Iterator[Ratio]:
    """Yields the rows for K = 25 000 and 100 000."""
    rng = np.random.default_rng(0)
    for k in (25_000, 100_000):
        assignment, distance = (
            rng.integers(0, k, IMAGES),
            rng.uniform(0.2, 1.2, IMAGES).astype(np.float32),
        )
        difference = np.abs(
            concentration(distance, assignment, k, temperature=0.1)
            / published(distance, assignment, k, 0.1)
            - 1
        )
        times = alternate(
            lambda a=assignment, d=distance, k=k: published(d, a, k, 0.1),
            lambda a=assignment, d=distance, k=k: concentration(d, a, k, temperature=0.1),
            5,
        )
        yield ratio(
            f"concentration φ, N = 1.28 M, K = {k // 1000}k",
            times,
            f"{difference.max():.1e} relative",
            target=90,
            bytes_moved=assignment.nbytes + distance.nbytes,
        )


if __name__ == "__main__":
    show(rows())
