"""Average precision of detections: VOC's from MMDetection, COCO's from pycocotools."""

import contextlib
import io
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from evaluate.mmdet_adapter.training import Detections, run_lengths
from protobench.data.boxes import BoxList, Objects

RECALLS = np.linspace(0, 1, 51)
"""The recalls at which precision-recall curves are kept."""
IOUS = [(50 + 5 * step) / 100 for step in range(10)]
"""0.50 to 0.95, the thresholds of COCO's AP."""


def voc(detected: list[Detections], truth: BoxList) -> dict[str, Any]:
    """Return VOC07's scores at IoU 0.5, in percent.

    ``value``: mAP over 11 recalls, as the 2007 challenge defined it. ``area``: mAP as the area
    under the curve, as since 2010. ``classes``: each class's 11-point AP. ``curves``: each class's
    precision at RECALLS (the highest at that recall or beyond).

    Box coordinates are inclusive pixels: a box is x2 - x1 + 1 wide. Difficult objects count neither
    as found nor as missed. A class without objects is in no mean."""
    from mmdet.evaluation.functional import mean_ap

    value, results = _eval_map(detected, truth, 0.5)
    by_class = {
        title: result
        for title, result in zip(truth.classes, results, strict=True)
        if result["num_gts"] > 0
    }
    areas = [
        mean_ap.average_precision(result["recall"], result["precision"], "area")
        for result in by_class.values()
    ]
    return {
        "value": _percent(value),
        "area": _percent(float(np.mean(areas))),
        "classes": {title: _percent(result["ap"]) for title, result in by_class.items()},
        "curves": {
            title: _curve(result["recall"], result["precision"])
            for title, result in by_class.items()
        },
    }


def voc_over_ious(detected: list[Detections], truth: BoxList) -> dict[str, Any]:
    """Return the scores of ``voc`` and, as Detectron2 scores VOC07, its mAP over 11 recalls at IoU
    0.75 (``ap75``) and the mean of those at 0.50, 0.55, … 0.95 (``ap``)."""
    at = {iou: _percent(_eval_map(detected, truth, iou)[0]) for iou in IOUS}
    return voc(detected, truth) | {
        "ap": round(sum(at.values()) / len(at), 4),
        "ap75": at[0.75],
    }


def _eval_map(detected: list[Detections], truth: BoxList, iou: float) -> Any:
    """Return MMDetection's mAP over 11 recalls, and what it found for each class."""
    from mmdet.evaluation.functional import mean_ap

    # threads: MMDetection's pool forks, which hangs if the calling process has threads
    mean_ap.Pool = ThreadPool
    return mean_ap.eval_map(
        [_boxes_by_class(image, len(truth.classes)) for image in detected],
        [_as_voc(objects) for objects in truth.objects],
        iou_thr=iou,
        eval_mode="11points",
        use_legacy_coordinate=True,
        logger="silent",
        nproc=1,
    )


def coco(detected: list[Detections], truth: BoxList) -> dict[str, Any]:
    """Return COCO's AP (mean over IoU 0.50 to 0.95), AP50 and AP75 of boxes and masks, in percent.

    ``value`` is the boxes' AP; the others are ``box50``, ``box75``, ``mask``, ``mask50`` and
    ``mask75``. ``classes`` and ``curves`` are the boxes' at IoU 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = _as_coco(truth)
        annotated.createIndex()
        results = [result for i, image in enumerate(detected) for result in _results(i, image)]
        scores: dict[str, Any] = {}
        curves: dict[str, np.ndarray] = {}
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            if not results:  # pycocotools cannot load an empty list
                scores |= dict.fromkeys((name, f"{name}50", f"{name}75"), 0.0)
                continue
            evaluation = COCOeval(annotated, annotated.loadRes(results), kind)
            evaluation.params.maxDets = [1, 10, 100]
            evaluation.evaluate()
            evaluation.accumulate()
            # IoU x recall x class, for objects of all sizes and up to 100 detections
            precision_TRC = evaluation.eval["precision"][:, :, :, 0, 2]
            scores |= {
                name: _mean(precision_TRC),
                f"{name}50": _mean(precision_TRC[0]),
                f"{name}75": _mean(precision_TRC[5]),
            }
            if kind == "bbox":
                by_class = zip(truth.classes, precision_TRC[0].T, strict=True)
                curves = {title: curve for title, curve in by_class if curve.min() > -1}
    return {
        "value": scores.pop("box"),
        **scores,
        "classes": {title: _mean(curve) for title, curve in curves.items()},
        "curves": {title: _rounded(curve[::2]) for title, curve in curves.items()},
    }


def _percent(value: float) -> float:
    return round(100 * float(value), 4)


def _mean(precision: np.ndarray) -> float:
    """Return the mean in percent without the -1 that marks a class without objects."""
    return _percent(precision[precision > -1].mean()) if (precision > -1).any() else 0.0


def _curve(recall: np.ndarray, precision: np.ndarray) -> list[float]:
    """Return the highest precision at each of RECALLS or beyond, 0 past the last recall."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return _rounded(envelope[np.searchsorted(recall, RECALLS - 1e-9)])


def _rounded(curve: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in curve]


def _boxes_by_class(image: Detections, classes: int) -> list[np.ndarray]:
    """Return, for each class, boxes and scores [N, 5] as MMDetection's scorer takes them."""
    rows_N5 = np.column_stack([image.boxes_N4, image.scores_N])
    return [rows_N5[image.labels_N == label] for label in range(classes)]


def _as_voc(objects: Objects) -> dict[str, np.ndarray]:
    """Return an image's annotation as MMDetection's scorer takes it."""
    ignored_N = objects.ignored_N
    return {
        "bboxes": objects.boxes_N4[~ignored_N],
        "labels": objects.labels_N[~ignored_N],
        "bboxes_ignore": objects.boxes_N4[ignored_N],
        "labels_ignore": objects.labels_N[ignored_N],
    }


def _as_coco(truth: BoxList) -> dict[str, Any]:
    """Return the annotations as COCO's file would hold them."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(truth.objects):
        for box, label, crowd, mask in zip(
            objects.boxes_N4.tolist(),
            objects.labels_N.tolist(),
            objects.ignored_N,
            objects.masks,
            strict=True,
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
                    "segmentation": run_lengths(mask, objects),
                }
            )
    return {
        "images": [
            {"id": image, "width": objects.width, "height": objects.height}
            for image, objects in enumerate(truth.objects)
        ],
        "categories": [{"id": label, "name": title} for label, title in enumerate(truth.classes)],
        "annotations": annotations,
    }


def _results(index: int, image: Detections) -> list[dict[str, Any]]:
    """Return one image's detections as COCO's result file would hold them."""
    return [
        {
            "image_id": index,
            "category_id": int(label),
            "score": float(score),
            "segmentation": mask,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        }
        for (x1, y1, x2, y2), score, label, mask in zip(
            image.boxes_N4, image.scores_N, image.labels_N, image.masks, strict=True
        )
    ]
