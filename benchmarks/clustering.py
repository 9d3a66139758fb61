"""Times the k-means of an E-step: faiss called as in the released code, with lists of Python
numbers, and ours, which calls faiss, too."""

from collections.abc import Iterator

import faiss
import numpy as np
from alternate import Ratio, alternate, ratio, show

from protobench.kmeans import kmeans

N, D, K, ITERATIONS = 100_000, 128, 1000, 10


def published(x: np.ndarray) -> tuple[list[int], float]:
    """Clusters, then assigns every image; returns the clusters as a list, and the inertia."""
    clustering = faiss.Clustering(D, K)
    clustering.niter, clustering.nredo, clustering.seed = ITERATIONS, 1, 0
    clustering.max_points_per_centroid, clustering.min_points_per_centroid = 1000, 10
    index = faiss.IndexFlatL2(D)
    clustering.train(x, index)
    squared, found = index.search(x, 1)
    return [int(number[0]) for number in found], float(squared.sum())


def rows() -> Iterator[Ratio]:
    """Yields the row for unit vectors around 1000 directions."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(K, D))[rng.integers(0, K, N)] + 1.5 * rng.normal(size=(N, D))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    def ours() -> float:
        return float(np.square(kmeans(x, K, seed=0, niter=ITERATIONS, nredo=1).distance).sum())

    difference = ours() / published(x)[1] - 1
    work = (
        f"k-means, N = {N // 1000}k, d = {D}, K = {K}, {ITERATIONS} iterations and the assignment"
    )
    yield ratio(
        f"{work} (target: at most 1.5 times faiss's time)",
        alternate(lambda: published(x), ours, 2),
        f"inertia {100 * difference:+.3f} %",
        target=1 / 1.5,
        flops=2 * N * D * K * (ITERATIONS + 1),
    )


if __name__ == "__main__":
    show(rows())
