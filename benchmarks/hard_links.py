"""Data sets of true sizes and layouts made of hard links to a few small JPEGs: names, counts and
lists are as in the real ones, and no picture is stored more than once."""

import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from protobench.data.voc import CLASSES

PICTURES = 2000
WIDTH, HEIGHT = 72, 54


@dataclass(frozen=True)
class Counts:
    """How many images, classes and objects each data set has."""

    train: int = 1_281_167
    val: int = 50_000
    classes: int = 1000
    places_train: int = 2_448_873
    places_val: int = 20_500
    scenes: int = 205
    voc07_trainval: int = 5011
    voc07_test: int = 4952
    voc12_trainval: int = 11_540
    coco_train: int = 118_287
    coco_val: int = 5000
    objects: float = 7.27
    """per image of COCO: 860 001 in its training set"""


TINY = Counts(60, 20, 4, 80, 20, 8, 24, 24, 24, 12, 12)


class Pictures:
    """Small JPEGs in a folder, each linked in turn: a file has at most 65 000 names on ext4."""

    def __init__(self, folder: Path, count: int = PICTURES):
        folder.mkdir(parents=True)
        self._files = []
        for number in range(count):
            rng = np.random.default_rng(number)
            coarse_HW3 = rng.integers(0, 256, (6, 8, 3), np.uint8)
            image = Image.fromarray(coarse_HW3).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
            path = folder / f"{number:04d}.jpg"
            path.write_bytes(buffer.getvalue())
            self._files.append(str(path))
        self._next = itertools.cycle(self._files)

    def link(self, path: str) -> None:
        """Gives the next picture this name too."""
        os.link(next(self._next), path)


def shares(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` nearly equal numbers."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def imagenet(root: Path, pictures: Pictures, counts: Counts) -> None:
    """imagenet/{train,val}/<wnid>/."""
    for split, total in (("train", counts.train), ("val", counts.val)):
        numbers = itertools.count(1)
        for c, share in enumerate(shares(total, counts.classes)):
            wnid = f"n{1440764 + 13 * c:08d}"
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(share):
                name = (
                    f"{wnid}_{i}.JPEG"
                    if split == "train"
                    else f"ILSVRC2012_val_{next(numbers):08d}.JPEG"
                )
                pictures.link(f"{folder}/{name}")


def places(root: Path, pictures: Pictures, counts: Counts) -> None:
    """places205/ as distributed: two lists and the image tree."""
    home = root / "places205"
    (home / "trainvalsplit_places205").mkdir(parents=True)
    tree = home / "data/vision/torralba/deeplearning/images256"
    titles = [f"{chr(97 + s % 26)}/scene_{s:03d}" for s in range(counts.scenes)]
    for title in titles:
        (tree / title).mkdir(parents=True)
    for split, total in (("train", counts.places_train), ("val", counts.places_val)):
        lines = []
        for s, share in enumerate(shares(total, counts.scenes)):
            for i in range(share):
                path = f"{titles[s]}/gsun_{split}{i:08d}.jpg"
                pictures.link(f"{tree}/{path}")
                lines.append(f"{path} {s}\n")
        listing = home / "trainvalsplit_places205" / f"{split}_places205.csv"
        listing.write_text("".join(lines))


def voc(root: Path, pictures: Pictures, counts: Counts) -> None:
    """VOCdevkit/VOC2007 (trainval and test) and VOC2012 (trainval), with annotations."""
    for year, split, total in (
        (2007, "trainval", counts.voc07_trainval),
        (2007, "test", counts.voc07_test),
        (2012, "trainval", counts.voc12_trainval),
    ):
        home = root / "VOCdevkit" / f"VOC{year}"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        first = 500_000 if split == "test" else 0
        names = [f"{first + i:06d}" if year == 2007 else f"2008_{i:06d}" for i in range(total)]
        for i, name in enumerate(names):
            pictures.link(f"{home}/JPEGImages/{name}.jpg")
            (home / "Annotations" / f"{name}.xml").write_text(_annotation(home.name, name, i))
        main = home / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for c, title in enumerate(CLASSES):
            (main / f"{title}_{split}.txt").write_text(
                "".join(
                    f"{name} {1 if c in _present(i) else -1:2d}\n" for i, name in enumerate(names)
                )
            )


def _present(i: int) -> tuple[int, int]:
    return i % len(CLASSES), (7 * i + 3) % len(CLASSES)


def _annotation(folder: str, name: str, i: int) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[c]}</name><difficult>0</difficult><bndbox><xmin>{1 + 3 * n}</xmin>"
        f"<ymin>2</ymin><xmax>{30 + n}</xmax><ymax>40</ymax></bndbox></object>"
        for n, c in enumerate(_present(i))
    )
    return (
        f"<annotation><folder>{folder}</folder><filename>{name}.jpg</filename><size><width>{WIDTH}"
        f"</width><height>{HEIGHT}</height><depth>3</depth></size>{objects}</annotation>"
    )


def coco(root: Path, pictures: Pictures, counts: Counts) -> None:
    """coco/{train2017,val2017,annotations}/. An annotation takes as many bytes as COCO's: 0.45 GB
    for the training set."""
    home, rng = root / "coco", np.random.default_rng(0)
    (home / "annotations").mkdir(parents=True)
    masks = [_polygon(rng) for _ in range(500)]
    for split, total in (("train", counts.coco_train), ("val", counts.coco_val)):
        (home / f"{split}2017").mkdir()
        with open(home / "annotations" / f"instances_{split}2017.json", "w") as file:
            file.write('{"images": [')
            for i in range(total):
                name = f"{i:012d}.jpg"
                pictures.link(f"{home}/{split}2017/{name}")
                file.write(
                    f'{", " if i else ""}{{"license": 3, "file_name": "{name}", "coco_url":'
                    f' "http://images.cocodataset.org/{split}2017/{name}", "height": 480, "width":'
                    f' 640, "date_captured": "2013-11-14 17:02:52", "id": {i}}}'
                )
            file.write('], "annotations": [')
            for i in range(round(total * counts.objects)):
                file.write(
                    f'{", " if i else ""}{{"segmentation": [{masks[i % len(masks)]}], "area":'
                    f' 900.5, "iscrowd": 0, "image_id": {i % total}, "bbox": [{10 + i % 300}.37,'
                    f' 20.12, {30 + i % 200}.5, 60.25], "category_id": {1 + i % 80},'
                    f' "id": {i + 1}}}'
                )
            titles = ", ".join(
                f'{{"supercategory": "thing", "id": {c + 1}, "name": "thing {c}"}}'
                for c in range(80)
            )
            file.write(f'], "categories": [{titles}]}}')


def _polygon(rng: np.random.Generator) -> str:
    corners = rng.uniform(0, 470, 2 * int(rng.integers(4, 46))).round(2)
    return "[" + ", ".join(map(str, corners.tolist())) + "]"


def content(folder: Path, files: int, size: int) -> Iterator[Path]:
    """Files of random bytes, ``size`` each, which no file system can compress or share."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(files):
        path = folder / f"{number:05d}"
        path.write_bytes(rng.bytes(size))
        yield path
