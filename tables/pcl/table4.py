"""PCL, Table 4: weighted k-nearest neighbours on ImageNet."""

from dataclasses import replace
from pathlib import Path

from tables.engine.encoders import DATA, MOCO, PCL, RANDOM, SUPERVISED
from tables.engine.schema import Claim, Column, Row, Table
from tables.pcl import PAPER

POOLED = (("feature", "pooled"),)
ACCURACY = Column("Accuracy", "ImageNet", "kNN, k=20", "knn", "imagenet", margin=2.0, k=20)

TABLE = Table(
    name="table4",
    title="k-nearest-neighbour classification on ImageNet",
    paper=PAPER,
    where="Table 4",
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
        Claim(
            "PCL > MoCo",
            ("pcl",),
            ("moco",),
            (ACCURACY,),
            source='section 4.2: "significantly outperforms previous"',
        ),
    ),
    paper_runs=1,
    expected_data={"imagenet": DATA["imagenet"]},
    unit={"ImageNet": "top-1 (%)"},
    margin_reason=(
        "fixed before any run: below a third of PCL's lead over MoCo (7.4). It has to cover that"
        " the paper states neither the feature nor the temperature"
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
