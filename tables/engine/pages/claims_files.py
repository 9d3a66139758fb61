"""The forest plot of an exhibit's claims as files beside its other forms."""

from collections.abc import Sequence
from pathlib import Path

from protobench.runtime import files
from tables.engine.pages import forest_png, forest_tex, pictures
from tables.engine.schema import ClaimResult, Exhibit, Tier

GROUNDS = {"claims.png": False, "claims-dark.png": True}
"""Ending of a PNG -> whether it is for a dark ground."""
TEX = "claims.tex"


def save(exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult], folder: Path) -> list[str]:
    """Writes ``<name>.claims.png``, ``<name>.claims-dark.png`` and ``<name>.claims.tex``, pictures
    only where they show something else; returns these endings, none where nothing is claimed."""
    if not claims:
        return []
    mark = forest_png.mark(exhibit, tier, claims)
    for ending, dark in GROUNDS.items():
        path = folder / f"{exhibit.name}.{ending}"
        if pictures.mark_in(path) != mark:
            files.write_bytes(path, forest_png.png(exhibit, tier, claims, dark=dark))
    files.write_text(folder / f"{exhibit.name}.{TEX}", forest_tex.tikz(exhibit, tier, claims))
    return [*GROUNDS, TEX]
