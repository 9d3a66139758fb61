"""A forest plot of claims in LaTeX: text in the document's own font, TikZ and nothing else."""

import re
from collections.abc import Sequence

from tables.engine.pages import forest
from tables.engine.pages.forest import Area, Dot, Line, Shape, Words
from tables.engine.schema import TIERS, ClaimResult, Exhibit, Tier

UNIT = 0.8
"""points, before all is scaled to the width of the line: with it letters have about 10 points, for
which fonts are made"""
MARKS = {
    "\\": "\\textbackslash{}",
    "~": "$\\sim$",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "±": "$\\pm$",
    "∞": "$\\infty$",
    "←": "$\\leftarrow$",
    "→": "$\\rightarrow$",
    '"': "''",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{symbol: "" for verdict, symbol in forest.SYMBOLS.items() if verdict != "undecided"},
}
"""What TeX would read otherwise, or has no letter for. Of the verdicts' symbols their word
remains."""


def tikz(exhibit: Exhibit, tier: Tier, claims: Sequence[ClaimResult]) -> str:
    """A figure environment to ``\\input``, in the colours for a light ground. Needs
    ``\\usepackage{tikz}`` alone; empty where nothing is claimed."""
    if not claims:
        return ""
    picture = forest.lay_out(exhibit, tier, claims)
    used = dict.fromkeys(shape.role for shape in picture.shapes)
    caption = f"{exhibit.title}: claims of {exhibit.claimed_by}. {TIERS[tier].stamp}"
    lines = [
        "% \\usepackage{tikz}",
        "\\begin{figure}",
        "\\centering",
        *(
            f"\\definecolor{{forest-{role}}}{{HTML}}{{{forest.PALETTE[role][0][1:].upper()}}}"
            for role in used
        ),
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tikzpicture}}[x={UNIT}pt,y=-{UNIT}pt,every node/.style={{inner sep=0pt}}]",
        *map(_drawn, picture.shapes),
        "\\end{tikzpicture}}",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{fig:{exhibit.name}-claims-{tier}}}",
        "\\end{figure}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as TeX prints it."""
    pattern = "|".join(map(re.escape, MARKS))
    return re.sub(pattern, lambda found: MARKS[found[0]], text).strip()


def _drawn(shape: Shape) -> str:
    colour = f"forest-{shape.role}"
    match shape:
        case Line():
            dashes = ",dashed" if shape.dashed else ""
            (x0, x1), (y0, y1) = shape.x, shape.y
            return (
                f"\\draw[{colour},line width={UNIT * shape.width:.2f}pt{dashes}]"
                f" ({x0:.1f},{y0:.1f}) -- ({x1:.1f},{y1:.1f});"
            )
        case Area():
            points = " -- ".join(f"({x:.1f},{y:.1f})" for x, y in shape.points)
            if shape.hollow:
                width = UNIT * forest.OUTLINE
                return f"\\draw[{colour},line width={width:.2f}pt] {points} -- cycle;"
            return f"\\fill[{colour}] {points} -- cycle;"
        case Dot():
            radius = UNIT * shape.radius
            return f"\\fill[{colour}] ({shape.x:.1f},{shape.y:.1f}) circle[radius={radius:.2f}pt];"
        case Words():
            anchor = {"start": "base west", "middle": "base", "end": "base east"}[shape.anchor]
            size = UNIT * shape.size
            font = f"\\fontsize{{{size:.2f}}}{{{1.2 * size:.2f}}}\\selectfont"
            bold = "\\bfseries" if shape.bold else ""
            return (
                f"\\node[anchor={anchor},text={colour},font={font}{bold}]"
                f" at ({shape.x:.1f},{shape.y:.1f}) {{{escaped(shape.text)}}};"
            )
