"""COCO 2017: instances with boxes and masks, from its JSON files
(``coco/annotations/instances_{train,val}2017.json``)."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protobench.data import published
from protobench.data.boxes import BoxList, Objects, presence
from protobench.data.dataset import Dataset, Split
from protobench.data.image_list import ImageList, pair
from protobench.data.rle import decoded
from protobench.runtime.errors import UserError

ANNOTATIONS = "annotations_trainval2017.zip"
CLASS_HASH = "d7654b26101572841ed1cd80aa03aa60e35f1b8acb4aea6906c4066886f16e07"
"""Of the 80 names, in the order of their category ids."""


def read(data: Path, split: str) -> BoxList:
    """The images of train2017 or val2017 in ``data`` or ``data/coco``, sorted by id, with their
    objects and masks. Classes are in the order of their category ids.

    Training images without an annotation are dropped, as every toolbox does, and so are training
    objects less than a pixel wide or high within the image, as in MMDetection: the published file
    has two of no height, whose targets would be infinite. Masks are polygons or run lengths,
    compressed or not; whole numbers may be written as 96.0.

    UserError for a missing or malformed file, and for an annotation, named by its id, of an unknown
    image or category, with a negative box, or without a mask that fits its image."""
    root = data / "coco" if (data / "coco").is_dir() else data
    path = root / "annotations" / f"instances_{split}2017.json"
    if not path.is_file():
        raise UserError(
            f"no COCO annotations of {split}2017 here" if data.is_dir() else "no such folder",
            at=path,
            hint=f"unpack {ANNOTATIONS} in the folder given, or in its folder coco/",
        )
    try:
        content = json.loads(path.read_bytes(), object_hook=_packed)
        images = _by_id(content["images"], "image", path)
        categories = _by_id(content["categories"], "category", path)
        ids = [image["id"] for image in images]
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        titles = tuple(str(category["name"]) for category in categories)
        of_image: dict[Any, list[dict[str, Any]]] = {number: [] for number in ids}
        if (
            len(of_image) < len(ids)
            or len(label_of) < len(titles)
            or len(set(titles)) < len(titles)
        ):
            raise UserError(
                "two images or two categories have the same id or name",
                at=path,
                hint=f"unpack {ANNOTATIONS} again",
            )
        for image in images:
            written = image["width"], image["height"]
            image["width"], image["height"] = width, height = tuple(map(_whole, written))
            if not (width and height and width > 0 and height > 0):
                raise UserError(
                    f"image {image['id']} is {written[0]} x {written[1]} pixels; both must be whole"
                    " numbers above 0, written as numbers",
                    at=path,
                    hint=f"unpack {ANNOTATIONS} again",
                )
        size_of = {image["id"]: (image["height"], image["width"]) for image in images}
        for annotation in content["annotations"]:
            _check(annotation, of_image, label_of, path)
            annotation["segmentation"] = _mask(annotation, size_of[annotation["image_id"]], path)
            of_image[annotation["image_id"]].append(annotation)
        del content
        if split == "train":
            images = [image for image in images if of_image[image["id"]]]
        objects = tuple(
            _objects(image, of_image[image["id"]], label_of, keep_narrow=split == "val")
            for image in images
        )
        dropped = sum(map(len, of_image.values())) - sum(map(len, objects))
        if split == "train" and dropped:
            print(f"COCO train2017: {dropped} objects less than a pixel wide or high are left out")
        paths = tuple(f"{split}2017/" + image["file_name"] for image in images)
    except json.JSONDecodeError as failure:
        raise UserError(
            f"not JSON: {failure.msg}",
            at=f"{path}, line {failure.lineno}",
            hint=f"unpack {ANNOTATIONS} again; this file may be truncated",
        ) from failure
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as failure:
        raise UserError(
            f"not COCO's instances: {type(failure).__name__} {failure}",
            at=path,
            hint=f"instances_{split}2017.json of {ANNOTATIONS} is expected",
        ) from failure
    if not images:
        raise UserError("no image with an object", at=path, hint=f"unpack {ANNOTATIONS} again")
    if not (root / f"{split}2017").is_dir():
        raise UserError(
            f"COCO's annotations without its images: no folder {split}2017",
            at=root,
            hint=f"unpack {split}2017.zip here",
        )
    return published.check(
        BoxList(
            f"coco-{split}2017",
            root,
            paths,
            presence(list(objects), len(titles)),
            titles,
            objects=objects,
        )
    )


def _packed(entry: dict[str, Any]) -> dict[str, Any]:
    """An object of the file, its polygons as arrays as soon as it is parsed: as lists of Python's
    numbers all of COCO's take 2 GB, which the system would not get back."""
    written = entry.get("segmentation")
    if isinstance(written, list) and all(map(_numbers, written)):
        entry["segmentation"] = tuple(np.array(part, np.float64) for part in written)
    return entry


