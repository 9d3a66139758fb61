"""Remarks on scores that correct labels and a trained encoder do not give: far below chance, or no
better than chance.

The accuracy of a classifier that knows nothing about the labels lies, in expectation, between the
share of the rarest class and that of the most frequent one. An accuracy in the binomial tail below
the rarest class's share therefore means that the test labels contradict the training labels (the
classes are permuted or in another order). One that the most frequent class explains means that
nothing was learned, or that the images do not show what their labels say."""

import numpy as np

IMPOSSIBLE = 1e-5
"""Probability below which a score counts as impossible; small, as each record tests a few."""

PLAUSIBLE = 1e-3
"""Probability above which a score counts as no better than chance."""

LABELS = (
    "check that training and test have the same classes in the same order, and that the images are"
    " as the encoder expects them"
)


def accuracy_remark(right: int, labels_N: np.ndarray, *, trained: bool) -> str:
    """Return what is suspicious about ``right`` correct answers to these labels (int [N]), or "".
    ``trained``: whether the encoder is; an untrained one may well be at chance."""
    from scipy import stats  # imported here: too slow for --help

    counts = np.bincount(labels_N)
    shares = counts[counts > 0] / len(labels_N)
    if len(shares) < 2:
        return ""
    low, high = float(shares.min()), float(shares.max())
    accuracy = f"{100 * right / len(labels_N):.1f} % of {len(labels_N)}"
    if (p := stats.binom.cdf(right, len(labels_N), low)) < IMPOSSIBLE:
        return (
            f"{accuracy} is below chance ({100 * low:.2g} %), which is impossible if the labels are"
            f" right (p = {p:.0e}): {LABELS}"
        )
    if trained and stats.binom.sf(right - 1, len(labels_N), high) > PLAUSIBLE:
        return (
            f"{accuracy} is no better than chance ({100 * high:.2g} %), although the encoder is"
            f" trained: {LABELS}"
        )
    return ""


def rank_z(score_NC: np.ndarray, positive_NC: np.ndarray) -> float:
    """Return how far the positives of a class rank above the other images: the z of the
    Mann-Whitney test, 0 in expectation by chance, averaged over classes."""
    from scipy import stats

    rank_NC = stats.rankdata(score_NC, axis=0)
    p_C, n = positive_NC.sum(0), len(score_NC)
    both_C = (p_C > 0) & (p_C < n)
    if not both_C.any():
        return 0.0
    p_C, rank_sum_C = p_C[both_C], (rank_NC * positive_NC).sum(0)[both_C]
    mean_C, std_C = p_C * (n + 1) / 2, np.sqrt(p_C * (n - p_C) * (n + 1) / 12)
    return float(np.mean((rank_sum_C - mean_C) / std_C))


def ranking_remark(z: float, classes: int, *, trained: bool) -> str:
    """Return what is suspicious about average precisions, judged by ``rank_z``, or "". The values
    themselves would not do: the precision's envelope is never below the share of positives.

    One encoder ranks all classes, so their z may be correlated; a mean z counts as impossible only
    if a single z of that size would."""
    from scipy import stats

    if stats.norm.cdf(z) < IMPOSSIBLE:
        return (
            f"images of a class rank lower than others (z = {z:.1f}), which is impossible if the"
            f" labels are right: {LABELS}"
        )
    if trained and stats.norm.sf(z * np.sqrt(classes)) > PLAUSIBLE:
        return (
            f"images of a class rank no higher than others (z = {z:.1f}), although the encoder is"
            f" trained: {LABELS}"
        )
    return ""
