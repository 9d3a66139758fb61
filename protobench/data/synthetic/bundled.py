"""The bundled synthetic data: small worlds, each written once, in the folder layouts of the real
data sets.

Worlds are numbered 0, 1, 2, … and are draws from one law: an encoder of pretraining seed s is
trained and evaluated in world s, so that a claim is about this kind of world and not about one.

Its root has the structure that ``--data`` expects of the real ones, so one code path reads both::

    imagenet/{train,val}/<class>/*.jpg                          20 categories, one object each
    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}   one or two objects
    places205/{trainvalsplit_places205/*.csv,data/vision/...}   10 scenes

Ten categories are real handwritten digits (scikit-learn's), ten are procedural shapes. A sprite
instance (a person's digit, a variant of a shape) belongs to one split only, so no evaluation sees
an object of pretraining. That holds between worlds too: the digits are split alike in all of them,
and every world draws variants of the shapes of its own. A scene is a texture with two favourite
categories. Every image depends on (world, split, number) alone."""

import contextlib
import io
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from protobench import keyed
from protobench.data import rehearsal
from protobench.data.leftovers import is_leftover
from protobench.data.synthetic import manifest
from protobench.data.synthetic.sprites import (
    CATEGORIES,
    DIGITS,
    SHAPES,
    TEXTURES,
    Sprite,
    bright,
    compose,
    digits,
    shape,
)
from protobench.runtime import files
from protobench.runtime.cores import usable
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 2
"""Raise when any byte of the data changes: results of different versions are never compared."""
SEED = 2020
"""Of the digits' split, which all worlds share, and, with a world's number added, of the rest."""
SIZE = 40
"""Side of every image, pixels."""
SHAPE_VARIANTS = 180
SPLITS = {
    "imagenet-train": 4000,
    "imagenet-val": 8000,
    "voc-trainval": 1000,
    "voc-test": 5000,
    "places-train": 1000,
    "places-val": 5000,
}
OF_ONE_WORLD = ("world", "fingerprint", "files")
"""The entries of a manifest in which the worlds of one kind differ."""
SHARES = {
    "imagenet-train": (0, 0.6),
    "imagenet-val": (0.6, 1),
    "voc-trainval": (0.6, 0.8),
    "voc-test": (0.8, 1),
    "places-train": (0.6, 0.8),
    "places-val": (0.8, 1),
}
"""Which part of the sprite instances of a category, in a random order, a split draws from."""
SCENES = tuple(f"{texture}-scene" for texture in TEXTURES)
TITLES = tuple(f"c{number:02d}-{category}" for number, category in enumerate(CATEGORIES))
"""The folder names of the 20 categories in ImageNet's layout."""


def ensure(root: Path | None = None, counts: dict[str, int] | None = None, world: int = 1) -> Path:
    """The root of a world's data. It is made on first use (24 000 images in about 10 s) and
    verified on every later one.

    UserError where the files there are not those that were written."""
    counts = SPLITS | (counts or {})
    what = identity(world, counts)
    return manifest.made(
        root or folder("mini", what),
        what,
        lambda temporary: _write_world(World(world), temporary, counts),
    )


