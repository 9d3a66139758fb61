"""Average precision as the low-shot papers compute it."""

import numpy as np


def average_precision(
    score_NC: np.ndarray, positive_NC: np.ndarray, counted_NC: np.ndarray | None = None
) -> np.ndarray:
    """Area under the monotone envelope of the precision-recall curve, per column, in 0..1; [C].

    The envelope at a recall is the largest precision at that recall or above (VOC from 2010 on;
    Goyal et al.'s and PCL's code). Neither VOC07's 11-point mean nor scikit-learn's
    ``average_precision_score``, which has no envelope. Cells outside ``counted_NC`` (difficult
    images) are left out of the ranking. Ties keep the order of the rows."""
    area_C = np.empty(score_NC.shape[1])
    columns = zip(
        np.ascontiguousarray(score_NC.T), np.ascontiguousarray(positive_NC.T), strict=True
    )
    for c, (score_N, positive_N) in enumerate(columns):
        if counted_NC is not None:
            score_N, positive_N = score_N[counted_NC[:, c]], positive_N[counted_NC[:, c]]
        rank_H = _hit_ranks(score_N, positive_N)
        area_C[c] = _area(np.arange(1, len(rank_H) + 1) / rank_H)
    return area_C


def _hit_ranks(score_N: np.ndarray, positive_N: np.ndarray) -> np.ndarray:
    """Where the positives come in the ranking, from 1, rising; [H]. Sorting the scores is several
    times as fast as sorting the rows by their scores, and all that is needed where no two are
    equal."""
    falling_N = np.sort(-score_N)
    if (falling_N[1:] > falling_N[:-1]).all():
        return 1 + np.searchsorted(falling_N, np.sort(-score_N[positive_N]))
    return 1 + np.flatnonzero(positive_N[np.argsort(-score_N, kind="stable")])


def _area(precision_H: np.ndarray) -> float:
    """Of the envelope; recall rises by as much at every hit."""
    return float(np.maximum.accumulate(precision_H[::-1]).mean())
