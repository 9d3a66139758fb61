"""Folders of records, one's own and others', for the leaderboard: every file is verified, and what
cannot be taken is listed with the reason, so that the rest goes on.

Verified means that a record is whole, unedited since it was written, and of this version of its
evaluation. It does not mean that its number is right: whoever writes a record can write any number,
and only scoring the checkpoint again tells."""

import math
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import evaluate
from pretrain import history
from protobench import outcomes, records
from protobench.records import Record
from protobench.runtime.errors import UserError, printable
from tables.engine.jobs import plan
from tables.engine.schema import TIERS
from tables.engine.scoring.standings import LABELS

SHA256 = re.compile("[0-9a-f]{64}")
WORDS: dict[type, str] = {
    str: "text",
    dict: "dictionary",
    list: "list",
    bool: "truth value",
}
SHAPE: dict[str, type] = {
    "unit.data_name": str,
    "unit.params": dict,
    "subject.row": str,
    "subject.source": str,
    "checkpoint.file": str,
    "checkpoint.arch": str,
    "checkpoint.origin": str,
    "checkpoint.input": dict,
    "metric.name": str,
    "metric.unit": str,
    "metric.higher_is_better": bool,
    "data.embedded": bool,
    "runs": list,
    "environment": dict,
    "code": dict,
    "cost": dict,
    "finished": str,
}
"""What the pages show of every record."""
SHAPE_WHERE_PRESENT: dict[str, type] = {
    "data.departures": list,
    "data.unreadable": dict,
    "checkpoint.dropped": list,
    "checkpoint.input_fit": dict,
    "warnings": list,
}
LEFT_OUT_TIERS = ("quick",)
"""Their encoders were trained for one epoch, to test the plumbing."""


@dataclass(frozen=True)
class LeftOut:
    """A file that the leaderboard does not show, and why."""

    file: Path
    reason: str


@dataclass(frozen=True)
class Submissions:
    """What the folders hold."""

    scores: dict[Path, Record]
    histories: dict[Path, Record]
    """what pretrainings recorded of themselves (pretrain/history.py)"""
    refused: tuple[LeftOut, ...]
    """damaged, edited, or of another version"""
    rehearsals: int
    """records of a rehearsal, which are no scores"""


def folders_in(folder: Path) -> list[Path]:
    """Return the folders of records that a user means by ``folder``: itself, or, of a results
    folder, scores/ and each tier's records/. Raises UserError where there is none."""
    places = [
        folder,
        folder / "records",
        folder / "scores",
        *(folder / tier / "records" for tier in TIERS if tier not in LEFT_OUT_TIERS),
    ]
    if found := [place for place in places if any(place.glob("*.json"))]:
        return found
    raise UserError(
        "no records in this folder" if folder.is_dir() else "no such folder",
        at=folder,
        hint="records are JSON files: those in scores/ and <tier>/records/ of a results folder",
    )


def read(folders: Iterable[Path]) -> Submissions:
    """Read and verify every JSON file in ``folders``. A record that lies in several counts once."""
    scores: dict[Path, Record] = {}
    histories: dict[Path, Record] = {}
    refused: list[LeftOut] = []
    seen: set[str] = set()
    rehearsals = 0
    paths = (path for folder in folders for path in sorted(folder.glob("*.json")))
    for path in filter(Path.is_file, paths):
        try:
            record = _verified(path)
        except UserError as mistake:
            refused.append(LeftOut(path, printable(mistake.what)))
            continue
        if record["record_id"] in seen:
            continue
        seen.add(record["record_id"])
        if "rehearsal" in record["data"]:
            rehearsals += 1
        elif record["unit"]["evaluation"] in history.KINDS:
            histories[path] = record
        else:
            scores[path] = record
    return Submissions(scores, histories, tuple(refused), rehearsals)


def _verified(path: Path) -> Record:
    """Read a record that has everything the leaderboard shows. UserError with the reason."""
    try:
        record = records.read(path)
        _check(record)
    except OSError as failure:
        raise UserError(f"cannot be read: {failure.strerror or failure}") from failure
    except LookupError as failure:
        raise UserError(f"not a record of this version: it lacks {failure}") from failure
    except (ValueError, OverflowError) as failure:
        raise UserError(f"not a record of this version: {failure}") from failure
    except (TypeError, AttributeError) as failure:
        raise UserError("not a record of this version: a part is of another kind") from failure
    return record


def _check(record: Record) -> None:
    """Raise UserError, or whatever an absent or odd field makes, if a record cannot be shown."""
    unit, checkpoint = record["unit"], record["checkpoint"]
    name, version = unit["evaluation"], unit["version"]
    if (known := _version(name)) is None:
        raise UserError(f"this version has no evaluation {str(name)[:40]!r}")
    if version != known:
        raise UserError(f"of version {version} of {name}; this one is version {known}")
    for digest in (unit["encoder"], checkpoint["sha256"], *unit["data"]):
        fits = isinstance(digest, str) and SHA256.fullmatch(digest)
        _require(bool(fits), f"{str(digest)[:40]!r} is no SHA-256")
    for place, kind in SHAPE.items():
        what, _, field = place.partition(".")
        part = record[what][field] if field else record[what]
        _require(type(part) is kind, f"{place} is no {WORDS[kind]}")
    for place, kind in SHAPE_WHERE_PRESENT.items():
        what, _, field = place.partition(".")
        part = record[what].get(field, kind()) if field else record.get(what, kind())
        _require(type(part) is kind, f"{place} is no {WORDS[kind]}")
    for number in (record["subject"]["seed"], record["data"].get("world")):
        _require(number is None or type(number) is int, "a seed or a world is no whole number")
    _number(checkpoint["input"]["crop"])
    _number(record["data"].get("unreadable", {}).get("count", 0))
    if name == "course":
        _check_course(record)
    elif name not in history.KINDS:
        _require(bool(record["runs"]), "there are no runs")
        images = record["metric"]["test_images"]
        _require(type(images) is int, "metric.test_images is no whole number")
        for run in record["runs"]:
            _number(run["draw"])
            _number(run["value"])
            for label in LABELS:
                if run.get(label) is not None:
                    _number(run[label])
            outcomes.of_run(run, images)


def _check_course(record: Record) -> None:
    _require(bool(record["runs"]), "there are no epochs")
    for run in record["runs"]:
        _number(run["epoch"])
        _number(run["loss"])
    for probe in record["probes"]:
        _number(probe["epochs"])
        for clusters in probe["clusters"].values():
            _number(clusters["ami"])


def _number(value: Any) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(good, f"{str(value)[:40]!r} is no number")


def _require(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise ValueError(otherwise)


@cache
def _version(name: str) -> int | None:
    """Return the version of an evaluation, or of a history; None if there is none of this name."""
    if name in history.KINDS:
        return history.VERSION
    if name not in {module.name for module in pkgutil.iter_modules(evaluate.__path__)}:
        return None
    try:
        return plan.evaluation(name).version
    except (AttributeError, ImportError):  # a module that is no evaluation, or an absent extra
        return None
