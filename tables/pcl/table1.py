"""PCL, Table 1: low-shot linear SVMs on VOC07 and Places205."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tables.engine import cifar10, margins
from tables.engine.encoders import DATA, MOCO, PCL, PCL_V2, RANDOM, SIMCLR, SUPERVISED
from tables.engine.schema import Claim, Column, Row, Table, Tier
from tables.pcl import PAPER

SHOTS = (1, 2, 4, 8, 16)


DRAW_SD = {1: 3.9, 2: 4.5, 4: 2.6, 8: 1.9, 16: 1.6}
"""Of VOC07's draws by k, points of mAP: of five draws on the bundled data, as none is published."""
PRETRAINING_SD = 0.5
"""Of pretrainings, points of mAP: a guess, twice and more what MoCo's five have on ImageNet."""


def _noise(k: int) -> float:
    """Of a number of VOC07: one pretraining, a mean over five draws."""
    return math.hypot(DRAW_SD[k] / math.sqrt(5), PRETRAINING_SD)


VOC = tuple(
    Column(
        f"VOC07 k={k}",
        "VOC07",
        f"k={k}",
        "lowshot",
        "voc07",
        margin,
        random_margin=2.0,
        k=k,
        delta=margins.NEGLIGIBLE_LOWSHOT,
        noise=_noise(k),
        tolerance=margins.TOLERANCE,
        as_paper=(("draw_order", "released"), ("rule_2020_07", True)),
        readings=("value_2020_07",),
    )
    for k, margin in zip(SHOTS, (5.1, 4.8, 3.6, 2.8, 2.5), strict=True)
)
PLACES = tuple(
    Column(
        f"Places205 k={k}",
        "Places205",
        f"k={k}",
        "lowshot",
        "places205",
        margin,
        random_margin=0.4,
        k=k,
        delta=margins.NEGLIGIBLE,
    )
    for k, margin in zip(SHOTS, (0.8, 0.8, 0.4, 0.3, 0.3), strict=True)
)

ROWS = (
    RANDOM,
    SUPERVISED,
    Row(
        "jigsaw",
        "Jigsaw",
        cited=(
            "taken by the paper from Goyal et al. [37]: ImageNet-14M, another protocol (their "
            "partial labels, cost chosen on the test set, mean AP on Places205)"
        ),
    ),
    MOCO,
    PCL,
    SIMCLR,
    PCL_V2,
)
ENDPOINTS: dict[str, Literal["mean", "each"]] = {"mean over k": "mean", "at every k": "each"}
LEARNED = ("moco", "pcl", "simclr", "pcl-v2")
BOTH = 'section 4.1: "our method substantially outperforms both MoCo and SimCLR"'
"""PCL is trained without a projection MLP, SimCLR with one."""


def _on_cifar10(tier: Tier) -> Table:
    """The shots on the classes of CIFAR-10 instead of VOC07's and Places205's; accuracy."""
    columns = tuple(
        replace(cifar10.column(voc, tier, f"CIFAR-10 k={voc.k}"), heading=voc.heading)
        for voc in VOC
    )
    exceeds = [
        Claim(
            f"{text} on CIFAR-10, {where}",
            (left,),
            (right,),
            columns,
            source=BOTH,
            endpoint=endpoint,
            primary=(left, right, endpoint) == ("pcl", "moco", "mean"),
        )
        for text, left, right in (
            ("PCL > MoCo", "pcl", "moco"),
            ("PCL > SimCLR", "pcl", "simclr"),
            ("PCL v2 > SimCLR", "pcl-v2", "simclr"),
        )
        for where, endpoint in ENDPOINTS.items()
    ]
    return cifar10.table(
        TABLE,
        tier,
        columns,
        (
            *exceeds,
            Claim("Random < all methods", LEARNED, ("random",), columns, source="Table 1"),
            Claim("all methods < Supervised", ("supervised",), LEARNED, columns, source="Table 1"),
        ),
        rows=tuple(
            replace(row, settings=(*row.settings, cifar10.DRAWS))
            for row in TABLE.rows
            if not row.cited
        ),
        unit={cifar10.GROUP: "accuracy (%)"},
        notes=(
            "One-vs-rest SVMs, C = 0.5, unweighted, as on Places205. The paper's claims are about"
            " transfer to other data sets; here the pictures are of the set that was trained on.",
        ),
    )


