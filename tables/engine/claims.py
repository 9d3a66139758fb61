"""Judges claims: the one of a table on its cells' runs, the one of a figure on any numbers per
pretraining."""

from collections.abc import Sequence

from tables.engine import verdicts
from tables.engine.runs import Runs, differences
from tables.engine.schema import Claim, ClaimResult
from tables.engine.verdicts import Lead

Leads = dict[tuple[str, str, str], Lead]
"""(left row, right row, column title) -> how far left lies above right"""


def of_table(
    claim: Claim,
    runs: dict[tuple[str, str], Runs],
    sources: dict[str, str],
    *,
    invalid: bool,
    decimals: int,
) -> ClaimResult:
    """Judges a claim on ``runs``, by row name and column title.

    Where a row that was trained here enters with a single seed, its intervals are over draws and
    speak for that encoder alone: nothing is decided. ``invalid``: the numbers mean nothing."""
    leads: Leads = {}
    one_pretraining = False
    for left in claim.left:
        for right in claim.right:
            for column in claim.columns:
                a, b = runs[left, column.title], runs[right, column.title]
                if found := differences(a, b):
                    leads[left, right, column.title] = verdicts.lead(found, claim.by)
                    several = len({seed for seed, _ in a.keys() & b.keys()}) > 1
                    trained = not all(
                        sources.get(row, "").startswith("released") for row in (left, right)
                    )
                    one_pretraining = one_pretraining or (trained and not several)
    verdict: verdicts.ClaimVerdict
    if len(leads) < len(claim.left) * len(claim.right) * len(claim.columns):
        verdict, one_pretraining = "not-run", False
    elif invalid:
        verdict = "invalid"
    elif one_pretraining:
        verdict = "undecided"
    else:
        verdict = verdicts.claim(list(leads.values()), claim.by)
    detail = _detail(claim, leads, one_pretraining, decimals)
    return ClaimResult(claim.text, verdict, detail, claim.source)


def _detail(claim: Claim, leads: Leads, one_pretraining: bool, decimals: int) -> str:
    """The smallest lead, and in how many comparisons the interval decides."""
    if not leads:
        return "not run"
    (left, right, column), least = min(leads.items(), key=lambda item: item[1].mean)
    detail = f"smallest lead {least.mean:+.{decimals}f}"
    if least.interval:
        detail += f" [{least.interval[0]:+.{decimals}f}, {least.interval[1]:+.{decimals}f}]"
    pair = f", {left} - {right}" if len(claim.left) * len(claim.right) > 1 else ""
    detail += f" ({column}{pair})"
    if one_pretraining:
        return f"{detail}; of one pretraining, which cannot speak for others: more --seeds decide"
    above = sum(
        lead.interval is not None and lead.interval[0] > claim.by for lead in leads.values()
    )
    return f"{detail}; interval above {claim.by:g} in {above} of {len(leads)} comparisons"


def of_seeds(
    text: str, left: dict[int, float], right: dict[int, float], source: str, difference: str
) -> ClaimResult:
    """Judges "left exceeds right" over the pretraining seeds that both have; one seed decides
    nothing. ``difference`` says what is subtracted from what."""
    paired: Sequence[float] = [
        left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())
    ]
    if not paired:
        return ClaimResult(text, "not-run", "no seed in common", source)
    lead = verdicts.lead(paired)
    verdict = verdicts.claim([lead]) if lead.interval else "undecided"
    interval = f" [{lead.interval[0]:+.3f}, {lead.interval[1]:+.3f}]" if lead.interval else ""
    detail = f"{difference}: {lead.mean:+.3f}{interval} over {len(paired)} pretrainings"
    return ClaimResult(text, verdict, detail, source)
