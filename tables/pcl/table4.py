"""PCL, Table 4: weighted k-nearest neighbours on ImageNet."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from tables.engine import cifar10, margins
from tables.engine.claims import of_seeds
from tables.engine.encoders import DATA, MOCO, PCL, RANDOM, SIMCLR, SUPERVISED
from tables.engine.runs import runs_of
from tables.engine.schema import Claim, ClaimResult, Column, RecordsByRow, Row, Table, Tier
from tables.pcl import PAPER

POOLED = (("feature", "pooled"),)
ACCURACY = Column(
    "Accuracy",
    "ImageNet",
    "kNN, k=20",
    "knn",
    "imagenet",
    margin=2.0,
    k=20,
    delta=margins.NEGLIGIBLE,
    tolerance=margins.TOLERANCE,
)
SENTENCE = (
    'section 4.2: "significantly outperforms previous methods while requiring fewer number of'
    ' neighbors (20 neighbors as compared to 200 in [1, 11])"'
)


def fewer_neighbours(found: RecordsByRow, column: Column = ACCURACY) -> tuple[ClaimResult, ...]:
    """Judges the sentence's second half: 20 neighbours in PCL against 200 elsewhere."""

    def of(row: str, k: int) -> dict[int, float]:
        runs = runs_of(found.get(row, []), replace(column, k=k))
        return {seed: value for (seed, _), value in runs.items()}

    return (
        of_seeds(
            "PCL needs fewer neighbours: PCL with 20 > MoCo with 200",
            of("pcl", 20),
            of("moco", 200),
            SENTENCE,
            "top-1, PCL with 20 - MoCo with 200 neighbours",
            delta=margins.NEGLIGIBLE,
            rows=("pcl", "moco"),
            decimals=1,
            unit="%",
        ),
    )


LIGHTLY = (
    "lightly's documentation (commit 0243660): ResNet-18 with an MLP head, batches of 512; pooled"
    " feature; the best epoch on the test set"
)
PUBLIC = (
    Row("moco-lightly", "MoCo (lightly, 200 epochs)", cited=f"{LIGHTLY}; a symmetric loss"),
    Row("simclr-lightly", "SimCLR (lightly, 200 epochs)", cited=LIGHTLY),
)
"""What others have on CIFAR-10 with network and optimiser of tier small-gpu, twice as long."""


def _on_cifar10(tier: Tier) -> Table:
    """Neighbours among CIFAR-10's training images, with SimCLR beside the paper's rows."""
    few, many = (
        replace(cifar10.column(ACCURACY, tier, f"k={k}"), heading=f"kNN, k={k}", k=k)
        for k in (20, 200)
    )
    public = PUBLIC if tier == "small-gpu" else ()
    return cifar10.table(
        TABLE,
        tier,
        (few, many),
        (
            Claim("PCL > MoCo", ("pcl",), ("moco",), (few,), source=SENTENCE, primary=True),
            Claim("PCL > SimCLR", ("pcl",), ("simclr",), (few,), source=SENTENCE),
        ),
        title="k-nearest-neighbour classification",
        rows=(*(row for row in TABLE.rows if not row.cited), SIMCLR, *public),
        numbers_csv=Path(__file__).with_name("table4-cifar10.csv") if public else None,
        source_note="Cited rows stand beside ours for orientation." if public else "",
        unit={cifar10.GROUP: "top-1 (%)"},
        further_claims=partial(fewer_neighbours, column=few),
        notes=(
            "Random and Supervised: neighbours of the pooled feature, temperature 0.07; the other"
            " rows: of the embedding, temperature 0.1, among those of the momentum encoder where"
            " there is one. SimCLR stands for the previous methods.",
        ),
    )


TABLE = Table(
    name="table4",
    title="k-nearest-neighbour classification on ImageNet",
    paper=PAPER,
    where="Table 4",
    forms=_on_cifar10,
    source_note=("Typed from section 4.2; its columns are rows here."),
    numbers_csv=Path(__file__).with_suffix(".csv"),
    rows=(
        replace(RANDOM, settings=POOLED),
        replace(SUPERVISED, settings=POOLED),
        Row(
            "instdisc",
            "Instance Disc.",
            cited="taken by the paper from Wu et al. [1]: 200 neighbours, in their own memory",
        ),
        MOCO,
        Row(
            "localagg",
            "Local Agg.",
            cited="taken by the paper from Zhuang et al. [11]: 200 neighbours",
        ),
        PCL,
    ),
    columns=(ACCURACY,),
    claims=(
        Claim("PCL > MoCo", ("pcl",), ("moco",), (ACCURACY,), source=SENTENCE, primary=True),
        Claim(
            "PCL > Instance Disc. and Local Agg., which the paper cites with 200 neighbours",
            ("pcl",),
            ("instdisc", "localagg"),
            (ACCURACY,),
            source=SENTENCE,
        ),
    ),
    further_claims=fewer_neighbours,
    paper_runs=1,
    expected_data={"imagenet": DATA["imagenet"]},
    unit={"ImageNet": "top-1 (%)"},
    margin_reason=(
        "fixed before any run on real data: 2 points, as nothing is known of the noise; below a"
        " third of PCL's lead over MoCo (7.4). It has to cover that the paper states neither the"
        " feature nor the temperature"
    ),
    notes=(
        (
            "Random and Supervised are our controls; the paper has no such rows. They have no"
            " projection head, so their neighbours are of the pooled feature, with temperature"
            " 0.07."
        ),
        (
            "MoCo and PCL: the query encoder's embedding among the momentum encoder's, temperature"
            " 0.1 (PCL's in training), k = 20. The records hold k = 200 as well, the number of"
            " neighbours behind the cited rows."
        ),
    ),
)
