"""What was found, as pages to look at: an index, one page per table or figure, and the same in
Markdown.

A page is one file that needs no network and no script; a cell's runs are a native popover. All of
it is a function of the records and of the pictures that were drawn from them
(``results/<tier>/figureN.png``), and a page that would come out the same is not drawn again."""

import base64
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import pretrain.recipes
import tables as papers
from protobench.runtime import files
from tables.engine import reference
from tables.engine.pages import cells, finding, forest, overview, pictures, provenance, show
from tables.engine.pages.finding import Finding
from tables.engine.schema import TIERS, Exhibit, Figure, Table, Tier

E = TypeVar("E", bound=Exhibit)
RecordsByTier = dict[Tier, dict[str, dict[str, Any]]]
"""tier -> its records by their key"""
ENDINGS = ("csv", "cells.csv", "md", "tex", "txt", "png", "svg", "claims.png", "claims.tex")
"""Of the files beside a page that it links, where they exist."""
LEADERBOARD = "leaderboard/index.html"
"""Where ``python -m tables leaderboard`` writes; linked by the index where it exists."""


def build(
    results: Path,
    have: RecordsByTier,
    tables: Iterable[Table],
    figures: Iterable[Figure],
    requested_keys: dict[tuple[Tier, str], Collection[str]] | None = None,
    left_out: Sequence[str] = (),
) -> list[Path]:
    """Brings ``index.html``, ``<tier>/<name>.html`` and ``<tier>/README.md`` under ``results`` up
    to date with the records ``have``; returns their paths.

    ``requested_keys``: (tier, table or figure) -> the records to take for it (see
    runs.select_records). ``left_out``: what the index is to say of records that could not be read.
    Draws the figures that are missing, or were drawn from other records."""
    exhibits: list[Exhibit] = [*tables, *figures]
    overviews, written = [], []
    for tier in TIERS:
        shown = _forms(exhibits, tier)
        findings = [
            found
            for exhibit in shown
            if (
                found := finding.find(
                    exhibit,
                    tier,
                    have[tier],
                    (requested_keys or {}).get((tier, exhibit.name), ()),
                )
            )
        ]
        if not findings:
            continue
        written += [
            _exhibit_page(found, results, *_neighbours(findings, i))
            for i, found in enumerate(findings)
        ]
        contents = results / tier / "README.md"
        files.write_text(contents, markdown(tier, findings))
        written.append(contents)
        overviews.append(overview.of_tier(tier, findings, shown))
    if overviews:
        index = results / "index.html"
        page = _template("index").render(
            title=_title(overviews),
            overviews=overviews,
            left_out=left_out,
            leaderboard=LEADERBOARD if (results / LEADERBOARD).is_file() else "",
        )
        files.write_text(index, page + "\n")
        written.append(index)
    return written


@cache
def _template(name: str) -> Any:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True
    ).get_template(
        f"{name}.html.jinja",
        globals={
            "intervals": show.INTERVALS,
            "symbols": {**show.SYMBOLS, **forest.SYMBOLS},
            "legend": show.LEGEND,
            "meanings": overview.MEANINGS,
            "provenance_of": provenance.HEADER,
        },
    )


def _forms(exhibits: Iterable[E], tier: Tier) -> list[E]:
    """The exhibits as the tier shows them, without those that it does not have."""
    return [cast(E, form) for exhibit in exhibits if (form := exhibit.form(tier))]


def _title(overviews: Sequence[overview.Overview]) -> str:
    """Names the papers that are shown."""
    shown = dict.fromkeys(paper for of in overviews for paper, _ in of.papers)
    *others, last = [paper.name for paper in shown if paper.authors] or ["ProtoBench"]
    return f"{', '.join(others)}{' and ' * bool(others)}{last}, put to the test"


def _neighbours(findings: Sequence[Finding], i: int) -> tuple[Exhibit | None, Exhibit | None]:
    before = findings[i - 1].exhibit if i > 0 else None
    after = findings[i + 1].exhibit if i + 1 < len(findings) else None
    return before, after


# A page of its own --------------------------------------------------------------------------------


