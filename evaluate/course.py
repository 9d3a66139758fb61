"""The course of a pretraining: losses, and how clusters and embeddings agreed with the classes on
the way (PCL's Figures 3, 4).

Examples:

    python evaluate/course.py --ckpt runs/pcl-0/encoder.safetensors

Nothing is computed: pretraining measures this as it goes (pretrain/monitor.py) and leaves it in
course.json beside the encoder. Here it becomes a record, so that figures and pages can be made from
records alone. Encoders trained elsewhere have none."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from protobench import records, training_history
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import pretraining
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli

VERSION = 1
"""Raise when the record changes for an equal course."""


@dataclass(frozen=True)
class Config:
    """The course of a pretraining."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """an encoder.safetensors that this suite trained, in its run folder"""
    data: Path | None = None
    """the folder with the images it was trained on; without it the embedded ones"""
    dataset: Literal["imagenet", "cifar10", "cifar100"] = "imagenet"
    """of these, which"""
    skip_bad_images: int = 0
    """as in its pretraining"""
    device: str = "auto"
    """unused, as is workers: they are those of every evaluation"""
    workers: int = 0
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """What determines the record: the run alone."""
        return {}


def data_lists(
    data: Path | None, dataset: str = "imagenet", skip_bad_images: int = 0
) -> tuple[ImageList]:
    """The training images; the embedded ones where ``data`` is None. See Config for
    ``skip_bad_images``."""
    return (pretraining.images(data or bundled.ensure(), dataset, skip_bad_images),)


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "course",
        "data_name": config.dataset,
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Reads the course and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py."""
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed

    distributed.init("cpu")
    if not distributed.is_main():  # there is nothing to share
        return None
    encoder = encoders.load(config.ckpt, config.reading)
    print(encoder.summary())
    lists = data_lists(config.data, config.dataset, config.skip_bad_images)
    course = training_history.read(config.ckpt, encoder.report, lists[0])
    return records.write(
        config.results,
        unit(encoder.key, lists, config),
        course["epochs"],
        probes=course["probes"],
        subject=subject or records.subject_of(config.ckpt),
        checkpoint=encoder.report.to_json(),
        metric={
            "name": "loss",
            "unit": "nats",
            "higher_is_better": False,
            "test_images": len(lists[0]),
        },
        data=records.data_of(config.dataset, lists),
        cost={
            "seconds": round(sum(line["seconds"] for line in course["epochs"]), 2),
            "probe_seconds": round(sum(line["seconds"] for line in course["probes"]), 2),
        },
    )


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    probes, last = record["probes"], record["runs"][-1]
    ks = sorted(probes[0]["clusters"], key=int)
    lines = [
        f"{len(record['runs'])} epochs, last loss {last['loss']:.3f}; probes took"
        f" {record['cost']['probe_seconds']:.1f} of"
        f" {record['cost']['seconds'] + record['cost']['probe_seconds']:.1f} s; mutual information"
        f" in nats, at most {probes[0]['upper_bound']:.2f}"
    ]
    if record["data"]["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    lines.append("epochs   MI(features)" + "".join(f"{f'AMI K={k}':>14}{'MI':>8}" for k in ks))
    lines += [
        f"{probe['epochs']:<9}{probe['feature_mi']:12.3f}"
        + "".join(
            f"{probe['clusters'][k]['ami']:14.3f}{probe['clusters'][k]['mi']:8.3f}" for k in ks
        )
        for probe in probes
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
