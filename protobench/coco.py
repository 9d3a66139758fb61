"""COCO 2017: instances with boxes and masks, from its JSON files (``coco/annotations/instances_{train,val}2017.json``)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from protobench.boxes import BoxList, Objects, presence
from protobench.errors import UserError
from protobench.images import pair

ANNOTATIONS = "annotations_trainval2017.zip"


def read(data: Path, split: str) -> BoxList:
    """The images of train2017 or val2017 below ``data`` or ``data/coco``, by rising id, with their objects and masks. Of the
    training images only those with an object, as every toolbox trains. Classes are in the order of their category ids.

    UserError for a missing or malformed file, and, by its id, for an annotation of an unknown image or category, with an empty
    box, or without a mask.
    """
    root = data / "coco" if (data / "coco").is_dir() else data
    path = root / "annotations" / f"instances_{split}2017.json"
    if not path.is_file():
        raise UserError(f"no COCO annotations of {split}2017 here" if data.is_dir() else "no such folder", at=path,
                        hint=f"unpack {ANNOTATIONS} below the folder given, or below coco/ in it")
    try:
        content = json.loads(path.read_bytes())
        images = sorted(content["images"], key=lambda image: image["id"])
        categories = sorted(content["categories"], key=lambda category: category["id"])
        ids = [image["id"] for image in images]
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        titles = tuple(str(category["name"]) for category in categories)
        of_image: dict[Any, list[dict[str, Any]]] = {number: [] for number in ids}
        if len(of_image) < len(ids) or len(label_of) < len(titles) or len(set(titles)) < len(titles):
            raise UserError("two images or two categories have the same id or name", at=path, hint=f"unpack {ANNOTATIONS} again")
        for annotation in content["annotations"]:
            _check(annotation, of_image, label_of, path)
            of_image[annotation["image_id"]].append(annotation)
        del content
        if split == "train":
            images = [image for image in images if of_image[image["id"]]]
        found = [_objects(image, of_image[image["id"]], label_of, path) for image in images]
        paths = tuple(f"{split}2017/{image['file_name']}" for image in images)
    except json.JSONDecodeError as failure:
        raise UserError(f"no JSON: {failure.msg}", at=f"{path}, line {failure.lineno}",
                        hint=f"unpack {ANNOTATIONS} again; this file may be cut short") from failure
    except (LookupError, TypeError, ValueError, AttributeError) as failure:
        raise UserError(f"not COCO's instances: {type(failure).__name__} {failure}", at=path,
                        hint=f"instances_{split}2017.json of {ANNOTATIONS} is expected") from failure
    if not images:
        raise UserError("no image with an object", at=path, hint=f"unpack {ANNOTATIONS} again")
    if not (root / f"{split}2017").is_dir():
        raise UserError(f"COCO's annotations without its images: no folder {split}2017", at=root,
                        hint=f"unpack {split}2017.zip here")
    return BoxList(f"coco-{split}2017", root, paths, presence(found, len(titles)), titles, objects=tuple(found))


def read_both(data: Path) -> tuple[BoxList, BoxList]:
    """train2017 and val2017."""
    return pair(read(data, "train"), read(data, "val"))  # type: ignore[return-value]


def _check(annotation: dict[str, Any], of_image: dict[Any, Any], label_of: dict[Any, int], path: Path) -> None:
    def wrong(what: str) -> UserError:
        return UserError(f"annotation {annotation.get('id')}: {what}", at=path, hint=f"take the file of {ANNOTATIONS}")

    if annotation["image_id"] not in of_image:
        raise wrong(f"image {annotation['image_id']} is not among the file's images")
    if annotation["category_id"] not in label_of:
        raise wrong(f"category {annotation['category_id']} is not among the file's categories")
    x, y, width, height = annotation["bbox"]
    if not np.isfinite([x, y, width, height]).all() or width <= 0 or height <= 0:
        raise wrong(f"an empty box: {annotation['bbox']}")
    if not annotation.get("segmentation"):
        raise wrong("it has no mask")


def _objects(image: dict[str, Any], annotations: list[dict[str, Any]], label_of: dict[Any, int], path: Path) -> Objects:
    width, height = image["width"], image["height"]
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise UserError(f"image {image['id']} is {width} x {height} pixels", at=path, hint=f"take the file of {ANNOTATIONS}")
    xywh_N4 = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
    boxes_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    labels = [label_of[annotation["category_id"]] for annotation in annotations]
    crowds = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
    return Objects(width, height, boxes_N4, np.array(labels, np.int64), np.array(crowds, bool),
                   tuple(_mask(annotation["segmentation"]) for annotation in annotations))


def _mask(segmentation: Any) -> Any:
    """Polygons as arrays, which take a tenth of the memory of JSON's lists; run lengths as they are."""
    if isinstance(segmentation, dict):
        return {"size": list(segmentation["size"]), "counts": segmentation["counts"]}
    return tuple(np.array(part, np.float32) for part in segmentation)
