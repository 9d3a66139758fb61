"""PCL, Figure 4: adjusted mutual information of its clusterings over the epochs."""

from typing import Any

from tables.engine import courses, pictures
from tables.engine.schema import Drawing, Figure
from tables.pcl.figure3 import HEADER
from tables.pcl.rows import PCL


def draw(found: dict[str, list[dict[str, Any]]]) -> Drawing:
    """One line per K."""
    picture, ((axis,),) = pictures.axes(1, width=6)
    data = []
    for i, k in enumerate(courses.numbers(found["pcl"])):
        quantity = courses.of_clusters(k, "ami")
        courses.curve(
            axis,
            found["pcl"],
            quantity,
            label=f"K = {k}",
            colour=pictures.COLOURS[i],
            dash=pictures.DASHES[i],
            marker=pictures.MARKERS[i],
        )
        data += courses.lines("pcl", found["pcl"], quantity, k, "AMI")
    axis.set(xlabel="epochs of pretraining", ylabel="adjusted mutual information", ylim=(0, None))
    axis.legend(loc="lower right")
    return Drawing(picture, HEADER, data)


FIGURE = Figure(
    name="figure4",
    title="Adjusted mutual information of PCL's clusterings",
    paper='PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations"',
    source="arXiv preprint of 2020, Figure 4 (curves alone: the paper prints no values)",
    caption=(
        "Agreement, adjusted for chance (arithmetic mean of entropies), of k-means clusterings of"
        " PCL's momentum embedding with the classes, over the epochs; 1 for equal partitions, 0 for"
        " independent ones. Lines are means over pretraining seeds, bands reach from the least to"
        " the greatest. The first point is the untrained network."
    ),
    alternative=(
        "Three curves of adjusted mutual information over the epochs, one for each number of"
        " clusters. The numbers are in the CSV."
    ),
    rows=(PCL,),
    scores=(("course", "imagenet"),),
    draw=draw,
)
