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


HOURS_ON_A_CPU = 1e10
"""N x K from which a GPU that faiss cannot see is an error; ImageNet's K = 25 000 is 3.2e10."""


def kmeans(x_ND: np.ndarray, k: int, *, seed: int, niter: int = 20, nredo: int = 5, gpu: bool = False) -> Clustering:
    """Lloyd's iterations in L2, the best of ``nredo`` starts (settings of the released PCL code).

    ``gpu``: on one GPU; small problems fall back to the CPU where faiss sees none, with the same result up to rounding.
    Raises UserError for K > N, for features that are not finite, and for a large problem without the GPU asked for.
    """
    if k > len(x_ND):
        raise UserError(f"k-means: {k} clusters asked of {len(x_ND)} images",
                        hint="lower num_clusters; the paper's 25000/50000/100000 are for ImageNet")
    if not np.isfinite(x_ND).all():
        raise UserError("k-means: features contain NaN or infinity", hint="the encoder has diverged; lower the learning rate")
    if gpu and faiss.get_num_gpus() == 0 and len(x_ND) * k > HOURS_ON_A_CPU:
        raise UserError(f"k-means of {len(x_ND)} images into {k} clusters on a GPU, but faiss sees none",
                        hint="install a faiss-gpu that fits this driver: python -c 'import faiss; print(faiss.get_num_gpus())'")
    x_ND = np.ascontiguousarray(x_ND, dtype=np.float32)
    search = faiss.Kmeans(x_ND.shape[1], k, niter=niter, nredo=nredo, seed=seed, gpu=int(gpu and faiss.get_num_gpus() > 0),
                          min_points_per_centroid=1, max_points_per_centroid=1000)
    search.train(x_ND)
    squared_N1, assignment_N1 = search.index.search(x_ND, 1)
    return Clustering(np.asarray(search.centroids).reshape(k, -1), assignment_N1[:, 0], np.sqrt(squared_N1[:, 0].clip(0)))
