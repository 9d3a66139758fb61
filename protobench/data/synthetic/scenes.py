"""The embedded data for detection: larger scenes of one to four objects, in the layouts of VOC and
COCO.

Its root has the structure that ``--data`` expects of the real data sets::

    VOCdevkit/{VOC2007,VOC2012}/{JPEGImages,Annotations,ImageSets/Main}   trainval of both, test of 2007
    coco/{train2017,val2017,annotations/instances_{train,val}2017.json}   with a mask of every object

Objects, textures and noise are those of the other embedded data (mini.py), at the scale at which
encoders saw them in pretraining, and of the same splits: no object of pretraining stands in a
scene, none of a training scene in a test scene."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from protobench import keyed
from protobench.data.synthetic import bundled
from protobench.data.synthetic.bundled import World
from protobench.data.synthetic.sprites import CATEGORIES, TEXTURES, Sprite, bright, compose
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when any byte of the data changes: results of different versions are never compared."""
SPLITS = {
    "voc2007-trainval": 240,
    "voc2012-trainval": 360,
    "voc2007-test": 400,
    "coco-train": 320,
    "coco-val": 200,
}
SIZES = ((128, 96), (128, 96), (96, 128))
"""Width and height; two thirds of the scenes are landscapes."""
SIDE = (18.0, 40.0)
"""Pixels across an object's square; pretraining's have 28 to 40."""
VISIBLE, DIFFICULT = 0.4, 0.75
"""An object of which less is seen is not drawn; of which less is seen is difficult."""


@dataclass(frozen=True, eq=False)
class Thing:
    """An object in a scene. mask: bool [H, W], the pixels where it is seen."""

    category: int
    mask: np.ndarray
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Of the mask: first and last column and row, (x1, y1, x2, y2), from 0 and inclusive."""
        rows, columns = np.nonzero(self.mask)
        return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def scene(world: World, split: str, number: int) -> tuple[np.ndarray, list[Thing]]:
    """A scene, uint8 [H, W, 3], and its objects; a function of (seed, split, number) alone."""
    rng = keyed.generator(world.seed, "scene", split, number)
    width, height = SIZES[rng.integers(len(SIZES))]
    square = max(width, height)
    source = (
        "voc-test"
        if split.endswith(("test", "val")) and not split.endswith("trainval")
        else "voc-trainval"
    )
    sprites: list[Sprite] = []
    alphas: list[np.ndarray] = []
    categories: list[int] = []
    for _ in range(rng.integers(1, 5)):
        category = int(rng.integers(len(CATEGORIES)))
        mask = world.masks[category][rng.choice(world.instances(source, category))]
        for _ in range(8):  # the first place where neither it nor what lies below it is hidden
            side = rng.uniform(*SIDE)
            centre = (
                rng.uniform(side / 2 - 4, width - side / 2 + 4),
                rng.uniform(side / 2 - 4, height - side / 2 + 4),
            )
            sprite = Sprite(mask, centre, side, rng.normal(0, 0.12), bright(rng))
            alpha = sprite.alpha(square)
            if min(_seen([*alphas, alpha], width, height)) >= VISIBLE:
                sprites, alphas, categories = (
                    [*sprites, sprite],
                    [*alphas, alpha],
                    [*categories, category],
                )
                break
    image = compose(TEXTURES[rng.integers(len(TEXTURES))], sprites, rng, square)[:height, :width]
    seen, masks = _seen(alphas, width, height), _masks(alphas, width, height)
    return image, [
        Thing(category, mask, share < DIFFICULT)
        for category, mask, share in zip(categories, masks, seen, strict=True)
    ]


def _masks(alphas: list[np.ndarray], width: int, height: int) -> list[np.ndarray]:
    """Where each object is seen; later ones lie on top."""
    found: list[np.ndarray] = []
    free = np.ones((height, width), bool)
    for alpha in reversed(alphas):
        solid = alpha[:height, :width] > alpha.max() / 2
        found.insert(0, solid & free)
        free = free & ~solid
    return found


def _seen(alphas: list[np.ndarray], width: int, height: int) -> list[float]:
    """The share of each object that is inside the picture and not covered; 0 where less than 3
    pixels across are left."""
    shares = []
    for alpha, mask in zip(alphas, _masks(alphas, width, height), strict=True):
        across = min(mask.any(0).sum(), mask.any(1).sum())
        shares.append(float(mask.sum() / (alpha > alpha.max() / 2).sum()) if across >= 3 else 0.0)
    return shares


def ensure(
    root: Path | None = None, counts: dict[str, int] | None = None, seed: int = bundled.SEED
) -> Path:
    """The root of the embedded scenes; made on first use, verified on every other, as
    mini.ensure."""
    counts = SPLITS | (counts or {})
    identity = {
        "version": VERSION,
        "world": bundled.VERSION,
        "seed": seed,
        "counts": counts,
        "pillow": Image.__version__,
    }
    return bundled.made(
        "scenes", root, identity, lambda temporary: _write(World(seed), temporary, counts)
    )


def root_of(data: Path | None) -> Path:
    """``data``, or the embedded scenes where that is None or the root of the other embedded data,
    which has none."""
    return (
        data
        if data is not None and (not bundled.is_embedded(data) or (data / "coco").is_dir())
        else ensure()
    )


def _write(world: World, root: Path, counts: dict[str, int]) -> None:
    bar = progress(desc="embedded scenes", unit=" images", total=sum(counts.values()))
    for year, split in ((2007, "trainval"), (2012, "trainval"), (2007, "test")):
        voc, listed = root / "VOCdevkit" / f"VOC{year}", {}
        for number in range(counts[f"voc{year}-{split}"]):
            image, things = scene(world, f"voc{year}-{split}", number)
            name = f"{year}_{number + 500000 * (split == 'test'):06d}"
            boxes = [tuple(value + 1 for value in thing.box) for thing in things]
            bundled.write_voc_image(
                voc,
                name,
                image,
                [
                    (thing.category, box, thing.difficult)  # type: ignore[misc]
                    for thing, box in zip(things, boxes, strict=True)
                ],
            )
            listed[name] = [(thing.category, thing.difficult) for thing in things]
            bar.update(1)
        bundled.write_voc_lists(voc, split, listed)
    for split in ("train", "val"):
        _write_coco(world, root / "coco", split, counts[f"coco-{split}"], bar)
    bar.close()


def _write_coco(world: World, coco: Path, split: str, count: int, bar: Any) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        image, things = scene(world, f"coco-{split}", number)
        name = f"{number:012d}.jpg"
        bundled.save(image, coco / f"{split}2017" / name)
        images.append(
            {"id": number, "file_name": name, "width": image.shape[1], "height": image.shape[0]}
        )
        for thing in things:
            x1, y1, x2, y2 = thing.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": thing.category + 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
                    "area": int(thing.mask.sum()),
                    "segmentation": {
                        "size": list(thing.mask.shape),
                        "counts": _run_lengths(thing.mask),
                    },
                }
            )
        bar.update(1)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number + 1, "name": title} for number, title in enumerate(CATEGORIES)
        ],
    }
    bundled.write(coco / "annotations" / f"instances_{split}2017.json", json.dumps(content))


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed encoding: lengths of alternating runs of 0 and 1, down the columns,
    beginning with 0."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    return np.diff([0, *np.flatnonzero(np.diff(flat)), mask.size]).tolist()
