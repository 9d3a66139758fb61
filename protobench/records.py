"""Results: one JSON file per (encoder, evaluation, data, parameters), written once and verified
whenever it is read.

A record holds one value per run (for low-shot SVMs: per k and draw) and everything needed to judge
it. Averages belong to tables."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from protobench.data import published
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import files
from protobench.runtime.errors import UserError, decodable, printable

SCHEMA = 1
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "faiss-gpu",
    "liblinear-official",
    "scikit-learn",
    "pillow",
    "mmdet",
    "mmcv-lite",
    "pycocotools",
    "opencv-python-headless",
    "timm",
)

CPU_INFO = Path("/proc/cpuinfo")

Run = dict[str, Any]
"""One value of a record with what it belongs to: ``{"draw": 0, "value": 46.9, ...}``."""


@dataclass(frozen=True)
class ResultKey:
    """What was computed, apart from whose encoder it is; a record is found by it."""

    evaluation: str
    data_name: str
    version: int
    """version of the evaluation"""
    encoder: str
    """the encoder's key"""
    data: tuple[str, ...]
    """fingerprints of the lists of images"""
    params: Mapping[str, Any]
    """every parameter that determines the result"""

    def to_json(self) -> dict[str, Any]:
        """Return the field ``unit`` of a record."""
        return dict(vars(self))


@dataclass(frozen=True)
class ModelInfo:
    """Whose encoder a record is about."""

    row: str
    """the table's row, or the file's name"""
    seed: int | None = None
    """seed of pretraining"""
    source: str = ""
    """"retrained", "released checkpoint ..." (the paper's own encoder), or another file"""
    recipe: str | None = None
    """equal for encoders whose scores may be averaged"""

    @staticmethod
    def of(ckpt: Path) -> "ModelInfo":
        """Return what is known of a checkpoint that belongs to no table."""
        name = printable(ckpt.name)
        return ModelInfo(name.split(".")[0], None, name, None)

    def to_json(self) -> dict[str, Any]:
        """Return the field ``subject`` of a record."""
        return dict(vars(self))


Record = dict[str, Any]
"""A record as it is read: the JSON itself, since its hash covers every byte. All have record_id,
schema, unit (a ResultKey), subject (a ModelInfo), runs, code, environment, finished, metric,
checkpoint, data and cost; some have warnings; evaluations add fields of their own."""