def _invalid(annotation: dict[str, Any], what: str, path: Path) -> UserError:
    return UserError(
        f"annotation {annotation.get('id')}: {what}",
        at=path,
        hint=f"take the file of {ANNOTATIONS}",
    )


def _whole(value: Any) -> int | None:
    """A whole number, which other tools may write as 96.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _by_id(entries: list[dict[str, Any]], what: str, path: Path) -> list[dict[str, Any]]:
    """Images or categories sorted by id. UserError for an id that is neither a whole number nor
    text, and where both kinds occur in one file."""
    for entry in entries:
        if not isinstance(entry["id"], str) and _whole(entry["id"]) is None:
            raise UserError(
                f"the {what} id {entry['id']!r} is neither a whole number nor text",
                at=path,
                hint=f"take the file of {ANNOTATIONS}",
            )
    if len({isinstance(entry["id"], str) for entry in entries}) > 1:
        raise UserError(
            f"some {what} ids are numbers and others text, which have no common order",
            at=path,
            hint=f"take the file of {ANNOTATIONS}",
        )
    return sorted(entries, key=lambda entry: entry["id"])


def _check(
    annotation: dict[str, Any], of_image: dict[Any, Any], label_of: dict[Any, int], path: Path
) -> None:
    if annotation["image_id"] not in of_image:
        raise _invalid(
            annotation, f"image {annotation['image_id']!r} is not among the file's images", path
        )
    if annotation["category_id"] not in label_of:
        raise _invalid(
            annotation,
            f"category {annotation['category_id']!r} is not among the file's categories",
            path,
        )
    if not _numbers(box := annotation.get("bbox")):
        raise _invalid(annotation, f"no box of four numbers: {box!r}", path)
    x, y, width, height = box  # type: ignore[misc]
    if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
        raise _invalid(annotation, f"no box: {box}", path)
    if annotation.get("iscrowd", 0) not in (0, 1):  # as are 0.0 and false
        raise _invalid(annotation, f"iscrowd must be 0 or 1, not {annotation['iscrowd']!r}", path)


def _numbers(values: Any) -> bool:
    """Whether this is a list of numbers; NumPy would also accept text that looks like numbers."""
    return isinstance(values, list) and {int, float}.issuperset(map(type, values))


def _mask(annotation: dict[str, Any], size: tuple[int, int], path: Path) -> Any:
    """An annotation's mask: polygons as arrays (see ``_packed``), or run lengths as whole numbers,
    however they are written. Polygons are kept in double precision: pycocotools rounds to fifths of
    a pixel, and in single precision a third of COCO's would come out differently."""
    written, (height, width) = annotation.get("segmentation"), size
    if isinstance(written, dict):
        return {
            "size": [height, width],
            "counts": _run_lengths(annotation, written, height, width, path),
        }
    if not written:
        raise _invalid(
            annotation, "it has no mask, and Mask R-CNN needs one for every object", path
        )
    if not isinstance(written, tuple):
        raise _invalid(
            annotation,
            f"its mask is not a list of polygons, [[x, y, x, y, …], …]: {str(written)[:60]}",
            path,
        )
    for polygon in written:
        # corners may lie beyond the border, but with none, or with one far away, pycocotools would
        # never finish
        if (
            len(polygon) < 6
            or len(polygon) % 2
            or not (np.abs(polygon) <= 4 * (width + height)).all()
        ):
            shown = str(polygon.tolist())[:60]
            raise _invalid(
                annotation,
                f"its mask is not a polygon of corners x, y within the image: {shown}",
                path,
            )
    return written


