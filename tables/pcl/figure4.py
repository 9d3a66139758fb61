"""PCL, Figure 4: adjusted mutual information of its clusterings over the epochs."""

from tables.engine import histories, pictures
from tables.engine.encoders import PCL
from tables.engine.schema import Drawing, Figure, RecordsByRow
from tables.pcl import PAPER


def draw(found: RecordsByRow) -> Drawing:
    """One line per K."""
    picture, ((axis,),) = pictures.axes(1, width=6)
    data = []
    for i, k in enumerate(histories.numbers(found["pcl"])):
        quantity = histories.of_clusters(k, "ami")
        histories.curve(
            axis,
            found["pcl"],
            quantity,
            label=f"K = {k}",
            colour=pictures.COLOURS[i],
            dash=pictures.DASHES[i],
            marker=pictures.MARKERS[i],
        )
        data += histories.lines("pcl", found["pcl"], quantity, k, "AMI")
    axis.set(xlabel="epochs of pretraining", ylabel="adjusted mutual information", ylim=(0, None))
    axis.legend(loc="lower right")
    return Drawing(picture, histories.HEADER, data)


FIGURE = Figure(
    name="figure4",
    title="Adjusted mutual information of PCL's clusterings",
    paper=PAPER,
    where="Figure 4 (curves alone: the paper prints no values)",
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
    records_of=(("course", "imagenet"),),
    draw=draw,
)
