"""What an entry of the cache is, when it was last used, and who is using it now.

An entry is what lies under one stem in a folder of the cache, such as ``<hash>.npy``. Beside it
lies ``<stem>.use``, a note in JSON of what the entry is. Its time of change is that of the last
use, and whoever uses the entry has a shared lock on it, which the system releases when the process
ends, however it ends. So ``protobench cache`` never trims what a process is using."""

import contextlib
import fcntl
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

from protobench.runtime import files

NOTE, LOCK = ".use", ".lock"
"""The suffixes of the note, and of the lock that ``files.exclusive_lock`` gives to who writes."""


def beside(path: Path, suffix: str) -> Path:
    """The entry's note or lock; ``path`` is one of its files, or its folder."""
    return path.with_name(path.name.partition(".")[0] + suffix)


@contextlib.contextmanager
def using(path: Path, **what: str) -> Iterator[None]:
    """Keeps the entry of ``path``, which need not exist yet, from being trimmed, and notes ``what``
    it is.

    Has no effect where the note can be neither written nor locked: a cache that may only be
    read."""
    handle = _shared(beside(path, NOTE), what)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                os.utime(handle)
            os.close(handle)


def use_while_alive(user: object, path: Path, **what: str) -> None:
    """As ``using``, for as long as the object lives."""
    stack = contextlib.ExitStack()
    stack.enter_context(using(path, **what))
    weakref.finalize(user, stack.close)


def _shared(note: Path, what: Mapping[str, str]) -> int | None:
    """The open note with a shared lock, or None."""
    while True:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(note, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if not _is_there(handle, note):  # trimmed since it was opened
                os.close(handle)
                continue
            if not _parsed(os.pread(handle, 100_000, 0)):
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(what).encode(), 0)
            os.utime(handle)
        except OSError:
            os.close(handle)
            return None
        return handle


def _is_there(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def read(path: Path) -> dict[str, str]:
    """What the entry of ``path`` is; empty where that was not noted."""
    with contextlib.suppress(OSError):
        return _parsed(beside(path, NOTE).read_bytes())
    return {}


def _parsed(text: bytes) -> dict[str, str]:
    """A note; empty for anything else, such as one that a kill has truncated."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether no process uses or writes the entry; if so, none can begin to within the block, at
    the end of which the note is removed. UserError where that cannot be known.

    The lock stays: its waiters must find one file."""
    note = beside(path, NOTE)
    with contextlib.ExitStack() as stack:
        with files.writing(note):
            free = all(
                _locked(stack, file, os.O_RDWR | os.O_CREAT) for file in (beside(path, LOCK), note)
            )
        yield free
        if free:
            with files.writing(note):
                note.unlink(missing_ok=True)


def is_unused(path: Path) -> bool:
    """Whether no process uses or writes the entry at this moment; nothing is created or changed."""
    with contextlib.ExitStack() as stack:
        for file in (beside(path, LOCK), beside(path, NOTE)):
            with contextlib.suppress(OSError):  # not there, for one
                if not _locked(stack, file, os.O_RDONLY):
                    return False
    return True


def _locked(stack: contextlib.ExitStack, file: Path, flags: int) -> bool:
    """Whether the file is now locked, until the stack unwinds; filelock uses the same lock."""
    handle = os.open(file, flags, 0o666)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
