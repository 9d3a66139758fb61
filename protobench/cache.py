"""What the cache holds (features, decoded images, bundled data), and how it is trimmed.

Every folder in the cache is a kind, whose entries are files or folders named by a hash; the folders
of bundled data are entries themselves. An entry is known by the lock or the note beside it
(runtime/cache_use.py). Whatever else lies there is another program's and never touched."""

import contextlib
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from protobench.runtime import cache_use, cli
from protobench.runtime.errors import UserError, printable

HASH = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
WORLD, WORLDS = re.compile(r"[a-z]+-v\d+(-world\d+)?-[0-9a-f]{8}"), "worlds"
SHOWN = 20
"""How many lines are printed without --all."""
HOURS = {"h": 1, "d": 24, "w": 7 * 24}
BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass
class Entry:
    """Something that is made again when it is missing."""

    kind: str
    stem: Path
    """its path without a suffix"""
    paths: list[Path] = field(default_factory=list)
    """its files or its folder, without the lock and the note"""
    size: int = 0
    """bytes on the disk"""
    used: float = 0.0
    """seconds since the epoch, of the last use or, where that was not noted, of the last access"""
    what: Mapping[str, str] = field(default_factory=dict)

    @property
    def unfinished(self) -> bool:
        """Whether it was stopped while it was made, and can be resumed."""
        names = {path.suffix for path in self.paths}
        return ".partial" in names or names == {".tmp"}


@dataclass
class Contents:
    """Everything that lies in a cache."""

    entries: list[Entry] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    """files and folders that are no entries"""


def read(folder: Path) -> Contents:
    """What lies in the folder; nothing where there is none. UserError where it cannot be read."""
    contents = Contents()
    if not folder.exists():
        return contents
    try:
        top = sorted(folder.iterdir())
        kinds = [path for path in top if path.is_dir() and not _stem(path, WORLD)]
        _add(contents, WORLDS, WORLD, [path for path in top if path not in kinds])
        for kind in kinds:
            _add(contents, kind.name, HASH, sorted(kind.iterdir()))
    except OSError as failure:
        raise UserError(
            f"cannot read the cache: {failure.strerror}",
            at=failure.filename or folder,
            hint="PROTOBENCH_CACHE must name a folder that you may read",
        ) from failure
    return contents


def _stem(path: Path, named: re.Pattern[str]) -> str:
    """The entry to which a file belongs; empty for a foreign name. A link is foreign, as what it
    leads to lies elsewhere."""
    stem = path.name.removeprefix(".").partition(".")[0]
    return stem if named.fullmatch(stem) and not path.is_symlink() else ""


def _add(contents: Contents, kind: str, named: re.Pattern[str], paths: list[Path]) -> None:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[_stem(path, named)].append(path)
    contents.others += groups.pop("", [])
    for stem, group in groups.items():
        ours = [path for path in group if path.suffix in (cache_use.LOCK, cache_use.NOTE)]
        data = [path for path in group if path not in ours]
        if not ours:
            contents.others += data
        elif data:
            contents.entries.append(_entry(kind, group[0].with_name(stem), data, ours))


def _entry(kind: str, stem: Path, data: list[Path], ours: list[Path]) -> Entry:
    entry = Entry(kind, stem, data, what=cache_use.read(stem))
    for state in (state for path in data for state in _states(path)):
        # a small file takes a whole block
        entry.size += max(state.st_size, 512 * getattr(state, "st_blocks", 0))
    noted = [path for path in ours if path.suffix == cache_use.NOTE]
    for path in noted or [*data, *ours]:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            state = path.stat()
            entry.used = max(entry.used, state.st_mtime, *([] if noted else [state.st_atime]))
    return entry


