"""Pages made of records: whole, escaped, the same every time; and, where there is a browser, tried
in one."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from protobench import records
from protobench.records import ModelInfo, ResultKey
from protobench.runtime import colour
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, page, pictures, publish, runs, show
from tables.engine.schema import Table

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages of the committed records."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(REFERENCE / "mini", folder / "mini")
    publish.pages(folder, publish.read(folder))
    return folder


class _Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_same_records_give_the_same_bytes(built, tmp_path):
    shutil.copytree(REFERENCE / "mini", tmp_path / "mini")
    written = publish.pages(tmp_path, publish.read(tmp_path))
    assert {str(path.relative_to(tmp_path)) for path in written} >= {
        "index.html",
        "mini/table1.html",
        "mini/README.md",
    }
    for path in written:
        assert path.read_bytes() == (built / path.relative_to(tmp_path)).read_bytes()


def test_the_committed_contents_are_up_to_date(built):
    assert (built / "mini" / "README.md").read_text() == (
        REFERENCE / "mini" / "README.md"
    ).read_text()


def test_the_committed_tables_are_up_to_date():
    have = records.read_all(REFERENCE / "mini" / "records")
    for table in catalogue.tables().values():
        outcome = compare.outcome(table, "mini", runs.select_records(table, have).rows)
        for ending, form in (
            ("md", show.markdown),
            ("txt", show.text),
            ("cells.csv", show.cells_csv),
        ):
            assert form(outcome) == (REFERENCE / "mini" / f"{table.name}.{ending}").read_text(
                encoding="utf-8"
            ), ending


def test_a_page_needs_nothing_but_itself(built):
    text = (built / "index.html").read_text()
    elements = _Elements(text).found
    assert not [tag for tag, _ in elements if tag in ("script", "link", "iframe")]
    for _, attributes in elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png"))
    assert len(text) < 5e6


def test_every_cell_opens_its_own_runs(built):
    elements = _Elements((built / "index.html").read_text()).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    popovers = {attributes["id"] for _, attributes in elements if "popover" in attributes}
    opened = [
        attributes["popovertarget"]
        for _, attributes in elements
        if "popovertarget" in attributes and "popovertargetaction" not in attributes
    ]
    cells = 0
    for table in catalogue.tables().values():
        outcome = compare.outcome(table, "mini", runs.collect(table, REFERENCE, "mini").rows)
        cells += sum(bool(cell.runs) for cell in outcome.cells.values())
    assert len(opened) == len(popovers) == cells > 90
    assert set(opened) == popovers


def test_runs_values_and_records_stand_in_the_page(built):
    text = (built / "mini" / "table4.html").read_text()
    for record in records.read_all(REFERENCE / "mini" / "records").values():
        in_table = record["subject"]["row"] in {row.name for row in catalogue.load("table4").rows}
        if record["unit"]["evaluation"] == "knn" and in_table:
            assert record["record_id"][:12] in text
            assert f"<td>{record['runs'][0]['value']:.2f}</td>" in text


def test_every_table_and_figure_has_a_stamp_and_an_alternative(built):
    text = (built / "index.html").read_text()
    sections = text.split("<section ")[1:]
    assert len(sections) == len(catalogue.exhibits())
    for section in sections:
        assert "MINI: bundled synthetic data" in section
        for image in re.findall("<img[^>]*>", section):
            assert re.search('alt="[^"]{40,}"', image)


def _paper_tier(tmp_path, source):
    """Table 4 with runs beside the paper's numbers, from a checkpoint of an odd name."""
    for row, value in (("random", 5.0), ("supervised", 70.0), ("moco", 47.0), ("pcl", 50.0)):
        for seed in (1, 2, 3):
            records.write(
                tmp_path / "paper" / "records",
                ResultKey(
                    "knn",
                    "imagenet",
                    1,
                    f"{row}{seed}",
                    ("a", "b"),
                    {"k": [20], "pooled": row in ("random", "supervised")},
                ),
                [{"k": 20, "draw": 0, "value": value + 0.1 * seed}],
                model=ModelInfo(row, seed, source, row),
                metric={
                    "name": "top-1",
                    "unit": "%",
                    "higher_is_better": True,
                    "test_images": 50_000,
                },
                checkpoint={"arch": "resnet50", "untouched": False},
                cost={"seconds": 1.0},
                data={
                    "name": "imagenet",
                    "embedded": False,
                    "classes": 1000,
                    "train_images": 1_281_167,
                },
            )


def test_the_paper_s_tier_shows_margin_difference_and_verdict_in_words_and_symbols(tmp_path):
    _paper_tier(tmp_path, "retrained")
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "paper" / "table4.html").read_text()
    assert 'class="cell reproduced"' in text
    assert 'class="cell short"' in text
    assert "✓" in text
    assert "▼" in text
    assert "the interval, or without one the mean, lies below the margin" in text
    assert "± 2" in text
    assert 'fill="#cfeadb"' in text, "the margin, as a band"
    assert "not comparable" not in text


def test_names_from_files_are_escaped(tmp_path):
    _paper_tier(tmp_path, 'checkpoint <img src=x onerror="alert(1)">.pth')
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "index.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;.pth" in text


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [1.0, 9.0, 3.0]])
@pytest.mark.parametrize("paper", ["", "4.0"])
def test_strips_hold_every_run_within_their_frame(values, paper):
    table: Table = catalogue.load("table4")
    column = table.columns[0]
    runs = {(1, i): value for i, value in enumerate(values)}
    cell = compare.Cell(
        table.row("pcl"), column, paper, runs, "within", delta=1.0 if paper else None
    )
    drawn = str(page.strip(cell, "paper", 1))
    points = [float(x) for x in re.findall(r'<circle cx="([-\d.]+)"', drawn)]
    assert len(points) == len(values)
    assert all(8 <= x <= 392 for x in points)
    assert np.argsort(points, kind="stable").tolist() == np.argsort(values, kind="stable").tolist()
    assert ("<rect" in drawn) == bool(paper)


