"""What identifies a checkpoint: its SHA-256, the hashes published with it, and its key in records
and caches. Imports no torch."""

import hashlib
import json
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

from protobench.runtime import files
from protobench.runtime.errors import UserError

HASH_IN_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8}|[0-9a-f]{64})\.")
"""torch.hub's convention: resnet50-0676ba61.pth. Eight decimal digits alone are a date."""
EMPTY = hashlib.sha256().hexdigest()
"""One publisher puts this, the hash of an empty file, into file names."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, computed once per process as long as the file does not change."""
    stat = path.stat()
    return _sha256_of(
        path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    )


@cache
def _sha256_of(path: Path, *_version: int) -> str:
    return files.sha256_file(path)


def encoder_key(path: Path) -> str:
    """The key of the encoder that a file holds, loaded with default options: the one in the header
    if this suite exported the file, otherwise the file's SHA-256."""
    return exported_key(path) or sha256_of(path)


def exported_key(path: Path) -> str | None:
    """The key in the header of an encoder that this suite exported; None for any other file."""
    key = exported_as(path).get("key")
    return key if isinstance(key, str) else None


def exported_as(path: Path) -> dict[str, Any]:
    """What the header of an encoder that this suite exported says of it; empty for any other
    file."""
    try:
        told = json.loads(safetensors_metadata(path)["protobench"])
    except (ValueError, LookupError, TypeError):
        return {}
    return told if isinstance(told, dict) else {}


def safetensors_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, read without its tensors; empty for any other or a
    truncated file."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(length)) if length < size else {}
        metadata = content.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
        return metadata if isinstance(metadata, dict) and size == 8 + length + end else {}
    except (OSError, ValueError, LookupError, TypeError, struct.error, AttributeError):
        return {}


def check_published_hashes(path: Path, given: str | None) -> bool:
    """Compares the file's SHA-256 with every one that is known: ``given`` on the command line, in
    a .sha256 file beside it, or in its name. Returns whether there is any.

    Raises UserError if one differs or is malformed."""
    known = {"--sha256": given} if given else {}
    if (beside := path.with_name(path.name + ".sha256")).is_file():
        known[beside.name] = _hash_in(beside.read_text(errors="replace"), path.name)
    if (named := HASH_IN_NAME.search(path.name)) and not given and not EMPTY.startswith(named[1]):
        known["its name"] = named[1]
    for where, digest in known.items():
        if not re.fullmatch("[0-9a-f]{6,64}", digest.lower()):
            raise UserError(
                f"{where} gives no SHA-256: {digest[:70]!r}",
                at=path,
                hint="6 to 64 hexadecimal digits",
            )
        if not sha256_of(path).startswith(digest.lower()):
            hint = "the file is damaged, or not the one you expect"
            if where == "its name":
                hint += "; if those digits are no hash, rename the file"
            raise UserError(
                f"the file's SHA-256 is {sha256_of(path)[:12]}…, but {where} says {digest[:12]}",
                at=path,
                hint=hint,
            )
    return bool(known)


def _hash_in(text: str, name: str) -> str:
    """The hash of ``name`` in a file written by sha256sum or BSD's sha256."""
    lines = [line for line in text.splitlines() if name in line] or text.splitlines()[:1]
    found = re.search(r"\b[0-9a-fA-F]{64}\b", lines[0]) if lines else None
    return found[0] if found else (lines or [""])[0].strip()
