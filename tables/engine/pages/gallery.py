"""Pictures to show: a table by the forest plot of its claims, a figure by itself; and the HTML that
shows them, whose alternative texts are made of the same records."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from protobench import records
from protobench.runtime.errors import UserError
from tables.engine import compare, runs
from tables.engine.pages import claims_files, forest, pictures
from tables.engine.schema import Exhibit, Figure, RecordsByRow, Table, Tier


def refresh(exhibits: Sequence[Exhibit], tier: Tier, results: Path) -> str:
    """Draws the pictures into ``results/<tier>`` where they are missing or of other records, and
    returns the HTML, a line each. UserError where records are missing."""
    have = records.read_all(results / tier / "records")
    return "\n".join(
        _shown(exhibit, tier, runs.select_records(exhibit, have).rows, results / tier)
        for exhibit in exhibits
    )


def _shown(exhibit: Exhibit, tier: Tier, found: RecordsByRow, folder: Path) -> str:
    missing = pictures.missing(exhibit, found) if isinstance(exhibit, Figure) else not found
    if missing:
        raise UserError(
            f"no records that {exhibit.name} can be drawn from",
            at=folder / "records",
            hint=f"python -m tables reproduce {exhibit.name} makes them",
        )
    if isinstance(exhibit, Figure):
        path = folder / f"{exhibit.name}.png"
        if not pictures.is_of(path, found):
            pictures.save(exhibit, tier, found, folder)
        return _image(path, alternative(exhibit, found))
    assert isinstance(exhibit, Table)
    claims = compare.outcome(exhibit, tier, found).claims
    if not claims:
        raise UserError(f"{exhibit.name} has no claims to draw", hint="name another table")
    claims_files.save(exhibit, tier, claims, folder)
    light, dark = (folder / f"{exhibit.name}.{ending}.png" for ending in ("claims", "claims-dark"))
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark.as_posix()}">'
    return f"<picture>{source}{_image(light, forest.alternative(exhibit, claims))}</picture>"


def alternative(figure: Figure, found: RecordsByRow) -> str:
    """What a figure shows, and what was found: its headline, or else its primary claims."""
    told = figure.headline(found) or " ".join(
        f"Primary claim: {claim.text}: {claim.verdict}, {claim.detail}."
        for claim in figure.claims(found)
        if claim.primary
    )
    return f"{figure.alternative} {told}".strip()


def _image(path: Path, words: str) -> str:
    alt = escape(words, quote=False).replace('"', "&quot;")
    return f'<img src="{path.as_posix()}" alt="{alt}">'
