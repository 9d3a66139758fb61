"""The last step of every run, and all that ``diff`` does: compares or draws, prints, and writes the
files and the pages."""

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from protobench import records
from protobench.runtime import cli, colour, files
from protobench.runtime.errors import UserError, printable
from tables.engine import catalogue, compare, reference, runs
from tables.engine.pages import claims_files, page, pictures, show
from tables.engine.pages.page import RecordsByTier
from tables.engine.runs import Collected
from tables.engine.schema import TIERS, ClaimResult, Exhibit, Figure, RecordsByRow, Table, Tier


def publish(
    exhibit: Exhibit,
    tier: Tier,
    results: Path,
    *,
    strict: bool = False,
    requested_keys: Collection[str] = (),
    wide: bool = False,
) -> int:
    """Prints a table or a figure of the records in ``results``, writes its files beside them
    (``results/<tier>/<name>.*``) and all pages; returns the exit code. What is printed ends with
    the claims and what to do next.

    ``requested_keys``: the records that a run was about; without them the newest of each kind.
    ``strict``: exit 1 also for contradicted claims and for cells above the paper. ``wide``: what
    needs more columns than a terminal may have is not split."""
    have = read(results)
    collected = runs.select_records(exhibit, have[tier], requested_keys)
    columns = None if wide else show.COLUMNS
    if isinstance(exhibit, Figure):
        shown = _figure(exhibit, tier, results, collected, strict, columns)
    else:
        assert isinstance(exhibit, Table)
        shown = _table(exhibit, tier, results, collected, strict, columns)
    written = pages(results, have, {(tier, exhibit.name): requested_keys})
    print(colour.painted(shown.ending), end="")
    own = results / tier / f"{exhibit.name}.html"
    if page := next((path for path in (own, results / "index.html") if path in written), None):
        print(f"page: {colour.link(page)}")
    if told := more_pretrainings(exhibit, tier, shown.claims, collected.rows):
        print(f"next: {told}")
    return shown.code


@dataclass(frozen=True)
class Shown:
    """What was printed, and how it ends."""

    code: int
    claims: Sequence[ClaimResult] = ()
    ending: str = ""


def more_pretrainings(
    exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult], found: RecordsByRow
) -> str:
    """The command for the next look at claims that are open; empty where there are none, and in
    the quick tier, whose numbers mean nothing."""
    undecided = [claim for claim in claims if claim.verdict == "undecided" and claim.rows]
    if not undecided or tier == "quick":
        return ""
    each = {row: {record["subject"]["seed"] for record in of} for row, of in found.items()}
    seeds = min(len(each[row]) for claim in undecided for row in claim.rows if row in each)
    are = "1 claim is" if len(undecided) == 1 else f"{len(undecided)} claims are"
    following = exhibit.looks.after(seeds, exhibit.looks.sizes[-1])
    if following is None:
        return f"{are} undecided at the last look, of {seeds} pretrainings; no more are made"
    flags = "" if tier == "mini" else f" --tier {tier} --data ROOT"
    flags += f" {'--max-seeds' if TIERS[tier].grows else '--seeds'} {following}"
    return f"python -m tables reproduce {exhibit.name}{flags} ({are} undecided)"


def undecided(
    exhibit: Exhibit, tier: Tier, results: Path, requested_keys: Collection[str]
) -> list[ClaimResult]:
    """The claims that more pretrainings could decide, by the records in ``results``."""
    have = records.read_all(results / tier / "records")
    rows = runs.select_records(exhibit, have, requested_keys).rows
    if isinstance(exhibit, Table):
        return compare.outcome(exhibit, tier, rows).undecided
    assert isinstance(exhibit, Figure)
    if pictures.missing(exhibit, rows):
        return []
    return [claim for claim in exhibit.claims(rows) if claim.verdict == "undecided" and claim.rows]


def read(results: Path, refused: Callable[[UserError], None] | None = None) -> RecordsByTier:
    """The records of all tiers, verified (see records.read_all)."""
    return {tier: records.read_all(results / tier / "records", refused) for tier in TIERS}


