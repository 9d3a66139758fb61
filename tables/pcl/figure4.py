"""PCL, Figure 4: adjusted mutual information of its clusterings over the epochs."""

from tables.engine import histories, margins
from tables.engine.claims import of_seeds
from tables.engine.encoders import PCL
from tables.engine.pages import pictures
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow
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


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges that the curves rise, of every K; declares what the text says of PCL's clusterings and
    no record of PCL alone can tell."""
    rises: dict[int, float] = {}
    for k in histories.numbers(found["pcl"]):
        for seed, of in histories.by_seed(found["pcl"], histories.of_clusters(k, "ami")).items():
            values = list(of.values())
            rises[seed] = min(rises.get(seed, float("inf")), values[-1] - values[0])
    return (
        of_seeds(
            "AMI rises as training proceeds, at every K",
            rises,
            dict.fromkeys(rises, 0.0),
            "Figure 4",
            "smallest rise over the K, last - first probe",
            delta=margins.NEGLIGIBLE_UNIT,
            unit="AMI",
            rows=("pcl",),
            primary=True,
        ),
        *(ClaimResult(text, "not-run", f"not run: {why}", source) for text, why, source in NOT_RUN),
    )


NOT_RUN = (
    (
        "over-clustering is beneficial",
        "needs PCL trained with other numbers of clusters (the figure mechanism sweeps them)",
        'appendix A: "We find over-clustering to be beneficial"',
    ),
    (
        "several numbers of clusters are better than one",
        "needs PCL trained with one number of clusters",
        'section 3.2: "enjoys a more robust probability estimation of prototypes"',
    ),
    (
        "features of the momentum encoder yield more consistent clusters",
        "needs clusterings of the query encoder's features, which no record holds",
        'section 3.2: "features from the momentum encoder yield more consistent clusters"',
    ),
)
"""What is claimed, why it is not judged, and where it is said."""

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
    claims=claims,
)
