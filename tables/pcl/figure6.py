"""PCL, Figure 6: images of fine clusters, and of the coarse clusters around them."""

import base64
import io

import numpy as np
from PIL import Image

from tables.engine import margins
from tables.engine.claims import of_seeds
from tables.engine.encoders import PCL
from tables.engine.pages import pictures
from tables.engine.schema import ClaimResult, Drawing, Figure, RecordsByRow
from tables.pcl import PAPER

NEAREST = 5
GREEN, ORANGE = "#009e73", "#e69f00"


def draw(found: RecordsByRow) -> Drawing:
    """A line per fine cluster of the first seed: the nearest five, then images of the coarse
    cluster."""
    record = found["pcl"][0]
    groups, params = record["groups"], record["unit"]["params"]
    near, around = (max(len(group[which]) for group in groups) for which in ("near", "around"))
    picture, axes = pictures.axes(
        near + around,
        width=0.72 * (near + around),
        height=0.95 * len(groups) + 0.5,
        rows=len(groups),
    )
    picture.set_dpi(100)  # of noise, which a PNG cannot press
    data = []
    for line, group in zip(axes, groups, strict=True):
        shown = [("near", GREEN, image) for image in group["near"]] + [
            ("around", ORANGE, image) for image in group["around"]
        ]
        for axis, (_, colour, image) in zip(line, shown, strict=False):
            axis.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(image["jpeg"])))))
            axis.set_title(image["class"].split(",")[0][:16], fontsize=5.5, pad=2, parse_math=False)
            axis.spines[:].set(
                visible=True,
                color=colour,
                linewidth=2.5,
                linestyle="-" if colour == GREEN else (0, (1.5, 1.5)),
                capstyle="butt",
            )
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
        for axis in line[len(shown) :]:
            axis.set_visible(False)
        data += [
            [
                str(record["subject"]["seed"]),
                str(group["fine"]),
                str(group["coarse"]),
                "nearest the fine prototype" if which == "near" else "of the coarse cluster",
                image["class"],
                image["path"],
            ]
            for which, _, image in shown
        ]
    share = np.mean([r["runs"][0]["value"] for r in found["pcl"]])
    picture.supxlabel(
        f"pretraining seed {record['subject']['seed']} of {len(found['pcl'])}; the largest class"
        f" has {share:.0f} % of the nearest five (mean over clusters and seeds)\ngreen, solid:"
        f" nearest the prototype, K = {params['fine']}    orange, dashed: of the coarse cluster"
        f" around, K = {params['coarse']}",
        fontsize=8,
    )
    return Drawing(
        picture, ("seed", "fine cluster", "coarse cluster", "shown as", "class", "image"), data
    )


def claims(found: RecordsByRow) -> tuple[ClaimResult, ...]:
    """Judges that images of a class are clustered together: the share of the nearest five that are
    of their largest class, against what five images drawn at random would have."""
    share = {of["subject"]["seed"]: of["runs"][0]["value"] for of in found["pcl"]}
    chance = {of["subject"]["seed"]: by_chance(of["data"]["classes"]) for of in found["pcl"]}
    return (
        of_seeds(
            "images of one class are clustered together",
            share,
            chance,
            'appendix H: "clusters images from the same class together"',
            "nearest five of one class, less that of five random images, points of %",
            delta=margins.NEGLIGIBLE,
            rows=("pcl",),
            primary=True,
            decimals=1,
            unit="%",
        ),
        ClaimResult(
            "fine clusters are nested in coarse ones, as sub-classes are in classes",
            "not-run",
            (
                "not run: a record holds some clusters and no assignment of all images, and the"
                " labels have no sub-classes to compare with"
            ),
            'caption of Figure 6: "PCL can discover hierarchical semantic structures"',
        ),
    )


def by_chance(classes: int) -> float:
    """The mean share, in percent, of the largest class among five images drawn from equally
    frequent classes."""
    largest = np.random.default_rng(0).integers(0, classes, (20_000, NEAREST))
    counts = (largest[:, :, None] == largest[:, None, :]).sum(2).max(1)
    return float(100 * counts.mean() / NEAREST)


FIGURE = Figure(
    name="figure6",
    title="Images of fine and coarse clusters of PCL",
    paper=PAPER,
    where="Figure 6",
    caption=(
        "Each line is one fine cluster, drawn by seed among those of five images or more (nothing"
        " was picked by looking). Green, solid border: the five training images nearest its"
        " prototype. Orange, dashed border: images drawn from the coarse cluster that holds most of"
        " these five. Above each, its class, which the clustering never saw."
    ),
    alternative=(
        "Lines of small pictures: five of a fine cluster, then up to ten of the coarse cluster"
        " around it, each with its class above. Paths and classes are in the CSV."
    ),
    rows=(PCL,),
    records_of=(("gallery", "imagenet"),),
    draw=draw,
    claims=claims,
)
