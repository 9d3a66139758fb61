"""What operating systems and tools leave in folders of data, told by its name alone."""

NAMES = frozenset(
    {
        "@eadir",
        "lost+found",
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        "icon\r",
    }
)
"""Beside names with a dot in front: macOS's .DS_Store and ._<name>, Jupyter's .ipynb_checkpoints.
In lower case, as Windows' names are the same in any."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name (no path) is none of the data: hidden, kept by the
    system, or an editor's backup. A second copy such as "a (1).jpg" is not: its owner has to say
    which of the two counts."""
    return name.startswith(".") or name.endswith("~") or name.lower() in NAMES
