"""Average precision of VOC and COCO, by hand."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluate.mmdet_adapter import scoring, training
from evaluate.mmdet_adapter.training import Detections
from protobench.data.boxes import BoxList, Objects, presence

pytest.importorskip("pycocotools.mask", reason="needs the extra detection")
pytestmark = pytest.mark.usefixtures("mmdet")


def truth_of(objects: list[Objects], classes: int) -> BoxList:
    return BoxList(
        "t",
        Path("."),
        tuple(f"{i}.jpg" for i in range(len(objects))),
        presence(objects, classes),
        tuple(f"c{i}" for i in range(classes)),
        objects=tuple(objects),
    )


def objects_of(*boxes: tuple[list[float], int, bool]) -> Objects:
    masks = tuple(
        (np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32),)
        for (x1, y1, x2, y2), _, _ in boxes
    )
    corners = np.array([box for box, _, _ in boxes], np.float32).reshape(-1, 4)
    return Objects(
        100,
        80,
        corners,
        np.array([label for _, label, _ in boxes], np.int64),
        np.array([ignored for _, _, ignored in boxes], bool),
        masks,
    )


def found_of(*boxes: tuple[list[float], int, float]) -> Detections:
    objects = objects_of(*((box, label, False) for box, label, _ in boxes))
    return Detections(
        objects.boxes_N4,
        np.array([score for _, _, score in boxes], np.float32),
        objects.labels_N,
        tuple(training.run_lengths(mask, objects) for mask in objects.masks),
    )


A, B, C = [10.0, 10, 30, 30], [50.0, 10, 70, 40], [10.0, 50, 40, 70]
SCORERS = (scoring.voc, scoring.coco)


@pytest.mark.parametrize("score", SCORERS)
def test_perfect_detections_score_100_and_none_score_0(score):
    truth = truth_of([objects_of((A, 0, False), (B, 1, False)), objects_of((C, 0, False))], 2)
    perfect = score([found_of((A, 0, 0.9), (B, 1, 0.8)), found_of((C, 0, 0.7))], truth)
    assert {value for name, value in perfect.items() if name not in ("classes", "curves")} == {
        100.0
    }
    assert perfect["classes"] == {"c0": 100.0, "c1": 100.0}
    assert set(perfect["curves"]["c0"]) == {1.0}
    nothing = score([found_of(), found_of()], truth)
    assert {value for name, value in nothing.items() if name not in ("classes", "curves")} == {0.0}


def test_eleven_recalls_and_the_area_by_hand():
    """Three objects; found: right, wrong, right. Precision 1 up to recall 1/3, 2/3 up to recall
    2/3, then 0."""
    truth = truth_of([objects_of((A, 0, False), (B, 0, False), (C, 0, False))], 1)
    found = scoring.voc([found_of((A, 0, 0.9), ([80, 50, 95, 70], 0, 0.8), (B, 0, 0.7))], truth)
    assert found["value"] == pytest.approx(100 * (4 * 1 + 3 * 2 / 3) / 11, abs=1e-3)
    assert found["area"] == pytest.approx(100 * (1 / 3 + 2 / 9), abs=1e-3)
    curve = dict(zip(np.round(scoring.RECALLS, 2), found["curves"]["c0"], strict=True))
    assert (curve[0.0], curve[0.32], curve[0.34], curve[0.66], curve[0.68], curve[1.0]) == (
        1.0,
        1.0,
        0.6667,
        0.6667,
        0.0,
        0.0,
    )


def test_scoring_forks_nothing(monkeypatch):
    """MMDetection's pool of processes hangs in a process with threads, as those of reproduce
    are."""

    def fork():
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", fork)
    truth = truth_of([objects_of((A, 0, False)), objects_of((B, 0, False))], 1)
    assert scoring.voc([found_of((A, 0, 0.9)), found_of((B, 0, 0.9))], truth)["value"] == 100


def test_a_second_detection_of_an_object_is_a_mistake_and_of_a_difficult_one_is_not():
    once = scoring.voc(
        [found_of((A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7))],
        truth_of([objects_of((A, 0, False), (B, 0, False))], 1),
    )
    assert once["area"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3), abs=1e-3)
    ignored = scoring.voc(
        [found_of((C, 0, 0.95), (A, 0, 0.9), (C, 0, 0.8), (B, 0, 0.7))],
        truth_of([objects_of((A, 0, False), (B, 0, False), (C, 0, True))], 1),
    )
    assert ignored["area"] == 100.0


def test_voc_counts_pixels_inclusively():
    """10 of 20 columns: IoU 0.5 only where a box from 0 to 9 is 10 wide."""
    truth = truth_of([objects_of(([0, 0, 19, 9], 0, False))], 1)
    assert scoring.voc([found_of(([0, 0, 9, 9], 0, 0.9))], truth)["value"] == pytest.approx(100)
    assert scoring.voc([found_of(([0, 0, 8, 9], 0, 0.9))], truth)["value"] == 0


def test_cocos_thresholds_by_hand():
    """A box that overlaps by 0.76 passes six of the ten thresholds, its mask by 0.5 one."""
    truth = truth_of([objects_of(([0, 0, 50, 20], 0, False))], 1)
    box = found_of(([0, 0, 38, 20], 0, 0.9))
    half = found_of(([0, 0, 26, 20], 0, 0.9))
    scores = scoring.coco([replace(box, masks=half.masks)], truth)
    assert scores["value"] == pytest.approx(60)
    assert (scores["box50"], scores["box75"], scores["mask50"], scores["mask75"]) == (
        100,
        100,
        100,
        0,
    )
    assert scores["mask"] == pytest.approx(10)


def test_a_class_without_an_object_enters_no_mean():
    truth = truth_of([objects_of((A, 0, False))], 3)
    for score in SCORERS:
        found = score([found_of((A, 0, 0.9), (B, 1, 0.9))], truth)
        assert found["value"] == pytest.approx(100)
        assert set(found["classes"]) == {"c0"}


def test_a_crowd_is_neither_found_nor_missed_in_coco():
    truth = truth_of([objects_of((A, 0, False), (B, 0, True))], 1)
    assert scoring.coco([found_of((B, 0, 0.95), (B, 0, 0.9), (A, 0, 0.8))], truth)[
        "value"
    ] == pytest.approx(100)
