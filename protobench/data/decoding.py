"""Which images of a list can be decoded. All are decoded fully, in parallel, and results are kept
from one run to the next.

Only a full decode can tell: a truncated JPEG passes every shorter test, and half an image is as
good as none."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import PIL

from protobench.data.image_list import ImageList
from protobench.runtime import cache_use, cores, files
from protobench.runtime.errors import UserError, decodable, printable
from protobench.runtime.progress import progress

Lists = TypeVar("Lists", bound=tuple[ImageList, ...])

VERSION = 1
"""Raise when what counts as readable changes."""

CHUNK = 256
"""How many images are read, and recorded as done, together."""


@dataclass(frozen=True)
class DecodeReport:
    """What decoding a whole list showed."""

    bad: dict[int, str]
    """index -> why it cannot be decoded"""
    digests: np.ndarray
    """uint64 [N], the beginning of the SHA-256 of each file, or of its pixels in a list that holds
    them; 0 where it cannot be decoded"""


def check(images: ImageList, workers: int) -> DecodeReport:
    """Decodes and hashes every image on ``workers`` threads.

    Images that an earlier or stopped run decoded are taken from the cache, where size and
    modification time of their files are unchanged; bad ones are read again, as a disk may recover.
    Pixels in memory are only hashed, as nothing is left to decode."""
    if images.pixels is not None:
        return DecodeReport(
            {},
            np.array(
                [
                    int(hashlib.sha256(pixels.tobytes()).hexdigest()[:16], 16)
                    for pixels in images.pixels
                ],
                dtype=np.uint64,
            ),
        )
    identity = [
        VERSION,
        PIL.__version__,
        CHUNK,
        images.name,
        decodable(str(images.root.absolute())),
        images.names,
    ]
    path = files.cache_dir() / "readable" / f"{files.sha256(identity)[:32]}.jsonl"
    chunks = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    bad: dict[int, str] = {}
    digests = np.zeros(len(images), dtype=np.uint64)
    with (
        cache_use.using(path, data=images.name),
        files.exclusive_lock(path.with_suffix(".lock")),
        ThreadPoolExecutor(max(workers, 1)) as pool,
    ):  # a second process waits
        known = _known(path)
        work = _as_they_come(pool, images, chunks, known, max(workers, 1))
        for line in progress(
            work, desc=f"decoding {images.name}", unit=f" x {CHUNK} images", total=len(chunks)
        ):
            start, values = line["start"], line["digests"]
            digests[start : start + len(values) // 16] = [
                int(values[i : i + 16], 16) for i in range(0, len(values), 16)
            ]
            bad |= {int(i): why for i, why in line["bad"].items()}
            if line is not known.get(start):
                with files.writing(path), open(path, "a", encoding="utf-8") as file:
                    # the line break comes first: a kill may have truncated the line before
                    file.write("\n" + json.dumps(line))
    return DecodeReport(dict(sorted(bad.items())), digests)


def leave_out(lists: Lists, limit: int) -> Lists:
    """The lists without their unreadable images, of which there may be ``limit`` in total; with 0
    nothing is read and nothing changed.

    UserError where there are more, and where a class loses its last image."""
    if limit < 0:
        raise UserError(f"--skip-bad-images {limit}: at least 0")
    if limit == 0:
        return lists
    bad_of = [check(images, cores.usable()).bad for images in lists]
    bad = [
        f"{images.root / images.paths[i]}: {why}"
        for images, own in zip(lists, bad_of, strict=True)
        for i, why in own.items()
    ]
    if len(bad) > limit:
        raise UserError(
            f"{len(bad)} images cannot be decoded, more than --skip-bad-images {limit}: "
            + "; ".join(bad[:3]),
            at=lists[0].root,
            hint="python -m protobench check-data names them all",
        )
    for line in bad:
        print(f"left out: {printable(line)}")
    kept = tuple(
        (
            replace(
                images.subset(np.setdiff1d(np.arange(len(images)), list(own))),
                unreadable=tuple(images.paths[i] for i in own),
            )
            if own
            else images
        )
        for images, own in zip(lists, bad_of, strict=True)
    )
    for images in kept:
        for of_class, title in enumerate(images.classes):
            if not (
                (images.labels == 1)[:, of_class]
                if images.labels.ndim == 2
                else images.labels == of_class
            ).any():
                raise UserError(
                    f"{images.name} has no image of {title} once the unreadable ones are left out",
                    at=images.root,
                    hint=(
                        "replace the damaged files; a class without images is no longer this"
                        " data set"
                    ),
                )
    return cast(Lists, kept)


def _known(path: Path) -> dict[int, dict[str, Any]]:
    """The chunks that were decoded before, by their first index. A line truncated by a kill is
    skipped."""
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            chunk = json.loads(line)
            if not chunk["bad"]:
                known[chunk["start"]] = chunk
        except (ValueError, KeyError, TypeError):
            continue
    return known


def _as_they_come(
    pool: ThreadPoolExecutor,
    images: ImageList,
    chunks: list[range],
    known: dict[int, dict[str, Any]],
    workers: int,
) -> Iterator[dict[str, Any]]:
    """The results of the chunks as they are finished; a few are in progress at a time."""
    todo = iter(chunks)
    pending = {
        pool.submit(_read, images, chunk, known.get(chunk.start))
        for chunk in islice(todo, 2 * workers)
    }
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            pending |= {
                pool.submit(_read, images, chunk, known.get(chunk.start))
                for chunk in islice(todo, len(done))
            }
            # results before exceptions, so that what is done is kept
            for future in sorted(done, key=lambda future: future.exception() is not None):
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(images: ImageList, chunk: range, known: dict[str, Any] | None) -> dict[str, Any]:
    """``{"start", "state", "digests", "bad"}`` of a chunk; ``known`` itself where its files are
    unchanged."""
    state = files.sha256([_state(images.root / images.paths[i]) for i in chunk])
    if known is not None and known.get("state") == state:
        return known
    digests, bad = [], {}
    for i in chunk:
        try:
            images.read(i)
            digests.append(files.sha256_file(images.root / images.paths[i])[:16])
        except UserError as mistake:
            bad[str(i)] = mistake.what.partition(f"image {i}: ")[2] or mistake.what.removeprefix(
                f"{images.name}: "
            )
            digests.append("0" * 16)
    return {"start": chunk.start, "state": state, "digests": "".join(digests), "bad": bad}


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