def pages(
    results: Path,
    have: RecordsByTier,
    requested_keys: dict[tuple[Tier, str], Collection[str]] | None = None,
    left_out: Sequence[str] = (),
) -> list[Path]:
    """Brings all pages up to date (see page.build); returns their paths."""
    tables, figures = catalogue.tables(), catalogue.figures()
    return page.build(results, have, tables.values(), figures.values(), requested_keys, left_out)


def rewrite_pages(results: Path) -> int:
    """Brings all pages up to date with the records in ``results``, and prints their paths; returns
    the exit code. What cannot be read is told here and on the index, and the rest is shown."""
    refused: list[UserError] = []
    have = read(results, refused.append)
    refused += [
        UserError("there is no tier of this name", at=folder)
        for folder in sorted(results.glob("*/records"))
        if folder.parent.name not in TIERS and any(folder.glob("*.json"))
    ]
    left_out = [
        printable(f"{_relative(Path(mistake.at or results), results)}: {mistake.what}")
        for mistake in refused
    ]
    written = pages(results, have, left_out=left_out)
    for told in left_out:
        print(f"left out: {told}", file=sys.stderr)
    if not written:
        print("no records, so no page", file=sys.stderr)
        return cli.INCOMPLETE
    print("\n".join(map(str, written)))
    return cli.TROUBLE if left_out else cli.SAME


def _table(
    table: Table,
    tier: Tier,
    results: Path,
    collected: Collected,
    strict: bool,
    columns: int | None,
) -> Shown:
    if not collected.rows:
        print(
            f"no records of {table.name} in {results / tier / 'records'}; python -m tables"
            f" reproduce {table.name} makes them",
            file=sys.stderr,
        )
        return Shown(cli.INCOMPLETE)
    outcome = compare.outcome(table, tier, collected.rows)
    forms = show.forms(outcome, strict)
    for ending, content in forms.items():
        files.write_text(results / tier / f"{table.name}.{ending}", content)
    drawn = claims_files.save(table, tier, outcome.claims, results / tier)
    print(colour.painted(show.table_text(outcome, columns)), end="")
    if told := reference.against(outcome, collected.rows, results / "reference"):
        print(told)
    if collected.stale:
        print(
            f"left out: {collected.stale} records of other data, parameters or recipes in"
            f" {results / tier / 'records'}"
        )
    written = f"written: {results / tier / table.name}.{{{','.join([*forms, *drawn])}}}"
    if table.numbers_csv and not TIERS[tier].dataset:
        numbers = _relative(table.numbers_csv)
        written += f"; plain diff: diff {numbers} {results / tier / table.name}.csv"
    print(f"{written}\n")
    ending = show.ending(outcome, strict, columns)
    return Shown(outcome.exit_code(strict), outcome.claims, f"{ending}\n")


def _relative(path: Path, folder: Path | None = None) -> Path:
    """As seen from a folder, by default the current one, where it lies within."""
    folder = folder or Path.cwd()
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _figure(
    figure: Figure,
    tier: Tier,
    results: Path,
    collected: Collected,
    strict: bool,
    columns: int | None,
) -> Shown:
    if lacking := pictures.missing(figure, collected.rows):
        print(
            f"{figure.name} needs records of {', '.join(lacking)} in {results / tier / 'records'}; "
            f"python -m tables reproduce {figure.name} makes them",
            file=sys.stderr,
        )
        return Shown(cli.INCOMPLETE)
    pictures.save(figure, tier, collected.rows, results / tier)
    for line in (
        f"{figure.name}: {figure.title}",
        f"{figure.paper.citation}; {figure.source}",
        TIERS[tier].stamp,
    ):
        print(show.wrapped(line, columns))
    claims = figure.claims(collected.rows)
    if headline := figure.headline(collected.rows):
        print("\n" + show.wrapped(headline, columns))
    print(f"\nwritten: {results / tier / figure.name}.{{png,svg,csv}}\n")
    contradicted = any(claim.verdict in compare.CONTRADICTED for claim in claims)
    code = cli.DIFFERS if strict and contradicted else cli.SAME
    ending = f"claims: {show.counts(claims)} -> exit {code}\n\n"
    if claims:
        ending = f"{show.claims_text(claims, figure.claimed_by, columns)}\n\n{ending}"
    return Shown(code, claims, ending)
