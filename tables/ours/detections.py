"""What the detectors of Table 5 find: boxes on test images, and precision over recall. Not a figure
of the paper."""

import numpy as np

from evaluate.mmdet_adapter import plots
from tables.engine.encoders import MOCO, PCL, RANDOM, SUPERVISED
from tables.engine.pages import pictures
from tables.engine.schema import Drawing, Figure, RecordsByRow
from tables.ours import PAPER

ROWS = (RANDOM, MOCO, PCL, SUPERVISED)
IMAGES = 4


def draw(found: RecordsByRow) -> Drawing:
    """A line per row, of its first seed: the same test images, then its curves."""
    picture, axes = pictures.axes(
        IMAGES + 1, width=2.2 * (IMAGES + 1.8), height=2.2 * len(ROWS) + 0.4, rows=len(ROWS)
    )
    picture.set_dpi(100)  # of noise, which a PNG cannot press
    data = []
    for row, line in zip(ROWS, axes, strict=True):
        record = found[row.name][0]
        plots.detections(record, list(line[:IMAGES]))
        plots.curves(record, line[IMAGES])
        line[0].set_ylabel(row.title)
        line[IMAGES].set_title(
            f"mAP {np.mean([run['value'] for of in found[row.name] for run in of['runs']]):.1f}, "
            f"{len(found[row.name])} pretrainings",
            fontsize=8,
        )
        recalls = np.linspace(0, 1, len(next(iter(record["curves"].values()))))
        data += [
            [row.name, str(record["subject"]["seed"]), title, f"{recall:.2f}", f"{precision:.4f}"]
            for title, curve in record["curves"].items()
            for recall, precision in zip(recalls, curve, strict=True)
        ]
    seed = found["pcl"][0]["subject"]["seed"]
    picture.supxlabel(
        f"pretraining seed {seed}; orange, solid: found with a score of 0.3 or more; blue, dashed:"
        " what is there, difficult objects left out",
        fontsize=8,
    )
    return Drawing(picture, ("row", "seed", "class", "recall", "precision"), data)


FIGURE = Figure(
    name="detections",
    title="What detectors on frozen backbones find",
    paper=PAPER,
    order=1,
    where="",
    caption=(
        "Faster R-CNN on frozen backbones, trained on VOC07 (Table 5). The same four test images"
        " for every row, drawn by number (nothing was picked by looking), with the detections of"
        " score 0.3 or more. Right: precision over recall at IoU 0.5, a line per class, the three"
        " best and the three worst by name. Everything drawn is of the first pretraining seed; mAP"
        " is the mean over all."
    ),
    alternative=(
        "A line per method: four test images with boxes drawn on them, and a plot of twenty curves"
        " that fall from high precision to none as recall rises. The curves' numbers are in the"
        " CSV."
    ),
    rows=ROWS,
    records_of=(("detection", "voc07"),),
    draw=draw,
)
