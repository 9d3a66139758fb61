"""The state from which a long run resumes: its two newest checkpoints, each whole or absent.

A state is a file ``NAME-SERIAL-HASH.pt`` for ``torch.load``; HASH is the beginning of the SHA-256
of its bytes. A new state is written beside the two newest before the older of them is removed, so a
crash at any moment, or a full disk, leaves at least one whole state. A state to be kept (a
milestone) has a label: ``NAME-SERIAL-HASH-LABEL.pt``."""

import hashlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from protobench.runtime import distributed, files
from protobench.runtime.errors import UserError

SLOTS = 2
"""States kept beside milestones."""
HEX = 16
"""Digits of the hash in a file name."""


@dataclass(frozen=True)
class RunState:
    """The saved states of one run."""

    folder: Path
    name: str
    key: str
    """identifies the run"""
    what: dict[str, Any] | None = None
    """what ``key`` is a hash of; where another run's state is found, the differences are named"""

    def write(self, state: dict[str, Any], label: str = "") -> None:
        """Adds a state and removes old ones; does nothing on other ranks than the main process.

        Raises UserError if it cannot be written; the states written before are untouched then.
        """
        if not distributed.is_main():
            return
        before = self.paths()
        serial = self._serial(before[-1]) + 1 if before else 1
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.require_disk_space(
                self.folder,
                _num_bytes(state) + 2**16,
                f"{self.name}s",
                "free some space and run the same command again; the previous one is untouched",
            )
        written = ""

        def save(file: BinaryIO) -> None:
            nonlocal written
            hashing = _HashingWriter(file)
            torch.save({"key": self.key, "what": self.what, "state": state}, hashing)  # type: ignore[arg-type]
            written = hashing.sha256.hexdigest()

        def final_path() -> Path:
            suffix = f"-{label}" if label else ""
            return self.folder / f"{self.name}-{serial:06d}-{written[:HEX]}{suffix}.pt"

        files.write_atomic(self.folder / f"{self.name}-{serial:06d}.pt", save, final_path)
        for path in self.paths()[:-SLOTS]:
            if not self._parts(path)["label"]:
                path.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """Returns the newest undamaged state, None if there is no state; warns if a newer one is
        damaged.

        Raises UserError if all are damaged, or if they belong to another run.
        """
        files.sweep(self.folder, f"{self.name}-*")
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            content = path.read_bytes()
            if not hashlib.sha256(content).hexdigest().startswith(self._parts(path)["hash"]):
                print(
                    f"warning: {path} is damaged: its content does not match the hash in its name;"
                    " trying the previous one",
                    file=sys.stderr,
                )
                damaged.append(path)
                continue
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if saved["key"] != self.key:
                raise UserError(
                    f"this folder holds the {self.name} of another run:"
                    f" {_differences(saved['what'], self.what)}",
                    at=path,
                    hint="choose another --out, or --no-resume to start anew",
                )
            if damaged:
                print(f"warning: resuming from {path}, which is older", file=sys.stderr)
                for useless in damaged:  # it would count as one of the newest
                    useless.unlink(missing_ok=True)
            state: dict[str, Any] = saved["state"]
            return state
        if damaged:
            raise UserError(
                f"every {self.name} of this run is damaged",
                at=self.folder,
                hint=f"delete {self.name}-*.pt to start this run again, and check the disk",
            )
        return None

    def clear(self, *, milestones: bool = False) -> None:
        """Removes all states but milestones, or these too."""
        for path in self.paths():
            if milestones or not self._parts(path)["label"]:
                path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Returns the files, oldest first."""
        found = [path for path in self.folder.glob(f"{self.name}-*.pt") if self._parts(path)]
        return sorted(found, key=self._serial)

    def _serial(self, path: Path) -> int:
        return int(self._parts(path)["serial"])

    def _parts(self, path: Path) -> dict[str, str]:
        """The parts of a state's file name; empty for any other file."""
        pattern = (
            rf"{re.escape(self.name)}-(?P<serial>\d{{6,}})-(?P<hash>[0-9a-f]{{{HEX}}})"
            r"(-(?P<label>\w+))?\.pt"
        )
        found = re.fullmatch(pattern, path.name)
        return found.groupdict("") if found else {}


class _HashingWriter(io.RawIOBase):
    """Writes to a file and hashes what is written."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _num_bytes(state: Any) -> int:
    """The size of all tensors in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_num_bytes, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(_num_bytes, state))
    return 0


def _differences(theirs: Any, ours: Any) -> str:
    """Says which fields of two runs differ, and how."""
    there, here = dict(_flattened(theirs)), dict(_flattened(ours))
    differences = [
        f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, "absent") != here.get(name, "absent")
    ]
    return "; ".join(differences) or "other recipe, data or seed"


def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as pairs of dotted name and value; None is left out."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flattened(part, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, list(value) if isinstance(value, tuple) else value
