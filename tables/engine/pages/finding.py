"""What was found of a table or a figure in a tier: the records it is made of, compared and judged,
as every page shows it."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tables.engine import compare
from tables.engine.compare import Outcome
from tables.engine.pages import forest, pictures
from tables.engine.runs import select_records
from tables.engine.schema import (
    TIERS,
    ClaimResult,
    Exhibit,
    Figure,
    RecordsByRow,
    Table,
    Tier,
    TierTraits,
)
from tables.engine.sequential import ClaimVerdict
from tables.engine.verdicts import CellVerdict

WORDS = {"holds": "hold", "not-run": "not run"}
"""Verdicts on claims as they are counted, where the word itself does not fit."""
CELLS: tuple[CellVerdict, ...] = (
    "re-evaluated",
    "reproduced",
    "within",
    "undecided",
    "short",
    "above",
    "invalid",
)
"""Verdicts on cells that are counted, in this order."""


@dataclass(frozen=True)
class Finding:
    """A table or a figure, and its records."""

    exhibit: Exhibit
    tier: Tier
    found: RecordsByRow
    left_out: int = 0
    """records of other data, parameters or recipes"""

    @property
    def traits(self) -> TierTraits:
        """What sets the tier apart."""
        return TIERS[self.tier]

    @property
    def href(self) -> str:
        """Its page, seen from the results folder."""
        return f"{self.tier}/{self.exhibit.name}.html"

    @cached_property
    def outcome(self) -> Outcome | None:
        """A table's cells and claims; None for a figure."""
        if isinstance(self.exhibit, Table):
            return compare.outcome(self.exhibit, self.tier, self.found)
        return None

    @cached_property
    def claims(self) -> tuple[ClaimResult, ...]:
        """Judged, those of tables and of figures alike."""
        if isinstance(self.exhibit, Figure):
            return self.exhibit.claims(self.found)
        return tuple(self.outcome.claims) if self.outcome else ()

    @property
    def headline(self) -> str:
        """A figure's, in a sentence."""
        return self.exhibit.headline(self.found) if isinstance(self.exhibit, Figure) else ""

    @property
    def lead_claim(self) -> ClaimResult | None:
        """The claim that it is about: the primary one, or the only one."""
        if primary := [claim for claim in self.claims if claim.primary]:
            return primary[0]
        return self.claims[0] if len(self.claims) == 1 else None

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records behind it."""
        return [record for of in self.found.values() for record in of]


def find(
    exhibit: Exhibit, tier: Tier, have: dict[str, dict[str, Any]], requested: Collection[str] = ()
) -> Finding | None:
    """What the records of a tier (by records.key) say of an exhibit in the tier's form; None where
    there are none for a table, or too few for a figure. ``requested``: see select_records."""
    collected = select_records(exhibit, have, requested)
    lacking = isinstance(exhibit, Figure) and pictures.missing(exhibit, collected.rows)
    if not collected.rows or lacking:
        return None
    return Finding(exhibit, tier, collected.rows, collected.stale)


def counted(claims: Sequence[ClaimResult]) -> list[tuple[ClaimVerdict, int, str]]:
    """(verdict, how many, "2 hold") of the verdicts that occur, in a fixed order."""
    numbers = Counter(claim.verdict for claim in claims)
    return [
        (verdict, numbers[verdict], f"{numbers[verdict]} {WORDS.get(verdict, verdict)}")
        for verdict in forest.SYMBOLS
        if numbers[verdict]
    ]


def told_lead(claim: ClaimResult) -> str:
    """ "+1.1 [-0.5, +2.8]": what speaks least for a claim, with its interval where it has a finite
    one; empty where nothing was run."""
    contrast = claim.weakest
    if contrast is None or contrast.lead is None:
        return ""
    told = f"{contrast.lead:+.{claim.decimals}f}"
    if contrast.interval and all(map(math.isfinite, contrast.interval)):
        low, high = contrast.interval
        told += f" [{low:+.{claim.decimals}f}, {high:+.{claim.decimals}f}]"
    return told


def told_claims(claims: Sequence[ClaimResult]) -> str:
    """ "3 claims: 2 hold, 1 undecided"."""
    if not claims:
        return "no claims"
    told = ", ".join(words for *_, words in counted(claims))
    return f"{len(claims)} claim{'s' * (len(claims) != 1)}: {told}"


def told_cells(outcome: Outcome) -> str:
    """How many cells came out how, where they are compared with the paper's; else empty."""
    numbers = Counter(cell.verdict for cell in outcome.cells.values())
    compared = any(cell.delta is not None for cell in outcome.cells.values())
    told = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in CELLS if numbers[verdict])
    return f"cells: {told}" if compared else ""
