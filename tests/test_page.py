"""Pages made of records: whole, escaped, the same every time; and, where there is a browser, tried
in one."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from protobench import records
from protobench.records import ModelInfo, ResultKey
from protobench.runtime import colour, files
from tables import __main__ as tables_main
from tables.engine import catalogue, compare, runs
from tables.engine.pages import cells, finding, page, pictures, publish, show, strips
from tables.engine.schema import ClaimResult, Contrast, Curve, Table

REFERENCE = Path(__file__).parent.parent / "results" / "reference"


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


def _places(folder):
    """Where each link of each page leads, by page."""
    for path in folder.rglob("*.html"):
        for _, attributes in _Elements(path.read_text(encoding="utf-8")).found:
            for name in ("src", "href"):
                if name in attributes:
                    yield path, attributes[name]


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


def test_pages_run_no_script_and_every_link_leads_to_what_is_there(built):
    for path in built.rglob("*.html"):
        tags = {tag for tag, _ in _Elements(path.read_text(encoding="utf-8")).found}
        assert not tags & {"script", "link", "iframe", "object"}
        assert "url(" not in path.read_text(encoding="utf-8").replace("data:image/png", "")
    seen = 0
    for page_, target in _places(built):
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in page_.read_text(encoding="utf-8"), target
        elif not target.startswith("data:image/png;base64,"):
            assert page_.parent.joinpath(unquote(target)).is_file(), (page_, target)
            seen += 1
    assert seen > 1000, "runs, files, neighbours and tiles"


def test_pages_are_light(built):
    assert (built / "index.html").stat().st_size <= 500_000
    for path in (built / "mini").glob("*.html"):
        text = re.sub('src="data:[^"]*"', "", path.read_text(encoding="utf-8"))
        assert len(text.encode()) <= 300_000, path.name


def test_every_cell_opens_its_own_runs(built):
    cells = opened_in_all = 0
    for table in catalogue.tables().values():
        text = (built / "mini" / f"{table.name}.html").read_text(encoding="utf-8")
        elements = _Elements(text).found
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        popovers = {attributes["id"] for _, attributes in elements if "popover" in attributes}
        opened = [
            attributes["popovertarget"]
            for _, attributes in elements
            if "popovertarget" in attributes and "popovertargetaction" not in attributes
        ]
        assert sorted(opened) == sorted(popovers)
        opened_in_all += len(opened)
        outcome = compare.outcome(table, "mini", runs.collect(table, REFERENCE, "mini").rows)
        cells += sum(bool(cell.runs) for cell in outcome.cells.values())
    assert opened_in_all == cells > 90


def test_what_is_unchanged_is_not_drawn_again(built, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "copy")
    folder = tmp_path / "copy"
    stood = {path: path.stat().st_mtime_ns for path in folder.rglob("*.html")}
    gone = next((folder / "mini" / "records").glob("pcl-1-knn-imagenet-*"))
    gone.unlink()
    publish.pages(folder, publish.read(folder))
    redrawn = {path.stem for path, when in stood.items() if path.stat().st_mtime_ns != when}
    assert redrawn == {"index", "table4", "mechanism"}, "those made of the record"
    (folder / "mini" / "table7.csv").unlink()
    monkeypatch.setattr(page, "_code", lambda: "another engine")
    publish.pages(folder, publish.read(folder))
    assert all(path.stat().st_mtime_ns != when for path, when in stood.items())
    assert 'href="table7.csv"' not in (folder / "mini" / "table7.html").read_text()


def test_runs_values_and_records_stand_in_the_page(built):
    text = (built / "mini" / "table4.html").read_text()
    for record in records.read_all(REFERENCE / "mini" / "records").values():
        in_table = record["subject"]["row"] in {row.name for row in catalogue.load("table4").rows}
        if record["unit"]["evaluation"] == "knn" and in_table:
            assert record["record_id"][:12] in text
            assert f"<td>{record['runs'][0]['value']:.2f}</td>" in text


def test_every_page_has_one_stamp_and_every_picture_an_alternative(built):
    pages = list((built / "mini").glob("*.html"))
    assert len(pages) == len(catalogue.exhibits())
    for path in [*pages, built / "index.html"]:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall('<p class="stamp[ "]', text)) == 1
        assert "<b>MINI</b> <span>bundled synthetic data" in text
        for image in re.findall("<img[^>]*>", text):
            assert re.search('alt="[^"]{40,}"', image)


def test_the_first_screen_counts_what_the_tables_say(built):
    text = (built / "index.html").read_text(encoding="utf-8")
    have = records.read_all(REFERENCE / "mini" / "records")
    findings = [finding.find(one, "mini", have) for one in catalogue.exhibits().values()]
    verdicts = Counter(claim.verdict for found in findings for claim in found.claims)
    tested = verdicts.total() - verdicts["not-run"]
    assert f"<h2>{verdicts['holds']} of {tested} claims tested hold</h2>" in text
    for verdict, count in verdicts.items():
        assert re.search(rf'class="badge {verdict}" href="#mini-{verdict}">\S {count} ', text)
    (tile,) = re.findall('<a class="tile undecided" href="mini/table1.html">.*?</a>', text, re.S)
    assert "PCL &gt; MoCo on VOC07, mean over k" in tile
    assert "+1.1 [-0.5, +2.8]" in tile
    assert "11 claims: 2 hold, 1 weaker, 4 reversed, 4 undecided" in tile
    (mechanism,) = (found for found in findings if found.exhibit.name == "mechanism")
    assert mechanism.headline.replace("'", "&#39;") in text
    assert 'aria-label="PCL&#39;s lead over MoCo, points of mAP, by class collisions' in text


ROWS = (("random", 5.0), ("supervised", 70.0), ("moco", 47.0), ("pcl", 50.0))


def _paper_tier(tmp_path, source, rows=ROWS, seeds=(1, 2, 3), draws=1):
    """Table 4 with runs beside the paper's numbers, from a checkpoint of an odd name."""
    for row, value in rows:
        for seed in seeds:
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
                [
                    {"k": 20, "draw": draw, "value": value + 0.1 * seed + 0.01 * draw}
                    for draw in range(draws)
                ],
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
    assert 'stamp real"><b>PAPER</b>' in text
    assert "✓" in text
    assert "▼" in text
    assert "the interval, or without one the mean, lies below the margin" in text
    assert "± 2" in text
    assert '<rect class="margin"' in text
    assert "not comparable" not in text


