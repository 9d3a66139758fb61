"""Agreement of two partitions: mutual information adjusted for chance, and related scores.

Exact and fast at ImageNet's size: the contingency table is sparse, and the expected information of
random partitions depends only on the cluster sizes, of which only a few hundred differ. Nothing of
size (clusters x classes) is allocated."""

from typing import Any

import numpy as np
from scipy.special import digamma, gammaln


def agreement(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Returns AMI (Vinh et al., JMLR 2010) with the arithmetic mean (``ami``) and the maximum
    (``ami_max``) of the entropies, ``nmi``, ``ari`` and ``purity`` of two partitions, int [N], with
    any labels.

    AMI and ARI are 1 for equal partitions and 0 on average for independent ones."""
    cells, a_R, b_C = contingency(clusters, classes)
    if len(cells[2]) == len(a_R) == len(b_C):
        # the same partition; AMI would be 0 / 0 if all clusters were single images
        return dict.fromkeys(("ami", "ami_max", "nmi", "ari", "purity"), 1.0)
    n = len(clusters)
    information = mutual_information(cells, a_R, b_C)
    h_a, h_b = entropy(a_R), entropy(b_C)
    expected = expected_mutual_information(a_R, b_C)
    pairs = sum(int(x) * (int(x) - 1) for x in cells[2]) / 2
    pairs_a, pairs_b = (float((size * (size - 1)).sum()) / 2 for size in (a_R, b_C))
    chance = pairs_a * pairs_b / max(n * (n - 1) / 2, 1)
    best_R = np.zeros(len(a_R), dtype=np.int64)
    np.maximum.at(best_R, cells[0], cells[2])
    return {
        "ami": _adjusted(information, expected, (h_a + h_b) / 2),
        "ami_max": _adjusted(information, expected, max(h_a, h_b)),
        "nmi": information / ((h_a + h_b) / 2) if h_a + h_b > 0 else 1.0,
        "ari": (
            (pairs - chance) / ((pairs_a + pairs_b) / 2 - chance)
            if (pairs_a + pairs_b) / 2 != chance
            else 1.0
        ),
        "purity": float(best_R.sum()) / n,
    }


def contingency(
    clusters: np.ndarray, classes: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Returns the non-empty cells (row, column, count) and both marginals, all int64."""
    _, row = np.unique(clusters, return_inverse=True)
    _, column = np.unique(classes, return_inverse=True)
    columns = int(column.max()) + 1
    cell, count = np.unique(row.astype(np.int64) * columns + column, return_counts=True)
    return (cell // columns, cell % columns, count), np.bincount(row), np.bincount(column)


def entropy(sizes: np.ndarray) -> float:
    """Returns the entropy of a partition with these sizes, in nats."""
    p = sizes / sizes.sum()
    return float(-(p * np.log(p)).sum())


def mutual_information(cells: tuple[np.ndarray, ...], a_R: np.ndarray, b_C: np.ndarray) -> float:
    """Returns the mutual information in nats, from the contingency table's non-empty cells."""
    row, column, count = cells
    n = a_R.sum()
    return max(
        float(
            (count / n * (np.log(count) + np.log(n) - np.log(a_R[row]) - np.log(b_C[column]))).sum()
        ),
        0.0,
    )


def expected_mutual_information(a_R: np.ndarray, b_C: np.ndarray) -> float:
    """Returns the mean mutual information, in nats, of random partitions with these sizes
    (hypergeometric; Vinh et al., Eq. 24a).

    Sums over each pair of *different* sizes once, times how often it occurs.
    """
    n = int(a_R.sum())
    a, times_a = np.unique(a_R, return_counts=True)
    b, times_b = np.unique(b_C, return_counts=True)
    gln = gammaln(np.arange(n + 2, dtype=np.float64))  # gln[x + 1] = log x!
    total = 0.0
    for size_b, times in zip(b.tolist(), times_b.tolist(), strict=True):
        low = np.maximum(1, a + size_b - n)
        high = np.minimum(a, size_b)
        lengths = np.maximum(high - low + 1, 0)
        which = np.repeat(np.arange(len(a)), lengths)
        start = np.repeat(np.cumsum(lengths) - lengths, lengths)
        overlap = np.arange(len(which)) - start + low[which]
        size_a = a[which]
        log_p = (
            gln[size_a + 1]
            + gln[size_b + 1]
            + gln[n - size_a + 1]
            + gln[n - size_b + 1]
            - gln[n + 1]
            - gln[overlap + 1]
            - gln[size_a - overlap + 1]
            - gln[size_b - overlap + 1]
            - gln[n - size_a - size_b + overlap + 1]
        )
        information = overlap / n * (np.log(overlap) + np.log(n) - np.log(size_a) - np.log(size_b))
        total += times * float((times_a[which] * information * np.exp(log_p)).sum())
    return total


def _adjusted(information: float, expected: float, mean: float) -> float:
    """Returns (I - E[I]) / (mean entropy - E[I]); 1 if both partitions are trivial, because there
    is nothing left to agree on."""
    slack = mean - expected
    if abs(slack) < np.finfo(np.float64).eps:
        return 1.0
    return float((information - expected) / slack)


def ross(x_ND: Any, labels: np.ndarray, k: int = 3) -> float:
    """Estimates the mutual information, in nats, of vectors (torch, float [N, D]) and discrete
    labels [N] by nearest neighbours (Ross, PLOS ONE 2014): psi(N) + <psi(k)> - <psi(N_class)> -
    <psi(m)>, where m counts the points, itself included, nearer than the k-th neighbour in the same
    class.

    Classes of one image are left out; k shrinks to what a class has. The labels' entropy is an
    upper bound. The estimate breaks down if points coincide. Blockwise: memory does not grow with
    N^2."""
    import torch

    _, label, size = np.unique(labels, return_inverse=True, return_counts=True)
    kept = torch.from_numpy(size[label] > 1).to(x_ND.device)
    x_ND, label_N = x_ND[kept].double(), torch.from_numpy(label).to(x_ND.device)[kept]
    x_ND = x_ND - x_ND.mean(0)  # or rounding would swamp distances of nearly equal vectors
    size_N = torch.from_numpy(size).to(x_ND.device)[label_N]
    n, square_N = len(x_ND), (x_ND * x_ND).sum(1)
    if n == 0:
        return 0.0
    k_N, counted = (size_N - 1).clamp_max(k), []
    for rows in torch.arange(n, device=x_ND.device).split(max(2**26 // n, 1)):
        distance_BN = square_N[rows, None] + square_N - 2 * x_ND[rows] @ x_ND.T
        distance_BN[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        own_BN = torch.where(label_N[rows, None] == label_N, distance_BN, torch.inf)
        radius_B = own_BN.topk(min(k + 1, n), largest=False).values.gather(1, k_N[rows, None])
        counted.append((distance_BN < radius_B).sum(1))
    m_N = torch.cat(counted)
    terms = [torch.digamma(value.double()).mean() for value in (k_N, size_N, m_N)]
    return max(float(digamma(n) + terms[0] - terms[1] - terms[2]), 0.0)