def ensure_all(worlds: Iterable[int]) -> dict[int, Path]:
    """The roots of several worlds. Those that are missing are made side by side, a process per
    usable core."""
    worlds, counts, cores = sorted(set(worlds)), SPLITS, usable()
    missing = [world for world in worlds if not folder("mini", identity(world, counts)).is_dir()]
    if len(missing) > 1 and cores > 1:
        with ProcessPoolExecutor(
            min(len(missing), cores), mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            made = pool.map(partial(_ensure_silently, counts), missing)
            for _ in progress(made, desc="bundled data", unit=" worlds", total=len(missing)):
                pass
    return {world: ensure(world=world) for world in worlds}


def _ensure_silently(counts: dict[str, int], world: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # the bars of several processes would mix
        ensure(None, counts, world)


def identity(world: int, counts: dict[str, int]) -> dict[str, Any]:
    """What determines the data of a world. UserError for a negative number."""
    if world < 0:
        raise UserError(f"there is no bundled world {world}", hint="worlds are 0, 1, 2, ...")
    return {
        "version": VERSION,
        "world": world,
        "size": SIZE,
        "counts": counts,
        "pillow": PIL.__version__,
    }


def folder(name: str, what: dict[str, Any]) -> Path:
    """Where data of this identity lies in the cache."""
    title = f"{name}-v{what['version']}-world{what['world']}"
    return files.cache_dir() / f"{title}-{files.sha256(what)[:8]}"


def is_root(folder: Path) -> bool:
    """Whether this folder is a root of bundled data, by its manifest alone."""
    return manifest.read(folder) is not None


def world_of(folder: Path) -> int | None:
    """The number of the world whose data lies in ``folder``; None where that is unknown."""
    found = manifest.above(folder)
    world = found[1].get("world") if found else None
    return world if isinstance(world, int) else None


def kind_of(folder: Path) -> str | None:
    """Equal for all worlds of one version, size and number of images; None where that is
    unknown."""
    found = manifest.above(folder)
    if found is None or "version" not in found[1]:
        return None
    kind = {name: value for name, value in found[1].items() if name not in OF_ONE_WORLD}
    return f"v{kind['version']}-{files.sha256(kind)[:8]}"


def holds(classes: Sequence[str]) -> bool:
    """Whether these are classes of the bundled data. No other data set has them, so it is
    recognised wherever it lies."""
    return bool(classes) and {title.rpartition("/")[2] for title in classes} <= {
        *TITLES,
        *CATEGORIES,
        *SCENES,
    }


def is_used(data: Path | None) -> bool:
    """Whether --data means the bundled data: none was given, or its root, or any folder of it or of
    a copy, which the classes show; or a rehearsal folder of any of these."""
    if data is None:
        return True
    data, _ = rehearsal.source_of(data)
    if any(is_root(place) for place in (data, *data.resolve().parents[:2])):
        return True
    folders = [*data.glob("train/*"), *data.glob("imagenet/train/*")]
    lists = [
        path
        for kit in ("", "VOC2007/", "VOCdevkit/VOC2007/")
        for path in data.glob(f"{kit}ImageSets/Main/*_trainval.txt")
    ]
    scenes = [
        path
        for root in ("", "places205/")
        for path in data.glob(f"{root}data/vision/torralba/deeplearning/images256/*/*")
    ]
    titles = [folder.name for folder in folders or scenes] or [
        path.name.removesuffix("_trainval.txt") for path in lists
    ]
    return holds([title for title in titles if not is_leftover(title)]) or _holds_coco(data)


def _holds_coco(data: Path) -> bool:
    """Whether COCO's annotations here are those of the bundled scenes. The real ones, 20 MB and
    more, are not read."""
    for path in (data / place / "annotations" / "instances_val2017.json" for place in ("", "coco")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if path.stat().st_size < 10_000_000:
                return holds(
                    [category["name"] for category in json.loads(path.read_bytes())["categories"]]
                )
    return False


@dataclass(frozen=True)
class SceneObject:
    """An object in an image: category, box (xmin, ymin, xmax, ymax; 1-based, inclusive, as VOC
    writes) and difficulty."""

    category: int
    box: tuple[int, int, int, int]
    difficult: bool


class World:
    """Draws the images of every split."""

    def __init__(self, number: int):
        self.seed = SEED + number
        digit_masks, digit_classes = digits()
        self.masks: list[list[np.ndarray]] = [
            list(digit_masks[digit_classes == c] / 255.0) for c in range(len(DIGITS))
        ]
        for name in SHAPES:
            self.masks.append(
                [
                    shape(name, keyed.generator(self.seed, "shape", name, i))
                    for i in range(SHAPE_VARIANTS)
                ]
            )
        position = [
            keyed.generator(SEED if c < len(DIGITS) else self.seed, "split", c).random(len(masks))
            for c, masks in enumerate(self.masks)
        ]
        self._instances = {
            (split, c): np.flatnonzero((at >= low) & (at < high))
            for split, (low, high) in SHARES.items()
            for c, at in enumerate(position)
        }

    def instances(self, split: str, category: int) -> np.ndarray:
        """The numbers of the category's sprite instances that belong to this split."""
        return self._instances[split, category]

    def sprite(
        self, split: str, category: int, side: tuple[float, float], rng: np.random.Generator
    ) -> Sprite:
        """An object of the category at a random position, ``side`` (from, to) pixels wide."""
        mask = self.masks[category][rng.choice(self.instances(split, category))]
        length = rng.uniform(*side)
        slack = max(SIZE - length, 0) / 2 + 1
        x, y = SIZE / 2 + rng.uniform(-slack, slack, 2)
        return Sprite(mask, (x, y), length, rng.normal(0, 0.12), bright(rng))

    def one_object(self, split: str, number: int) -> tuple[np.ndarray, int]:
        """ImageNet's role: one object 28 to 40 pixels wide; half of the images on their class's
        favourite texture."""
        rng = keyed.generator(self.seed, split, number)
        category = number % len(CATEGORIES)
        texture = category % len(TEXTURES) if rng.random() < 0.5 else rng.integers(len(TEXTURES))
        sprite = self.sprite(split, category, (28, 40), rng)
        return compose(TEXTURES[texture], [sprite], [sprite.alpha(SIZE)], rng, SIZE), category

    def objects(
        self,
        split: str,
        number: int,
        favourites: tuple[int, ...] = (),
        texture: int | None = None,
    ) -> tuple[np.ndarray, list[SceneObject]]:
        """A main object (26 to 38 pixels) and, in 40 % of the images, a small one at the position
        where it hides least."""
        rng = keyed.generator(self.seed, split, number)
        main = (
            int(rng.choice(favourites))
            if favourites and rng.random() < 0.9
            else int(rng.integers(len(CATEGORIES)))
        )
        categories, sprites = [main], [self.sprite(split, main, (26, 38), rng)]
        alphas = [sprites[0].alpha(SIZE)]
        if rng.random() < 0.4:
            categories.append(int(rng.integers(len(CATEGORIES))))
            tries = [self.sprite(split, categories[1], (13, 18), rng) for _ in range(6)]
            coverage = [sprite.alpha(SIZE) for sprite in tries]
            best = int(np.argmin([(alpha * alphas[0]).sum() for alpha in coverage]))
            sprites.append(tries[best])
            alphas.append(coverage[best])
        texture = int(rng.integers(len(TEXTURES))) if texture is None else texture
        things: list[SceneObject] = []
        seen = np.ones((SIZE, SIZE))
        for category, sprite, alpha in reversed(
            list(zip(categories, sprites, alphas, strict=True))
        ):  # the last one lies on top
            rows, columns = np.nonzero(alpha > alpha.max() / 2)
            visible = float((alpha * seen).sum() / alpha.sum())
            box = (
                int(columns.min()) + 1,
                int(rows.min()) + 1,
                int(columns.max()) + 1,
                int(rows.max()) + 1,
            )
            things.insert(
                0, SceneObject(category, box, difficult=sprite.side < 14 or visible < 0.75)
            )
            seen = seen * (1 - alpha)
        return compose(TEXTURES[texture], sprites, alphas, rng, SIZE), things

    def scene(self, split: str, number: int) -> tuple[np.ndarray, int]:
        """Places205's role: scene s always has texture s, and in nine of ten cases one of its two
        favourite categories."""
        label = number % len(SCENES)
        favourites = (label, len(DIGITS) + (3 * label + 1) % len(SHAPES))
        return self.objects(split, number, favourites, texture=label)[0], label


def _write_world(world: World, root: Path, counts: dict[str, int]) -> None:
    steps = progress(desc="bundled data", unit=" images", total=sum(counts.values()))
    for _ in _write_splits(world, root, counts):
        steps.update(1)
    steps.close()


def _write_splits(world: World, root: Path, counts: dict[str, int]) -> Iterator[None]:
    for split in ("train", "val"):
        for number in range(counts[f"imagenet-{split}"]):
            image, category = world.one_object(f"imagenet-{split}", number)
            save(image, root / "imagenet" / split / TITLES[category] / f"{split}_{number:05d}.jpg")
            yield
    yield from _write_voc(world, root / "VOCdevkit" / "VOC2007", counts)
    yield from _write_places(world, root / "places205", counts)


def _write_voc(world: World, voc: Path, counts: dict[str, int]) -> Iterator[None]:
    for split in ("trainval", "test"):
        listed = {}
        for number in range(counts[f"voc-{split}"]):
            image, things = world.objects(f"voc-{split}", number)
            name = f"{number + (0 if split == 'trainval' else 500000):06d}"
            write_voc_image(
                voc, name, image, [(thing.category, thing.box, thing.difficult) for thing in things]
            )
            listed[name] = [(thing.category, thing.difficult) for thing in things]
            yield
        write_voc_lists(voc, split, listed)


def write_voc_image(
    voc: Path,
    name: str,
    image: np.ndarray,
    things: list[tuple[int, tuple[int, int, int, int], bool]],
) -> None:
    """Writes an image and its annotation; ``things`` are (category, box as VOC writes it,
    difficult)."""
    save(image, voc / "JPEGImages" / f"{name}.jpg")
    height, width = image.shape[:2]
    objects = "".join(
        f"\t<object>\n\t\t<name>{CATEGORIES[category]}</name>\n\t\t<difficult>{int(difficult)}</difficult>\n"
        "\t\t<bndbox>"
        + "".join(
            f"<{tag}>{value}</{tag}>"
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox>\n\t</object>\n"
        for category, box, difficult in things
    )
    write(
        voc / "Annotations" / f"{name}.xml",
        f"<annotation>\n\t<folder>{voc.name}</folder>\n\t<filename>{name}.jpg</filename>\n"
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n",
    )


def write_voc_lists(voc: Path, split: str, listed: dict[str, list[tuple[int, bool]]]) -> None:
    """Writes the split's list and a label file per class; ``listed`` holds the (category,
    difficult) of each image's objects."""
    main = voc / "ImageSets" / "Main"
    write(main / f"{split}.txt", "".join(f"{name}\n" for name in listed))
    for category, title in enumerate(CATEGORIES):
        lines = []
        for name, things in listed.items():
            mine = [difficult for other, difficult in things if other == category]
            label = -1 if not mine else 0 if all(mine) else 1  # 0: only difficult objects
            lines.append(f"{name} {label:2d}\n")
        write(main / f"{title}_{split}.txt", "".join(lines))


def _write_places(world: World, places: Path, counts: dict[str, int]) -> Iterator[None]:
    for split in ("train", "val"):
        lines = []
        for number in range(counts[f"places-{split}"]):
            image, label = world.scene(f"places-{split}", number)
            relative = f"{SCENES[label][0]}/{SCENES[label]}/mini_{split}_{number:05d}.jpg"
            save(image, places / "data/vision/torralba/deeplearning/images256" / relative)
            lines.append(f"{relative} {label}\n")
            yield
        write(places / "trainvalsplit_places205" / f"{split}_places205.csv", "".join(lines))


def save(image: np.ndarray, path: Path) -> None:
    """Writes a JPEG of high quality."""
    _make_folder(path.parent)
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def write(path: Path, text: str) -> None:
    """Writes text with Unix line ends on every platform."""
    _make_folder(path.parent)
    path.write_text(text, newline="\n")


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():  # faster than mkdir where it is there
        folder.mkdir(parents=True, exist_ok=True)
