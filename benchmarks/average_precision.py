"""Times the average precision of VOC07's 20 classes over its 4952 test images: image by image, as
published, and from the ranks of the hits."""

from collections.abc import Iterator

import numpy as np
from alternate import Ratio, alternate, ratio, show

from evaluate.svm.average_precision import average_precision

IMAGES, CLASSES = 4952, 20


def published(score: np.ndarray, positive: np.ndarray) -> float:
    """Fills arrays image by image, finds false positives one by one, computes the envelope
    backwards and sums the area recall by recall."""
    order = np.argsort(score)[::-1]
    paired = np.stack([positive.astype(float), score], 1)
    score = np.array([paired[image, 1] for image in order])
    hit = np.array([paired[image, 0] for image in order])
    miss = hit.copy()
    for rank in range(len(miss)):
        miss[rank] = 0.0 if hit[rank] >= 1 else 1.0
    precision = np.cumsum(hit) / (np.cumsum(hit) + np.cumsum(miss))
    recall = np.concatenate([[0], np.cumsum(hit) / positive.sum(), [1]])[:, None]
    precision = np.concatenate([[0], precision, [0]])[:, None]
    for rank in range(len(precision) - 2, -1, -1):
        precision[rank] = max(precision[rank], precision[rank + 1])
    area = 0.0
    for rank in np.where(recall[1:] != recall[:-1])[0] + 1:
        area = area + (recall[rank] - recall[rank - 1]) * precision[rank]
    return float(area[0])


def rows() -> Iterator[Ratio]:
    """Yields the row for random scores; 7 % of the images are positive, as in VOC07."""
    rng = np.random.default_rng(0)
    score, positive = rng.normal(size=(IMAGES, CLASSES)), rng.random((IMAGES, CLASSES)) < 0.07

    def theirs() -> list[float]:
        return [published(score[:, c], positive[:, c]) for c in range(CLASSES)]

    difference = np.abs(theirs() - average_precision(score, positive)).max()
    yield ratio(
        f"VOC average precision, {CLASSES} × {IMAGES}",
        alternate(theirs, lambda: average_precision(score, positive)),
        f"{difference:.1e}",
        target=40,
    )


if __name__ == "__main__":
    show(rows())
