"""What a pretraining left of itself beside its encoder: ``course.json``, losses by epoch and probes
on the way."""

import json
from pathlib import Path
from typing import Any

from protobench.checkpoints import identity
from protobench.checkpoints.load_report import LoadReport
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError


def read(ckpt: Path, report: LoadReport, images: ImageList) -> dict[str, Any]:
    """The course beside an encoder: ``{"key", "epochs", "probes"}``. UserError where there is none,
    another run's, or one that misses its end, and where the encoder was trained on other images
    than these."""
    path = ckpt.parent / "course.json"
    if not path.is_file():
        raise UserError(
            "no course beside this encoder",
            at=path,
            hint=(
                "only pretraining by this suite leaves one; if this is "
                "older than probes, delete its run folder and train it again"
            ),
        )
    trained = report.trained or {}
    try:
        course = json.loads(path.read_text())
        key, epochs = course["key"], trained["recipe"]["train"]["epochs"]
        if (
            not len(course["epochs"]) == course["probes"][-1]["epochs"] == epochs
            or not course["probes"][0]["clusters"]
        ):
            raise ValueError(f"{len(course['epochs'])} of {epochs} epochs")
    except (ValueError, LookupError, TypeError) as failure:
        raise UserError(
            "this is no course of a pretraining", at=path, hint="train the encoder again"
        ) from failure
    if key != identity.exported_key(ckpt):
        raise UserError(
            "this course is another run's, not of the encoder beside it",
            at=path,
            hint="train the encoder again",
        )
    if trained["data"] != images.fingerprint:
        raise UserError(
            f"this encoder was not trained on these images of {images.name}",
            at=ckpt,
            hint="give the --data and --dataset of its training",
        )
    return course
