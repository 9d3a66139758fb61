"""Colours and links on a terminal: never in a file or a pipe, and no colours if NO_COLOR is set
(no-color.org)."""

import os
import re
import sys
from pathlib import Path

GREEN, RED, YELLOW, GREY = "32", "31", "33", "2"
WORDS = {
    GREEN: ("✓", "holds", "reproduced"),
    RED: ("▼", "✗", "reversed", "short", "invalid"),
    YELLOW: ("≈", "▲", "weaker", "undecided", "within", "above"),
    GREY: ("off-protocol", "not-run", "unchecked"),
}


def _understood() -> bool:
    """Whether stdout is a terminal that knows escape sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def link(path: Path) -> str:
    """A file's path, which a terminal that can opens on a click (OSC 8); plain text elsewhere."""
    if not _understood():
        return str(path)
    return f"\x1b]8;;{path.resolve().as_uri()}\x1b\\{path}\x1b]8;;\x1b\\"


def painted(text: str) -> str:
    """Colours verdicts and their symbols; returns the text unchanged where colours would not
    show."""
    if not _understood() or os.environ.get("NO_COLOR"):
        return text
    for colour, words in WORDS.items():
        pattern = "|".join(
            word if not word.isascii() else rf"(?:(?<=^)|(?<=\d )){word}\b" for word in words
        )
        text = re.sub(f"({pattern})", f"\x1b[{colour}m\\1\x1b[0m", text, flags=re.MULTILINE)
    return text
