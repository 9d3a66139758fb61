"""Files of tensors, opened without running anything in them.

A pickle can run any code when it is loaded; here it is read as data (inert_pickle.py), whoever
wrote it. A file that is no checkpoint, such as a web page or another program's archive, is
recognised by its first bytes, and the error says what it is."""

import json
import pickle
import re
import shlex
import stat
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from protobench.checkpoints import identity, pickled_files, stand_ins
from protobench.checkpoints.inert_pickle import DamagedError
from protobench.checkpoints.pickled_files import Pickled
from protobench.runtime import files
from protobench.runtime.errors import UserError
from protobench.runtime.notices import some

FOREIGN = {
    b"<!doctype": ("a web page", "the download failed; open the file in a browser to see why"),
    b"<html": ("a web page", "the download failed; open the file in a browser to see why"),
    b"<?xml": ("an XML page", "the download failed; open the file in a browser to see why"),
    b"version https://git-lfs": ("a git-lfs pointer", "run git lfs pull where it comes from"),
    b"{": ("JSON text", "the download failed, or this is a configuration file; open it to see"),
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"\x89hdf": (
        "a Keras or HDF5 file",
        "convert it to PyTorch first, for SimCLR with tonylins/simclr-converter",
    ),
}
"""First bytes in lower case -> what the file is, and what to do."""

TENSORFLOW = re.compile(r"\.(index|meta|pb|data-\d+-of-\d+)$")
OLDEST = ("sys_info", "pickle", "storages", "tensors")
"""Members of the tar archives that torch.save wrote before 0.1.10."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """by ``container/…/name``, for example ``state_dict/module.encoder_q.conv1.weight``"""
    entries: dict[str, Any]
    """what else is at the top level"""
    header: dict[str, Any]
    """of a file that this suite exported, otherwise empty"""
    mapped: bool = True
    """whether the tensors are in the mapped file, or in other memory that must not be written to"""
    left_as_data: tuple[str, ...] = ()
    """classes and functions that the file names, whose code was not run"""


def read(path: Path, *, trust: bool = False) -> TensorFile:
    """Reads all tensors of a safetensors file, of anything that torch.save wrote, in its old format
    or the new one, or of a plain pickle of arrays.

    ``trust`` unpickles everything, which runs whatever code the file holds. Raises UserError if the
    file is missing, empty, damaged or no checkpoint."""
    head = check(path)
    if _is_safetensors(head):
        return _read_safetensors(path)
    _refuse_foreign(path, head)
    try:
        with warnings.catch_warnings(action="ignore"):  # about read-only arrays: nobody writes
            zipped = zipfile.is_zipfile(path)
            if zipped:
                _check_archive(path)
            if trust:
                pickled = Pickled(
                    _unpickled(path, zipped), set(), 10_000_000, pickled_files.nothing
                )
            else:
                pickled = pickled_files.read_zip(path) if zipped else pickled_files.read_file(path)
            tensors = stand_ins.tensors(pickled)
            entries = {
                key: value
                for key, value in stand_ins.entries(pickled).items()
                if key not in tensors
            }
    except (
        DamagedError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
        OverflowError,
        MemoryError,
        struct.error,
        zipfile.BadZipFile,
    ) as failure:
        _damaged(path, failure)
    left = stand_ins.left_as_data(pickled.names)
    if not tensors and (left or pickled.plain):
        raise _without_tensors(path, left)
    return TensorFile(
        tensors,
        entries,
        _header(path, entries.get("protobench")),
        mapped=zipped or pickled.plain,
        left_as_data=tuple(left),
    )


def check(path: Path) -> bytes:
    """Returns the first bytes of a file. Raises UserError if it cannot be read or is no file."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            with open(path, "rb") as file:
                return file.read(512)
        what = (
            "this is a folder, not a checkpoint file"
            if stat.S_ISDIR(kind)
            else "this is not a regular file"
        )
    except FileNotFoundError:
        what = "no such checkpoint"
    except OSError as failure:
        what = f"cannot read the checkpoint: {failure.strerror}"
    raise UserError(
        what, at=path, hint="name a file that can be read; nothing is evaluated in its place"
    )


def _header(path: Path, text: Any) -> dict[str, Any]:
    """Our header, from its JSON; empty if there is none. Raises UserError if it was changed."""
    if text is None:
        return {}
    try:
        header: dict[str, Any] = json.loads(text)
        sealed = header.pop("sha256")
        if files.sha256(header) != sealed:
            raise ValueError("its hash differs")
    except (ValueError, TypeError, KeyError, AttributeError) as failure:
        raise UserError(
            f"the checkpoint's header is not as it was written: {failure}", at=path, hint=DAMAGED
        ) from failure
    return header


DAMAGED = "it is truncated or damaged; compare its size and hash with the source"


