"""The papers' tables: reproduce them, or compare what is in results/ with the paper.

Examples:

    python -m tables diff table1  # exit code 0 same, 1 differs, 2 trouble, 3 incomplete
    python -m tables diff table1 --tier paper --strict
    python -m tables reproduce table1 --plan
    python -m tables reproduce table1 --help          # more on running
    python -m tables reproduce figure3
    python -m tables score a.pth b.pth --data ROOT  # every evaluation of some checkpoints
    python -m tables compare a.pth b.pth  # two scored checkpoints, image by image
    python -m tables leaderboard          # all scored checkpoints: results/leaderboard/index.html
    python -m tables page  # results/index.html and one page per table, from what is there
    python -m tables gallery  # the README's pictures, and the HTML that shows them
    python -m tables list
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from protobench.runtime import cli
from protobench.runtime.errors import choose
from tables.engine import catalogue
from tables.engine.schema import Tier


@dataclass(frozen=True)
class Diff:
    """Compare the records in a results folder with the paper, and rewrite the files of the table or
    figure."""

    table: tyro.conf.Positional[str]
    tier: Tier = "mini"
    results: Path = Path("results")
    strict: bool = False
    """exit 1 also for contradicted claims and for cells above the paper"""
    wide: bool = False
    """do not split what needs more than 100 columns"""


@dataclass(frozen=True)
class Page:
    """Rewrite the pages: index.html, one per table and figure, and README.md in each tier's
    folder."""

    results: Path = Path("results")


@dataclass(frozen=True)
class Compare:
    """Compare two scored encoders on the same test images: McNemar's exact test, and the difference
    with its interval, for every classification that both have in common."""

    a: tyro.conf.Positional[str]
    """a checkpoint's file or name, a table's row (pcl) or one pretraining of it (pcl-1), all by the
    records in --results; or a record's file, or a folder of records"""
    b: tyro.conf.Positional[str]
    """the other one, likewise"""
    results: Path = Path("results/scores")
    """folder of the records; those of a table's rows lie in results/mini/records"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class Leaderboard:
    """Write one page of all scored checkpoints, a CSV, and a page per checkpoint, from folders of
    records. Others' records are added by copying their files into a folder."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("results"),)
    """folders of records; of a results folder those in scores/ and <tier>/records/"""
    out: Path = Path("results/leaderboard")
    """folder to write"""


@dataclass(frozen=True)
class Gallery:
    """Draw the pictures that the README shows, where they are not up to date, and print the HTML
    that shows them, with alternative texts from the records."""

    names: tyro.conf.Positional[tuple[str, ...]] = ("table1", "mechanism", "figure5")
    """tables, shown by the forest plot of their claims, and figures"""
    tier: Tier = "mini"
    results: Path = Path("results/reference")


def main() -> int:
    """The command line."""
    command, args = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command in ("-h", "--help"):
        print(__doc__)
        return cli.SAME
    commands = ("reproduce", "score", "diff", "compare", "page", "leaderboard", "gallery", "list")
    match choose("command", command, commands):
        case "list":
            for exhibit in [*catalogue.tables().values(), *catalogue.figures().values()]:
                print(f"{exhibit.name}: {exhibit.title}; {exhibit.paper.citation}")
        case "diff":
            from tables.engine.pages import publish

            diff = cli.parse(Diff, __doc__ or "", args)
            exhibit = catalogue.load(diff.table, diff.tier)
            return publish.publish(
                exhibit, diff.tier, diff.results, strict=diff.strict, wide=diff.wide
            )
        case "compare":
            from tables.engine.scoring import paired

            chosen = cli.parse(Compare, __doc__ or "", args)
            found, left_out = paired.compare(
                paired.read(chosen.a, chosen.results), paired.read(chosen.b, chosen.results)
            )
            if chosen.json:
                print(json.dumps([asdict(comparison) for comparison in found], indent=1))
            else:
                print(paired.table(found, (chosen.a, chosen.b), left_out))
        case "leaderboard":
            from tables.engine.scoring import leaderboard

            board = cli.parse(Leaderboard, __doc__ or "", args)
            return leaderboard.main(board.folders, board.out)
        case "gallery":
            from tables.engine.pages import gallery

            wanted = cli.parse(Gallery, __doc__ or "", args)
            exhibits = [catalogue.load(name, wanted.tier) for name in wanted.names]
            print(gallery.refresh(exhibits, wanted.tier, wanted.results))
        case "page":
            from tables.engine.pages import publish

            return publish.rewrite_pages(cli.parse(Page, __doc__ or "", args).results)
        case "score":
            from tables.engine.scoring import score

            return score.score(cli.parse(score.Score, score.__doc__ or "", args))
        case "reproduce":
            from tables.engine.jobs import reproduce

            config = cli.parse(reproduce.Reproduce, reproduce.__doc__ or "", args)
            name = config.table.removeprefix("reproduce-")  # tox's name of the environment
            return reproduce.reproduce(config, catalogue.load(name, config.tier))
    return cli.SAME


if __name__ == "__main__":
    cli.run(main)
