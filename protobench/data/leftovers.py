"""What operating systems and tools leave in folders of data, recognised by its name alone."""

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
"""In lower case, as Windows ignores case. Names that begin with a dot (macOS's .DS_Store and
._<name>, Jupyter's .ipynb_checkpoints) are leftovers too."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name (not a path) does not belong to the data: hidden, kept
    by the system, or an editor's backup. A second copy such as "a (1).jpg" is no leftover: its
    owner has to decide which of the two counts."""
    return name.startswith(".") or name.endswith("~") or name.lower() in NAMES