def test_a_column_s_ceiling_stands_in_its_head_where_the_paper_s_noise_is_known():
    table: Table = catalogue.load("table1")
    outcome = compare.outcome(table, "mini", runs.collect(table, REFERENCE, "mini").rows)
    k1, k2, *_, places = table.columns
    assert cells.ceiling(outcome, k1) == "", "nothing is compared in this tier"
    compared = {key: replace(cell, delta=1.0) for key, cell in outcome.cells.items()}
    outcome = replace(outcome, cells=compared)
    assert re.fullmatch(r"can at best be reproduced in \d\d %", cells.ceiling(outcome, k1))
    assert cells.ceiling(outcome, k2).endswith(" %; cannot be decided")
    assert cells.ceiling(outcome, places) == ""
    assert "Cannot be decided: VOC07 k=2" in show.ceilings(outcome), "as the other forms say"


def test_names_from_files_are_escaped(tmp_path):
    _paper_tier(tmp_path, 'checkpoint <img src=x onerror="alert(1)">.pth')
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "paper" / "table4.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;.pth" in text


def _points(drawn):
    return [
        float(x)
        for d in re.findall(r'class="runs" d="([^"]*)"', str(drawn))
        for x in re.findall(r"M([-\d.]+) ", d)
    ]


@pytest.mark.parametrize(
    "values", [[5.0], [5.0, 5.0], [1.0, 9.0, 3.0], np.linspace(3, 60, 1000).tolist()]
)
@pytest.mark.parametrize("paper", ["", "4.0"])
def test_strips_hold_every_run_within_their_frame(values, paper):
    table: Table = catalogue.load("table4")
    column = table.columns[0]
    runs_ = {(1, i): value for i, value in enumerate(values)}
    cell = compare.Cell(
        table.row("pcl"), column, paper, runs_, "within", delta=1.0 if paper else None
    )
    scale = strips.Scale(min([*values, 4.0]), max([*values, 4.0]), 4, strips.WIDTH - 4)
    for drawn, width in (
        (strips.alone(cell, values, 1), 400),
        (strips.in_cell(cell, scale), strips.WIDTH),
    ):
        points = _points(drawn)
        assert len(points) == len({round(x, 1) for x in points}), "one dot where several would be"
        assert len(points) == len(set(values)) or len(values) == 1000
        assert all(2 <= x <= width - 2 for x in points)
        assert ('class="paper"' in str(drawn)) == bool(paper)
        assert len(drawn) < 9_000


