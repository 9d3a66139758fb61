"""The manifest of a folder of bundled data: what was written there, and whether it is still so.

``manifest.json`` says what the data is and holds the SHA-256 of every file; it is written once.
``verified.json`` notes the size and the modification time that every file had when it was last
hashed, so that a folder that nobody touched is verified without reading 30 000 files."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from protobench.runtime import cache_use, files
from protobench.runtime.errors import UserError

_opened: set[Path] = set()
_in_use = contextlib.ExitStack()
"""What this process has opened of the cache, whose files it may read until it ends."""

MANIFEST, NOTE = "manifest.json", "verified.json"

States = dict[str, tuple[int, int]]
"""path under the root -> size in bytes and modification time in nanoseconds"""


def made(root: Path, identity: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """``root``, with what ``write`` writes into a folder: made on first use and verified later. In
    the cache it is not trimmed before this process ends."""
    if root.parent == files.cache_dir() and root not in _opened:
        _in_use.enter_context(cache_use.using(root, data=root.name))
        _opened.add(root)
    with files.exclusive_lock(root.with_name(root.name + ".lock")):
        if (root / MANIFEST).exists():
            verify(root)
            return root
        temporary = root.with_name(f".{root.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with files.writing(root):
            write(temporary)
        states = _states(temporary)
        hashes = {name: files.sha256_file(temporary / name) for name in sorted(states)}
        manifest = identity | {"fingerprint": files.sha256(hashes), "files": hashes}
        files.write_text(temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        _note(temporary, states)
        shutil.rmtree(root, ignore_errors=True)
        temporary.rename(root)
    return root


def verify(root: Path) -> str:
    """Compares the files with the manifest and returns its fingerprint. UserError if a file was
    changed, added or removed.

    Files whose size and modification time are those noted at the last verification are not read
    again. So a change that leaves both as they were (a failing disk, a program that sets times
    back) is not found; without ``verified.json`` every file is read."""
    manifest = read(root)
    if manifest is None:
        raise UserError(
            "the manifest of the bundled data is damaged",
            at=root,
            hint="delete this folder; it is made again",
        )
    written, states, noted = manifest["files"], _states(root), _noted(root)
    doubtful = [name for name, state in states.items() if noted.get(name) != state]
    changed = sorted(
        {name for name in doubtful if files.sha256_file(root / name) != written.get(name)}
        | (states.keys() ^ written.keys())
    )
    if changed:
        raise UserError(
            f"the bundled data was changed: {len(changed)} files, the first is {changed[0]}",
            at=root,
            hint="delete this folder; it is made again in seconds",
        )
    if doubtful:
        with contextlib.suppress(UserError):  # a folder that may only be read
            _note(root, states)
    return str(manifest["fingerprint"])


def read(root: Path) -> dict[str, Any] | None:
    """The manifest in ``root``; None where there is none, or where it is damaged or another
    program's."""
    with contextlib.suppress(OSError):
        state = (root / MANIFEST).stat()
        return _read(root, state.st_size, state.st_mtime_ns)
    return None


@lru_cache(maxsize=16)
def _read(root: Path, *_state: int) -> dict[str, Any] | None:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["fingerprint"] == files.sha256(manifest["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return manifest if whole else None


def above(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The root of bundled data in which ``folder`` lies, and its manifest."""
    place = folder.absolute()
    for root in (place, *place.parents):
        if manifest := read(root):
            return root, manifest
    return None


def hashes_in(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, modification time and SHA-256 of the files in a folder of bundled data, by their path
    under it, as they were when they were last verified; empty for any other folder."""
    found = above(folder)
    if found is None:
        return {}
    root, manifest = found
    place = folder.absolute().relative_to(root).as_posix()
    start = "" if place == "." else f"{place}/"
    hashes = manifest["files"]
    return {
        name[len(start) :]: (*state, hashes[name])
        for name, state in _noted(root).items()
        if name.startswith(start) and name in hashes
    }


def _note(root: Path, states: States) -> None:
    files.write_text(root / NOTE, json.dumps(states))


def _noted(root: Path) -> States:
    with contextlib.suppress(OSError):
        state = (root / NOTE).stat()
        return _read_note(root, state.st_size, state.st_mtime_ns)
    return {}


@lru_cache(maxsize=4)
def _read_note(root: Path, *_state: int) -> States:
    try:
        noted = json.loads((root / NOTE).read_text(encoding="utf-8"))
        return {name: (size, time) for name, (size, time) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _states(root: Path) -> States:
    """Of all files under ``root`` but the manifest and the note."""
    states: States = {}
    folders = [""]
    for start in folders:  # grows as folders are found
        with os.scandir(root / start) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{start}{entry.name}/")
                else:
                    state = entry.stat()
                    states[start + entry.name] = (state.st_size, state.st_mtime_ns)
    return {name: state for name, state in states.items() if name not in (MANIFEST, NOTE)}
