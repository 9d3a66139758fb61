"""What the forms of tables on CIFAR-10 share, which the small tiers show.

Everything in them was chosen before the first run: the recipes (pretrain/recipes/common.py), the
columns, which are those of the paper's table on another data set, and the claims."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tables.engine.encoders import DATA
from tables.engine.schema import (
    TIERS,
    Claim,
    ClaimResult,
    Column,
    RecordsByRow,
    Row,
    Table,
    Tier,
)

GROUP = "CIFAR-10"
NETWORKS: dict[Tier, str] = {"small": "resnet10-mini", "small-gpu": "resnet18, cifar stem"}
DRAWS = ("draws", 20)
"""Support sets of low-shot SVMs, as many as in the bundled tier; the same for all encoders."""
NOTES: dict[Tier, tuple[str, ...]] = {
    "small": (
        (
            "Training and clustering: the first 1000 training images of each class. Test: all"
            " 10,000 test images. Network, optimiser and values of the methods are the mini tier's,"
            " which were chosen on synthetic data; views and input are those of SPCL's section 4.1."
        ),
    ),
    "small-gpu": (
        (
            "One optimiser for all methods, that of lightly's benchmark on CIFAR-10; temperature,"
            " queue and momentum are those published for each method on CIFAR-10, K those of the"
            " paper per class (pretrain/recipes). Supervised is trained likewise."
        ),
    ),
}
ONE_DATA_SET = (
    "All pretrainings share the images and the support sets. A claim that holds is one about"
    " CIFAR-10: pretrainings and support sets were varied, the data set was not."
)


def column(of: Column, tier: Tier, title: str) -> Column:
    """A column of a paper's table, on the tier's data set, where nobody has printed its numbers."""
    return replace(
        of,
        title=title,
        group=GROUP,
        heading=title,
        dataset=TIERS[tier].dataset,
        noise=None,
        tolerance=None,
        as_paper=(),
        readings=(),
    )


def table(
    of: Table,
    tier: Tier,
    columns: tuple[Column, ...],
    claims: tuple[Claim, ...],
    *,
    title: str = "",
    rows: tuple[Row, ...] | None = None,
    numbers_csv: Path | None = None,
    source_note: str = "Nobody has printed numbers of it.",
    unit: dict[str, str],
    test_images: int = 10_000,
    further_claims: Callable[[RecordsByRow], tuple[ClaimResult, ...]] = lambda found: (),
    notes: tuple[str, ...] = (),
) -> Table:
    """A paper's table on the tier's data set: its trained rows and controls, or ``rows``. Its title
    is the paper's, or ``title`` where that names other data."""
    dataset = TIERS[tier].dataset
    return replace(
        of,
        title=of.title if GROUP in of.title else f"{title or of.title}, on {GROUP}",
        rows=tuple(row for row in of.rows if not row.cited) if rows is None else rows,
        columns=columns,
        claims=claims,
        further_claims=further_claims,
        claimed_by="the paper, tested on CIFAR-10",
        numbers_csv=numbers_csv,
        source_note=source_note,
        expected_data={dataset: DATA[dataset] | {"test images": test_images}},
        networks=(NETWORKS[tier],),
        unit=unit,
        margin_reason="none, as cells are not compared with any paper's",
        notes=(*NOTES[tier], ONE_DATA_SET, *notes),
        max_seeds=4,
    )
