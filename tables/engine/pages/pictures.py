"""A figure's files: PNG, SVG and the CSV behind it, the same bytes from the same records."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from protobench.runtime import files
from tables.engine.pages import show
from tables.engine.runs import task_of
from tables.engine.schema import TIERS, Drawing, Figure, RecordsByRow, Tier

COLOURS = ("#0072b2", "#e69f00", "#000000", "#009e73")
"""Okabe and Ito's: told apart by colour-blind people, the first three in greyscale too; dash,
marker and hatch differ as well."""
DASHES, MARKERS, HATCHES = ("-", "--", "-.", ":"), ("o", "s", "^", "D"), ("", "///", "...", "xx")


def axes(columns: int, width: float = 10.0, height: float = 3.8, rows: int = 1) -> tuple[Any, Any]:
    """A picture and its axes in a row (or rows), drawn alike everywhere."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "protobench",
            "svg.fonttype": "path",
            "figure.dpi": 150,
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
        }
    )
    return pyplot.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
    )


def stamp(picture: Any, tier: Tier) -> None:
    """Writes the tier onto the picture, which may be passed on without its page."""
    traits = TIERS[tier]
    if not traits.compared:
        data = "bundled synthetic data" if traits.bundled else f"data set {traits.dataset}"
        picture.suptitle(
            f"{tier.upper()}: {data}, not comparable with the paper's figure",
            fontsize=8,
            color="#b00020",
        )


def draw(figure: Figure, tier: Tier, found: RecordsByRow) -> tuple[Drawing, bytes, str]:
    """The drawing, its PNG (with ``mark`` in it) and its SVG."""
    from matplotlib import pyplot
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.image import AxesImage

    drawing = figure.draw(found)
    stamp(drawing.picture, tier)
    png, svg = io.BytesIO(), io.StringIO()
    drawing.picture.savefig(
        png,
        format="png",
        dpi=drawing.picture.dpi,
        metadata={"Software": None, "Description": mark(found)},
    )
    # images go into the SVG as they are, and the layout stands: half of savefig's time
    drawing.picture.set_layout_engine("none")
    for image in drawing.picture.findobj(AxesImage):
        image.set_interpolation("none")
    canvas: Any = FigureCanvasSVG(drawing.picture)
    canvas.print_svg(svg, metadata={"Date": None, "Creator": None})
    pyplot.close(drawing.picture)
    return drawing, png.getvalue(), svg.getvalue()


def mark(found: RecordsByRow) -> str:
    """Which records a picture was drawn from."""
    return files.sha256(sorted(record["record_id"] for of in found.values() for record in of))


def save(figure: Figure, tier: Tier, found: RecordsByRow, folder: Path) -> None:
    """Draws and writes ``<figure>.{png,svg,csv}`` into a folder."""
    drawing, png, svg = draw(figure, tier, found)
    where = folder / figure.name
    files.write_atomic(where.with_suffix(".png"), lambda file: file.write(png))
    files.write_text(where.with_suffix(".svg"), svg)
    files.write_text(where.with_suffix(".csv"), show.csv_text(list(drawing.header), drawing.data))


def is_of(path: Path, found: RecordsByRow) -> bool:
    """Whether a PNG was drawn from exactly these records."""
    return mark_in(path) == mark(found)


def mark_in(path: Path) -> str | None:
    """What a PNG says that it was drawn from; None where there is none, or no PNG."""
    try:
        with Image.open(path) as image:
            return image.info.get("Description")
    except (OSError, SyntaxError, ValueError):
        return None


def missing(figure: Figure, found: RecordsByRow) -> list[str]:
    """Rows without a record of every kind that the figure needs."""
    return [
        row.name
        for row in figure.rows
        if not {task for task in figure.tasks if task[0] not in row.lacks}
        <= {task_of(record) for record in found.get(row.name, []) if figure.shows(record)}
    ]
