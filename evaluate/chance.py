"""Scores that honest labels and a trained encoder cannot give: far below chance, or no better than
it.

A classifier that knows nothing of the labels is right as often as its answers and the labels agree
by chance: at least in the share of the rarest class, at most in that of the most frequent one. So a
count of right answers below the binomial tail of the rarest class means labels that contradict the
training's (permuted classes, another order), and one that the most frequent class explains means
that nothing was learned, or that the images are not what their labels say."""

import numpy as np

IMPOSSIBLE = 1e-5
"""Probability below which a score is called impossible; each record tests a few scores."""
PLAUSIBLE = 1e-3
"""Probability above which a score is called no better than chance."""
LABELS = (
    "check that training and test have the same classes in the same order, and that the images are"
    " as the encoder expects them"
)


def accuracy_remark(right: int, labels_N: np.ndarray, *, trained: bool) -> str:
    """What is odd about ``right`` answers of N with these labels (int [N]); empty where nothing is.
    ``trained``: whether the encoder is, for an untrained one may well be at chance."""
    from scipy import stats  # takes longer to import than --help may

    counts = np.bincount(labels_N)
    shares = counts[counts > 0] / len(labels_N)
    low, high, found = (
        float(shares.min()),
        float(shares.max()),
        f"{100 * right / len(labels_N):.1f} % of {len(labels_N)}",
    )
    if len(shares) < 2:
        return ""
    if (p := stats.binom.cdf(right, len(labels_N), low)) < IMPOSSIBLE:
        return (
            f"{found} is below chance ({100 * low:.2g} %), which no classifier of honest labels can"
            f" be (p = {p:.0e}): {LABELS}"
        )
    if trained and stats.binom.sf(right - 1, len(labels_N), high) > PLAUSIBLE:
        return (
            f"{found} is no better than chance ({100 * high:.2g} %), although the encoder is"
            f" trained: {LABELS}"
        )
    return ""


def rank_z(score_NC: np.ndarray, positive_NC: np.ndarray) -> float:
    """How far the positives of a class rank above the other images: the Mann-Whitney test's z, 0 by
    chance, mean over classes."""
    from scipy import stats

    rank_NC = stats.rankdata(score_NC, axis=0)
    p_C, n = positive_NC.sum(0), len(score_NC)
    both_C = (p_C > 0) & (p_C < n)
    p_C, above_C = p_C[both_C], (rank_NC * positive_NC).sum(0)[both_C]
    return (
        float(np.mean((above_C - p_C * (n + 1) / 2) / np.sqrt(p_C * (n - p_C) * (n + 1) / 12)))
        if both_C.any()
        else 0.0
    )


def ranking_remark(z: float, classes: int, *, trained: bool) -> str:
    """The same for average precision, from ``rank_z``: the precision's envelope itself is never
    below the share of positives. One encoder ranks all classes, so their z may move together:
    impossible is what would be so for a single z."""
    from scipy import stats

    if stats.norm.cdf(z) < IMPOSSIBLE:
        return (
            f"images of a class rank lower than others (z = {z:.1f}), which no classifier of honest"
            f" labels does: {LABELS}"
        )
    if trained and stats.norm.sf(z * np.sqrt(classes)) > PLAUSIBLE:
        return (
            f"images of a class rank no higher than others (z = {z:.1f}), although the encoder is"
            f" trained: {LABELS}"
        )
    return ""
