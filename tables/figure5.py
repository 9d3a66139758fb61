"""PCL, Figure 5: t-SNE of MoCo's and PCL's embeddings."""

from typing import Any

import numpy as np

from tables import courses, pictures
from tables.rows import MOCO, PCL
from tables.schema import Drawing, Figure


def draw(found: dict[str, list[dict[str, Any]]]) -> Drawing:
    """The first seed that both have, side by side; the claim over all."""
    picture, ((left, right),) = pictures.axes(2, width=10, height=5)
    seed = min(set.intersection(*({record["subject"]["seed"] for record in found[row]} for row in ("moco", "pcl"))), default=None)
    data = []
    for axis, row, title in ((left, "moco", "MoCo"), (right, "pcl", "PCL")):
        record = next((r for r in found[row] if r["subject"]["seed"] == seed), found[row][0])
        places_N2, labels = np.array(record["places"]), np.array(record["labels"])
        for label, name in enumerate(record["class_names"]):
            axis.scatter(*places_N2[labels == label].T, s=4, linewidths=0, color=colour(label),
                         marker=pictures.MARKERS[label % len(pictures.MARKERS)])
            if len(record["class_names"]) <= 20:  # more names than that hide the points
                axis.annotate(name, np.median(places_N2[labels == label], axis=0), fontsize=6.5, ha="center",
                              bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0})
            data += [[row, str(record["subject"]["seed"]), name, f"{x:.1f}", f"{y:.1f}"] for x, y in places_N2[labels == label]]
        value = record["runs"][0]["value"]
        axis.set(title=f"{title}: {value:.1f} % with a nearest neighbour of their class", xticks=[], yticks=[])
        axis.set_aspect("equal", "datalim")
        axis.spines[:].set_visible(True)
    return Drawing(picture, ("row", "seed", "class", "x", "y"), data)


def claims(found: dict[str, list[dict[str, Any]]]) -> tuple[tuple[str, str, str], ...]:
    """Of the text, on the share of nearest neighbours in the plane that are of one class."""
    value = {row: {r["subject"]["seed"]: r["runs"][0]["value"] for r in found[row]} for row in ("moco", "pcl")}
    return (courses.claim("PCL forms more separated clusters than MoCo (nearest neighbours in the plane that are of one class, "
                          "points of %)", value["pcl"], value["moco"]),)


def colour(label: int) -> tuple[float, float, float, float]:
    """One of twenty; markers and names tell apart what colours do not."""
    from matplotlib import colormaps

    return colormaps["tab20"](label % 20)


FIGURE = Figure(
    name="figure5",
    title="t-SNE of embeddings of training images",
    paper='PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations"',
    source="arXiv preprint of 2020, Figure 5",
    caption="t-SNE (perplexity 30, started from the first two principal components) of the momentum embedding of training "
            "images, at most 200 of each of the first 60 classes, or of all where there are fewer. Colours and markers are "
            "classes. In a t-SNE the distances between groups, and their sizes, mean little; the share of images whose nearest "
            "neighbour in the plane is of their class is measured over all pretrainings.",
    alternative="Two scatter plots of images in the plane, coloured by class: MoCo left, PCL right. The coordinates are in the "
                "CSV.",
    rows=(MOCO, PCL),
    scores=(("tsne", "imagenet"),),
    draw=draw,
    claims=claims,
)
