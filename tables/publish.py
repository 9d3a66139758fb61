"""Compares or draws, prints, and writes the files: the last step of every run, and all that ``diff`` does."""

from collections.abc import Collection
from pathlib import Path

from tables import pictures, show
from tables.schema import Figure, Table, Tier


def publish(what: Table | Figure, tier: Tier, results: Path, *, strict: bool = False,
            asked: Collection[str] | None = None) -> int:
    """Prints and writes a table or a figure from the records in ``results``; returns the exit code."""
    if isinstance(what, Figure):
        return pictures.publish(what, tier, results, strict=strict, asked=asked)
    return show.publish(what, tier, results, strict=strict, asked=asked)
