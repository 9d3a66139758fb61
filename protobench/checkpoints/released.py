"""Published checkpoints: whether a file is one of them, and downloads by name."""

import contextlib
import hashlib
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from protobench.checkpoints import identity
from protobench.runtime import files
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress


@dataclass(frozen=True)
class Released:
    """A published file. ``md5`` and ``sha256`` are the beginning of its hash, empty if the authors
    publish none."""

    name: str
    title: str
    file: str
    arch: str
    page: str
    url: str = ""
    """empty where it has no address of its own"""
    by_hand: str = ""
    """where it lies then"""
    md5: str = ""
    sha256: str = ""
    rows: tuple[str, ...] = ()
    """the papers' rows that are scores of this encoder, as "table1/moco" """
    generic: bool = False
    """whether other files have the same name"""

    @property
    def kept_as(self) -> str:
        """The name that ``fetch`` gives it, and by which it is recognised."""
        return f"{self.name}-{self.file}" if self.generic else self.file

    @property
    def proof(self) -> str:
        """How it is known that a file of this name is the published one."""
        if self.sha256 or self.md5:
            return f"{'sha256' if self.sha256 else 'md5'} {self.sha256 or self.md5} as published"
        return "by its name; its authors publish no hash"


@cache
def catalogue() -> dict[str, Released]:
    """Returns all known files by their short name."""
    content = tomllib.loads(Path(__file__).with_name("released.toml").read_text(encoding="utf-8"))
    return {
        name: Released(name, **{**entry, "rows": tuple(entry.get("rows", ()))})
        for name, entry in content.items()
    }


def listing() -> str:
    """Returns all known files as text, by network and by where they are published."""
    groups: dict[str, dict[str, list[Released]]] = {}
    for entry in catalogue().values():
        network = "Vision transformers" if entry.arch.startswith("vit") else "ResNet-50"
        groups.setdefault(network, {}).setdefault(entry.page, []).append(entry)
    width = max(map(len, catalogue()))
    lines = []
    for network, by_page in groups.items():
        lines += [network, ""]
        for page, entries in by_page.items():
            lines.append(f"  {page}")
            for entry in entries:
                hashed = entry.proof if entry.sha256 or entry.md5 else "no hash published"
                told = "; ".join(filter(None, (entry.title, hashed, entry.by_hand)))
                lines.append(f"    {entry.name:<{width}}  {told}")
        lines.append("")
    return "\n".join(lines).rstrip()


def identify(path: Path, sha256: str) -> Released | None:
    """Returns the published file that this is, by its SHA-256, or by its name and MD5 if that is
    published; None if it is none of them.

    Raises UserError if it has a published file's name and another hash."""
    for entry in catalogue().values():
        if entry.sha256 and sha256.startswith(entry.sha256):
            return entry
        if path.name == entry.kept_as:
            _check(path, entry, sha256)
            return entry
    return None


def _check(path: Path, entry: Released, sha256: str | None = None) -> None:
    if entry.sha256:
        found, wanted = sha256 or identity.sha256_of(path), entry.sha256
    elif entry.md5:
        with open(path, "rb") as file:
            found, wanted = (
                hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest(),
                entry.md5,
            )
    else:
        return
    if not found.startswith(wanted):
        raise UserError(
            f"not the published {entry.title}: its hash begins with {found[:8]}, not {wanted}",
            at=path,
            hint=f"the file is damaged or another one by the same name; {entry.page}",
        )


# Downloading --------------------------------------------------------------------------------------


def fetch(name: str, folder: Path) -> Path:
    """Downloads a published file into ``folder``, unless it is there, and returns its path. The
    file is whole and has the published hash, or is absent.

    Raises UserError for an unknown name, without a network, for another file, and for one that has
    to be brought by hand."""
    if (entry := catalogue().get(name)) is None:
        near = get_close_matches(name, catalogue(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"unknown checkpoint {name!r}", hint=f"{hint}python -m protobench fetch lists all"
        )
    path = folder / entry.kept_as
    if not entry.url and not path.is_file():
        raise UserError(
            f"{entry.title} has no address of its own: {entry.file} lies {entry.by_hand}",
            at=entry.page,
            hint=f"save it as {path}",
        )
    if path.is_dir():
        raise UserError(
            "a folder is in the way of the download", at=path, hint="--to another folder"
        )
    if path.exists():
        _check(path, entry)
    else:
        with _network(entry):
            answer = urllib.request.urlopen(entry.url, timeout=60)
        with contextlib.closing(answer):
            files.write_atomic(path, partial(_download, answer, entry))
    return path


def _download(answer: HTTPResponse, entry: Released, file: BinaryIO) -> None:
    """Copies the answer to ``file`` and checks it. (torch.hub would keep a truncated file if no
    hash is published, and a web page.)"""
    with _network(entry):
        if answer.headers.get_content_type() == "text/html":
            raise OSError("the answer is a web page, not a file (a portal or a moved address?)")
    total = int(answer.headers.get("Content-Length", 0))
    with contextlib.closing(progress(desc=entry.file, unit=" MB", total=total / 1e6)) as bar:
        while chunk := _read(answer, entry):
            file.write(chunk)
            bar.update(len(chunk) / 1e6)
    if total and file.tell() != total:
        with _network(entry):
            raise OSError(f"the connection broke after {file.tell():,} of {total:,} bytes")
    file.flush()
    _check(Path(file.name), entry)


def _read(answer: HTTPResponse, entry: Released) -> bytes:
    with _network(entry):
        return answer.read(1 << 20)


@contextlib.contextmanager
def _network(entry: Released) -> Iterator[None]:
    """Turns a failure of the network into a UserError."""
    try:
        yield
    except (OSError, HTTPException) as failure:
        told = getattr(failure, "reason", None) or str(failure) or type(failure).__name__
        raise UserError(
            f"cannot download {entry.title}: {told}",
            at=entry.url,
            hint=f"without a network, bring the file from another machine: {entry.page}",
        ) from failure
