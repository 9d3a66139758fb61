"""Checkpoints: what is in one, getting a published one, writing one for other programs. Data:
whether it is whole.

Examples:

    python -m protobench inspect moco_v1_200ep_pretrain.pth.tar  # what an evaluation would load, or why it would not
    python -m protobench layouts  # where each code base keeps its backbone
    python -m protobench fetch  # the published files that are known
    python -m protobench fetch pcl-v2  # downloads it into checkpoints/
    python -m protobench export encoder.safetensors out.pth --layout detectron2
    python -m protobench convert --trust old.pth.tar out.safetensors  # runs the file's code; hardly any file needs it
    python -m protobench check-data /data  # counts, classes, every image decoded; resumable
    python -m protobench doctor  # what this machine and its installation lack

export and convert take the flags of an evaluation too: --weights, --prefix, --normalisation, …
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from protobench import doctor
from protobench.runtime import cli
from protobench.runtime.errors import UserError

if __name__ == "__main__" and sys.argv[1:2] == [
    "doctor"
]:  # before the imports below, of packages that may be broken
    cli.run(lambda: doctor.main(sys.argv[2:]))

import tyro

from protobench.checkpoints.layouts import LoadOptions
from protobench.data.datasets import DATASETS


@dataclass(frozen=True)
class Inspect:
    """What an evaluation would load from a checkpoint."""

    ckpt: tyro.conf.Positional[Path]
    json: bool = False
    """the whole report, as records keep it"""
    reading: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class Fetch:
    """Downloads a published checkpoint; without a name, lists those that are known."""

    name: tyro.conf.Positional[str] = ""
    to: Path = Path("checkpoints")
    """folder"""


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
    """where records are looked for that score this checkpoint"""
    reading: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class Convert(Export):
    """As export, for the rare file whose tensors only its own code can make: unpickles it whole."""

    trust: bool = False
    """yes, run whatever code the file holds, with your rights"""


@dataclass(frozen=True)
class CheckData:
    """Reads whole data sets and says whether they are what was published. A stopped check goes on
    where it was."""

    data: tyro.conf.Positional[Path | None] = None
    """folder with imagenet/, VOCdevkit/, places205/ and CIFAR's folders, or one of these; without
    it the embedded data"""
    dataset: tuple[Literal[tuple(DATASETS)], ...] = ()  # type: ignore[valid-type]
    """only these; default all that are there"""
    workers: int = os.cpu_count() or 1
    """threads that decode"""


def layouts() -> None:
    """Prints the list of layouts."""
    from tabulate import tabulate

    from protobench.checkpoints.layouts import LAYOUTS

    rows = []
    for layout in LAYOUTS:
        home = layout.containers[0]
        rows.append(
            [
                layout.origin,
                home + layout.query,
                layout.momentum and home + layout.momentum,
                layout.evaluated,
                "refused" if layout.refused else layout.normalisation,
                "known" if layout.cifar_normalisation else "asked",
            ]
        )
    print(
        tabulate(
            rows,
            headers=[
                "origin",
                "query copy under",
                "momentum copy under",
                "evaluated",
                "normalisation",
                "that of a CIFAR stem",
            ],
        )
    )


def inspect(config: Inspect) -> None:
    """Prints what an evaluation would load."""
    from protobench.checkpoints import encoders

    encoder = encoders.load(config.ckpt, config.reading)
    print(
        json.dumps(encoder.report.to_json(), indent=1, ensure_ascii=False)
        if config.json
        else encoder.summary()
    )


def fetch(config: Fetch) -> None:
    """Downloads, or lists."""
    from protobench.checkpoints import released

    if config.name:
        path = released.fetch(config.name, config.to)
        print(
            f"{path}: {released.catalogue()[config.name].title}"
            f" ({released.catalogue()[config.name].proof})"
        )
        return
    for entry in released.catalogue().values():
        print(f"{entry.name:<16} {entry.title}; {entry.proof}; {entry.page}")


def export(config: Export) -> None:
    """Loads, writes, verifies, and writes the card."""
    from protobench.checkpoints import encoders
    from protobench.checkpoints import export as writing
    from protobench.runtime import files

    trust = isinstance(config, Convert)
    if trust:
        if not config.trust:  # type: ignore[attr-defined]
            raise UserError(
                "convert unpickles the whole file, which runs whatever code it holds, with your"
                " rights",
                at=config.ckpt,
                hint=(
                    "hardly any file needs that: try export, which runs nothing. If that fails and "
                    "you trust where the file comes from, add --trust"
                ),
            )
        print(
            f"--trust: unpickling {config.ckpt}; any code in it runs now, with your rights",
            file=sys.stderr,
        )
    if config.out.exists() and config.ckpt.exists() and config.out.samefile(config.ckpt):
        raise UserError(
            "this would overwrite the checkpoint itself", at=config.out, hint="choose another name"
        )
    encoder = encoders.load(config.ckpt, config.reading, trust=trust)
    print(encoder.summary())
    writing.export(encoder, config.out, config.layout)
    card = config.out.with_name(config.out.name + ".md")
    files.write_text(card, writing.card(encoder, config.out, config.layout, config.results))
    print(f"{config.out}: layout {config.layout}, read back, features equal; {card}: its card")


def main() -> int:
    """The command line."""
    command, args = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command in ("-h", "--help"):
        print(__doc__)
        return cli.SAME
    match cli.choose(
        "command",
        command,
        ("inspect", "layouts", "fetch", "export", "convert", "check-data", "doctor"),
    ):
        case "layouts":
            layouts()
        case "inspect":
            inspect(cli.parse(Inspect, __doc__ or "", args))
        case "fetch":
            fetch(cli.parse(Fetch, __doc__ or "", args))
        case "export":
            export(cli.parse(Export, __doc__ or "", args))
        case "convert":
            export(cli.parse(Convert, __doc__ or "", args))
        case "check-data":
            from protobench.data import verify

            config = cli.parse(CheckData, __doc__ or "", args)
            return verify.check(config.data, config.dataset, config.workers)
        case "doctor":
            return doctor.main(args)
    return cli.SAME


if __name__ == "__main__":
    cli.run(main)