def _run_lengths(
    annotation: dict[str, Any], mask: dict[str, Any], height: int, width: int, path: Path
) -> list[int]:
    """The run lengths of a mask in COCO's uncompressed (list) or compressed (text) encoding."""
    counts = mask.get("counts")
    if mask.get("size") != [height, width]:
        raise _invalid(
            annotation,
            f"its run lengths are for a height and width of {str(mask.get('size'))[:60]}, its"
            f" image has {[height, width]}",
            path,
        )
    if isinstance(counts, str):
        try:
            counts = decoded(counts)
        except ValueError as failure:
            raise _invalid(
                annotation, f"its run lengths cannot be read: {failure}", path
            ) from failure
    if not isinstance(counts, list):
        raise _invalid(
            annotation, f"its run lengths must be a list or text, not {str(counts)[:60]!r}", path
        )
    runs = [_whole(run) for run in counts]
    whole = [run for run in runs if run is not None and run >= 0]
    if len(whole) < len(runs):
        wrong = next(count for count, run in zip(counts, runs, strict=True) if run not in whole)
        raise _invalid(
            annotation,
            f"its run lengths must be whole numbers from 0, not {str(wrong)[:60]}",
            path,
        )
    if sum(whole) != height * width:
        raise _invalid(
            annotation,
            f"its run lengths are not of an image of {width} x {height} pixels: they add up to "
            f"{sum(whole)}, not {height * width}",
            path,
        )
    return whole


def _objects(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    label_of: dict[Any, int],
    *,
    keep_narrow: bool,
) -> Objects:
    """The objects of one image; with ``keep_narrow`` also those less than a pixel wide or high."""
    width, height = image["width"], image["height"]
    xywh_N4 = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(
        -1, 4
    )
    boxes_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    inside_N4 = boxes_N4.clip(0, np.array([width, height, width, height], np.float32))
    wide_N = ((inside_N4[:, 2:] - inside_N4[:, :2]) >= 1).all(1) & (xywh_N4[:, 2:] >= 1).all(1)
    kept = np.arange(len(annotations)) if keep_narrow else np.flatnonzero(wide_N)
    labels = [label_of[annotations[i]["category_id"]] for i in kept]
    crowds = [bool(annotations[i].get("iscrowd", 0)) for i in kept]
    return Objects(
        width,
        height,
        boxes_N4[kept],
        np.array(labels, np.int64),
        np.array(crowds, bool),
        tuple(annotations[i]["segmentation"] for i in kept),
    )


def _edition(images: ImageList) -> str:
    year = re.match(r"COCO_(?:train|val)(\d{4})_", images.sample_name)
    return f"COCO {year[1]}" if year else ""


def _read_both(data: Path) -> tuple[BoxList, BoxList]:
    return pair(read(data, "train"), read(data, "val"))


DATASET = Dataset(
    "coco",
    partial(read, split="train"),
    partial(read, split="val"),
    splits=(
        Split("coco-train2017", "COCO 2017", 117_266, 80, CLASS_HASH),
        Split("coco-val2017", "COCO 2017", 5000, 80, CLASS_HASH),
    ),
    folders=("coco", "train2017"),
    read_boxes=_read_both,
    edition=_edition,
)
