"""Average precision as the low-shot papers compute it."""

import numpy as np


def average_precision(score_NC: np.ndarray, positive_NC: np.ndarray, counted_NC: np.ndarray | None = None) -> np.ndarray:
    """Area under the monotone envelope of the precision-recall curve, per column, in 0..1; [C].

    The envelope at a recall is the largest precision at that recall or above (VOC from 2010 on; Goyal et al.'s and PCL's
    code). Neither VOC07's 11-point mean nor scikit-learn's ``average_precision_score``, which has no envelope. Cells
    outside ``counted_NC`` (difficult images) are left out of the ranking. Ties keep the order of the rows.
    """
    order_NC = np.argsort(-score_NC, axis=0, kind="stable")
    hit_NC = np.take_along_axis(positive_NC, order_NC, 0)
    if counted_NC is None:
        rank_NC = np.arange(1, len(score_NC) + 1)[:, None]
    else:
        counted_NC = np.take_along_axis(counted_NC, order_NC, 0)
        hit_NC = hit_NC & counted_NC
        rank_NC = np.maximum(np.cumsum(counted_NC, 0), 1)
    precision_NC = np.cumsum(hit_NC, 0) / rank_NC
    envelope_NC = np.maximum.accumulate(precision_NC[::-1], 0)[::-1]
    return (envelope_NC * hit_NC).sum(0) / hit_NC.sum(0)
