"""A forest plot of claims as PNG, for where no CSS colours it: a README, a talk."""

import io
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from protobench.runtime import files
from tables.engine.pages import forest
from tables.engine.pages.forest import Area, Dot, Line, Words
from tables.engine.schema import ClaimResult, Exhibit, Tier

SCALE, MARGIN = 2, 12
"""pixels per unit, and units around the picture"""


def png(
    exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult], *, dark: bool = False
) -> bytes:
    """The picture as a file, with ``mark`` in it; the same bytes for the same claims."""
    picture = forest.lay_out(exhibit, tier, claims, headed=True)
    colours = {role: of[dark] for role, of in forest.PALETTE.items()}
    size = (int(SCALE * (forest.WIDTH + 2 * MARGIN)), int(SCALE * (picture.height + 2 * MARGIN)))
    # twice as large, for lines that are smooth when it is reduced; letters are smooth by themselves
    large = Image.new("RGB", (2 * size[0], 2 * size[1]), colours["ground"])
    pen = ImageDraw.Draw(large)
    for shape in picture.shapes:
        if not isinstance(shape, Words):
            _stroke(pen, shape, colours[shape.role])
    image = large.resize(size, Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    for shape in picture.shapes:
        if isinstance(shape, Words):
            _write(pen, shape, colours[shape.role])
    file = io.BytesIO()
    few = image.quantize(palette=_shades(colours), dither=Image.Dither.NONE)
    about = PngInfo()
    about.add_text("Description", mark(exhibit, tier, claims))
    few.save(file, format="png", pnginfo=about)
    return file.getvalue()


def mark(exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult]) -> str:
    """What a picture of these claims shows, and in which colours."""
    picture = forest.lay_out(exhibit, tier, claims, headed=True)
    return files.sha256([repr(picture.shapes), repr(forest.PALETTE)])


def _shades(colours: dict[str, str]) -> Image.Image:
    """Every colour in steps to the ground's: all that lines and letters need, in a third of the
    bytes."""
    ground = np.array(ImageColor.getrgb(colours["ground"]))
    steps = [
        np.round(ground + share * (np.array(ImageColor.getrgb(colour)) - ground)).astype(int)
        for role, colour in colours.items()
        for share in ([1.0] if role in ("line", "band") else np.linspace(0, 1, 12)[1:])
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for shade in (ground, *steps) for value in shade])
    return palette


def _stroke(pen: ImageDraw.ImageDraw, shape: Line | Area | Dot, colour: str) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        return 2 * SCALE * (x + MARGIN), 2 * SCALE * (y + MARGIN)

    match shape:
        case Line():
            (x0, y0), (x1, y1) = (at(x, y) for x, y in zip(shape.x, shape.y, strict=True))
            pieces = np.linspace(0, 1, 8 if shape.dashed else 2)
            for start, end in zip(pieces[::2], pieces[1::2], strict=True):
                pen.line(
                    (
                        x0 + start * (x1 - x0),
                        y0 + start * (y1 - y0),
                        x0 + end * (x1 - x0),
                        y0 + end * (y1 - y0),
                    ),
                    colour,
                    max(1, round(2 * SCALE * shape.width)),
                )
        case Area():
            points = [at(x, y) for x, y in shape.points]
            if shape.hollow:
                pen.line(
                    [*points, *points[:2]], colour, round(2 * SCALE * forest.OUTLINE), joint="curve"
                )
            else:
                pen.polygon(points, colour)
        case Dot():
            pen.circle(at(shape.x, shape.y), 2 * SCALE * shape.radius, colour)


def _write(pen: ImageDraw.ImageDraw, words: Words, colour: str) -> None:
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[words.anchor]
    where = SCALE * (words.x + MARGIN), SCALE * (words.y + MARGIN)
    pen.text(where, words.text, colour, _font(words.bold, words.size), anchor=anchor)


@cache
def _font(bold: bool, size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; found without importing it, which takes longer
    than the picture."""
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(folder / name, SCALE * size, layout_engine=ImageFont.Layout.BASIC)
