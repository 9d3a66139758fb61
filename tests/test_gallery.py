"""The pictures that the README shows: they are there, they are of the committed records, and what
is said of them is what was found."""

import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from protobench import records
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, runs
from tables.engine.pages import forest_png, pictures

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference" / "mini"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copytree(REFERENCE, folder / "mini")
    return folder


@pytest.fixture
def lines(command, copy):
    code, out, err = command(tables_main.main, "gallery", "--results", copy)
    assert code == 0, err
    return out.replace(str(copy), "results/reference").splitlines()


def test_all_pictures_of_the_readme_are_there():
    shown = re.findall(r"!\[[^\n]*?\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)\"", README)
    paths = [markdown or html for markdown, html in shown]
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_what_the_readme_says_of_its_pictures_is_what_was_found(lines):
    shown = re.findall(r"<picture>.*?</picture>|(?<!\">)<img [^>]*>", README)
    assert [one for one in shown if one not in lines] == [], "python -m tables gallery prints them"
    assert len(shown) == 3


def test_the_committed_pictures_are_of_the_committed_records():
    have = records.read_all(REFERENCE / "records")
    table1 = catalogue.load("table1")
    claims = compare.outcome(table1, "mini", runs.select_records(table1, have).rows).claims
    for ending in ("claims.png", "claims-dark.png"):
        drawn = pictures.mark_in(REFERENCE / f"table1.{ending}")
        assert drawn == forest_png.mark(table1, "mini", claims), ending
    for name in ("mechanism", "figure5"):
        found = runs.select_records(catalogue.load(name), have).rows
        assert pictures.is_of(REFERENCE / f"{name}.png", found), name


def test_again_it_changes_nothing(command, copy, lines):
    def state():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.rglob("*.png")}

    before = state()
    code, out, _ = command(tables_main.main, "gallery", "--results", copy)
    assert code == 0
    assert out.replace(str(copy), "results/reference").splitlines() == lines
    assert state() == before


def test_the_alternatives_are_made_of_the_data(lines):
    table1, mechanism, tsne = (unescape(re.findall('alt="([^"]*)"', line)[0]) for line in lines)
    assert table1.startswith(
        "Of 11 claims of table1 (Low-shot linear SVMs on frozen features): 2 hold"
    )
    assert "PCL's lead over MoCo grows from -0.6 to +2.2 points" in mechanism
    assert "PCL forms more separated clusters: reversed" in tsne
    assert lines[0].startswith('<picture><source media="(prefers-color-scheme: dark)"')
    assert lines[0].count(".claims-dark.png") == lines[0].count(".claims.png") == 1


def test_a_missing_or_foreign_picture_is_drawn_anew(command, copy, lines):
    light, dark = (copy / "mini" / f"table1.{of}.png" for of in ("claims", "claims-dark"))
    kept = light.read_bytes()
    light.unlink()
    dark.write_bytes(b"no picture")
    assert command(tables_main.main, "gallery", "table1", "--results", copy)[0] == 0
    assert pictures.mark_in(light) == pictures.mark_in(dark) is not None
    assert len(light.read_bytes()) == pytest.approx(len(kept), rel=0.2)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("table9",), "unknown table or figure 'table9'"),
        (("losses",), "no records that losses can be drawn from"),
        (("table1",), "python -m tables reproduce table1 makes them"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(command, tmp_path, names, told):
    code, _, err = command(tables_main.main, "gallery", *names, "--results", tmp_path)
    assert code == 2
    assert told in err
