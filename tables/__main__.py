"""The papers' tables: reproduce them, or compare what is in results/ with the paper.

Examples:

    python -m tables diff table1                      # exit code 0 same, 1 differs, 2 trouble, 3 incomplete
    python -m tables diff table1 --tier paper --strict
    python -m tables reproduce table1 --plan
    python -m tables reproduce table1 --help          # more on running
    python -m tables list
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tyro

from protobench import cli
from tables.schema import Table, Tier

TABLES = ("table1", "table2", "table3", "table4", "table7")


@dataclass(frozen=True)
class Diff:
    """Compares the records in a results folder with the paper; writes the table's files again."""

    table: tyro.conf.Positional[str]
    tier: Tier = "mini"
    results: Path = Path("results")
    strict: bool = False
    """exit 1 also for contradicted claims and for cells above the paper"""


def load(name: str) -> Table:
    """A table by name."""
    return import_module(f"tables.{cli.choose('table', name, TABLES)}").TABLE


def main() -> int:
    """The command line."""
    command, args = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command in ("-h", "--help"):
        print(__doc__)
        return cli.SAME
    match cli.choose("command", command, ("reproduce", "diff", "list")):
        case "list":
            for name in TABLES:
                print(f"{name}: {load(name).title}; {load(name).paper}")
        case "diff":
            from tables import show

            diff = cli.parse(Diff, __doc__ or "", args)
            return show.publish(load(diff.table), diff.tier, diff.results, strict=diff.strict)
        case "reproduce":
            from tables import reproduce

            config = cli.parse(reproduce.Reproduce, reproduce.__doc__ or "", args)
            return reproduce.reproduce(config, load(config.table))
    return cli.SAME


if __name__ == "__main__":
    cli.run(main)
