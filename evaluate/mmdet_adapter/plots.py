"""Plots of a detection record: detections on a few test images, and a precision-recall curve per
class."""

import base64
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from protobench.runtime import files

DETECTED, TRUTH = "#e69f00", "#56b4e9"


def detections(record: dict[str, Any], axes: list[Any]) -> None:
    """Draw one image on each of ``axes``: true boxes dashed, detected ones solid with class and
    score."""
    for axis, shown in zip(axes, record["shown"], strict=False):
        picture = Image.open(io.BytesIO(base64.b64decode(shown["jpeg"])))
        width, height = shown["size"]
        axis.imshow(np.asarray(picture), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        for _, *box in shown["truth"]:
            _rectangle(axis, box, TRUTH, (0, (2, 2)))
        for title, score, *box in shown["found"]:
            _rectangle(axis, box, DETECTED, "-")
            axis.text(
                box[0],
                box[1] - 0.02 * height,
                f"{title} {score:.2f}",
                fontsize=6,
                color="white",
                parse_math=False,
                clip_on=True,
                bbox={"facecolor": "black", "alpha": 0.6, "pad": 0.8, "linewidth": 0},
            )
        axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axis.grid(visible=False)


def curves(record: dict[str, Any], axis: Any) -> None:
    """Draw precision over recall at IoU 0.5, one line per class; the legend names the best and the
    worst three."""
    ap_of, curve_of = record["runs"][0]["classes"], record["curves"]
    points = len(next(iter(curve_of.values()), [0]))
    recalls = np.linspace(0, 1, points)
    ranked = sorted(curve_of, key=lambda title: -ap_of[title])
    for place, title in enumerate(ranked):
        named = place < 3 or place >= len(ranked) - 3
        axis.plot(
            recalls,
            curve_of[title],
            linewidth=1.4 if named else 0.7,
            alpha=1.0 if named else 0.5,
            color=None if named else "grey",
            label=f"{title} {ap_of[title]:.0f}" if named else None,
            linestyle="-" if place < 3 else "--" if named else "-",
        )
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(
        fontsize=7,
        title="AP, best and worst",
        title_fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )


def save(record: dict[str, Any], path: Path) -> None:
    """Write ``<record>-detections.png`` and ``<record>-curves.png`` beside the record and print
    their paths."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    for name in ("detections", "curves"):
        rows, columns, size = (2, 3, (9, 6)) if name == "detections" else (1, 1, (6, 4.5))
        picture, axes = pyplot.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False
        )
        if name == "detections":
            detections(record, list(axes.flat))
        else:
            curves(record, axes[0, 0])
        target = path.with_name(f"{path.stem}-{name}.png")
        files.write_atomic(target, partial(picture.savefig, format="png", dpi=150))
        pyplot.close(picture)
        print(f"{name}: {target}")


def _rectangle(axis: Any, box: list[float], colour: str, dash: Any) -> None:
    x1, y1, x2, y2 = box
    axis.plot(
        [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linestyle=dash, linewidth=1.3
    )
