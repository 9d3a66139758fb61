"""Files that are either whole or absent, locks, hashes, and the cache folder."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from protobench.runtime.errors import UserError


def cache_dir() -> Path:
    """Returns the folder for bundled synthetic data, features and decoded images:
    $PROTOBENCH_CACHE, or protobench/ in the user's cache folder."""
    if path := os.environ.get("PROTOBENCH_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "protobench"


def write_atomic(
    path: Path, write: Callable[[BinaryIO], Any], renamed: Callable[[], Path] | None = None
) -> None:
    """Writes a file by a temporary file, fsync, rename and fsync of the folder: nobody ever sees
    half a file, and once this returns it survives a power cut. ``renamed`` gives the final path if
    it is only known after writing. Raises UserError if the system refuses."""
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
    """Turns an OSError in the block (a full disk, no permission) into a UserError."""
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
    """Opens a file. Turns OSErrors on opening and closing into UserErrors; exceptions in the block
    propagate."""
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
    hint: str = "free some space, or set PROTOBENCH_CACHE to a folder on another disk",
) -> None:
    """Raises UserError if the disk has fewer than ``size`` bytes free for ``what``."""
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
    """Removes the temporary files of killed processes, of files whose name matches ``name``."""
    for stale in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # other programs' names
            if not _alive(int(stale.suffixes[-2][1:])):
                stale.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # a dead process had our id


def sync(file: BinaryIO) -> None:
    """Returns once what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The same for the names in a folder; some network file systems do not support it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes text as ``write_atomic`` does, in UTF-8 with Unix line ends on every platform."""
    write_atomic(path, lambda file: file.write(text.encode()))


def file_name(words: str) -> str:
    """Returns the words as part of a file's name: other characters than letters, digits and ``.+-``
    become _, and of many the first 80 stay."""
    return re.sub(r"[^\w.+-]", "_", words)[:80]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes as ``write_atomic`` does."""
    write_atomic(path, lambda file: file.write(content))


def canonical_json(value: Any) -> str:
    """Returns the one spelling of a value of which hashes are taken: sorted keys, no spaces, no
    NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256(value: Any) -> str:
    """Returns the SHA-256 of a JSON-like value's canonical spelling."""
    return sha256_text(canonical_json(value))


def sha256_text(text: str) -> str:
    """Returns the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
