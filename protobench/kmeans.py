"""k-means by faiss, as PCL's E-step and the clustering scores run it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import torch

from protobench import keyed
from protobench.runtime import cores, distributed
from protobench.runtime.errors import UserError


@dataclass(frozen=True)
class Clustering:
    """The result of k-means."""

    centroids: np.ndarray
    """float32 [K, D]"""
    assignment: np.ndarray
    """the cluster of each image, int64 [N]"""
    distance: np.ndarray
    """Euclidean distance to its centroid, float32 [N]"""


HOURS_ON_A_CPU = 1e9
"""N x K above which it is an error that faiss sees no GPU: 2.6e9 for ImageNet's K = 2048, 3.2e10
for its K = 25 000."""

BLOCK = 2**16
"""Images processed together: half a gigabyte of 2048-D features."""


def kmeans(
    x_ND: np.ndarray,
    k: int,
    *,
    seed: int,
    niter: int = 20,
    nredo: int = 5,
    points_per_centroid: int = 1000,
    gpu: bool = False,
) -> Clustering:
    """Runs Lloyd's algorithm in L2 and returns the best of ``nredo`` starts (settings of the
    released PCL code).

    Trains on at most ``points_per_centroid`` x K images, drawn at random: fp32 input is passed
    unchanged, faiss subsamples itself; fp16 input is subsampled to fp32. Assigns in blocks, so the
    memory beyond the features is bounded. ``gpu``: runs on this process's GPU, under torchrun on
    those of all processes on this machine, which wait (faiss copies the centroids to each, divides
    the images and averages them on all cores); without one, small problems run on the CPU, with the
    same result up to rounding. Raises
    UserError for K > N, for features that are not finite, and for a large problem if ``gpu`` is set
    and faiss sees none."""
    if k > len(x_ND):
        raise UserError(
            f"k-means: {k} clusters of {len(x_ND)} images",
            hint=(
                "lower --num-clusters, in pretraining --num-prototypes; 25000, 50000 and 100000 are"
                " for ImageNet"
            ),
        )
    if not all(np.isfinite(block).all() for block in _blocks(x_ND)):
        raise UserError(
            "k-means: features contain NaN or infinity",
            hint="the encoder has diverged; lower the learning rate",
        )
    if gpu and faiss.get_num_gpus() == 0 and len(x_ND) * k > HOURS_ON_A_CPU:
        raise UserError(
            f"k-means of {len(x_ND)} images into {k} clusters on a GPU, but faiss sees none",
            hint=(
                "install a faiss-gpu that fits this driver: python -c 'import faiss;"
                " print(faiss.get_num_gpus())'"
            ),
        )
    gpus = _own_gpus() if gpu else []
    search = faiss.Kmeans(
        x_ND.shape[1],
        k,
        niter=niter,
        nredo=nredo,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=points_per_centroid,
    )
    if gpus:  # by number: faiss takes "gpu=1" for True, and so for all GPUs of the machine
        search.index = faiss.index_cpu_to_gpus_list(search.index, gpus=gpus)
    with _on_all_cores() if gpus else contextlib.nullcontext():
        search.train(_sample(x_ND, points_per_centroid * k, seed))
    found = [
        search.index.search(np.ascontiguousarray(block, np.float32), 1) for block in _blocks(x_ND)
    ]
    squared_N, assignment_N = (np.concatenate(parts)[:, 0] for parts in zip(*found, strict=True))
    return Clustering(
        np.asarray(search.centroids).reshape(k, -1), assignment_N, np.sqrt(squared_N.clip(0))
    )


def whitened(x_ND: np.ndarray, dims: int, *, seed: int, points: int = 500_000) -> np.ndarray:
    """Returns float32 [N, dims]: PCA, each component scaled to variance 1, then rows to unit
    length. Raises UserError if the features span fewer dimensions."""
    if not 1 <= dims <= min(x_ND.shape):
        raise UserError(
            f"PCA to {dims} dimensions of {len(x_ND)} features with {x_ND.shape[1]}",
            hint="lower --whiten",
        )
    pca = faiss.PCAMatrix(x_ND.shape[1], dims, -0.5)
    pca.train(_sample(x_ND, points, seed))
    y_ND = np.empty((len(x_ND), dims), np.float32)
    for start, block in zip(range(0, len(x_ND), BLOCK), _blocks(x_ND), strict=True):
        y_ND[start : start + BLOCK] = pca.apply(np.ascontiguousarray(block, np.float32))
    faiss.normalize_L2(y_ND)
    if not np.isfinite(y_ND).all():
        raise UserError(f"PCA to {dims} dimensions: the features span fewer", hint="lower --whiten")
    return y_ND


def _own_gpus() -> list[int]:
    """The numbers of the GPUs that faiss sees and that this process may use: its own, or those of
    all processes of this machine, which torchrun gave the first ones."""
    seen, processes = faiss.get_num_gpus(), distributed.local_world_size()
    own = range(processes) if processes > 1 else [torch.cuda.current_device()] if seen else []
    return [gpu for gpu in own if gpu < seen]


@contextlib.contextmanager
def _on_all_cores() -> Iterator[None]:
    """Lets faiss, which averages the images of each cluster on the CPU, use the cores of the
    processes that wait; torchrun gives each process one thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(cores.usable())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _blocks(x_ND: np.ndarray) -> list[np.ndarray]:
    return [x_ND[start : start + BLOCK] for start in range(0, len(x_ND), BLOCK)]


def _sample(x_ND: np.ndarray, points: int, seed: int) -> np.ndarray:
    """Subsamples fp16 features to at most ``points`` rows of fp32; returns fp32 features unchanged,
    because faiss subsamples them itself."""
    if x_ND.dtype == np.float32:
        return np.ascontiguousarray(x_ND)
    chosen = np.arange(len(x_ND))
    if len(x_ND) > points:
        chosen = np.sort(
            keyed.generator(seed, "k-means sample").choice(len(x_ND), points, replace=False)
        )
    sample = np.empty((len(chosen), x_ND.shape[1]), np.float32)
    for start in range(0, len(chosen), BLOCK):
        sample[start : start + BLOCK] = x_ND[chosen[start : start + BLOCK]]
    return sample
