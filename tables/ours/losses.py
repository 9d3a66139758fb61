"""The course of each pretraining: loss, and agreement of its clusters with the classes. Not a
figure of the paper."""

from tables.engine import histories
from tables.engine.encoders import MOCO, PCL, PCL_FIXED
from tables.engine.pages import pictures
from tables.engine.schema import Drawing, Figure, RecordsByRow
from tables.ours import PAPER

ROWS = (MOCO, PCL, PCL_FIXED)


def draw(found: RecordsByRow) -> Drawing:
    """Left the losses of all epochs, a line per seed; right the probes' AMI."""
    picture, ((left, right),) = pictures.axes(2)
    k = histories.numbers(found["pcl"])[1]
    data = []
    for i, row in enumerate(ROWS):
        how = {"color": pictures.COLOURS[i], "linestyle": pictures.DASHES[i]}
        for j, record in enumerate(found[row.name]):
            left.plot(
                [run["epoch"] + 1 for run in record["runs"]],
                [run["loss"] for run in record["runs"]],
                linewidth=1,
                label=row.title if j == 0 else None,
                **how,
            )
            data += [
                [
                    row.name,
                    str(record["subject"]["seed"]),
                    str(run["epoch"] + 1),
                    "",
                    "loss",
                    f"{run['loss']:.6f}",
                ]
                for run in record["runs"]
            ]
        quantity = histories.of_clusters(k, "ami")
        histories.curve(
            right,
            found[row.name],
            quantity,
            label=row.title,
            colour=pictures.COLOURS[i],
            dash=pictures.DASHES[i],
            marker=pictures.MARKERS[i],
        )
        data += histories.lines(row.name, found[row.name], quantity, k, "AMI")
    left.set(
        title="Loss (each method's own: not comparable between methods)",
        xlabel="epochs of pretraining",
        ylabel="nats",
    )
    right.set(
        title=f"Adjusted mutual information of clusters, K = {k}",
        xlabel="epochs of pretraining",
        ylabel="AMI",
        ylim=(0, None),
    )
    for axis in (left, right):
        axis.legend(fontsize=7.5)
    return Drawing(picture, histories.HEADER, data)


FIGURE = Figure(
    name="losses",
    title="Loss and clusters over the pretraining",
    paper=PAPER,
    where="",
    caption=(
        "Left: the loss of every epoch, a line per pretraining seed; PCL's jumps where the"
        " prototypes enter, after its warm-up. Right: agreement of k-means clusters of the momentum"
        " embedding with the classes, means over seeds, bands from the least to the greatest."
    ),
    alternative=(
        "Left, loss curves of MoCo and two PCLs; right, rising curves of adjusted mutual"
        " information. The numbers are in the CSV."
    ),
    rows=ROWS,
    records_of=(("course", "imagenet"),),
    draw=draw,
)
