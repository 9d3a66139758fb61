"""Notices to the user, printed to standard error by rank 0 only."""

import os
import sys
from collections.abc import Sequence

from protobench.runtime.errors import printable


def notice(text: str) -> None:
    """Prints one line, such as "warning: …" or "left out: …"."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(printable(text), file=sys.stderr, flush=True)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Returns the first few names of a list, and how many more there are."""
    return ", ".join(names[:shown]) + (
        f" and {len(names) - shown} more" if len(names) > shown else ""
    )