def test_strips_of_a_column_share_a_scale():
    table: Table = catalogue.load("table4")
    outcome = compare.outcome(table, "mini", runs.collect(table, REFERENCE, "mini").rows)
    (column,) = table.columns
    scale = strips.of_column(outcome, column)
    means = {
        name: np.mean(_points(strips.in_cell(outcome.cells[name, column.title], scale)))
        for name in ("random", "moco", "supervised")
    }
    assert means["random"] < means["moco"] < means["supervised"]


def test_a_thousand_runs_make_no_heavy_page(tmp_path):
    _paper_tier(tmp_path, "retrained", draws=1000)
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "paper" / "table4.html").read_text()
    assert "mean of 1000" in text
    assert len(text) < 60_000
    shutil.rmtree(tmp_path / "paper")
    _paper_tier(tmp_path, "retrained", draws=1000, seeds=(1,))
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "paper" / "table4.html").read_text()
    assert "940 more runs are in the records" in text
    assert len(text) < 150_000


def test_a_table_with_a_single_run_and_rows_without_any(tmp_path):
    _paper_tier(tmp_path, "retrained", rows=(("pcl", 50.0),), seeds=(1,))
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "paper" / "table4.html").read_text()
    assert "<b>50.1</b> |" in text, "no spread of a single run"
    assert "· not run" in text
    index = (tmp_path / "index.html").read_text()
    assert "Not run in this tier: Table 1 (<code>table1</code>), " in index


def test_the_index_links_the_leaderboard_where_there_is_one(tmp_path):
    _paper_tier(tmp_path, "retrained")
    link = f'<a href="{page.LEADERBOARD}">'
    publish.pages(tmp_path, publish.read(tmp_path))
    assert link not in (tmp_path / "index.html").read_text()
    files.write_text(tmp_path / page.LEADERBOARD, "")
    publish.pages(tmp_path, publish.read(tmp_path))
    assert link in (tmp_path / "index.html").read_text()


def test_tiers_stand_apart(tmp_path):
    shutil.copytree(REFERENCE / "mini", tmp_path / "mini")
    _paper_tier(tmp_path, "retrained")
    publish.pages(tmp_path, publish.read(tmp_path))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    _, paper, mini = text.split('<section class="tier" ')
    assert 'href="paper/table4.html"' in paper
    assert "mini/" not in paper
    assert "paper/" not in mini
    assert "cells: " in paper
    told = r" \(\d+ of \d+ claims tested holds?\)"
    assert re.search(f'<a href="#paper">PAPER</a>{told}, <a href="#mini">MINI</a>{told}', text)


@pytest.mark.parametrize("half", [float("nan"), float("inf")])
def test_a_curve_says_where_it_has_no_interval(half):
    drawn = str(
        strips.curve(Curve("a < b", "points", "dose", (("0 %", -1.0, 0.5), ("5 %", 2.0, half))))
    )
    assert "without a bar: no interval" in drawn
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert "a &lt; b" in drawn
    assert drawn.count('class="interval"') == 1


@pytest.mark.parametrize(
    ("lead", "interval", "told"),
    [
        (1.04, (-0.5, 2.8), "+1.0 [-0.5, +2.8]"),
        (1.04, None, "+1.0"),
        (1.04, (-0.5, float("inf")), "+1.0"),
        (1.04, (float("nan"), 2.0), "+1.0"),
        (None, None, ""),
    ],
)
def test_a_lead_is_told_with_its_interval_where_that_is_finite(lead, interval, told):
    claim = ClaimResult(
        "a > b", "undecided", "", "", contrasts=(Contrast("a - b", lead, interval),)
    )
    assert finding.told_lead(claim) == told
    assert finding.told_lead(replace(claim, contrasts=())) == ""


