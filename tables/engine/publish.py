"""Compares or draws, prints, and writes the files: the last step of every run, and all that
``diff`` does."""

from collections.abc import Collection
from pathlib import Path

from tables.engine import catalogue, pictures, show
from tables.engine.schema import Figure, Table, Tier


def publish(
    what: Table | Figure,
    tier: Tier,
    results: Path,
    *,
    strict: bool = False,
    asked: Collection[str] | None = None,
) -> int:
    """Prints and writes a table or a figure from the records in ``results``; returns the exit
    code."""
    if isinstance(what, Figure):
        code = pictures.publish(what, tier, results, strict=strict, asked=asked)
    else:
        code = show.publish(what, tier, results, strict=strict, asked=asked)
    if pages(results, {(tier, what.name): asked} if asked else None):
        print(f"page: {results / 'index.html'}")
    return code


def pages(
    results: Path, asked: dict[tuple[Tier, str], Collection[str]] | None = None
) -> list[Path]:
    """Writes all pages from the records in ``results`` (see page.build); returns their paths."""
    from tables.engine import page

    return page.build(results, *catalogue.everything(), asked)
