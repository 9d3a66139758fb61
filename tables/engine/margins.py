"""How margins are chosen, and what counts as a negligible lead. The values stand in the tables'
columns and were fixed before any run on real data; tests compute them again from the papers'
numbers by ``chosen``."""

import math

NEGLIGIBLE, NEGLIGIBLE_LOWSHOT = 1.0, 2.0
"""Points of accuracy or average precision below which a lead is negligible: half of the least lead
that the papers call an improvement and that is no rounding (SPCL's 2.1 over SimCLR), and about as
much as another processor or another crop moves a score. Of VOC07's low-shot mAP, whose draws alone
spread by that, two."""
NEGLIGIBLE_UNIT = 0.02
"""The same for adjusted mutual information, cosines and nats."""

TOLERANCE, TOLERANCE_UNIT = 0.3, 0.003
"""By how much a deterministic evaluation of the paper's own encoder may differ, in points and in
units: image decoding and resizing of other versions, and the solver's last digits."""

CAP, CAP_UNIT = 2.0, 0.02
"""The largest margin where nothing is known of the noise: two points are what reimplementations of
one protocol differ by (mmselfsup, issue 28: fine-tuning on 10 % of the labels)."""


def chosen(
    lead: float,
    noise: float | None,
    decimals: int,
    *,
    cap: float = CAP,
    tolerance: float = TOLERANCE,
) -> float:
    """The margin of a column, in the metric's unit, rounded down to ``decimals``.

    A third of the ``lead`` that the column is there to show, so that what agrees with one of the
    two rows does not agree with the other; but no more than 2.9 times the ``noise`` of a printed
    number, which already lets 80 % of identical methods be called reproduced, or than ``cap`` where
    the noise is unknown. And no less than twice the noise, or the tolerance, as honest runs would
    be called short by chance: there, agreement does not tell the two rows apart, and the ceiling
    (verdicts.ceiling) is 28 %, so that the column cannot be decided."""
    upper = cap if noise is None else 2.9 * noise
    lower = tolerance if noise is None else max(2 * noise, tolerance)
    scale = 10.0**decimals
    return math.floor(max(min(lead / 3, upper), lower) * scale + 1e-6) / scale
