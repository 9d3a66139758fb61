"""The bundled synthetic data for detection: larger scenes of one to four objects, in the layouts of
VOC and COCO.

Its root has the structure that ``--data`` expects of the real data sets::

    VOCdevkit/{VOC2007,VOC2012}/{JPEGImages,Annotations,ImageSets/Main}
        trainval of both years, test of 2007
    coco/{train2017,val2017,annotations/instances_{train,val}2017.json}
        with a mask of every object

Objects, textures and noise are those of the other bundled data (bundled.py), at the scale at which
encoders see them in pretraining, and from the same splits: no object of pretraining occurs in a
scene, and no object of a training scene in a test scene."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from protobench import keyed
from protobench.data.synthetic import bundled, manifest
from protobench.data.synthetic.bundled import World
from protobench.data.synthetic.sprites import CATEGORIES, TEXTURES, Sprite, bright, compose
from protobench.runtime.progress import progress

VERSION = 2
"""Raise when any byte of the data changes: results of different versions are never compared."""
SPLITS = {
    "voc2007-trainval": 240,
    "voc2012-trainval": 360,
    "voc2007-test": 400,
    "coco-train": 320,
    "coco-val": 200,
}
SIZES = ((128, 96), (128, 96), (96, 128))
"""Width and height; two thirds of the scenes are in landscape format."""
SIDE = (18.0, 40.0)
"""Side of an object's square, pixels; in pretraining it is 28 to 40."""
VISIBLE, DIFFICULT = 0.4, 0.75
"""Visible fractions: an object that shows less than the first is not placed; one that shows less
than the second is difficult."""


@dataclass(frozen=True, eq=False)
class MaskedObject:
    """An object in a scene. mask: bool [H, W], the pixels where it is visible."""

    category: int
    mask: np.ndarray
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box of the mask, (x1, y1, x2, y2): first and last column and row, from 0,
        inclusive."""
        rows, columns = np.nonzero(self.mask)
        return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def scene(world: World, split: str, number: int) -> tuple[np.ndarray, list[MaskedObject]]:
    """A scene, uint8 [H, W, 3], and its objects; a function of (world, split, number) alone."""
    rng = keyed.generator(world.seed, "scene", split, number)
    width, height = SIZES[rng.integers(len(SIZES))]
    square = max(width, height)
    pool = (
        "voc-test"
        if split.endswith(("test", "val")) and not split.endswith("trainval")
        else "voc-trainval"
    )
    sprites: list[Sprite] = []
    alphas: list[np.ndarray] = []
    categories: list[int] = []
    for _ in range(rng.integers(1, 5)):
        category = int(rng.integers(len(CATEGORIES)))
        mask = world.masks[category][rng.choice(world.instances(pool, category))]
        for _ in range(8):  # the first position where neither it nor what lies under it is hidden
            side = rng.uniform(*SIDE)
            centre = (
                rng.uniform(side / 2 - 4, width - side / 2 + 4),
                rng.uniform(side / 2 - 4, height - side / 2 + 4),
            )
            sprite = Sprite(mask, centre, side, rng.normal(0, 0.12), bright(rng))
            alpha = sprite.alpha(square)
            if min(_visible_shares([*alphas, alpha], width, height)) >= VISIBLE:
                sprites, alphas, categories = (
                    [*sprites, sprite],
                    [*alphas, alpha],
                    [*categories, category],
                )
                break
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    image = compose(texture, sprites, alphas, rng, square)[:height, :width]
    shares, masks = _visible_shares(alphas, width, height), _masks(alphas, width, height)
    return image, [
        MaskedObject(category, mask, visible < DIFFICULT)
        for category, mask, visible in zip(categories, masks, shares, strict=True)
    ]


def _masks(alphas: list[np.ndarray], width: int, height: int) -> list[np.ndarray]:
    """The pixels where each object is visible; later ones lie on top."""
    masks: list[np.ndarray] = []
    free = np.ones((height, width), bool)
    for alpha in reversed(alphas):
        solid = alpha[:height, :width] > alpha.max() / 2
        masks.insert(0, solid & free)
        free = free & ~solid
    return masks


def _visible_shares(alphas: list[np.ndarray], width: int, height: int) -> list[float]:
    """The fraction of each object that is inside the image and not covered; 0 where what is left is
    less than 3 pixels wide or high."""
    shares = []
    for alpha, mask in zip(alphas, _masks(alphas, width, height), strict=True):
        across = min(mask.any(0).sum(), mask.any(1).sum())
        shares.append(float(mask.sum() / (alpha > alpha.max() / 2).sum()) if across >= 3 else 0.0)
    return shares


def ensure(root: Path | None = None, counts: dict[str, int] | None = None, world: int = 1) -> Path:
    """The root of a world's scenes, made on first use and verified on every later one, as in
    bundled.ensure."""
    counts = SPLITS | (counts or {})
    identity = {
        "version": VERSION,
        "objects": bundled.VERSION,
        "world": world,
        "counts": counts,
        "pillow": PIL.__version__,
    }
    return manifest.made(
        root or bundled.folder("scenes", identity),
        identity,
        lambda temporary: _write(World(world), temporary, counts),
    )


def root_of(data: Path | None, world: int = 1) -> Path:
    """``data``, or the world's scenes where that is None; the scenes of the same world where it is
    the root of the other bundled data, which has none."""
    if data is None:
        return ensure(world=world)
    if not bundled.is_root(data) or (data / "coco").is_dir():
        return data
    return ensure(world=bundled.world_of(data) or 0)


def _write(world: World, root: Path, counts: dict[str, int]) -> None:
    bar = progress(desc="bundled scenes", unit=" images", total=sum(counts.values()))
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
    """The mask in COCO's uncompressed encoding: lengths of alternating runs of 0 and 1, down the
    columns, beginning with 0."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    lengths: list[int] = np.diff([0, *np.flatnonzero(np.diff(flat)), mask.size]).tolist()
    return lengths
