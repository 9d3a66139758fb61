"""The low-shot harness after features, at VOC07's size: 5011 and 4952 images, 2048-D, 20 classes, 5 k x 5 draws, C = 0.5.

    python benchmarks/lowshot.py          # about half a minute on one core

Features are synthetic (label-dependent, rectified). The published way is a LinearSVC per class and draw and average
precision by Python loops.
"""

import statistics
import time

import numpy as np
from alternate import alternate, heading, report
from sklearn.svm import LinearSVC

from evaluate import lowshot, svm
from evaluate.average_precision import average_precision
from evaluate.draws import all_draws
from evaluate.svm import Problem
from protobench.images import ImageList


def published_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Precision and recall image by image, the envelope backwards, the area forwards."""
    hits, total, recall, precision = 0, int(positive.sum()), [0.0], [0.0]
    for rank, image in enumerate(np.argsort(scores)[::-1], start=1):
        hits += bool(positive[image])
        recall.append(hits / total)
        precision.append(hits / rank)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])


def synthetic(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with VOC's co-occurrence (1.4 per image, a few difficult) and features that carry them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], (n, 20), p=[0.975, 0.005, 0.02])
    labels[np.arange(n), rng.integers(0, 20, n)] = 1
    directions = np.random.default_rng(99).normal(size=(20, 2048))
    return np.maximum((labels == 1) @ directions * 0.12 + rng.normal(size=(n, 2048)), 0).astype(np.float32), labels


def main() -> None:
    """All of it."""
    (train, labels), (test, test_labels) = synthetic(5011, 1), synthetic(4952, 2)
    heading()
    scores = np.random.default_rng(0).normal(size=(4952, 20))
    positive = test_labels == 1
    theirs = np.array([published_average_precision(scores[:, c], positive[:, c]) for c in range(20)])
    times = alternate(lambda: [published_average_precision(scores[:, c], positive[:, c]) for c in range(20)],
                      lambda: average_precision(scores, positive))
    difference = np.abs(theirs - average_precision(scores, positive)).max()
    report("VOC average precision, 20 x 4952", times, f"max difference {difference:.1e}")

    images = ImageList("synthetic", None, tuple(map(str, range(5011))), labels, tuple(map(str, range(20))))  # type: ignore[arg-type]
    draws = all_draws(images, "pcl", (1, 2, 4, 8, 16), 5, 0, "keyed")
    x = svm.normalise(train)
    for draw in (d for d in draws if d.number == 0 and d.k in (1, 4, 16)):
        rows = x[draw.rows[0]]

        def published(rows=rows, draw=draw):
            return [LinearSVC(C=0.5, class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)
                    .fit(rows, np.where(p, 1, -1)) for p in draw.positive]

        def ours(rows=rows, draw=draw):
            problem = Problem(rows)
            return [problem.fit(p, 0.5, 2.0) for p in draw.positive]

        difference = max(np.abs(a.coef_[0] - b[:-1]).max() for a, b in zip(published(), ours(), strict=True))
        report(f"20 SVMs, k = {draw.k} (scikit-learn, LIBLINEAR)", alternate(published, ours),
               f"max difference of weights {difference:.1e}")

    spent = []
    for _ in range(3):
        started = time.perf_counter()
        runs = lowshot.score(train, test, test_labels, draws, (0.5,))
        spent.append(time.perf_counter() - started)
    print(f"whole VOC07 low-shot after features, 25 draws x 20 classes: {statistics.median(spent):.1f} s wall "
          f"({min(spent):.1f}-{max(spent):.1f}); mAP at k = 16: {np.mean([r['value'] for r in runs if r['k'] == 16]):.1f}")


if __name__ == "__main__":
    main()
