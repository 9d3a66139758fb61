"""Average precision of detections: VOC's by MMDetection's scorer, COCO's by pycocotools."""

import contextlib
import io
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from evaluate.mmdet_adapter.training import Detections, run_lengths
from protobench.data.boxes import BoxList

RECALLS = np.linspace(0, 1, 51)
"""Where precision-recall curves are kept."""


def voc(found: list[Detections], truth: BoxList) -> dict[str, Any]:
    """VOC07's mAP at IoU 0.5 in percent: ``value`` over 11 recalls as the 2007 challenge defined
    it, ``area`` under the curve as since 2010; ``classes``, for each its 11-point AP; ``curves``,
    for each the precision at RECALLS (the greatest at that recall or beyond).

    Boxes are pixels inclusive, a box is x2 - x1 + 1 wide. Difficult objects are neither found nor
    missed. A class without an object counts in no mean."""
    from mmdet.evaluation.functional import mean_ap

    detections = [
        [
            np.column_stack([of.boxes_N4[of.labels_N == label], of.scores_N[of.labels_N == label]])
            for label in range(len(truth.classes))
        ]
        for of in found
    ]
    annotations = [
        {
            "bboxes": of.boxes_N4[~of.ignored_N],
            "labels": of.labels_N[~of.ignored_N],
            "bboxes_ignore": of.boxes_N4[of.ignored_N],
            "labels_ignore": of.labels_N[of.ignored_N],
        }
        for of in truth.objects
    ]
    mean_ap.Pool = (
        ThreadPool  # its own forks, and hangs where the process that calls it has threads
    )
    value, classes = mean_ap.eval_map(
        detections,
        annotations,
        iou_thr=0.5,
        eval_mode="11points",
        use_legacy_coordinate=True,
        logger="silent",
        nproc=1,
    )
    present = [of for of in classes if of["num_gts"] > 0]
    area = np.mean(
        [mean_ap.average_precision(of["recall"], of["precision"], "area") for of in present]
    )
    return {
        "value": _percent(value),
        "area": _percent(area),
        "classes": {
            title: _percent(of["ap"])
            for title, of in zip(truth.classes, classes, strict=True)
            if of["num_gts"]
        },
        "curves": {
            title: _curve(of["recall"], of["precision"])
            for title, of in zip(truth.classes, classes, strict=True)
            if of["num_gts"]
        },
    }


def coco(found: list[Detections], truth: BoxList) -> dict[str, Any]:
    """COCO's AP (mean over IoU 0.50 to 0.95), AP50 and AP75 in percent, of boxes and of masks:
    ``value`` is the boxes' AP, the others box50, box75, mask, mask50, mask75. ``classes`` and
    ``curves`` are the boxes' at IoU 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = _as_coco(truth)
        known.createIndex()
        results = [result for image, of in enumerate(found) for result in _results(image, of)]
        scores: dict[str, Any] = {}
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            if not results:  # which pycocotools cannot load
                scores |= dict.fromkeys((name, f"{name}50", f"{name}75"), 0.0)
                continue
            judged = COCOeval(known, known.loadRes(results), kind)
            judged.params.maxDets = [1, 10, 100]
            judged.evaluate()
            judged.accumulate()
            precision_TRC = judged.eval["precision"][
                :, :, :, 0, 2
            ]  # IoU x recall x class: of all sizes, 100 detections
            scores |= {
                name: _mean(precision_TRC),
                f"{name}50": _mean(precision_TRC[0]),
                f"{name}75": _mean(precision_TRC[5]),
            }
            if kind == "bbox":
                per_class = {
                    title: precision_TRC[0, :, label] for label, title in enumerate(truth.classes)
                }
    curves = {title: of for title, of in per_class.items() if of.min() > -1} if results else {}
    return {
        "value": scores.pop("box"),
        **scores,
        "classes": {title: _mean(of) for title, of in curves.items()},
        "curves": {
            title: [round(float(value), 4) for value in of[::2]] for title, of in curves.items()
        },
    }


def _percent(value: float) -> float:
    return round(100 * float(value), 4)


def _mean(precision: np.ndarray) -> float:
    """Over what is there: -1 marks classes without an object."""
    return _percent(precision[precision > -1].mean()) if (precision > -1).any() else 0.0


def _curve(recall: np.ndarray, precision: np.ndarray) -> list[float]:
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return [round(float(value), 4) for value in best[np.searchsorted(recall, RECALLS - 1e-9)]]


def _as_coco(truth: BoxList) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, of in enumerate(truth.objects):
        for box, label, crowd, mask in zip(
            of.boxes_N4.tolist(), of.labels_N.tolist(), of.ignored_N, of.masks, strict=True
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "iscrowd": int(crowd),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": run_lengths(mask, of),
                }
            )
    return {
        "images": [
            {"id": image, "width": of.width, "height": of.height}
            for image, of in enumerate(truth.objects)
        ],
        "categories": [{"id": label, "name": title} for label, title in enumerate(truth.classes)],
        "annotations": annotations,
    }


def _results(image: int, of: Detections) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "score": float(score),
            "segmentation": mask,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        }
        for (x1, y1, x2, y2), score, label, mask in zip(
            of.boxes_N4, of.scores_N, of.labels_N, of.masks, strict=True
        )
    ]
