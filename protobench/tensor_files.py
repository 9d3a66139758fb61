"""Files of tensors, opened without running anything in them.

A pickle can run any code while it is loaded, so torch.load is held to ``weights_only`` (torch >= 2.10: in earlier
versions two known attacks pass through it) and a short list of inert types. What is not a checkpoint at all, a web page
or an archive of another program, is recognised by its first bytes, and its error says so.
"""

import argparse
import json
import pathlib
import re
import shlex
import stat
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from protobench import files
from protobench.errors import UserError


class _Leftover:
    """Stands for a logger's object; keeps what it is given and does nothing."""


INERT: list[Any] = [
    argparse.Namespace,  # SupContrast's and DINO's options
    (_Leftover, "mmengine.logging.history_buffer.HistoryBuffer"),  # in every training file of mmengine
    *((OrderedDict, f"{module}.AttributeDict") for module in (
        "lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing")),
    np.ndarray, *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # best_acc1
    *((getattr(pathlib, name), f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]
"""Types that training scripts leave beside their weights and that can do nothing."""

FOREIGN = {
    b"<!doctype": ("a web page", "the download failed; open the file in a browser to see why"),
    b"<html": ("a web page", "the download failed; open the file in a browser to see why"),
    b"<?xml": ("an XML page", "the download failed; open the file in a browser to see why"),
    b"version https://git-lfs": ("a git-lfs pointer", "run git lfs pull where it comes from"),
    b"{": ("JSON text", "the download failed, or this is a configuration file; open it to see"),
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"\x89hdf": ("a Keras or HDF5 file", "convert it to PyTorch first, for SimCLR with tonylins/simclr-converter"),
}
"""First bytes, in lower case: what the file is, and what to do."""

TENSORFLOW = re.compile(r"\.(index|meta|pb|data-\d+-of-\d+)$")
DEEPEST = 12
"""Levels of dictionaries and lists that are looked into."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    tensors: by ``container/…/name``, for example ``state_dict/module.encoder_q.conv1.weight``. entries: what else is at its
    top level. header: ours, where an export of this suite has one. mapped: whether the tensors still lie in the file.
    """

    tensors: dict[str, Tensor]
    entries: dict[str, Any]
    header: dict[str, Any]
    mapped: bool = True


def read(path: Path, *, trust: bool = False) -> TensorFile:
    """All tensors of a safetensors file or of anything torch.load reads, old format or new.

    ``trust`` unpickles everything, which runs whatever code the file holds. Raises UserError where the file is missing,
    empty, damaged, no checkpoint, or (unless trusted) holds more than tensors and plain values.
    """
    head = check(path)
    if _is_safetensors(head):
        return _read_safetensors(path)
    _refuse_foreign(path, head)
    zipped = zipfile.is_zipfile(path)
    content = _load(path, zipped, trust)
    tensors: dict[str, Tensor] = {}
    _flatten(content, "", tensors, 0)
    entries = {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    entries = {key: value for key, value in entries.items() if key not in tensors}
    header = _header(path, entries.get("protobench"))
    header.pop("key", None)  # plans read keys without torch, and so of safetensors files alone; here the file's hash is the key
    return TensorFile(tensors, entries, header, mapped=zipped)


def check(path: Path) -> bytes:
    """The first bytes of a file that can be read. UserError for anything else by that name."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            with open(path, "rb") as file:
                return file.read(512)
        what = "this is a folder, not a checkpoint file" if stat.S_ISDIR(kind) else "this is no regular file"
    except FileNotFoundError:
        what = "no such checkpoint"
    except OSError as failure:
        what = f"cannot read the checkpoint: {failure.strerror}"
    raise UserError(what, at=path, hint="name a file that can be read; nothing is evaluated in its place")


def _header(path: Path, text: Any) -> dict[str, Any]:
    """Ours, from its JSON; empty where there is none. UserError where it is not as it was written."""
    if text is None:
        return {}
    try:
        header = json.loads(text)
        sealed = header.pop("sha256")
        if files.sha256(header) != sealed:
            raise ValueError("its hash differs")
    except (ValueError, TypeError, KeyError, AttributeError) as failure:
        raise UserError(f"the checkpoint's header is not as it was written: {failure}", at=path, hint=DAMAGED) from failure
    return header


DAMAGED = "it is truncated or damaged; compare its size and hash with the source"


def _is_safetensors(head: bytes) -> bool:
    return head[4:9] == b"\0\0\0\0{"  # behind the header's length, 8 bytes of which the upper half is never used


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
    return TensorFile(tensors, {}, _header(path, files.safetensors_metadata(path).get("protobench")))


def _refuse_foreign(path: Path, head: bytes) -> None:
    if not head:
        raise UserError("the checkpoint file is empty", at=path, hint="the download or copy failed; fetch it again")
    start = head.lstrip().lower()
    for magic, (what, hint) in FOREIGN.items():
        if start.startswith(magic) or head.startswith(magic):
            raise UserError(f"this is {what}, not a checkpoint", at=path, hint=hint)
    if head[257:262] == b"ustar":
        raise UserError("this is a tar archive, not a checkpoint", at=path, hint="unpack it; .pth.tar files are usually none")
    if path.suffix == ".safetensors":
        raise UserError("cannot read the checkpoint: no safetensors header", at=path, hint=DAMAGED)
    if TENSORFLOW.search(path.name):
        raise UserError("this is a TensorFlow file", at=path,
                        hint="convert it to PyTorch first: tonylins/simclr-converter (SimCLR), Separius/SimCLRv2-Pytorch (v2)")


def _damaged(path: Path, failure: Exception) -> NoReturn:
    told = (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
    raise UserError(f"cannot read the checkpoint: {told}", at=path, hint=DAMAGED) from failure


def _load(path: Path, zipped: bool, trust: bool) -> Any:
    if zipped:
        _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(INERT):
            try:
                str(path).encode()
            except UnicodeEncodeError:  # such a name cannot be mapped
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=not trust)
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    except ModuleNotFoundError as failure:  # only when trusted
        raise UserError(f"unpickling needs the package {failure.name!r}", at=path,
                        hint=f"pip install {failure.name}") from failure
    except (EOFError, OSError, RuntimeError, ValueError, MemoryError) as failure:
        _damaged(path, failure)
    except Exception as failure:  # pickle.UnpicklingError and whatever a hostile file provokes
        if not (objects := _objects(path, failure)):
            raise UserError("cannot read the checkpoint: not written by torch.save", at=path, hint=DAMAGED) from failure
        out = path.with_name(path.name.split(".")[0] + ".safetensors")
        raise UserError(f"the checkpoint holds more than tensors and plain values: {', '.join(objects)}", at=path,
                        hint="unpickling those could run any code; if you trust where the file comes from: python -m "
                             f"protobench convert --trust {shlex.quote(str(path))} {shlex.quote(str(out))}") from failure


def _objects(path: Path, failure: Exception) -> list[str]:
    """The types that were refused; none where the file is not a pickle at all."""
    try:
        with torch.serialization.safe_globals(INERT):
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file from before torch 1.6, or a hostile one: what the refusal itself names
        named = re.findall(r"(?:GLOBAL|<class) '?([\w.<>]+)", str(failure))
    return sorted(set(named))


def _check_archive(path: Path) -> None:
    """The zip's own checksums find any damage to the data; torch.load does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = {member.filename.partition("/")[2] for member in members}
            if "constants.pkl" in names:
                raise UserError("this is a TorchScript program, not a checkpoint", at=path,
                                hint="save its state_dict() with torch.save")
            if "data.pkl" not in names:
                raise UserError("this is a zip archive, not a checkpoint", at=path, hint="unpack it first")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError("this zip was packed again, with compression, which torch.save never uses", at=path,
                                hint="take the original file")
            for member in members:
                if member.CRC:  # 0: saved with torch.serialization.set_crc32_options(False)
                    with archive.open(member) as file:
                        while file.read(1 << 22):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as failure:
        _damaged(path, failure)


def _flatten(value: Any, name: str, found: dict[str, Tensor], depth: int) -> None:
    if isinstance(value, nn.Module):  # only when trusted: a whole model was saved
        value = value.state_dict()
    if isinstance(value, Tensor):
        if name in found:
            raise UserError(f"two tensors of the name {name}")
        found[name] = value.detach()
    elif isinstance(value, Mapping | list | tuple) and depth < DEEPEST:
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _flatten(item, f"{name}/{key}" if name else str(key), found, depth + 1)
