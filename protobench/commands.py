"""The subcommands of ``python -m protobench``; imports no torch before one runs."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from protobench.checkpoints.layouts import LAYOUTS, LoadOptions
from protobench.data.datasets import DATASETS
from protobench.runtime import cores
from protobench.runtime.cli import Command
from protobench.runtime.errors import UserError


@dataclass(frozen=True)
class Inspect:
    """Prints what an evaluation would load from a checkpoint."""

    ckpt: tyro.conf.Positional[Path]
    json: bool = False
    """the whole report, as records keep it"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def run(self) -> None:
        """Loads the checkpoint."""
        from protobench.checkpoints import encoders

        encoder = encoders.load(self.ckpt, self.reading)
        report = encoder.report.to_json()
        print(json.dumps(report, indent=1, ensure_ascii=False) if self.json else encoder.summary())


@dataclass(frozen=True)
class Layouts:
    """Prints where each code base keeps its backbone."""

    def run(self) -> None:
        """Prints a table with a line per layout."""
        from tabulate import tabulate

        rows = [
            {
                "origin": layout.origin,
                "network": "ViT" if layout.transformer else "ResNet",
                "query copy under": (home := layout.containers[0]) + layout.query,
                "momentum copy under": layout.momentum and home + layout.momentum,
                "evaluated": layout.evaluated,
                "normalisation": (
                    "refused" if layout.refused else layout.normalisation or "to be given"
                ),
                "that of a CIFAR stem": (
                    "-"
                    if layout.transformer
                    else "known"
                    if layout.cifar_normalisation
                    else "to be given"
                ),
            }
            for layout in LAYOUTS
        ]
        print(tabulate(rows, headers="keys"))


@dataclass(frozen=True)
class Fetch:
    """Downloads a published checkpoint; without a name, lists those that are known."""

    name: tyro.conf.Positional[str] = ""
    to: Path = Path("checkpoints")
    """folder"""

    def run(self) -> None:
        """Downloads, or lists."""
        from protobench.checkpoints import released

        if self.name:
            path = released.fetch(self.name, self.to)
            entry = released.catalogue()[self.name]
            print(f"{path}: {entry.title} ({entry.proof})")
            return
        print(released.listing())


