"""The forest plot of an exhibit's claims as files beside its other forms."""

from collections.abc import Sequence
from pathlib import Path

from protobench.runtime import files
from tables.engine import forest_png, forest_tex
from tables.engine.schema import ClaimResult, Exhibit, Tier


def save(exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult], folder: Path) -> list[str]:
    """Writes ``<name>.claims.png``, ``<name>.claims-dark.png`` and ``<name>.claims.tex``; returns
    these endings, none where nothing is claimed."""
    if not claims:
        return []
    forms = {
        "claims.png": forest_png.png(exhibit, tier, claims),
        "claims-dark.png": forest_png.png(exhibit, tier, claims, dark=True),
        "claims.tex": forest_tex.tikz(exhibit, tier, claims).encode(),
    }
    for ending, content in forms.items():
        files.write_bytes(folder / f"{exhibit.name}.{ending}", content)
    return list(forms)