TABLE = Table(
    name="table1",
    title="Low-shot linear SVMs on frozen features",
    paper=PAPER,
    where="Table 1",
    forms=_on_cifar10,
    source_note=(
        "Typed from section 4.1. Text versions of the table merge the rows Random and Supervised"
        " into one; each cell there holds both numbers."
    ),
    numbers_csv=Path(__file__).with_suffix(".csv"),
    rows=ROWS,
    columns=VOC + PLACES,
    claims=(
        Claim(
            "PCL > MoCo on VOC07, mean over k",
            ("pcl",),
            ("moco",),
            VOC,
            source=BOTH,
            endpoint="mean",
            primary=True,
        ),
        Claim("PCL > MoCo at every k on VOC07", ("pcl",), ("moco",), VOC, source=BOTH),
        Claim(
            "PCL > MoCo on Places205, mean over k",
            ("pcl",),
            ("moco",),
            PLACES,
            source=BOTH,
            endpoint="mean",
        ),
        Claim("PCL > MoCo at every k on Places205", ("pcl",), ("moco",), PLACES, source=BOTH),
        Claim(
            "PCL > MoCo by more than 10 points at k = 1, 2, 4, 8 on VOC07",
            ("pcl",),
            ("moco",),
            VOC[:4],
            by=10.0,
            source=(
                'abstract: ">10% accuracy improvements in low-resource transfer tasks"; the table'
                " itself has +8.4 at k = 16"
            ),
        ),
        Claim(
            "PCL > SimCLR on VOC07, mean over k",
            ("pcl",),
            ("simclr",),
            VOC,
            source=BOTH,
            endpoint="mean",
        ),
        Claim(
            "PCL > SimCLR at every k, both data sets",
            ("pcl",),
            ("simclr",),
            VOC + PLACES,
            source=BOTH,
        ),
        Claim(
            "PCL v2 > SimCLR on VOC07, mean over k",
            ("pcl-v2",),
            ("simclr",),
            VOC,
            source="section 4.1, the same sentence",
            endpoint="mean",
        ),
        Claim(
            "PCL v2 > SimCLR at every k, both data sets",
            ("pcl-v2",),
            ("simclr",),
            VOC + PLACES,
            source="section 4.1, the same sentence",
        ),
        Claim(
            "Random < all methods, both data sets",
            LEARNED,
            ("random",),
            VOC + PLACES,
            source="Table 1",
        ),
        Claim(
            "all methods < Supervised, both data sets",
            ("supervised",),
            LEARNED,
            VOC + PLACES,
            source="Table 1",
        ),
    ),
    paper_runs=5,
    expected_data={name: DATA[name] for name in ("voc07", "places205")},
    max_seeds=6,
    unit={"VOC07": "mAP (%)", "Places205": "accuracy (%)"},
    margin_reason=(
        "fixed before any run on real data, by tables/engine/margins.py: a third of PCL's lead over"
        " MoCo in the column, but no more than 2.9 times the noise of a printed number. On VOC07"
        " that is the draws' spread on the bundled data over five draws, and 0.5 for the"
        " pretraining; at k = 2 less than half of all identical methods can be called reproduced."
        " On Places205 nothing is known of it; 0.3, the least, exceeds a third of the lead at k ="
        " 16 (0.4). Random: 2.0 and 0.4, as its numbers lie within a point of chance (7.5 mAP,"
        " 0.5 %)"
    ),
    notes=(
        (
            "Protocol pcl: PCL's script as released since August 2020 (C = 0.5), which differs from"
            " Goyal et al.'s that section 4.1 cites; see evaluate/lowshot.py. Its README has"
            " printed the paper's numbers since July 2020, when the script tried C = 0.1, 0.5 and"
            " 1, each on draws of its own, and reported the best on the test set. Which rule made"
            " them cannot be told; --rule-2020-07 scores by both. On made features July's was 2.3"
            " points higher at k = 2, 0.8 at k = 4 and within 0.2 elsewhere, which is less than the"
            " margins."
        ),
        "Draws of training images are ours (keyed by seed, k and draw), shared by all rows.",
        (
            "Places205: one-vs-rest, C = 0.5, unweighted, accuracy: the authors' later code; PCL's"
            " own was not released."
        ),
        (
            "The architecture cells of Jigsaw, PCL and PCL v2 are empty in the paper and read as"
            " the cell above."
        ),
    ),
)