def test_names_from_files_are_plain_text_in_markdown_too(tmp_path):
    _paper_tier(tmp_path, "checkpoint <img src=x>[x](http://evil).pth")
    found = runs.collect(catalogue.load("table4"), tmp_path, "paper").rows
    text = show.markdown(compare.outcome(catalogue.load("table4"), "paper", found))
    assert r"\<img src=x\>\[x\](http://evil).pth" in text


def test_a_cell_s_runs_carry_its_own_name_where_others_are_missing(tmp_path):
    shutil.copytree(REFERENCE / "mini", tmp_path / "mini")
    for path in (tmp_path / "mini" / "records").glob("simclr-*-linear-imagenet-*"):
        path.unlink()
    publish.pages(tmp_path, publish.read(tmp_path))
    labels = [
        attributes["aria-label"]
        for _, attributes in _Elements((tmp_path / "mini" / "table3.html").read_text()).found
        if "popover" in attributes
    ]
    assert "SimCLR, VOC07, mini" in labels
    assert "SimCLR, ImageNet, mini" not in labels


def test_pages_show_the_runs_that_were_asked_for(command, tmp_path):
    shutil.copytree(REFERENCE / "mini", tmp_path / "mini")
    have = records.read_all(tmp_path / "mini" / "records")
    asked = {key for key, record in have.items() if record["subject"]["seed"] in (1, 2)}
    publish.publish(catalogue.load("table4"), "mini", tmp_path, requested_keys=asked)
    assert "seeds per row: 2" in (tmp_path / "mini" / "table4.html").read_text()
    assert "seeds per row: 2" in (tmp_path / "mini" / "table4.txt").read_text()
    publish.publish(catalogue.load("figure4"), "mini", tmp_path, requested_keys=asked)
    assert "<td>1, 2</td>" in (tmp_path / "mini" / "figure4.html").read_text()
    publish.pages(tmp_path, publish.read(tmp_path))
    found = runs.collect(catalogue.load("figure4"), tmp_path, "mini").rows
    assert pictures.is_of(tmp_path / "mini" / "figure4.png", found), (
        "drawn anew, as other records are shown now"
    )


def test_no_records_no_page(command, tmp_path):
    code, _, err = command(tables_main.main, "page", "--results", tmp_path)
    assert code == 3
    assert "no records" in err
    assert not list(tmp_path.iterdir())


def test_a_missing_kind_of_record_leaves_the_rest(tmp_path):
    shutil.copytree(REFERENCE / "mini", tmp_path / "mini")
    (tmp_path / "mini" / "figure4.png").unlink()
    assert "figure4.html" in {
        path.name for path in publish.pages(tmp_path, publish.read(tmp_path))
    }, "drawn from the records"
    for path in (tmp_path / "mini" / "records").glob("*course*"):
        path.unlink()
    written = {path.name for path in publish.pages(tmp_path, publish.read(tmp_path))}
    assert "table7.html" in written
    assert "figure4.html" not in written


def test_colours_only_where_they_show(monkeypatch):
    text = "holds      PCL > MoCo\n3 within, 1 short\n24.3 | 25.0 ✓\nwhat holds"
    assert colour.painted(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    painted = colour.painted(text)
    assert "\x1b[32mholds\x1b[0m      PCL" in painted
    assert "3 \x1b[33mwithin\x1b[0m, 1 \x1b[31mshort\x1b[0m" in painted
    assert "\x1b[32m✓\x1b[0m" in painted
    assert painted.endswith("what holds")
    assert re.sub(r"\x1b\[\d*m", "", painted) == text
    monkeypatch.setenv("NO_COLOR", "1")
    assert colour.painted(text) == text


def test_files_never_hold_colours():
    table = catalogue.load("table1")
    assert "\x1b" not in show.text(
        compare.outcome(table, "mini", runs.collect(table, REFERENCE, "mini").rows)
    )


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_click_and_a_key_show_the_runs(browser, built, size):
    tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda mistake: said.append(str(mistake)))
    tab.goto((built / "index.html").as_uri())
    button = tab.locator("td.cell button").first
    runs = tab.locator(f"#{button.get_attribute('popovertarget')}")
    assert not runs.is_visible()
    button.click()
    assert runs.is_visible()
    assert len(runs.locator("tbody tr").all()) == 15
    tab.keyboard.press("Escape")
    assert not runs.is_visible()
    button.focus()
    tab.keyboard.press("Enter")
    assert runs.is_visible()
    runs.locator("button.close").click()
    assert not runs.is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "tables scroll, the page does not"
    )
    assert said == []
    tab.close()


def test_axe_finds_nothing(browser, built, tmp_path):
    shutil.copytree(built, tmp_path / "two")
    _paper_tier(tmp_path / "two", "retrained")
    publish.pages(tmp_path / "two", publish.read(tmp_path / "two"))
    built = tmp_path / "two"
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="pip install '.[browser]'")
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto((built / "index.html").as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    found = axe.Axe().run(tab)["violations"]
    assert [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found] == []
    tab.locator("td.cell button").first.click()
    assert [v["id"] for v in axe.Axe().run(tab)["violations"]] == []
    tab.close()
