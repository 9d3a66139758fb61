"""Colours on a terminal: never in a file or a pipe, and not if NO_COLOR is set (no-color.org)."""

import os
import re
import sys

GREEN, RED, YELLOW, GREY = "32", "31", "33", "2"
WORDS = {
    GREEN: ("✓", "holds", "reproduced"),
    RED: ("▼", "✗", "reversed", "short", "invalid"),
    YELLOW: ("≈", "▲", "weaker", "undecided", "within", "above"),
    GREY: ("off-protocol", "not-run", "unchecked"),
}


def painted(text: str) -> str:
    """Colours verdicts and their symbols; returns the text unchanged where colours would not
    show."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for colour, words in WORDS.items():
        pattern = "|".join(
            word if not word.isascii() else rf"(?:(?<=^)|(?<=\d )){word}\b" for word in words
        )
        text = re.sub(f"({pattern})", f"\x1b[{colour}m\\1\x1b[0m", text, flags=re.MULTILINE)
    return text
