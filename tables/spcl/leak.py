"""How much labels that leak into SPCL's pairs would explain. An experiment of this suite."""

from dataclasses import replace
from pathlib import Path

from tables.engine.encoders import DATA
from tables.engine.schema import Claim, Table
from tables.spcl import PAPER
from tables.spcl.rows import LEAK, RANDOM, SIMCLR, SPCL, SUPERVISED
from tables.spcl.table2 import ACCURACY, COSINE, FN, NO_HEAD, TOP1, TP

OURS = "our question: the released code draws its pairs by true classes"

TABLE = Table(
    name="spcl-leak",
    title="SPCL with pairs drawn by true class: what a leak would explain",
    paper=PAPER,
    order=2,
    where="Table 2, for the rows that it has",
    source_note="An experiment of this suite, beside the paper's own number.",
    numbers_csv=Path(__file__).with_suffix(".csv"),
    rows=(replace(RANDOM, lacks=NO_HEAD), replace(SUPERVISED, lacks=NO_HEAD), SIMCLR, SPCL, LEAK),
    columns=(TOP1, TP, FN),
    claims=(
        Claim(
            "the leak raises top-1",
            ("spcl-pairs-of-labels",),
            ("spcl",),
            (TOP1,),
            source=OURS,
            primary=True,
        ),
        Claim(
            "the leak raises TP similarity",
            ("spcl-pairs-of-labels",),
            ("spcl",),
            (TP,),
            source=OURS,
        ),
        Claim(
            "the leak lowers FN similarity",
            ("spcl",),
            ("spcl-pairs-of-labels",),
            (FN,),
            source=OURS,
        ),
        Claim(
            "with the leak, SPCL > SimCLR",
            ("spcl-pairs-of-labels",),
            ("simclr",),
            (TOP1,),
            source=OURS,
        ),
    ),
    paper_runs=1,
    expected_data={"cifar10": DATA["cifar10"]},
    networks=("resnet18, cifar stem", "resnet50, cifar stem"),
    unit={ACCURACY: "top-1 (%)", COSINE: "mean cosine"},
    margin_reason="those of spcl-table2",
    decimals=2,
    claimed_by="this suite",
    notes=(
        (
            "Pairs drawn by true class: p and q are classes, so that every pair of the metric loss"
            " is labelled rightly; prototypes and their cross-entropy stay those of k-means. The"
            " released code does the same, in another arrangement."
        ),
        "A statement about the release: the paper's numbers may come from other code.",
        "SimCLR, Random, Supervised and all settings: as in spcl-table2.",
    ),
)