def write(
    folder: Path,
    result: ResultKey,
    runs: list[Run],
    *,
    model: ModelInfo,
    warnings: Sequence[str] = (),
    **rest: Any,
) -> Path:
    """Write ``folder/<row>-<seed>-<evaluation>-<data>-<id>.json`` atomically and return its path.

    runs: one dictionary per value. warnings: what is doubtful about the values, if anything; empty
    strings are ignored. rest: metric, checkpoint, data, cost and whatever else a reader needs."""
    content = {
        "schema": SCHEMA,
        "unit": result.to_json(),
        "subject": model.to_json(),
        "runs": runs,
        "code": _code(),
        "environment": environment(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **rest,
    }
    if odd := list(dict.fromkeys(filter(None, warnings))):
        content["warnings"] = odd
    content = json.loads(
        files.canonical_json(content)
    )  # as it will be read: tuples become lists before hashing
    record = {"record_id": files.sha256(content), **content}
    name = stem(model.row, model.seed, result.evaluation, result.data_name)
    path = folder / f"{name}-{record['record_id'][:12]}.json"
    files.write_text(path, _readable(record))
    return path


def stem(row: str, seed: int | None, evaluation: str, data_name: str) -> str:
    """Return how the name of a record's file begins; a row may have characters that no file name
    can."""
    parts = [files.file_name(row), seed, evaluation, data_name]
    return "-".join(str(part) for part in parts if part is not None)


def require_writable(folder: Path) -> None:
    """Raise UserError if no record could be written into ``folder``: before the work, not after."""
    nearest = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "may not be written to" if nearest.is_dir() else "is no folder"
        raise UserError(
            f"the results cannot be written: {nearest} {why}",
            at=folder,
            hint="name another folder: --results",
        )


def data_of(name: str, lists: tuple[ImageList, ...], **more: Any) -> dict[str, Any]:
    """Return what a record says about its data; the training images come first in ``lists``.

    Whether they are the bundled synthetic data, or differ from the data set as published, is
    detected from the images themselves."""
    left_out = [
        decodable(f"{images.name}/{path}") for images in lists for path in images.unreadable
    ]
    told: dict[str, Any] = {}
    embedded = bundled.holds(lists[0].classes)
    if embedded and (world := bundled.world_of(lists[0].root)) is not None:
        told |= {"world": world, "kind_of_world": bundled.kind_of(lists[0].root)}
    if left_out:
        told["unreadable"] = {"count": len(left_out), "sha256": files.sha256(left_out)}
    if lists[0].rehearsed_of:
        told["rehearsal"] = {"of": lists[0].rehearsed_of}
    if odd := list(
        dict.fromkeys(text for images in lists for text in published.departures(images))
    ):
        told["departures"] = odd
    return {
        "name": name,
        "embedded": embedded,
        "classes": len(lists[0].classes),
        "train_images": len(lists[0]),
        **told,
        **more,
    }


def _readable(record: dict[str, Any]) -> str:
    """Return JSON with one line per field and per run: short enough to read, and a diff shows which
    run changed."""
    fields = []
    for key, value in record.items():
        shown = json.dumps(value, ensure_ascii=False)
        if key == "runs":
            shown = (
                "[\n  " + ",\n  ".join(json.dumps(run, ensure_ascii=False) for run in value) + "]"
            )
        fields.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def read(path: Path) -> Record:
    """Read a record. Raises UserError if it is damaged, has another schema, or was edited after it
    was written."""
    try:
        record = json.loads(path.read_text())
        record_id = record.pop("record_id")
        schema, content_id = record["schema"], files.sha256(record)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as failure:
        raise UserError(
            "not a result record", at=path, hint="delete it; the next run makes it again"
        ) from failure
    if schema != SCHEMA:
        raise UserError(f"record of schema {schema}, this version reads {SCHEMA}", at=path)
    if content_id != record_id:
        raise UserError(
            "this record was changed after it was written: its content does not match its"
            " record_id",
            at=path,
            hint="records are never edited; delete the file and the next run computes it again",
        )
    if lacking := [name for name in ("unit", "subject", "runs", "finished") if name not in record]:
        raise UserError(f"not a result record: it has no {' or '.join(lacking)}", at=path)
    return {"record_id": record_id, **record}


def read_all(folder: Path, refused: Callable[[UserError], None] | None = None) -> dict[str, Record]:
    """Read all records of a folder, by their key; the newest where something was computed twice.

    What cannot be taken for a record raises UserError, or is told to ``refused`` and left out."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if path.is_file():
            try:
                found.append(read(path))
            except UserError as mistake:
                if refused is None:
                    raise
                refused(mistake)
    return {
        key(record["unit"], record["subject"]): record
        for record in sorted(found, key=lambda record: record["finished"])
    }


def key(unit: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    """Return the identity of a record: what was computed, and for which row and seed."""
    return files.sha256([unit, subject["row"], subject["seed"]])


def find(folder: Path, result: ResultKey, model: ModelInfo) -> Path | None:
    """Return the path of the record of this result in a folder, if there is one."""
    wanted = key(result.to_json(), model.to_json())
    for path in sorted(folder.glob(f"*-{result.evaluation}-{result.data_name}-*.json")):
        record = read(path)
        if key(record["unit"], record["subject"]) == wanted:
            return path
    return None


@cache
def _code() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(git("status", "--porcelain", "-uno").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def commit() -> str:
    """Return the commit of the code that runs, and whether it was changed since."""
    found = _code()
    return f"{(found['commit'] or 'unknown')[:12]}{' with changes' if found['dirty'] else ''}"


def processor() -> str | None:
    """Return the processor's model name, where the system tells it."""
    if CPU_INFO.is_file():
        names = re.findall(
            r"^model name[ \t]*:[ \t]*(.*\S)", CPU_INFO.read_text(errors="replace"), re.MULTILINE
        )
        return names[0] if names else None
    if platform.system() == "Darwin":
        try:
            told = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                check=True,
            )
            return told.stdout.strip() or None
        except (OSError, subprocess.CalledProcessError):
            return None
    return platform.processor() or None


@cache
def environment() -> dict[str, Any]:
    """Return versions and hardware, without names of users, hosts or folders."""
    import torch

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
