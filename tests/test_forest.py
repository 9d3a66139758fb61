"""The forest plot of claims: what it shows is what was judged, everything stands in its place, and
what has no number says so."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from protobench import records
from tables.engine import catalogue, compare, runs
from tables.engine.pages import forest, forest_png, forest_tex
from tables.engine.schema import ClaimResult, Contrast

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "mini"
SVG = "{http://www.w3.org/2000/svg}"
LONG = "a claim of which the paper says a great deal " * 6 + "Donaudampfschifffahrt" * 5


@pytest.fixture(scope="module")
def judged():
    """The claims of every table, from the committed records."""
    have = records.read_all(REFERENCE / "records")
    return {
        table.name: compare.outcome(table, "mini", runs.select_records(table, have).rows).claims
        for table in catalogue.tables().values()
    }


TABLE1 = catalogue.load("table1")


def claim(lead=1.0, interval=(0.5, 1.5), verdict="holds", text="A > B", paper=2.0, **more):
    """A claim of one comparison."""
    contrast = Contrast("A - B, top-1", lead, interval, paper, "top-1", more.pop("unit", "%"), 0.3)
    source = 'section 1: "A outperforms B"'
    return ClaimResult(text, verdict, "lead", source, contrasts=(contrast,), **more)


def words(claims, **how):
    """All words of the picture."""
    picture = forest.lay_out(TABLE1, "mini", claims, **how)
    shapes = [*picture.around, *(shape for row in picture.rows for shape in row.shapes)]
    return [shape for shape in shapes if isinstance(shape, forest.Words)]


def marks(one, kind, axis=None):
    """The shapes of a kind that are drawn of a claim."""
    (row,) = forest.lay_out(TABLE1, "mini", [one]).rows
    return [shape for shape in row.shapes if isinstance(shape, kind)]


def test_the_paper_s_lead_is_that_of_its_table(judged):
    primary = judged["table1"][0].weakest
    # 46.9 - 31.4, 56.4 - 42.0, 62.8 - 49.5, 70.2 - 60.0, 74.3 - 65.9
    assert primary.paper == pytest.approx((15.5 + 14.4 + 13.3 + 10.2 + 8.4) / 5)
    assert (primary.metric, primary.unit, primary.delta) == ("mAP", "%", 2.0)
    every = judged["table1"][1]
    assert [round(of.paper, 1) for of in every.contrasts] == [15.5, 14.4, 13.3, 10.2, 8.4]
    assert all(of.paper is None for one in judged["spcl-leak"] for of in one.contrasts)


def test_the_line_is_of_the_lead_that_the_verdict_s_text_names(judged):
    for claims in judged.values():
        for one in claims:
            found = re.search(r"lead ([+-][0-9.]+) \[([+-][0-9.]+), ([+-][0-9.]+)\]", one.detail)
            if found and one.contrasts:
                shown = one.weakest
                told = [f"{value:+.{one.decimals}f}" for value in (shown.lead, *shown.interval)]
                assert told == list(found.groups())


def test_of_what_was_not_run_the_paper_s_lead_alone_is_known(judged):
    cited = judged["spcl-table1"][2]
    assert cited.verdict == "not-run"
    assert {of.lead for of in cited.contrasts} == {None}
    assert cited.weakest.paper == pytest.approx(77.68 - 76.5)
    assert "not run" in [shape.text for shape in marks(cited, forest.Words)]


def test_the_weakest_of_what_shall_not_change_is_the_furthest_from_zero():
    far = Contrast("x", -3.0, (-4.0, -2.0))
    one = ClaimResult("same", "reversed", "", "", contrasts=(Contrast("y", 2.0), far), within=1.0)
    assert one.weakest is far
    assert replace(one, contrasts=()).weakest is None


def test_the_axis_holds_everything_that_is_compared():
    axis = forest.axis_of([claim(), claim(-4.0, (-5.0, -3.0)), claim(by=10.0)])
    assert axis.low < -5.0 < 10.0 < axis.high
    assert axis.x(axis.low) == forest.LEFT
    assert axis.x(axis.high) == forest.RIGHT
    assert axis.ticks() == [-5.0, 0.0, 5.0, 10.0]
    assert forest.Axis(-0.5, 0.25).ticks() == pytest.approx([-0.4, -0.2, 0.0, 0.2])


@pytest.mark.parametrize(
    "nothing", [claim(0.0, (0.0, 0.0), paper=None), claim(None, None, paper=None)]
)
def test_an_axis_without_a_length_has_one(nothing):
    axis = forest.axis_of([nothing])
    assert axis.low < 0 < axis.high


@pytest.mark.parametrize(
    ("interval", "told", "arrows"),
    [
        ((-math.inf, math.inf), "+1.0 [−∞, +∞]", 2),
        ((0.5, math.inf), "+1.0 [+0.5, +∞]", 1),
        ((-900.0, 902.0), "+1.0 [−900.0, +902.0]", 2),
        ((0.5, 1.5), "+1.0 [+0.5, +1.5]", 0),
        ((math.nan, math.nan), "+1.0 [?, ?]", 0),
        (None, "+1.0 (no interval)", 0),
    ],
)
def test_intervals_without_end_are_arrows_and_missing_ones_words(interval, told, arrows):
    one = claim(interval=interval)
    assert told in [shape.text for shape in marks(one, forest.Words)]
    triangles = [area for area in marks(one, forest.Area) if len(area.points) == 3]
    assert len(triangles) == arrows
    assert len(marks(one, forest.Dot)) == 1
    for area in triangles:
        assert all(forest.LEFT - 4 <= x <= forest.RIGHT + 4 for x, _ in area.points)


def test_a_claim_about_nothing_is_words_alone():
    one = ClaimResult("time is short", "not-run", "not judged", "section 2")
    assert not marks(one, forest.Dot)
    assert not marks(one, forest.Area)
    assert "· not run" in [shape.text for shape in marks(one, forest.Words)]


def test_units_have_axes_of_their_own_and_primary_claims_come_first():
    groups = forest.by_unit(
        [claim(text="a"), claim(text="b", unit="cosine"), claim(text="c", primary=True)]
    )
    assert [(unit, [one.text for one in of]) for unit, of in groups] == [
        ("%", ["c", "a"]),
        ("cosine", ["b"]),
    ]
    told = [shape.text for shape in words([claim(), claim(unit="cosine")])]
    assert {"points", "cosine"} <= set(told)
    assert told.count("for the claim →") == 2


def test_what_shall_not_change_has_no_side_that_speaks_for_it():
    told = [shape.text for shape in words([replace(claim(), within=1.0)])]
    assert "for the claim →" not in told
    assert "allowed ±1" in told


def test_further_leads_are_ticks_and_those_beyond_the_axis_are_counted():
    near, far = Contrast("near", 1.5, unit="%"), Contrast("far", 90.0, unit="%")
    one = claim()
    one = replace(one, contrasts=(*one.contrasts, near, far))
    assert "1 more →" in [shape.text for shape in marks(one, forest.Words)]
    ticks = [line for line in marks(one, forest.Line) if line.width == 1]
    assert len(ticks) == 1


@pytest.mark.parametrize(
    "claims",
    [
        [claim()],
        [claim(text=LONG, primary=True, interval=(-math.inf, math.inf))],
        [claim(text=f"{LONG} {i}", lead=-1234.5 + i, decimals=1) for i in range(20)],
        [claim(text="A > B", by=3.0), claim(text="A = B", within=1.0)],
        "committed",
    ],
    ids=["one", "long", "twenty", "bounds", "committed"],
)
def test_no_words_run_into_others(claims, judged):
    for of in judged.values() if claims == "committed" else [claims]:
        picture = forest.lay_out(TABLE1, "mini", of)
        for row in picture.rows:
            for shape in row.shapes:
                if not isinstance(shape, forest.Words):
                    continue
                width = (
                    forest_png._font(shape.bold, shape.size).getlength(shape.text)
                    / forest_png.SCALE
                )
                ends = {0: forest.LEFT - 5, forest.NUMBERS: forest.VERDICT - 5}
                assert shape.x + width <= ends.get(shape.x, forest.WIDTH), shape.text
                assert row.top < shape.y - 6
                assert shape.y + 3 < row.top + row.height, shape.text
        tops = [row.top for row in picture.rows]
        assert tops == sorted(tops)
        assert picture.height > picture.rows[-1].top + picture.rows[-1].height


def test_every_claim_can_be_read_and_hovered(judged):
    for name, claims in judged.items():
        root = ElementTree.fromstring(forest.svg(catalogue.load(name), "mini", claims))
        groups = [
            group for group in root.findall(f"{SVG}g") if group.find(f"{SVG}title") is not None
        ]
        assert len(groups) == len(claims)
        titles = [group.find(f"{SVG}title").text for group in groups]
        for one in claims:
            (title,) = [
                of
                for of in titles
                if of.startswith(f"{one.text}:") or of.startswith(f"{one.text} (primary):")
            ]
            assert one.verdict in title
            assert one.source in title
        assert all(group.find(f"{SVG}desc").text for group in groups)
        assert f"Of {len(claims)} claim" in root.get("aria-label")


def test_names_from_files_are_escaped():
    hostile = '<script>alert("&")</script>'
    text = forest.svg(TABLE1, "mini", [claim(text=hostile, verdict="holds")])
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    assert any(hostile in (title.text or "") for title in root.iter(f"{SVG}title"))


def test_the_page_s_picture_needs_nothing_but_itself(judged):
    text = forest.svg(TABLE1, "mini", judged["table1"])
    assert not re.search(r"<script|href|url\(|@import", text)
    assert "prefers-color-scheme:dark" in text
    assert len(text) < 40_000
    assert forest.svg(TABLE1, "mini", []) == ""


def test_the_alternative_counts_the_verdicts(judged):
    told = forest.alternative(TABLE1, judged["table1"])
    assert told.startswith(
        "Of 11 claims of table1 (Low-shot linear SVMs on frozen features): 2 hold, 1 is weaker, 4"
        " are reversed, 4 are undecided. PCL > MoCo on VOC07, mean over k (primary): undecided,"
        " lead +1.1 [-0.5, +2.8]"
    )


def test_figures_claims_are_drawn_in_their_units():
    have = records.read_all(REFERENCE / "records")
    figure = catalogue.load("mechanism")
    claims = figure.claims(runs.select_records(figure, have).rows)
    assert [(unit, len(of)) for unit, of in forest.by_unit(claims)] == [("%", 10)]
    assert [one.within for one in claims].count(1.0) == 2
    told = [shape.text for shape in words(claims)]
    assert "negligible or allowed" in told
    for one in claims:
        assert f"{one.weakest.lead:+.1f}" in one.detail


def test_the_tex_is_balanced_and_holds_every_number(judged):
    text = forest_tex.tikz(TABLE1, "mini", judged["table1"])
    assert text.count("{") == text.count("}")
    assert text.count("\\begin") == text.count("\\end") == 2
    assert text.count("$") % 2 == 0
    assert "$\\sim$ undecided" in text
    assert text.isascii()
    assert "PCL $>$ MoCo at every k on VOC07" in text
    assert "$+$" not in text
    assert "+1.1 [$-$0.5, +2.8]" in text
    drawn = [line for line in text.splitlines() if line.startswith(("\\draw", "\\fill", "\\node"))]
    assert drawn
    assert all(line.endswith(";") for line in drawn)
    assert forest_tex.tikz(TABLE1, "mini", []) == ""


def test_names_are_no_tex():
    hostile = "50 % of {x} \\input{a} $y$ #1 a_b & c~d^e"
    told = "50 \\% of \\{x\\} \\textbackslash{}input\\{a\\} \\$y\\$ \\#1 a\\_b \\& c$\\sim$d"
    assert forest_tex.escaped(hostile) == f"{told}\\textasciicircum{{}}e"


def test_pictures_are_small_and_the_same_every_time(judged):
    light = forest_png.png(TABLE1, "mini", judged["table1"])
    dark = forest_png.png(TABLE1, "mini", judged["table1"], dark=True)
    assert light == forest_png.png(TABLE1, "mini", judged["table1"])
    for png, ground in ((light, "#ffffff"), (dark, forest.PALETTE["ground"][1])):
        assert len(png) < 150_000
        with Image.open(io.BytesIO(png)) as image:
            corner = image.convert("RGB").getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*corner) == ground


@pytest.mark.parametrize("ground", [0, 1])
def test_words_can_be_read_on_either_ground(ground):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    behind = luminance(forest.PALETTE["ground"][ground])
    for role, colours in forest.PALETTE.items():
        if role in ("line", "band", "ground"):
            continue
        low, high = sorted((luminance(colours[ground]), behind))
        assert (high + 0.05) / (low + 0.05) >= 4.5, role
