"""Published checkpoints: which file is one of them, and how to get one when it is asked for by
name."""

import contextlib
import hashlib
import http.client
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from protobench.runtime import files
from protobench.runtime.cli import choose
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress


@dataclass(frozen=True)
class Released:
    """A published file. ``md5`` and ``sha256`` are beginnings of its hash, empty where the authors
    publish none."""

    name: str
    title: str
    file: str
    url: str
    arch: str
    page: str
    md5: str = ""
    sha256: str = ""
    rows: tuple[str, ...] = ()
    """the papers' rows that are scores of this encoder, as "table1/moco" """
    generic: bool = False
    """whether other files go by the same name"""

    @property
    def kept_as(self) -> str:
        """The name that fetch gives it, under which it is known."""
        return f"{self.name}-{self.file}" if self.generic else self.file

    @property
    def proof(self) -> str:
        """How surely a file of this name is the one."""
        if self.sha256 or self.md5:
            return f"{'sha256' if self.sha256 else 'md5'} {self.sha256 or self.md5} as published"
        return "by its name; its authors publish no hash"


@cache
def catalogue() -> dict[str, Released]:
    """All known files by their short name."""
    content = tomllib.loads(Path(__file__).with_name("released.toml").read_text(encoding="utf-8"))
    return {
        name: Released(name, **{**entry, "rows": tuple(entry.get("rows", ()))})
        for name, entry in content.items()
    }


def identify(path: Path, sha256: str) -> Released | None:
    """The published file that this is: by its sha256, or by its name and, where there is one, its
    md5.

    UserError where the name is a published one and the published hash is another.
    """
    for entry in catalogue().values():
        if entry.sha256 and sha256.startswith(entry.sha256):
            return entry
        if path.name == entry.kept_as:
            _check(path, entry, sha256)
            return entry
    return None


def _check(path: Path, entry: Released, sha256: str | None = None) -> None:
    if entry.sha256:
        found, wanted = sha256 or files.sha256_file(path), entry.sha256
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
    """Downloads a published file into ``folder`` and returns its path; goes on where an earlier
    download stopped.

    UserError for an unknown name, without a network, and where the hash is not the published one
    (the file is deleted)."""
    entry = catalogue()[choose("checkpoint", name, list(catalogue()))]
    path = folder / entry.kept_as
    if path.is_dir():
        raise UserError(
            "a folder is in the way of the download", at=path, hint="--to another folder"
        )
    if not path.exists():
        part = path.with_name(path.name + ".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(entry, part)
        except (OSError, urllib.error.URLError, http.client.HTTPException) as failure:
            kept = (
                f"; {part.stat().st_size:,} bytes are kept, the same command goes on"
                if part.is_file()
                else ""
            )
            told = getattr(failure, "reason", None) or str(failure) or type(failure).__name__
            raise UserError(
                f"cannot download {entry.title}: {told}{kept}",
                at=entry.url,
                hint=f"without a network, bring the file from another machine: {entry.page}",
            ) from failure
        try:
            _check(part, entry)
        except UserError:
            part.unlink()
            raise
        finally:
            _version_of(part).unlink(missing_ok=True)
        part.rename(path)
    _check(path, entry)
    return path


def _version_of(part: Path) -> Path:
    """Where the server's ETag is kept: the rest is only asked for if the file is still the same."""
    return part.with_name(part.name + ".etag")


def _download(entry: Released, part: Path) -> None:
    version = _version_of(part)
    have = part.stat().st_size if part.is_file() and version.is_file() else 0
    resume = {"Range": f"bytes={have}-", "If-Range": version.read_text()} if have else {}
    request = urllib.request.Request(entry.url, headers=resume)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as refusal:
        if refusal.code != 416:
            raise
        if refusal.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was whole already
        part.unlink()  # longer than the file: not a part of it
        answer = urllib.request.urlopen(entry.url, timeout=60)
    with contextlib.closing(answer):
        if answer.headers.get_content_type() == "text/html":
            raise OSError("the answer is a web page, not a file (a portal or a moved address?)")
        goes_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(
            f"bytes {have}-"
        )
        length = answer.headers.get("Content-Length")
        have = have if goes_on else 0
        if not have:
            version.unlink(missing_ok=True)
            if answer.headers.get("ETag"):
                version.write_text(answer.headers["ETag"])
        total = have + int(length) if length else 0
        bar = progress(desc=entry.file, unit=" MB", total=total / 1e6)
        bar.n = bar.initial = have / 1e6
        with contextlib.closing(bar), open(part, "ab" if goes_on else "wb") as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk) / 1e6)
            if total and file.tell() != total:
                raise OSError(f"the connection broke after {file.tell():,} of {total:,} bytes")