def _is_safetensors(head: bytes) -> bool:
    # after the header's length: 8 bytes, of which the upper half is never used
    return head[4:9] == b"\0\0\0\0{"


def _read_safetensors(path: Path) -> TensorFile:
    try:
        try:
            name = str(path).encode() and str(path)
        except UnicodeEncodeError:  # the library opens only names that are valid UTF-8
            tensors = safetensors.torch.load(path.read_bytes())
        else:
            with safe_open(name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError) as failure:
        _damaged(path, failure)
    header = _header(path, identity.safetensors_metadata(path).get("protobench"))
    if header and not identity.exported_key(path):
        raise UserError("the checkpoint's header has no key", at=path, hint="export it again")
    return TensorFile(tensors, {}, header)


def _refuse_foreign(path: Path, head: bytes) -> None:
    if not head:
        raise UserError(
            "the checkpoint file is empty",
            at=path,
            hint="the download or copy failed; fetch it again",
        )
    start = head.lstrip().lower()
    for magic, (what, hint) in FOREIGN.items():
        if start.startswith(magic) or head.startswith(magic):
            raise UserError(f"this is {what}, not a checkpoint", at=path, hint=hint)
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0").decode("latin-1") in OLDEST:
        raise UserError(
            "this is a tar archive, written by a torch before 0.1.10",
            at=path,
            hint=(
                "torch.load(FILE, weights_only=False) still reads it and runs its code; save the"
                " state_dict() anew"
            ),
        )
    if head[257:262] == b"ustar":
        raise UserError(
            "this is a tar archive, not a checkpoint",
            at=path,
            hint="unpack it; .pth.tar files are usually no archives",
        )
    if path.suffix == ".safetensors":
        raise UserError("cannot read the checkpoint: no safetensors header", at=path, hint=DAMAGED)
    if TENSORFLOW.search(path.name):
        raise UserError(
            "this is a TensorFlow file",
            at=path,
            hint=(
                "convert it to PyTorch first: tonylins/simclr-converter (SimCLR),"
                " Separius/SimCLRv2-Pytorch (v2)"
            ),
        )


def _damaged(path: Path, failure: Exception) -> NoReturn:
    told = (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
    raise UserError(f"cannot read the checkpoint: {told}", at=path, hint=DAMAGED) from failure


def _without_tensors(path: Path, left: list[str]) -> UserError:
    if not left:
        return UserError(
            "cannot read the checkpoint: this pickle holds no tensors and no arrays of numbers",
            at=path,
            hint="save the network's state_dict() with torch.save",
        )
    hint = "load it with the program that wrote it, and save the network's state_dict()"
    if not all(name.startswith("__main__.") for name in left):  # nobody else can import those
        out = path.with_name(path.name.split(".")[0] + ".safetensors")
        hint += (
            "; or, if you trust where it comes from, run this where that program's modules can be"
            f" imported: python -m protobench convert --trust {shlex.quote(str(path))}"
            f" {shlex.quote(str(out))}"
        )
    return UserError(
        "cannot read the checkpoint: it holds no tensors as data, only what its own code may make"
        f" them from: {some(left, 5)}",
        at=path,
        hint=hint,
    )


def _unpickled(path: Path, zipped: bool) -> Any:
    """Unpickles the file, which runs whatever code it holds."""
    try:
        if not zipped and pickled_files.read_file(path).plain:
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1")
        return torch.load(path, map_location="cpu", weights_only=False, mmap=zipped)
    except (ImportError, AttributeError) as failure:
        raise UserError(
            f"unpickling needs code that is not here: {failure}",
            at=path,
            hint=(
                "it belongs to the program that wrote the file, not to a package of that name: run"
                " this with its folder on PYTHONPATH, or load the file there and save the network's"
                " state_dict()"
            ),
        ) from failure
    except (EOFError, OSError, RuntimeError, ValueError, MemoryError, DamagedError):
        raise
    except Exception as failure:  # whatever the file's code does
        raise DamagedError(f"its code failed: {type(failure).__name__}: {failure}") from failure


def _check_archive(path: Path) -> None:
    """Verifies the zip's own checksums, which find any damage to the data; torch.load ignores
    them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = {member.filename.partition("/")[2] for member in members}
            if "constants.pkl" in names:
                raise UserError(
                    "this is a TorchScript program, not a checkpoint",
                    at=path,
                    hint="save its state_dict() with torch.save",
                )
            if "data.pkl" not in names:
                raise UserError(
                    "this is a zip archive, not a checkpoint", at=path, hint="unpack it first"
                )
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError(
                    "this zip was repacked with compression, which torch.save never uses",
                    at=path,
                    hint="take the original file",
                )
            for member in members:
                if member.CRC:  # 0: saved with torch.serialization.set_crc32_options(False)
                    with archive.open(member) as file:
                        while file.read(1 << 22):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as failure:
        _damaged(path, failure)
