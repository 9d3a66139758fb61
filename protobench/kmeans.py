"""k-means by faiss, as PCL's E-step and the clustering scores run it."""

from dataclasses import dataclass

import faiss
import numpy as np

from protobench.errors import UserError


@dataclass(frozen=True)
class Clustering:
    """centroids float32 [K, D]; assignment int64 [N]; distance float32 [N], Euclidean, to the own centroid."""

    centroids: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray


def kmeans(x_ND: np.ndarray, k: int, *, seed: int, niter: int = 20, nredo: int = 5) -> Clustering:
    """Lloyd's iterations in L2, the best of ``nredo`` starts (settings of the released PCL code).

    Uses all GPUs that faiss sees, else the CPU with torch's number of threads. Raises UserError for K > N and for
    features that are not finite.
    """
    if k > len(x_ND):
        raise UserError(f"k-means: {k} clusters asked of {len(x_ND)} images",
                        hint="lower num_clusters; the paper's 25000/50000/100000 are for ImageNet")
    if not np.isfinite(x_ND).all():
        raise UserError("k-means: features contain NaN or infinity", hint="the encoder has diverged; lower the learning rate")
    x_ND = np.ascontiguousarray(x_ND, dtype=np.float32)
    search = faiss.Kmeans(x_ND.shape[1], k, niter=niter, nredo=nredo, seed=seed, gpu=faiss.get_num_gpus() > 0,
                          min_points_per_centroid=1, max_points_per_centroid=1000)
    search.train(x_ND)
    squared_N1, assignment_N1 = search.index.search(x_ND, 1)
    return Clustering(np.asarray(search.centroids).reshape(k, -1), assignment_N1[:, 0], np.sqrt(squared_N1[:, 0].clip(0)))
