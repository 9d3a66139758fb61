"""Results: one JSON file per (encoder, evaluation, data, parameters), written once, verified
whenever it is read.

A record holds one value per run (here: per k and draw) and everything needed to judge it. Averages
belong to tables."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
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
)

CPU_INFO = Path("/proc/cpuinfo")


def write(
    folder: Path,
    unit: dict[str, Any],
    runs: list[dict[str, Any]],
    *,
    subject: dict[str, Any],
    warnings: Sequence[str] = (),
    **rest: Any,
) -> Path:
    """Writes ``folder/<row>-<seed>-<evaluation>-<data>-<id>.json`` atomically and returns its path.

    unit: what was computed, the key under which it is found again. runs: one dict per value.
    subject: whose encoder (row, seed, source). warnings: what is doubtful about the values, if
    anything. rest: checkpoint, data, metric, cost and whatever else a reader needs."""
    content = {
        "schema": SCHEMA,
        "unit": unit,
        "subject": subject,
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
    parts = [subject["row"], subject["seed"], unit["evaluation"], unit["data_name"]]
    name = "-".join(str(part) for part in parts if part is not None)
    path = folder / f"{name}-{record['record_id'][:12]}.json"
    files.write_text(path, _readable(record))
    return path


def require_writable(folder: Path) -> None:
    """UserError where no record could be written into ``folder``: before the work, not after it."""
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


def subject_of(ckpt: Path) -> dict[str, Any]:
    """What a record says of a checkpoint that belongs to no table."""
    name = printable(ckpt.name)
    return {"row": name.split(".")[0], "seed": None, "source": name, "recipe": None}


def data_of(name: str, lists: tuple[ImageList, ...], **more: Any) -> dict[str, Any]:
    """What a record says of its data; the training images come first in ``lists``. Whether they are
    the embedded data, or not as published, is told by what they are."""
    left_out = [
        decodable(f"{images.name}/{path}") for images in lists for path in images.unreadable
    ]
    told: dict[str, Any] = {}
    if left_out:
        told["unreadable"] = {"count": len(left_out), "sha256": files.sha256(left_out)}
    if odd := list(
        dict.fromkeys(text for images in lists for text in published.departures(images))
    ):
        told["departures"] = odd
    return {
        "name": name,
        "embedded": bundled.holds(lists[0].classes),
        "classes": len(lists[0].classes),
        "train_images": len(lists[0]),
        **told,
        **more,
    }


def _readable(record: dict[str, Any]) -> str:
    """JSON with one line per field and per run: short enough to read, and a diff shows which run
    changed."""
    fields = []
    for key, value in record.items():
        shown = json.dumps(value, ensure_ascii=False)
        if key == "runs":
            shown = (
                "[\n  " + ",\n  ".join(json.dumps(run, ensure_ascii=False) for run in value) + "]"
            )
        fields.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def read(path: Path) -> dict[str, Any]:
    """One record. UserError where it is damaged, of another schema, or was edited after it was
    written."""
    try:
        record = json.loads(path.read_text())
        record_id = record.pop("record_id")
        schema = record["schema"]
    except (ValueError, KeyError, AttributeError, TypeError) as failure:
        raise UserError(
            "not a result record", at=path, hint="delete it; the next run makes it again"
        ) from failure
    if schema != SCHEMA:
        raise UserError(f"record of schema {schema}, this version reads {SCHEMA}", at=path)
    if files.sha256(record) != record_id:
        raise UserError(
            "this record was changed after it was written: its content does not match its"
            " record_id",
            at=path,
            hint="records are never edited; delete the file and the next run computes it again",
        )
    return {"record_id": record_id, **record}


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """All records of a folder by their key; the newest where something was computed twice."""
    found = (
        [read(path) for path in sorted(folder.glob("*.json")) if path.is_file()]
        if folder.is_dir()
        else []
    )
    return {
        key(record["unit"], record["subject"]): record
        for record in sorted(found, key=lambda record: record["finished"])
    }


def key(unit: dict[str, Any], subject: dict[str, Any]) -> str:
    """Identity of a record: what was computed, and for which row and seed."""
    return files.sha256([unit, subject["row"], subject["seed"]])


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
    """Of the code that runs, for a reader."""
    found = _code()
    return f"{(found['commit'] or 'unknown')[:12]}{' with changes' if found['dirty'] else ''}"


def processor() -> str | None:
    """The processor's model name, as far as the system tells."""
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
    """Versions and hardware, without names of users, hosts or folders."""
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
