"""UserError, for mistakes that the user can fix, and Terminated, for signals that end a program."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something in the input is wrong. Says what, where, and how to fix it; a script exits with 2
    and no traceback."""

    def __init__(self, what: str, *, at: Path | str | None = None, hint: str | None = None):
        super().__init__(what)
        self.what, self.at, self.hint = what, at, hint

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.at is not None:
            lines.append(f"  at: {self.at}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return printable("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:  # by default, pickling loses keyword-only arguments
        return _rebuild, (self.what, self.at, self.hint)


class Terminated(BaseException):
    """The program was told to stop, by SIGTERM from a scheduler or SIGUSR2 from submitit."""


def choose(what: str, name: str, known: Sequence[str]) -> str:
    """Returns ``name`` if it is known; otherwise raises UserError with "did you mean"."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}", hint=f"{hint}known: {', '.join(known)}")


def _rebuild(what: str, at: Path | str | None, hint: str | None) -> UserError:
    return UserError(what, at=at, hint=hint)


def printable(text: str) -> str:
    """Escapes control characters and undecodable bytes, which file names may hold."""
    return decodable(
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    )


def decodable(text: str) -> str:
    """Escapes undecodable bytes, so that the text can be hashed and recorded; other text is
    returned unchanged."""
    return text.encode("utf-8", "backslashreplace").decode()
