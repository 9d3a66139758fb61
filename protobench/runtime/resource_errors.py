"""Explains what a machine ran out of, so that a user can act on it: GPU memory, shared memory, open
files, memory.

Failures are recognised by the libraries' messages: torch raises a plain RuntimeError for most of
them, and a failure in a worker process comes back as text."""

import re
from collections.abc import Iterator

from protobench.runtime.errors import UserError

SAME_PROTOCOL = (
    "a smaller --batch-size, where there is one, is another protocol, so it is never lowered"
    " automatically"
)

KNOWN: tuple[tuple[re.Pattern[str], str, str | None, str], ...] = (
    (
        re.compile(
            r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|cudaMalloc error|CUDA"
            r" error: out of memory"
        ),
        "the GPU's memory is too small",
        None,
        (
            f"more GPUs, with torchrun, keep the protocol; {SAME_PROTOCOL}. Fewer --workers do not"
            " help; nvidia-smi shows what else uses it"
        ),
    ),
    (
        re.compile(r"Too many open files|received 0 items of ancdata"),
        "this process may not open that many files",
        None,
        "raise the limit (ulimit -n 65536), or lower --workers",
    ),
    (
        re.compile(
            r"shared memory ?\(shm\)|out of shared memory|</torch_\d+.*(No space|allocate)|Bus"
            r" error"
        ),
        "the shared memory, through which workers pass images, is too small",
        "/dev/shm",
        "--workers 0 needs none; or enlarge it (docker run --shm-size=8g, or --ipc=host)",
    ),
    (
        re.compile(
            r"MemoryError|[Cc](an't|annot) allocate memory(?! in static TLS)|std::bad_alloc"
        ),
        "this machine's memory is too small",
        None,
        f"lower --workers, end other programs, or take a machine with more; {SAME_PROTOCOL}",
    ),
    (
        re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"),
        "a process that reads images died",
        None,
        (
            "most often memory ran out: lower --workers, to 0 if need be, or enlarge memory or"
            " /dev/shm (docker run --shm-size=8g)"
        ),
    ),
)
"""A pattern of messages, what they mean, where, and a hint. The first match counts: that a worker
died says least."""

LONGEST = 160
"""Characters of a library's own message that are shown."""


def explained(failure: BaseException) -> UserError | None:
    """Returns what ``failure``, or its cause, says about the machine's limits; None if nothing."""
    told = [f"{type(one).__name__}: {one}" for one in _chain(failure)]
    for pattern, what, where, hint in KNOWN:
        for words in told:
            if pattern.search(words):
                return UserError(f"{what} ({_line(words, pattern)})", at=where, hint=hint)
    return None


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yields the failure and what it was raised from or during, as a traceback shows them."""
    seen: set[int] = set()
    one: BaseException | None = failure
    while one is not None and id(one) not in seen:
        yield one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _line(words: str, pattern: re.Pattern[str]) -> str:
    """Returns the last line that matches: a worker's failure is a whole traceback, with the message
    at the end."""
    line = [line for line in words.splitlines() if pattern.search(line)][-1].strip(" :")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