def _states(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of all files in a folder; none of what disappears meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir():
            yield path.lstat()
            return
        with os.scandir(path) as inside:
            for item in inside:
                if item.is_dir(follow_symlinks=False):
                    yield from _states(Path(item.path))
                else:
                    yield item.stat(follow_symlinks=False)


# Showing ------------------------------------------------------------------------------------------


def show(folder: Path, kinds: Sequence[str], everything: bool) -> int:
    """Prints what the cache holds: by kind, and by checkpoint and data. Returns the exit code."""
    contents, now = read(folder), time.time()
    entries = chosen(contents, kinds)
    if not entries:
        print(f"nothing in {printable(str(folder))}")
        _print_others(contents)
        return cli.SAME
    free = shutil.disk_usage(folder).free
    print(f"{printable(str(folder))}: {_size(_total(entries))}, {_size(free)} free on its disk\n")
    groups: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        data = entry.what.get("data", entry.stem.name if entry.kind == WORLDS else "unknown")
        groups[entry.kind, entry.what.get("checkpoint", ""), data].append(entry)
    by_size = sorted(groups.items(), key=lambda item: -_total(item[1]))
    shown = by_size if everything else by_size[:SHOWN]
    rows = [
        [
            kind,
            printable(checkpoint),
            printable(data),
            len(group),
            _size(_total(group)),
            _ago(now - max(entry.used for entry in group)),
            ", ".join(_states_of(group)),
        ]
        for (kind, checkpoint, data), group in shown
    ]
    print(tabulate(rows, ["kind", "checkpoint", "data", "entries", "size", "last use", ""]))
    if rest := by_size[len(shown) :]:
        size = _size(sum(_total(group) for _, group in rest))
        print(f"… and {len(rest)} more lines, {size}: --all prints them")
    if any("unknown" in data for _, _, data in groups):
        print(
            "unknown: made before such notes were kept; their last use is that of the file system"
        )
    totals: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        totals[entry.kind].append(entry)
    print(
        "\n"
        + "\n".join(
            f"{kind}: {len(group)} entries, {_size(_total(group))}"
            for kind, group in sorted(totals.items())
        )
    )
    _print_others(contents)
    return cli.SAME


def _states_of(group: list[Entry]) -> list[str]:
    """Which entries of a group are in use or unfinished, as text."""
    counts = {
        "in use": sum(not cache_use.is_unused(entry.stem) for entry in group),
        "unfinished": sum(entry.unfinished for entry in group),
    }
    return [f"{count} {state}" for state, count in counts.items() if count]


def _print_others(contents: Contents) -> None:
    if contents.others:
        print(f"{len(contents.others)} other files or folders, which are never touched")


def chosen(contents: Contents, kinds: Sequence[str]) -> list[Entry]:
    """The entries of these kinds, all where none is named. UserError for a kind that is not
    there."""
    have = sorted({entry.kind for entry in contents.entries})
    for kind in kinds:
        if kind not in have:
            raise UserError(
                f"the cache holds no {kind}", hint=f"there are {', '.join(have) or 'no entries'}"
            )
    return [entry for entry in contents.entries if not kinds or entry.kind in kinds]


# Trimming -----------------------------------------------------------------------------------------


def trim(
    folder: Path,
    kinds: Sequence[str],
    *,
    older_than: float | None,
    max_size: float | None,
    dry_run: bool,
) -> int:
    """Removes the entries last used more than ``older_than`` seconds ago, then the least recently
    used ones until no more than ``max_size`` bytes are left; prints what it does. Returns 3 where
    entries that are in use keep the cache above ``max_size``, else 0.

    UserError where an entry cannot be removed."""
    entries, now = chosen(read(folder), kinds), time.time()
    before = left = _total(entries)
    removed, busy = 0, list[Entry]()
    for entry in sorted(entries, key=lambda entry: entry.used):
        old = older_than is not None and now - entry.used > older_than
        if not old and (max_size is None or left <= max_size):
            continue
        if not (cache_use.is_unused(entry.stem) if dry_run else _removed(entry)):
            busy.append(entry)
            continue
        removed, left = removed + 1, left - entry.size
        print(
            f"{'would remove' if dry_run else 'removed'} {_named(entry)}, {_size(entry.size)}, used"
            f" {_ago(now - entry.used)}"
        )
    for entry in busy:
        print(f"in use, kept: {_named(entry)}, {_size(entry.size)}")
    verb = "would be removed" if dry_run else "removed"
    print(f"{removed} of {len(entries)} entries {verb}, {_size(before - left)}; {_size(left)} left")
    if max_size is not None and left > max_size:
        print(f"more than {_size(max_size)} is in use: trim again when those runs have ended")
        return cli.INCOMPLETE
    return cli.SAME


def _named(entry: Entry) -> str:
    words = (entry.kind, entry.what.get("checkpoint"), entry.what.get("data"), entry.stem.name[:32])
    return printable(" ".join(dict.fromkeys(filter(None, words))))


def _removed(entry: Entry) -> bool:
    """Removes an entry, unless a process uses it; says whether it did."""
    with cache_use.unused(entry.stem) as unused:
        if unused:
            try:
                # the largest first: pixels before the list of their sizes, without which they would
                # look damaged to a run that comes after a kill
                for path in sorted(entry.paths, key=lambda path: -path.lstat().st_size):
                    _remove(path)
            except OSError as failure:
                raise UserError(
                    f"cannot remove an entry of the cache: {failure.strerror}",
                    at=failure.filename or entry.stem,
                    hint="check permissions; what was removed before this is gone",
                ) from failure
    return unused


def _remove(path: Path) -> None:
    """Removes a file or, under another name first, a folder: nobody ever sees half of it, and who
    makes it anew removes what a kill has left."""
    if not path.is_dir():
        path.unlink()
        return
    doomed = path if path.suffix == ".tmp" else path.with_name(f".{path.name}.tmp")
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed)


# Sizes and times ----------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A time span such as 12h, 30d or 8w. UserError for anything else."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([hdw])", text)):
        raise UserError(f"--older-than {text}: a time span is expected", hint="12h, 30d or 8w")
    return float(found[1]) * HOURS[found[2]] * 3600


def size_of(text: str) -> float:
    """A size such as 500MB or 1.5TB, in bytes. UserError for anything else."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", text.upper())):
        raise UserError(f"--max-size {text}: a size is expected", hint="500MB, 50GB or 1.5TB")
    return float(found[1]) * BYTES[found[2]]


def _total(entries: Sequence[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _size(size: float) -> str:
    for unit, value in reversed(BYTES.items()):
        if size >= value:
            return f"{size / value:.3g} {unit}"
    return f"{size:.0f} B"


def _ago(span: float) -> str:
    hours = max(span, 0) / 3600
    if hours < 1:
        return "within the hour"
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} d ago"
