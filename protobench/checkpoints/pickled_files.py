"""The three kinds of file that hold pickles, opened without running anything in them: torch.save's
zip archives, its older single files, and plain pickles. Each gives one value, and where the
storages of its tensors are."""

import io
import mmap
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from protobench.checkpoints import inert_pickle
from protobench.checkpoints.inert_pickle import DamagedError, Name, Pickle

Storage = tuple[torch.UntypedStorage, torch.dtype | None]
"""Bytes, and the type of the numbers in them; None if they are only bytes."""

DTYPES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": None,
}
"""Names of torch's storage classes; quantised ones are never read as numbers, but their sizes are
needed."""

STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Pickled:
    """What a file holds. ``storage`` returns the bytes of a persistent id, or raises
    DamagedError."""

    value: Any
    names: set[Name]
    size: int
    """of the pickle, in bytes"""
    storage: Callable[[Any], Storage]
    plain: bool = False
    """whether torch.save did not write it"""


def read_zip(path: Path) -> Pickled:
    """Reads a file of torch >= 1.6, mapped into memory if its name allows that."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        root = next(
            name.removesuffix("data.pkl")
            for name in members
            if name.partition("/")[2] == "data.pkl"
        )
        places = {
            name: (_start(file, member), member.file_size) for name, member in members.items()
        }
        content, order = (
            _read(file, *places.get(root + name, (0, 0))) for name in ("data.pkl", "byteorder")
        )
    pickle = inert_pickle.load(io.BytesIO(content))
    whole, made = _mapped(path), dict[Any, Storage]()

    def storage(id_: Any) -> Storage:
        kind, key, *_ = _storage_id(id_)
        if key not in made:
            start, size = places.get(f"{root}data/{key}") or _missing(key)
            if start + size > whole.nbytes():
                raise DamagedError("a storage reaches beyond the end of the file")
            part = whole[start : start + size]
            if order and order.decode("latin-1") != sys.byteorder and (width := _width(kind)) > 1:
                part = _swapped(part, width)
            made[key] = part, DTYPES[kind.name]
        if made[key][1] != DTYPES[kind.name]:
            raise DamagedError("one storage has two types")
        return made[key]

    return Pickled(pickle.value, pickle.names, len(content), storage)


def read_single(buffer: mmap.mmap | bytes, file: Any) -> Pickled:
    """Reads a file of torch < 1.6, or a plain pickle; ``file`` reads ``buffer``."""
    first = inert_pickle.load(file)
    if first.value != _MAGIC:
        return Pickled(first.value, first.names, file.tell(), nothing, plain=True)
    if inert_pickle.load(file).value != _PROTOCOL:
        raise DamagedError("an unknown version of torch.save's format")
    inert_pickle.load(file)  # sizes of C's types
    start = file.tell()
    pickle = inert_pickle.load(file)
    size = file.tell() - start
    keys = inert_pickle.load(file).value
    places = _places(pickle, keys, file.tell(), buffer)
    made: dict[Any, torch.UntypedStorage] = {}

    def storage(id_: Any) -> Storage:
        kind, key, _, _, view, *_ = (*_storage_id(id_), None)
        begin, end = places.get(key) or _missing(key)
        if key not in made:
            data = bytearray(memoryview(buffer)[begin:end])
            made[key] = (
                torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
                if data
                else torch.UntypedStorage(0)
            )
        if view is None:
            return made[key], DTYPES[kind.name]
        _, offset, count = view
        width = _width(kind)
        if min(offset, count) < 0 or (offset + count) * width > end - begin:
            raise DamagedError("a view reaches beyond its storage")
        return made[key][offset * width : (offset + count) * width], DTYPES[kind.name]

    return Pickled(pickle.value, pickle.names, size, storage)


def read_file(path: Path) -> Pickled:
    """Reads a file that torch < 1.6 or any pickle.dump wrote."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return read_single(mapped, mapped)


def module_class(id_: Any) -> Any:
    """The class in a persistent id by which torch < 1.6 stored a class with its source code; None
    for any other id."""
    return id_[1] if isinstance(id_, tuple) and len(id_) > 1 and id_[0] == "module" else None


# Where storages are -------------------------------------------------------------------------------


def _start(file: io.BufferedReader, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its own header, whose length is not in the archive's
    directory."""
    file.seek(member.header_offset + 26)
    name, extra = file.read(2), file.read(2)
    return (
        member.header_offset + 30 + int.from_bytes(name, "little") + int.from_bytes(extra, "little")
    )


def _read(file: io.BufferedReader, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _mapped(path: Path) -> torch.UntypedStorage:
    try:
        name = str(path).encode() and str(path)
    except UnicodeEncodeError:  # such a name cannot be mapped
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).untyped_storage()
    return torch.UntypedStorage.from_file(name, False, os.path.getsize(path))  # type: ignore[return-value]


def _storage_id(id_: Any) -> tuple[Any, ...]:
    """The class of a storage, its key, its device, how many numbers it has, and perhaps a view."""
    match id_:
        case ("storage", Name() as kind, str() | int() as key, _, int(), *view) if (
            len(view) < 2 and kind.name in DTYPES
        ):
            if kind.module in STORAGE_MODULES:
                return kind, key, *id_[3:]
    raise DamagedError("a reference to the outside is not a storage")


def _places(
    pickle: Pickle, keys: Any, at: int, buffer: mmap.mmap | bytes
) -> dict[Any, tuple[int, int]]:
    """Where the storages of an old file are: after its pickle in the order of ``keys``, each after
    its number of elements."""
    widths = {
        id_[2]: _width(_storage_id(id_)[0])
        for id_ in (stored.id for stored in pickle.stored)
        if module_class(id_) is None
    }
    places = {}
    if not isinstance(keys, list):
        raise DamagedError("no list of storages")
    for key in keys:
        count = int.from_bytes(buffer[at : at + 8], "little", signed=True)
        end = at + 8 + count * widths[key] if isinstance(key, str | int) and key in widths else -1
        if count < 0 or not at + 8 <= end <= len(buffer):
            raise DamagedError("it ends within its storages")
        places[key] = at + 8, end
        at = end
    return places


def _width(kind: Name) -> int:
    dtype = DTYPES[kind.name]
    return dtype.itemsize if dtype else 1


def _swapped(part: torch.UntypedStorage, width: int) -> torch.UntypedStorage:
    """The storage in this machine's byte order."""
    numbers = torch.tensor([], dtype=torch.uint8).set_(part)
    return numbers.view(-1, width).flip(1).contiguous().untyped_storage()


def _missing(key: Any) -> Any:
    raise DamagedError(f"storage {str(key)[:40]!r} is not in it")


def nothing(_: Any) -> Storage:
    """The ``storage`` of values that keep nothing outside the pickle."""
    raise DamagedError("it refers to something outside")
