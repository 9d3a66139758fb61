"""Files that are either whole or absent, their hashes, and where the suite keeps what it can make
again."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from protobench.runtime.errors import UserError


def cache_dir() -> Path:
    """$PROTOBENCH_CACHE, or protobench/ in the user's cache folder: embedded data, features and
    decoded pictures."""
    if path := os.environ.get("PROTOBENCH_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "protobench"


def write_atomic(
    path: Path, write: Callable[[BinaryIO], Any], renamed: Callable[[], Path] | None = None
) -> None:
    """Writes through a temporary file, fsync, rename and fsync of the folder: a reader, or a kill,
    never sees half a file, and what is there when this returns survives a power cut. ``renamed``:
    what the path is to be, where only the writing tells."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                sync(file)
            os.replace(temporary, renamed() if renamed else path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing ``path`` (a full disk, no permission) into a
    UserError."""
    try:
        yield
    except OSError as failure:
        raise UserError(
            f"cannot write: {failure.strerror or failure}",
            at=path,
            hint="check free space and permissions; what was there before is untouched",
        ) from failure


@contextlib.contextmanager
def opened(path: Path, mode: str) -> Iterator[BinaryIO]:
    """An open file. What the system says against opening it, or at the end against writing what was
    still to be written, becomes a UserError; what is raised in between passes as it is."""
    with writing(path):
        file = open(path, mode)  # noqa: SIM115 (closed below)
    try:
        yield file  # type: ignore[misc]
    finally:
        with writing(path):
            file.close()


def require_disk_space(
    folder: Path,
    size: int,
    what: str,
    hint: str = "make room, or set PROTOBENCH_CACHE to a folder on another disk",
) -> None:
    """UserError where the disk has not ``size`` bytes left for ``what``."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"{what} need {size / 1e9:.2g} GB, {free / 1e9:.2g} GB are free", at=folder, hint=hint
        )


@contextlib.contextmanager
def exclusive_lock(path: Path, *, hint_if_busy: str | None = None) -> Iterator[None]:
    """Lets one process at a time into the block, by a lock on the file ``path``, which is created
    with its folder and stays. The system releases the lock of a killed process.

    Waits while another process holds the lock or, with ``hint_if_busy``, raises UserError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if hint_if_busy is None else 0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                "another run is writing into this folder", at=path.parent, hint=hint_if_busy
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def exclusive_folder(folder: Path, hint_if_busy: str) -> Iterator[None]:
    """Creates ``folder`` if need be, keeps other runs out of it, and removes what killed processes
    left half written in it. Raises UserError if another run is in it."""
    with exclusive_lock(folder / ".lock", hint_if_busy=hint_if_busy):
        sweep(folder)
        yield


def sweep(folder: Path, name: str = "*") -> None:
    """Removes what killed processes left half written, of files of one ``name`` (a pattern)."""
    for stale in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # of names that are not ours
            if not _alive(int(stale.suffixes[-2][1:])):
                stale.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # a process that has our number and is dead


def sync(file: BinaryIO) -> None:
    """Returns when what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The same for names in a folder; some network file systems cannot, and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """``write_atomic`` for text, UTF-8 with Unix line ends on every platform."""
    write_atomic(path, lambda file: file.write(text.encode()))


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. What hashes are taken of."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256(value: Any) -> str:
    """Hash of a JSON-like value's canonical spelling."""
    return sha256_text(canonical_json(value))


def sha256_text(text: str) -> str:
    """Hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