def _exhibit_page(
    found: Finding, results: Path, before: Exhibit | None, after: Exhibit | None
) -> Path:
    exhibit, folder = found.exhibit, results / found.tier
    path, png = folder / f"{exhibit.name}.html", folder / f"{exhibit.name}.png"
    picture = ""
    if isinstance(exhibit, Figure):
        if not pictures.is_of(png, found.found):
            pictures.save(exhibit, found.tier, found.found, folder)
        picture = base64.b64encode(png.read_bytes()).decode()
    beside = [
        name for ending in ENDINGS if (folder / (name := f"{exhibit.name}.{ending}")).is_file()
    ]
    made_of = files.sha256(
        [
            _code(),
            found.tier,
            exhibit.name,
            {row: [record["record_id"] for record in of] for row, of in found.found.items()},
            found.left_out,
            picture,
            beside,
            [neighbour and neighbour.name for neighbour in (before, after)],
        ]
    )
    if _is_made_of(path, made_of):
        return path
    shown = found.outcome.table if found.outcome else exhibit  # with the rows that users brought
    page = _template("exhibit").render(
        title=f"{_named(exhibit)}: {exhibit.title}",
        made_of=made_of,
        found=found,
        exhibit=exhibit,
        before=before,
        after=after,
        beside=beside,
        picture=picture,
        forest=Markup(forest.svg(exhibit, found.tier, found.claims)),
        provenance=provenance.lines(shown.rows, found.found),
        **_of_table(found, folder),
    )
    files.write_text(path, page + "\n")
    return path


def _of_table(found: Finding, folder: Path) -> dict[str, Any]:
    """What the page of a table shows beyond that of a figure."""
    outcome, claims = found.outcome, finding.told_claims(found.claims)
    if outcome is None:
        summary = f"{claims}." if found.claims else ""
        return {"source": source(found), "summary": summary, "groups": [], "notes": []}
    table = outcome.table
    return {
        "source": source(found),
        "outcome": outcome,
        "groups": cells.groups(outcome, found.found, _places(folder)),
        "spread": show.what_spread_means(outcome),
        "summary": f"{told}. {claims}." if (told := finding.told_cells(outcome)) else f"{claims}.",
        "multiplicity": show.multiplicity(outcome.claims),
        "machine": reference.machine(outcome),
        "notes": [
            *table.notes,
            f"Margins: {table.margin_reason}.",
            *(f"{row.title}: cited, {row.cited}." for row in table.rows if row.cited),
        ],
    }


def _places(folder: Path) -> dict[str, str]:
    """Where a page in a tier's folder finds the records, see cells.groups."""
    return {
        path.stem[-cells.SHORT :]: quote(f"records/{path.name}")
        for path in (folder / "records").glob("*.json")
    }


def _named(exhibit: Exhibit) -> str:
    """With its paper, where its label alone would not tell."""
    return (
        exhibit.name if exhibit.label == exhibit.name else f"{exhibit.paper.name}, {exhibit.label}"
    )


def _is_made_of(path: Path, mark: str) -> bool:
    """Whether a page was drawn from what ``mark`` stands for."""
    try:
        with open(path, "rb") as file:
            return mark.encode() in file.read(200)
    except OSError:
        return False


@cache
def _code() -> str:
    """What the pages are drawn by: every table, the engine and the recipes."""
    folders = [Path(path) for package in (papers, pretrain.recipes) for path in package.__path__]
    return files.sha256(
        [
            [path.name, path.read_text(encoding="utf-8")]
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".py", ".csv", ".jinja", ".css")
        ]
    )


# In Markdown --------------------------------------------------------------------------------------


def source(found: Finding) -> str:
    """Whose it is, and where the paper's numbers were read."""
    exhibit = found.exhibit
    told = f"{exhibit.paper.citation}; {exhibit.source}"
    return f"{told}. {exhibit.source_note}" if isinstance(exhibit, Table) else told


def markdown(tier: Tier, findings: Sequence[Finding]) -> str:
    """The contents of a tier's folder, as GitHub shows them."""
    lines = [f"# Results of the {tier} tier", "", f"**{TIERS[tier].stamp}**", ""]
    for found in findings:
        exhibit, outcome = found.exhibit, found.outcome
        link = f"[{exhibit.name}]({exhibit.name}.{'md' if outcome else 'csv'})"
        lines += [f"## {link}: {exhibit.title}", "", source(found), ""]
        if isinstance(exhibit, Figure):
            lines += [f"**{found.headline}**", ""] if found.headline else []
            lines += [
                f"![{exhibit.alternative}]({exhibit.name}.png)",
                "",
                exhibit.caption,
                "",
            ]
        elif outcome:
            summary = show.summary(outcome).partition(" ->")[0]
            lines += [f"{summary}. Controls: {show.plain(outcome.controls)}.", ""]
        lines += [f"- **{claim.verdict}**: {claim.text}; {claim.detail}" for claim in found.claims]
        lines += [""] * bool(found.claims)
    return "\n".join(lines).rstrip() + "\n"
