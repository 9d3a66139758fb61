import faiss
import numpy as np
import pytest

from protobench import kmeans as kmeans_file
from protobench.kmeans import kmeans, whitened
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


def test_separated_blobs_are_found_with_their_distances():
    rng = np.random.default_rng(0)
    centres = np.eye(4, 8) * 10
    truth = rng.integers(0, 4, 400)
    x = (centres[truth] + rng.normal(0, 0.1, (400, 8))).astype(np.float32)
    found = kmeans(x, 4, seed=0)
    assert len(np.unique(np.stack([truth, found.assignment]), axis=1).T) == 4
    np.testing.assert_allclose(
        found.distance, np.linalg.norm(x - found.centroids[found.assignment], axis=1), atol=2e-3
    )
    again = kmeans(x, 4, seed=0)
    np.testing.assert_array_equal(found.centroids, again.centroids)


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU")
def test_a_missing_gpu_is_an_error_only_where_the_cpu_would_take_hours(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(
        kmeans(x, 4, seed=0, gpu=True).assignment, kmeans(x, 4, seed=0).assignment
    )
    monkeypatch.setattr(kmeans_file, "HOURS_ON_A_CPU", 100)
    with pytest.raises(UserError, match="faiss sees none"):
        kmeans(x, 4, seed=0, gpu=True)


@pytest.mark.parametrize(
    ("seen", "processes", "used"), [(8, 1, [3]), (8, 4, [0, 1, 2, 3]), (2, 4, [0, 1]), (0, 1, [])]
)
def test_the_gpus_of_all_processes_of_a_machine_are_used(seen, processes, used, monkeypatch):
    """By number, as faiss is asked for them: a single process takes its own, here the fourth, and
    leaves the others alone. faiss averages on all cores meanwhile, and on as many as before
    afterwards."""
    asked, threads, train = [], [], faiss.Kmeans.train
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: seen)
    monkeypatch.setattr(kmeans_file.distributed, "local_world_size", lambda: processes)
    monkeypatch.setattr(kmeans_file.torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(kmeans_file.cores, "usable", lambda: 3)

    def to_gpus(index, co=None, gpus=None, ngpu=-1):
        asked.append(gpus)
        return index

    def trained(self, x):
        threads.append(faiss.omp_get_max_threads())
        return train(self, x)

    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", to_gpus)
    monkeypatch.setattr(faiss.Kmeans, "train", trained)
    before = faiss.omp_get_max_threads()
    x = np.random.default_rng(0).normal(size=(50, 3))
    kmeans(x, 4, seed=0, gpu=True)
    kmeans(x, 4, seed=0)
    assert asked == ([used] if used else [])
    assert threads == [3 if used else before, before]
    assert faiss.omp_get_max_threads() == before


def test_impossible_clusterings_are_refused():
    with pytest.raises(UserError, match="25 clusters of 20 images"):
        kmeans(np.zeros((20, 3)), 25, seed=0)
    with pytest.raises(UserError, match="NaN"):
        kmeans(np.full((20, 3), np.nan), 2, seed=0)


def test_blocks_and_half_precision_change_nothing_but_rounding(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)).astype(np.float16)
    whole = kmeans(x.astype(np.float32), 6, seed=1)
    monkeypatch.setattr(kmeans_file, "BLOCK", 64)
    parts = kmeans(x, 6, seed=1)
    np.testing.assert_array_equal(whole.assignment, parts.assignment)
    np.testing.assert_allclose(whole.distance, parts.distance, rtol=1e-5)


def test_learning_from_a_sample_assigns_every_image():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, 0.1, (500, 4)) for c in (-3, 0, 3)]).astype(np.float16)
    found = kmeans(x, 3, seed=0, points_per_centroid=20)
    assert len(found.assignment) == 1500
    assert [len(set(found.assignment[i : i + 500])) for i in (0, 500, 1000)] == [1, 1, 1]
    assert len(set(found.assignment)) == 3


def test_whitened_features_have_unit_length_and_equal_spread():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6)) @ np.diag([9, 5, 3, 1, 0.1, 0.1])
    y = whitened(x.astype(np.float32), 4, seed=0)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.cov(y.T), np.eye(4) / 4, atol=0.03)
    with pytest.raises(UserError, match="PCA to 7"):
        whitened(x.astype(np.float32), 7, seed=0)
    with pytest.raises(UserError, match="span fewer"):
        whitened(np.concatenate([x, 0 * x], 1).astype(np.float32), 10, seed=0)
