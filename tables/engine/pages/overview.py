"""The first screen: what was tried on which data and machine, what held, and where to read on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tables.engine.pages import forest, strips
from tables.engine.pages.finding import Finding, counted, told_cells, told_claims, told_lead
from tables.engine.schema import TIERS, ClaimResult, Exhibit, Figure, Paper, Table, Tier
from tables.engine.sequential import ClaimVerdict

MEANINGS = {
    "holds": "as the paper says, beyond chance",
    "weaker": "a lead, but not of the size",
    "reversed": "the opposite, beyond chance",
    "negligible": "too small a lead to matter",
    "undecided": "too few pretrainings to tell",
    "invalid": "the controls did not come out",
    "not-run": "cannot be tested here, or not yet",
}
"""Verdicts on claims, for whoever sees them first."""


@dataclass(frozen=True)
class Tile:
    """A table or a figure in the grid."""

    exhibit: Exhibit
    href: str = ""
    """empty where nothing was run"""
    lead: ClaimResult | None = None
    """the claim that it is about"""
    margin: str = ""
    """by how much, with its interval"""
    claims: str = ""
    """how many came out how"""
    cells: str = ""
    """the same of its cells, where they are compared"""
    trouble: str = ""
    """why its numbers mean nothing"""

    @property
    def verdict(self) -> str:
        """What its colour says."""
        if self.trouble:
            return "invalid"
        return self.lead.verdict if self.lead else ""


@dataclass(frozen=True)
class Overview:
    """A tier, as the index shows it."""

    tier: Tier
    papers: list[tuple[Paper, list[Tile]]]
    claims: list[tuple[ClaimVerdict, list[tuple[Finding, ClaimResult]]]]
    """verdict -> the claims of all exhibits that came out so"""
    tried: str
    machine: str
    headline: Finding | None = None
    curve: Markup | None = None

    @property
    def stamp(self) -> str:
        """What the tier's numbers mean, without its name."""
        return TIERS[self.tier].stamp.partition(": ")[2]

    @property
    def real(self) -> bool:
        """Whether its data is no generated one."""
        return not TIERS[self.tier].bundled

    @property
    def found(self) -> str:
        """What became of the claims, in a sentence."""
        if not self.claims:
            return "no claims"
        numbers = {verdict: len(of) for verdict, of in self.claims}
        tested = sum(numbers.values()) - numbers.get("not-run", 0)
        holds = numbers.get("holds", 0)
        return f"{holds} of {tested} claims tested {'holds' if holds == 1 else 'hold'}"

    @property
    def counts(self) -> list[tuple[ClaimVerdict, int, str]]:
        """Of all claims."""
        return counted([claim for _, of in self.claims for _, claim in of])


def of_tier(tier: Tier, findings: Sequence[Finding], exhibits: Iterable[Exhibit]) -> Overview:
    """The overview of a tier from its findings; ``exhibits`` are all that the tier has."""
    by_name = {finding.exhibit.name: finding for finding in findings}
    papers: dict[Paper, list[Tile]] = {}
    for exhibit in exhibits:
        found = by_name.get(exhibit.name)
        papers.setdefault(exhibit.paper, []).append(_tile(found) if found else Tile(exhibit))
    for tiles in papers.values():
        tiles.sort(key=lambda tile: isinstance(tile.exhibit, Figure))
    each = [(finding, claim) for finding in findings for claim in finding.claims]
    claims = [
        (verdict, of)
        for verdict in forest.SYMBOLS
        if (of := [pair for pair in each if pair[1].verdict == verdict])
    ]
    headline = next((finding for finding in findings if finding.headline), None)
    drawn = None
    if headline and isinstance(headline.exhibit, Figure):
        drawn = headline.exhibit.curve(headline.found)
    return Overview(
        tier,
        [(paper, tiles) for paper, tiles in papers.items() if any(tile.href for tile in tiles)],
        claims,
        _tried(findings),
        _machine(findings),
        headline,
        strips.curve(drawn) if drawn else None,
    )


def _tile(finding: Finding) -> Tile:
    outcome = finding.outcome
    return Tile(
        finding.exhibit,
        finding.href,
        finding.lead_claim,
        told_lead(finding.lead_claim) if finding.lead_claim else "",
        told_claims(finding.claims),
        told_cells(outcome) if outcome else "",
        outcome.controls if outcome and outcome.failed else "",
    )


def _tried(findings: Sequence[Finding]) -> str:
    """How much stands behind the tier's page."""
    records = _records(findings)
    encoders = {record["unit"]["encoder"] for record in records}
    kinds = [
        f"{count} {what}{'s' * (count != 1)}"
        for kind, what in ((Table, "table"), (Figure, "figure"))
        if (count := sum(isinstance(finding.exhibit, kind) for finding in findings))
    ]
    return (
        f"{' and '.join(kinds)} from {len(records):,} records of {len(encoders):,} encoders"
        if kinds
        else ""
    )


def _machine(findings: Sequence[Finding]) -> str:
    """What the tier's records were computed on, and when."""
    records = _records(findings)
    environments = [record["environment"] for record in records]

    def distinct(what: str) -> list[str]:
        return sorted({str(of[what]) for of in environments if of.get(what) is not None})

    devices = distinct("gpu") or distinct("processor") or ["processor not recorded"]
    days = sorted({str(record["finished"])[:10] for record in records})
    told = [", ".join(devices)]
    if versions := distinct("torch"):
        told.append(f"torch {', '.join(versions)}")
    told.append(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}")
    return "; ".join(told)


def _records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return list(
        {record["record_id"]: record for finding in findings for record in finding.records}.values()
    )
