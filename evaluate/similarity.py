"""TP and FN similarity at the end of a pretraining (SPCL's Table 2): how near views of an image
lie, how near images of a class.

Examples:

    python evaluate/similarity.py --ckpt runs/spcl-0/encoder.safetensors

Nothing is computed: SimCLR and SPCL measure this on the batches they train on
(pretrain/similarity.py has the definition), every epoch, and leave it in course.json beside the
encoder. Here the last epoch becomes a record. Encoders trained elsewhere have none."""

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
from protobench.runtime.errors import UserError

VERSION = 1
"""Raise when the record changes for an equal course."""


@dataclass(frozen=True)
class Config:
    """TP and FN similarity of the last epoch."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """an encoder.safetensors that this suite trained by SimCLR or SPCL, in its run folder"""
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
        "evaluation": "similarity",
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
    last = training_history.read(config.ckpt, encoder.report, lists[0])["epochs"][-1]
    if not {"tp", "fn"} <= last.keys():
        raise UserError(
            "TP and FN similarity were not measured when this encoder was trained",
            at=config.ckpt,
            hint=(
                "SimCLR and SPCL measure them, on images of several classes; if it is older than"
                " that, delete its run folder and train it again"
            ),
        )
    return records.write(
        config.results,
        unit(encoder.key, lists, config),
        [{"draw": 0, "value": last["tp"], "fn": last["fn"]}],
        subject=subject or records.subject_of(config.ckpt),
        checkpoint=encoder.report.to_json(),
        epoch=last["epoch"],
        metric={"name": "TP similarity", "unit": "cosine", "higher_is_better": True},
        data=records.data_of(config.dataset, lists),
        cost={"seconds": 0.0},
    )


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    (run,) = record["runs"]
    lines = [
        f"after g_c, on the training batches of the last of {record['epoch'] + 1} epochs,"
        f" {record['data']['name']}:"
    ]
    if record["data"]["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    return "\n".join(
        [
            *lines,
            f"TP similarity (two views of an image)        {run['value']:.3f}",
            f"FN similarity (two images of a true class)   {run['fn']:.3f}",
        ]
    )


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
