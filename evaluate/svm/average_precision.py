"""Average precision as the low-shot papers compute it."""

import numpy as np


def average_precision(
    score_NC: np.ndarray, positive_NC: np.ndarray, counted_NC: np.ndarray | None = None
) -> np.ndarray:
    """Return the area under the monotone envelope of each column's precision-recall curve; [C], in
    0..1.

    The envelope at a recall is the highest precision at that recall or beyond (VOC since 2010;
    Goyal et al.'s and PCL's code). It is neither VOC07's 11-point mean nor scikit-learn's
    ``average_precision_score``, which has no envelope. Entries outside ``counted_NC`` (difficult
    images) are left out of the ranking. Ties keep the order of the rows."""
    area_C = np.empty(score_NC.shape[1])
    columns = zip(
        np.ascontiguousarray(score_NC.T), np.ascontiguousarray(positive_NC.T), strict=True
    )
    for c, (score_N, positive_N) in enumerate(columns):
        if counted_NC is not None:
            score_N, positive_N = score_N[counted_NC[:, c]], positive_N[counted_NC[:, c]]
        rank_H = _hit_ranks(score_N, positive_N)
        area_C[c] = _area_under_envelope(np.arange(1, len(rank_H) + 1) / rank_H)
    return area_C


def _hit_ranks(score_N: np.ndarray, positive_N: np.ndarray) -> np.ndarray:
    """Return the positives' ranks, counted from 1 and sorted; [H].

    Without ties it is enough to sort the scores, which is several times as fast as sorting the rows
    by their scores."""
    negated_N = np.sort(-score_N)
    if (negated_N[1:] > negated_N[:-1]).all():
        return 1 + np.searchsorted(negated_N, np.sort(-score_N[positive_N]))
    return 1 + np.flatnonzero(positive_N[np.argsort(-score_N, kind="stable")])


def _area_under_envelope(precision_H: np.ndarray) -> float:
    """Return the mean of the envelope over the hits: each hit raises recall by the same amount."""
    return float(np.maximum.accumulate(precision_H[::-1]).mean())
