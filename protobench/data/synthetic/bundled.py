"""The bundled synthetic data: a small world written once, in the folder layouts of the real data
sets.

Its root has the structure that ``--data`` expects of the real ones, so one code path reads both::

    imagenet/{train,val}/<class>/*.jpg                          20 categories, one object each
    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}   one or two objects
    places205/{trainvalsplit_places205/*.csv,data/vision/...}   10 scenes

Ten categories are real handwritten digits (scikit-learn's), ten are procedural shapes. A sprite
instance (a person's digit, a variant of a shape) belongs to one split only, so no evaluation sees
an object of pretraining. A scene is a texture with two favourite categories. Every image depends on
(seed, split, number) alone."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from protobench import keyed
from protobench.data.leftovers import is_leftover
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
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when any byte of the data changes: results of different versions are never compared."""
SEED = 2020
SIZE = 40
"""Side of every image, pixels."""
SHAPE_VARIANTS = 180
SPLITS = {
    "imagenet-train": 4000,
    "imagenet-val": 1000,
    "voc-trainval": 1000,
    "voc-test": 1000,
    "places-train": 1000,
    "places-val": 1000,
}
SCENES = tuple(f"{texture}-scene" for texture in TEXTURES)
TITLES = tuple(f"c{number:02d}-{category}" for number, category in enumerate(CATEGORIES))
"""The folder names of the 20 categories in ImageNet's layout."""


def ensure(
    root: Path | None = None, counts: dict[str, int] | None = None, seed: int = SEED
) -> Path:
    """The root of the bundled data. It is made on first use (10 000 images in well under 30 s) and
    verified on every later one.

    UserError where the files there are not those that were written."""
    counts = SPLITS | (counts or {})
    identity = {
        "version": VERSION,
        "seed": seed,
        "size": SIZE,
        "counts": counts,
        "pillow": PIL.__version__,
    }
    return made(
        "mini", root, identity, lambda temporary: _write_world(World(seed), temporary, counts)
    )


def made(
    name: str, root: Path | None, identity: dict[str, Any], write: Callable[[Path], None]
) -> Path:
    """``root``, by default in the cache, with what ``write`` writes into a folder: made on first
    use and verified later."""
    root = root or files.cache_dir() / f"{name}-v{identity['version']}-{files.sha256(identity)[:8]}"
    lock = root.with_name(root.name + ".lock")
    with files.exclusive_lock(lock):
        if (root / "manifest.json").exists():
            verify(root)
            return root
        temporary = root.with_name(f".{root.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with files.writing(root):
            write(temporary)
        hashes = _hashes(temporary)
        manifest = identity | {"fingerprint": files.sha256(hashes), "files": hashes}
        files.write_text(
            temporary / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True)
        )
        shutil.rmtree(root, ignore_errors=True)
        temporary.rename(root)
    return root


def verify(root: Path) -> str:
    """Reads every file back and returns the fingerprint. UserError if a byte differs from what was
    written."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
    except ValueError as failure:
        raise UserError(
            "the manifest of the bundled data is damaged",
            at=root,
            hint="delete this folder; it is made again",
        ) from failure
    hashes = _hashes(root)
    if manifest["fingerprint"] != files.sha256(hashes):
        written = manifest["files"]
        changed = sorted(
            name for name in hashes.keys() | written.keys() if hashes.get(name) != written.get(name)
        )
        raise UserError(
            f"the bundled data was changed: {len(changed)} files, the first is"
            f" {changed[0] if changed else '?'}",
            at=root,
            hint="delete this folder; it is made again in seconds",
        )
    return str(manifest["fingerprint"])


def is_root(folder: Path) -> bool:
    """Whether this folder is a root of bundled data, by its manifest alone; ``verify`` compares the
    files with it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["fingerprint"] == files.sha256(manifest["files"]))
    except (OSError, ValueError, LookupError, TypeError):
        return False


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
    a copy, which the classes show."""
    if data is None or any(is_root(place) for place in (data, *data.resolve().parents[:2])):
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


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): files.sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@dataclass(frozen=True)
class SceneObject:
    """An object in an image: category, box (xmin, ymin, xmax, ymax; 1-based, inclusive, as VOC
    writes) and difficulty."""

    category: int
    box: tuple[int, int, int, int]
    difficult: bool


class World:
    """Draws the images of every split."""

    def __init__(self, seed: int):
        self.seed = seed
        digit_masks, digit_classes = digits()
        self.masks: list[list[np.ndarray]] = [
            list(digit_masks[digit_classes == c] / 255.0) for c in range(len(DIGITS))
        ]
        for name in SHAPES:
            self.masks.append(
                [
                    shape(name, keyed.generator(seed, "shape", name, i))
                    for i in range(SHAPE_VARIANTS)
                ]
            )
        self.position = [
            keyed.generator(seed, "split", c).random(len(masks))
            for c, masks in enumerate(self.masks)
        ]

    def instances(self, split: str, category: int) -> np.ndarray:
        """The numbers of the category's sprite instances that belong to this split."""
        low, high = {
            "imagenet-train": (0, 0.6),
            "imagenet-val": (0.6, 1),
            "voc-trainval": (0.6, 0.8),
            "voc-test": (0.8, 1),
            "places-train": (0.6, 0.8),
            "places-val": (0.8, 1),
        }[split]
        return np.flatnonzero((self.position[category] >= low) & (self.position[category] < high))

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
        return compose(TEXTURES[texture], [sprite], rng, SIZE), category

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
        if rng.random() < 0.4:
            categories.append(int(rng.integers(len(CATEGORIES))))
            covered = sprites[0].alpha(SIZE)
            tries = [self.sprite(split, categories[1], (13, 18), rng) for _ in range(6)]
            sprites.append(
                min(tries, key=lambda sprite: float((sprite.alpha(SIZE) * covered).sum()))
            )
        texture = int(rng.integers(len(TEXTURES))) if texture is None else texture
        things: list[SceneObject] = []
        seen = np.ones((SIZE, SIZE))
        for category, sprite in reversed(
            list(zip(categories, sprites, strict=True))
        ):  # the last one lies on top
            alpha = sprite.alpha(SIZE)
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
        return compose(TEXTURES[texture], sprites, rng, SIZE), things

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
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def write(path: Path, text: str) -> None:
    """Writes text with Unix line ends on every platform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="\n")
