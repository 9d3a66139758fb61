"""What a machine runs out of, told so that a user can act on it: GPU memory, shared memory, open
files, memory.

Recognised by the words of the libraries: torch raises a plain RuntimeError for most of it, and what
fails in a process that reads images comes back as text."""

import re
from collections.abc import Iterator

from protobench.runtime.errors import UserError

SAME_PROTOCOL = (
    "a smaller --batch-size, where there is one, is another protocol, so nothing lowers it by"
    " itself"
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
            " help; nvidia-smi tells who else is on it"
        ),
    ),
    (
        re.compile(r"Too many open files|received 0 items of ancdata"),
        "this process may not open so many files",
        None,
        "raise the limit (ulimit -n 65536), or lower --workers",
    ),
    (
        re.compile(
            r"shared memory ?\(shm\)|out of shared memory|</torch_\d+.*(No space|allocate)|Bus"
            r" error"
        ),
        "the shared memory, through which workers hand over images, is too small",
        "/dev/shm",
        "--workers 0 needs none; or a larger one (docker run --shm-size=8g, or --ipc=host)",
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
            "most often memory ran out: lower --workers, to 0 if need be, or give more of it or of"
            " /dev/shm (docker run --shm-size=8g)"
        ),
    ),
)
"""Words of a failure, what they mean, where, and what helps. The first that fits counts: that a
worker died tells least."""

LONGEST = 160
"""Letters of a library's own words that are passed on."""


def explained(failure: BaseException) -> UserError | None:
    """What ``failure``, or what it came from, says of the machine's limits; None where it says
    nothing of them."""
    told = [f"{type(one).__name__}: {one}" for one in _chain(failure)]
    for pattern, what, where, hint in KNOWN:
        for words in told:
            if pattern.search(words):
                return UserError(f"{what} ({_line(words, pattern)})", at=where, hint=hint)
    return None


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """The failure, and what it was raised from or during, as a traceback would show them."""
    seen: set[int] = set()
    one: BaseException | None = failure
    while one is not None and id(one) not in seen:
        yield one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _line(words: str, pattern: re.Pattern[str]) -> str:
    """The last line that says it: what comes from a worker is a whole traceback, its message at the
    end."""
    line = [line for line in words.splitlines() if pattern.search(line)][-1].strip(" :")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
