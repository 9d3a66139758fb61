"""Hashes that come with a checkpoint: given on the command line, in a file beside it, or in its
name."""

import hashlib
import re
from pathlib import Path

from protobench.runtime.errors import UserError

HASH_IN_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8}|[0-9a-f]{64})\.")
"""torch.hub's habit: resnet50-0676ba61.pth. Eight digits alone are a date."""
EMPTY = hashlib.sha256().hexdigest()
"""One publisher named files by this, the hash of nothing."""


def check(path: Path, sha256: str, asked: str | None) -> bool:
    """Whether any hash came with the file, whose own is ``sha256``; UserError where one is wrong or
    is none."""
    recorded = {"--sha256": asked} if asked else {}
    if (beside := path.with_name(path.name + ".sha256")).is_file():
        recorded[beside.name] = _hash_in(beside.read_text(errors="replace"), path.name)
    if (named := HASH_IN_NAME.search(path.name)) and not asked and not EMPTY.startswith(named[1]):
        recorded["its name"] = named[1]
    for where, digest in recorded.items():
        if not re.fullmatch("[0-9a-f]{6,64}", digest.lower()):
            raise UserError(
                f"{where} gives no sha256: {digest[:70]!r}",
                at=path,
                hint="6 to 64 hexadecimal digits",
            )
        if not sha256.startswith(digest.lower()):
            raise UserError(
                f"the file's sha256 is {sha256[:12]}…, but {where} says {digest[:12]}",
                at=path,
                hint="it is damaged or another file than you think"
                + ("; if those digits are no hash, rename the file" if where == "its name" else ""),
            )
    return bool(recorded)


def _hash_in(text: str, name: str) -> str:
    """The hash that a .sha256 file gives for ``name``, in the form of sha256sum or of BSD's
    sha256."""
    lines = [line for line in text.splitlines() if name in line] or text.splitlines()[:1]
    found = re.search(r"\b[0-9a-fA-F]{64}\b", lines[0]) if lines else None
    return found[0] if found else (lines or [""])[0].strip()
