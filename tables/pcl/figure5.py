"""PCL, Figure 5: t-SNE of MoCo's and PCL's embeddings."""

import numpy as np

from protobench.runtime.errors import UserError
from tables.engine import margins
from tables.engine.claims import of_seeds
from tables.engine.encoders import MOCO, PCL
from tables.engine.pages import pictures
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow
from tables.pcl import PAPER


def draw(found: RecordsByRow) -> Drawing:
    """The first seed that both have, side by side; the numbers and the claim over all."""
    picture, ((left, right),) = pictures.axes(2, width=10, height=5)
    shared = set.intersection(
        *({record["subject"]["seed"] for record in found[row]} for row in ("moco", "pcl"))
    )
    if not shared:
        raise UserError(
            "the pictures of MoCo and PCL have no pretraining seed in common",
            hint="run both with the same --seeds",
        )
    data = []
    for axis, row, title in ((left, "moco", "MoCo"), (right, "pcl", "PCL")):
        record = next(r for r in found[row] if r["subject"]["seed"] == min(shared))
        places_N2, labels = np.array(record["places"]), np.array(record["labels"])
        for label, name in enumerate(record["class_names"]):
            axis.scatter(
                *places_N2[labels == label].T,
                s=4,
                linewidths=0,
                color=colour(label),
                marker=pictures.MARKERS[(label + label // 20) % 4],
            )  # the twenty colours come again with other markers
            told = (
                name if len(record["class_names"]) <= 20 else str(label)
            )  # more names than that hide the points
            axis.annotate(
                told,
                np.median(places_N2[labels == label], axis=0),
                fontsize=6.5,
                ha="center",
                parse_math=False,
                bbox={
                    "boxstyle": "round,pad=0.15",
                    "facecolor": "white",
                    "alpha": 0.75,
                    "linewidth": 0,
                },
            )
            data += [
                [row, str(min(shared)), str(label), name, f"{x:.1f}", f"{y:.1f}"]
                for x, y in places_N2[labels == label]
            ]
        values = [r["runs"][0]["value"] for r in found[row]]
        spread = f" ±{np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        axis.set(
            title=(
                f"{title}, seed {min(shared)} of {len(values)}\nnearest neighbour of the same"
                f" class: {np.mean(values):.1f}{spread} % (all seeds)"
            ),
            xticks=[],
            yticks=[],
        )
        axis.set_aspect("equal", "datalim")
        axis.spines[:].set_visible(True)
    return Drawing(picture, ("row", "seed", "number", "class", "x", "y"), data)


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges the text on the share of nearest neighbours in the plane that are of one class."""
    value = {
        row: {r["subject"]["seed"]: r["runs"][0]["value"] for r in found[row]}
        for row in ("moco", "pcl")
    }
    return (
        of_seeds(
            "compared with MoCo, PCL forms more separated clusters",
            value["pcl"],
            value["moco"],
            "appendix G",
            "nearest neighbours in the plane of the same class, PCL - MoCo, points of %",
            delta=margins.NEGLIGIBLE,
            rows=("pcl", "moco"),
            primary=True,
            decimals=1,
            unit="%",
        ),
    )


def colour(label: int) -> tuple[float, float, float, float]:
    """One of twenty; with the marker, one of eighty."""
    from matplotlib import colormaps

    return colormaps["tab20"](label % 20)


FIGURE = Figure(
    name="figure5",
    title="t-SNE of embeddings of training images",
    paper=PAPER,
    where="Figure 5",
    caption=(
        "t-SNE (perplexity 30, started from the first two principal components) of the momentum"
        " embedding of training images, at most 200 of each of the first 60 classes, or of all"
        " where there are fewer. Colours and markers, or numbers in sorted order, are classes."
        " Shown is one pretraining of each. In a t-SNE the distances between groups and their sizes"
        " mean little; the share of images whose nearest neighbour in the plane is of their class"
        " is measured over all pretrainings."
    ),
    alternative=(
        "Two scatter plots of images in the plane, coloured by class: MoCo left, PCL right. The"
        " coordinates are in the CSV."
    ),
    rows=(MOCO, PCL),
    records_of=(("tsne", "imagenet"),),
    draw=draw,
    claims=claims,
)
