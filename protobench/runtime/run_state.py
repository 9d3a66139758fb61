"""What a long run goes on from after a stop or a kill: its newest two states, each whole or absent,
each known by its hash.

A state is a file NAME-SERIAL-HASH.pt, which ``torch.load`` reads; HASH is the beginning of its
bytes' sha256. It is written beside the ones before, of which the older then goes. So at any moment
one at least is whole, whatever dies when, and a disk that fills up costs nothing that was there. A
state that is to be kept (a milestone) has a LABEL at the end of its name:
NAME-SERIAL-HASH-LABEL.pt."""

import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from protobench.runtime import files
from protobench.runtime.errors import UserError

SLOTS = 2
HEX = 16
"""Digits of the hash in a name."""


@dataclass(frozen=True)
class RunState:
    """The states of one run, which ``key`` identifies."""

    folder: Path
    name: str
    key: str
    what: dict[str, Any] | None = None
    """what the key was made of: where another run's states are found, the differences are named"""

    def write(self, state: dict[str, Any], label: str = "") -> None:
        """Adds a state and removes the oldest but one. UserError where it cannot be written; what
        was there is untouched then."""
        before = self.paths()
        serial = self._serial(before[-1]) + 1 if before else 1
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.require_disk_space(
                self.folder,
                _bytes(state) + 2**16,
                f"{self.name}s",
                "make room and run the same command again; the checkpoint before is untouched",
            )
        written = ""

        def save(file: BinaryIO) -> None:
            nonlocal written
            hashing = _Hashing(file)
            torch.save({"key": self.key, "what": self.what, "state": state}, hashing)  # type: ignore[arg-type]
            written = hashing.sha256.hexdigest()

        files.write_atomic(
            self.folder / f"{self.name}-{serial:06d}.pt",
            save,
            lambda: (
                self.folder / f"{self.name}-{serial:06d}-{written[:HEX]}{label and '-' + label}.pt"
            ),
        )
        for path in self.paths()[:-SLOTS]:
            if not self._parts(path)["label"]:
                path.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The newest state that is whole; None where there is none at all. Says so, loudly, where
        it is not the newest.

        UserError where all are damaged, and where they are another run's.
        """
        files.sweep(self.folder, f"{self.name}-*")
        paths, damaged = self.paths()[::-1], []
        for path in paths:
            content = path.read_bytes()
            if not hashlib.sha256(content).hexdigest().startswith(self._parts(path)["hash"]):
                print(
                    f"warning: {path} is damaged, its content is not what its name's hash says;"
                    " trying the one before it",
                    file=sys.stderr,
                )
                damaged.append(path)
                continue
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if found["key"] != self.key:
                raise UserError(
                    f"this folder holds the {self.name} of another run:"
                    f" {_differences(found['what'], self.what)}",
                    at=path,
                    hint="choose another --out, or --no-resume to start anew",
                )
            if damaged:
                print(f"warning: going on from {path}, which is older", file=sys.stderr)
                for useless in damaged:  # it would count as one of the newest
                    useless.unlink(missing_ok=True)
            return found["state"]
        if (older := self.folder / f"{self.name}.pt").exists():
            raise UserError(
                "this state was saved by an older version of this program, which cannot be gone on"
                " from",
                at=older,
                hint="delete it to start this run again, or finish it with that version",
            )
        if paths:
            raise UserError(
                f"every {self.name} of this run is damaged",
                at=self.folder,
                hint=f"delete {self.name}-*.pt to start this run again, and check the disk",
            )
        return None

    def clear(self, *, all_: bool = False) -> None:
        """Removes the states, milestones only where ``all_`` are meant."""
        if all_:
            (self.folder / f"{self.name}.pt").unlink(missing_ok=True)  # an older version's
        for path in self.paths():
            if all_ or not self._parts(path)["label"]:
                path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        found = [path for path in self.folder.glob(f"{self.name}-*.pt") if self._parts(path)]
        return sorted(found, key=self._serial)

    def _serial(self, path: Path) -> int:
        return int(self._parts(path)["serial"])

    def _parts(self, path: Path) -> dict[str, str]:
        """Of a state's file name; nothing of any other."""
        pattern = rf"{re.escape(self.name)}-(?P<serial>\d{{6,}})-(?P<hash>[0-9a-f]{{{HEX}}})(-(?P<label>\w+))?\.pt"
        found = re.fullmatch(pattern, path.name)
        return found.groupdict("") if found else {}


class _Hashing(io.RawIOBase):
    """Passes on what is written and hashes it on the way."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _bytes(state: Any) -> int:
    """Of all tensors."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return sum(map(_bytes, parts))


def _differences(theirs: Any, ours: Any) -> str:
    """In words: which fields of two runs differ, and how."""
    flat = [dict(_flat(what)) for what in (theirs, ours)]
    told = []
    for name in sorted({*flat[0], *flat[1]}):
        there, here = (part.get(name, "absent") for part in flat)
        if there != here:
            told.append(f"{name} is {there} there, {here} here")
    return "; ".join(told) or "other recipe, data or seed"


def _flat(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, list(value) if isinstance(value, tuple) else value