def test_a_record_s_link_holds_whatever_its_file_is_called(tmp_path):
    _paper_tier(tmp_path, "retrained")
    record = next((tmp_path / "paper" / "records").glob("pcl-1-*"))
    record.rename(record.with_name(f'a "b"#<c>?-{record.stem[-12:]}.json'))
    next((tmp_path / "paper" / "records").glob("pcl-2-*")).rename(record.with_name("short.json"))
    publish.pages(tmp_path, publish.read(tmp_path))
    places = [unquote(target) for _, target in _places(tmp_path) if target.startswith("records/")]
    assert f'records/a "b"#<c>?-{record.stem[-12:]}.json' in places
    assert all((tmp_path / "paper" / place).is_file() for place in places)
    assert len(places) == 11, "a file of another name cannot be told, so nothing leads to it"


def test_records_that_cannot_be_shown_are_left_out_with_a_word(command, tmp_path):
    _paper_tier(tmp_path, "retrained")
    (tmp_path / "huge<b>" / "records").mkdir(parents=True)
    (tmp_path / "huge<b>" / "records" / "a.json").write_text("{}")
    place = tmp_path / "paper" / "records"
    (place / "foreign.json").write_text(json.dumps({"record_id": "0", "schema": 99}))
    (place / "nan.json").write_text('{"record_id": "0", "schema": 1, "runs": [NaN]}')
    (place / "deep.json").write_text("[" * 100_000)
    edited = next(place.glob("pcl-1-*"))
    edited.write_text(edited.read_text().replace('"value": 50.1', '"value": 60.1'))
    code, out, err = command(tables_main.main, "page", "--results", tmp_path)
    assert code == 2
    assert "paper/table4.html" in out
    text = (tmp_path / "index.html").read_text()
    for told in (
        "paper/records/foreign.json: record of schema 99",
        "paper/records/nan.json: not a result record",
        "paper/records/deep.json: not a result record",
        f"paper/records/{edited.name}: this record was changed",
    ):
        assert told in text
        assert told in err
    assert "huge&lt;b&gt;/records: there is no tier of this name" in text
    assert "huge<b>" not in text


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
    assert "SimCLR, VOC07" in labels
    assert "SimCLR, ImageNet" not in labels


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


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_click_and_a_key_show_the_runs(browser, built, size):
    tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda mistake: said.append(str(mistake)))
    tab.goto((built / "mini" / "table1.html").as_uri())
    button = tab.locator("td.cell button").first
    runs = tab.locator(f"#{button.get_attribute('popovertarget')}")
    assert not runs.is_visible()
    button.click()
    assert runs.is_visible()
    assert len(runs.locator("tbody tr").all()) == 10
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


def test_the_keyboard_alone_reaches_every_number(browser, built):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto((built / "index.html").as_uri())

    def stops(what):
        """Everything that Tab comes to until the page ends, as ``what`` of it says."""
        seen = []
        for _ in range(1000):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement === document.body"):
                break
            seen.append(tab.evaluate(f"document.activeElement.{what}"))
        return seen

    tiles = tab.locator("a.tile").evaluate_all("tiles => tiles.map(tile => tile.href)")
    assert len(tiles) == len(catalogue.exhibits())
    assert set(tiles) <= set(stops("href"))
    tab.goto((built / "mini" / "table4.html").as_uri())
    buttons = tab.locator("td.cell button").evaluate_all("all => all.map(x => x.outerHTML)")
    assert set(buttons) <= set(stops("outerHTML"))
    tab.locator("td.cell button").first.focus()
    tab.keyboard.press("Enter")
    runs = tab.locator("[popover]:popover-open")
    assert runs.is_visible()
    records_ = runs.locator("tbody a").evaluate_all("all => all.map(x => x.href)")
    assert len(records_) == 4
    assert set(records_) <= set(stops("href"))
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, built, tmp_path, scheme):
    shutil.copytree(built, tmp_path / "two")
    _paper_tier(tmp_path / "two", "retrained")
    publish.pages(tmp_path / "two", publish.read(tmp_path / "two"))
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="pip install '.[browser]'")
    for name in ("index", "mini/table1", "mini/mechanism", "paper/table4"):
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        tab.goto((tmp_path / "two" / f"{name}.html").as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        found = axe.Axe().run(tab)["violations"]
        assert [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found] == []
        if (button := tab.locator("td.cell button").first).count():
            button.click()
            assert [v["id"] for v in axe.Axe().run(tab)["violations"]] == []
        tab.close()