@dataclass(frozen=True)
class Export:
    """Writes a checkpoint's backbone for other programs, and a model card beside it."""

    ckpt: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    layout: Literal["protobench", "torchvision", "timm", "moco", "mmdet", "detectron2"] = (
        "torchvision"
    )
    """whose names; torchvision and timm as .safetensors or .pth, protobench (with the projection
    head) as .safetensors, the others as .pth"""
    results: Path = Path("results")
    """folder with the records that score this checkpoint"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def run(self) -> None:
        """Loads, writes, verifies, and writes the card."""
        self._export(trust=False)

    def _export(self, *, trust: bool) -> None:
        from protobench.checkpoints import encoders, export
        from protobench.runtime import files

        if self.out.exists() and self.ckpt.exists() and self.out.samefile(self.ckpt):
            raise UserError(
                "this would overwrite the checkpoint itself",
                at=self.out,
                hint="choose another name",
            )
        encoder = encoders.load(self.ckpt, self.reading, trust=trust)
        print(encoder.summary())
        export.export(encoder, self.out, self.layout)
        card = self.out.with_name(self.out.name + ".md")
        files.write_text(card, export.card(encoder, self.out, self.layout, self.results))
        print(f"{self.out}: layout {self.layout}, read back, features equal; {card}: its card")


@dataclass(frozen=True)
class Convert(Export):
    """Does as export, for the rare file whose tensors only its own code can make: unpickles it."""

    trust: bool = False
    """yes, run whatever code the file holds, with your rights"""

    def run(self) -> None:
        """Exports with unpickling. Raises UserError without --trust."""
        if not self.trust:
            raise UserError(
                "convert unpickles the whole file, which runs whatever code it holds, with your"
                " rights",
                at=self.ckpt,
                hint=(
                    "hardly any file needs that: try export, which runs nothing. If that fails and"
                    " you trust where the file comes from, add --trust"
                ),
            )
        print(
            f"--trust: unpickling {self.ckpt}; any code in it runs now, with your rights",
            file=sys.stderr,
        )
        self._export(trust=True)


@dataclass(frozen=True)
class CheckData:
    """Reads whole data sets and says whether they are what was published. A stopped check resumes
    where it was."""

    data: tyro.conf.Positional[Path | None] = None
    """folder with imagenet/, VOCdevkit/, places205/ and CIFAR's folders, or one of these; without
    it the bundled synthetic data"""
    dataset: tuple[Literal[tuple(DATASETS)], ...] = ()  # type: ignore[valid-type]
    """only these; default all that are there"""
    workers: int = cores.usable()
    """threads that decode"""

    def run(self) -> int:
        """Prints the findings and returns the exit code."""
        from protobench.data import verify

        return verify.check(self.data, self.dataset, self.workers)


@dataclass(frozen=True)
class Cache:
    """Shows what the caches hold, by checkpoint and data, and trims them: features, decoded images
    and bundled data, all of which are made again when they are missing."""

    kind: tuple[str, ...] = ()
    """only these, such as features or worlds"""
    all: bool = False
    """print every line, not only the largest"""
    trim: bool = False
    """remove entries, by --older-than or --max-size or both; never one that a process is using"""
    older_than: str = ""
    """those last used longer ago: 12h, 30d, 8w"""
    max_size: str = ""
    """the least recently used ones, until no more than this is left: 500MB, 50GB"""
    dry_run: bool = False
    """say what would be removed, and remove nothing"""

    def run(self) -> int:
        """Shows or trims, and returns the exit code."""
        from protobench import cache
        from protobench.runtime import files

        if not self.trim:
            if self.older_than or self.max_size or self.dry_run:
                raise UserError(
                    "--older-than, --max-size and --dry-run say how to trim", hint="add --trim"
                )
            return cache.show(files.cache_dir(), self.kind, self.all)
        if not self.older_than and not self.max_size:
            raise UserError(
                "--trim needs to know what", hint="--older-than 30d, --max-size 50GB, or both"
            )
        return cache.trim(
            files.cache_dir(),
            self.kind,
            older_than=cache.seconds(self.older_than) if self.older_than else None,
            max_size=cache.size_of(self.max_size) if self.max_size else None,
            dry_run=self.dry_run,
        )


@dataclass(frozen=True)
class KeepCrops:
    """Keeps the centre crops of a data set decoded in the cache, from where E-steps and evaluations
    whose encoders take this input read them, to the same result. ImageNet's take 200 GB. A stopped
    run resumes where it was."""

    data: tyro.conf.Positional[Path]
    """folder of the data set, or the folder that holds it under its usual name"""
    dataset: Literal[tuple(DATASETS)] = "imagenet"  # type: ignore[valid-type]
    split: Literal["both", "train", "test"] = "both"
    resize: int = 256
    """pixels of the shorter side before the crop"""
    crop: int = 224
    """pixels of the crop's side"""
    warp: bool = False
    """resize the whole image to the crop's size (protocol goyal)"""
    skip_bad_images: int = 0
    """leave out up to this many images that cannot be decoded, as the runs that follow will"""

    def run(self) -> None:
        """Decodes and writes what is missing."""
        from protobench.data import crop_cache
        from protobench.data.transforms import EvalInput

        if self.resize < 1 or self.crop < 1:
            raise UserError("--resize and --crop are at least 1")
        input_ = EvalInput(self.resize, self.crop, warp=self.warp)
        train, test = DATASETS[self.dataset].read_both(self.data, self.skip_bad_images)
        for images in {"both": (train, test), "train": (train,), "test": (test,)}[self.split]:
            if crop_cache.keep(images, input_) is None:
                print(f"{images.name}: held in memory by every run, so no file is needed")


COMMANDS: Mapping[str, type[Command]] = {
    "inspect": Inspect,
    "layouts": Layouts,
    "fetch": Fetch,
    "export": Export,
    "convert": Convert,
    "check-data": CheckData,
    "cache": Cache,
    "keep-crops": KeepCrops,
}
