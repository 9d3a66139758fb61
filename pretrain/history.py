"""The records that a pretraining leaves of itself: ``course``, its losses and monitors by epoch
(PCL's Figures 3 and 4), and ``similarity``, the TP and FN similarity of its last epoch (SPCL's
Table 2).

The loop measures both as it trains (monitor.py, similarity.py) and writes them to ``course.json``
beside the encoder. Here they become records like those of evaluations, so that tables, figures and
pages are made from records alone. Encoders trained elsewhere have none."""

import json
from pathlib import Path
from typing import Any

from protobench import records
from protobench.checkpoints.identity import exported_key
from protobench.checkpoints.load_report import LoadReport
from protobench.data.image_list import ImageList
from protobench.records import ModelInfo, Record, ResultKey
from protobench.runtime.errors import UserError

SIMILARITIES = ("tp", "fn", "tp_release", "fn_release")
"""by the paper's text, and by the released code's reading (similarity.py)"""
KINDS = ("course", "similarity")
VERSION = 2
"""Raise when a record changes for an equal training."""


def is_monitored(ckpt: Path) -> bool:
    """Return whether the monitor measured the training beside ``ckpt`` from its beginning to its
    end. Methods without an embedding are not measured."""
    history = json.loads((ckpt.parent / "course.json").read_text())
    measured = [monitor["epochs"] for monitor in history["probes"]]
    return {0, len(history["epochs"])} <= set(measured)


def result_key(kind: str, encoder_key: str, images: ImageList, dataset: str) -> ResultKey:
    """Return what the record of this kind is found by: the run alone determines it."""
    return ResultKey(kind, dataset, VERSION, encoder_key, (images.fingerprint,), {})


def write(
    kind: str,
    ckpt: Path,
    images: ImageList,
    dataset: str,
    results: Path,
    model: ModelInfo | None = None,
) -> Path:
    """Write the record of a finished training and return its path.

    Raises UserError if there is no training history beside the encoder, or another run's, or one
    without what this kind needs, and if the encoder was not trained on ``images``."""
    from protobench.checkpoints import encoders

    encoder = encoders.load(ckpt)
    history = read(ckpt, encoder.report, images)
    content = _course(history, images) if kind == "course" else _similarity(history, ckpt)
    return records.write(
        results,
        result_key(kind, encoder.key, images, dataset),
        content.pop("runs"),
        model=model or ModelInfo.of(ckpt),
        checkpoint=encoder.report.to_json(),
        data=records.data_of(dataset, (images,)),
        **content,
    )


def read(ckpt: Path, report: LoadReport, images: ImageList) -> dict[str, Any]:
    """Return the training history beside an encoder: ``{"key", "epochs", "probes"}``; UserErrors as
    ``write`` raises them."""
    path, trained = ckpt.parent / "course.json", report.trained or {}
    if not path.is_file():
        raise UserError(
            "no training history beside this encoder",
            at=path,
            hint="only pretraining by this suite leaves one; delete the run folder to train again",
        )
    try:
        history: dict[str, Any] = json.loads(path.read_text())
        key, epochs = history["key"], trained["recipe"]["train"]["epochs"]
        if (
            not len(history["epochs"]) == history["probes"][-1]["epochs"] == epochs
            or not history["probes"][0]["clusters"]
        ):
            raise ValueError(f"{len(history['epochs'])} of {epochs} epochs")
    except (ValueError, LookupError, TypeError) as failure:
        raise UserError(
            "this is not the history of a finished training", at=path, hint="train again"
        ) from failure
    if key != exported_key(ckpt):
        raise UserError(
            "this training history belongs to another run than the encoder beside it",
            at=path,
            hint="train again",
        )
    if trained["data"] != images.fingerprint:
        raise UserError(
            f"this encoder was not trained on these images of {images.name}",
            at=ckpt,
            hint="give the --data and --dataset of its training",
        )
    return history


def _course(history: dict[str, Any], images: ImageList) -> dict[str, Any]:
    seconds = {
        name: sum(line["seconds"] for line in history[name]) for name in ("epochs", "probes")
    }
    return {
        "runs": history["epochs"],
        "probes": history["probes"],
        "metric": {
            "name": "loss",
            "unit": "nats",
            "higher_is_better": False,
            "test_images": len(images),
        },
        "cost": {
            "seconds": round(seconds["epochs"], 2),
            "probe_seconds": round(seconds["probes"], 2),
        },
    }


def _similarity(history: dict[str, Any], ckpt: Path) -> dict[str, Any]:
    last = history["epochs"][-1]
    if not measures_similarity(history):
        raise UserError(
            "TP and FN similarity were not measured when this encoder was trained",
            at=ckpt,
            hint="SimCLR and SPCL measure them, on images of several classes",
        )
    return {
        "runs": [
            {
                "draw": 0,
                "value": last["tp"],
                **{name: last[name] for name in SIMILARITIES[1:] if name in last},
            }
        ],
        "epoch": last["epoch"],
        "metric": {"name": "TP similarity", "unit": "cosine", "higher_is_better": True},
        "cost": {"seconds": 0.0},
    }


def measures_similarity(history: dict[str, Any]) -> bool:
    """Return whether the training measured TP and FN similarity."""
    return {"tp", "fn"} <= set(history["epochs"][-1])


def report(record: Record) -> str:
    """Return a ``course`` record as text: the monitors by epoch."""
    monitors, last, cost = record["probes"], record["runs"][-1], record["cost"]
    ks = sorted(monitors[0]["clusters"], key=int)
    lines = [
        f"{len(record['runs'])} epochs, last loss {last['loss']:.3f}; monitors took"
        f" {cost['probe_seconds']:.1f} of {cost['seconds'] + cost['probe_seconds']:.1f} s; mutual"
        f" information in nats, at most {monitors[0]['upper_bound']:.2f}",
        "epochs   MI(features)" + "".join(f"{f'AMI K={k}':>14}{'MI':>8}" for k in ks),
    ]
    for monitor in monitors:
        clusters = [monitor["clusters"][k] for k in ks]
        lines.append(
            f"{monitor['epochs']:<9}{monitor['feature_mi']:12.3f}"
            + "".join(f"{found['ami']:14.3f}{found['mi']:8.3f}" for found in clusters)
        )
    return "\n".join(lines)
