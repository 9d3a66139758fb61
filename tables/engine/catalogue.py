"""All tables and figures, by name."""

from importlib import import_module
from types import ModuleType

from protobench.runtime import cli
from tables.engine.schema import Figure, Table

TABLES = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table7",
    "spcl-table1",
    "spcl-table2",
    "spcl-symmetric",
    "spcl-leak",
)
FIGURES = ("figure3", "figure4", "figure5", "figure6", "losses", "detections", "spcl-figure2")


def load(name: str) -> Table:
    """A table by name."""
    return _module(cli.choose("table", name, TABLES)).TABLE


def either(name: str) -> Table | Figure:
    """A table or a figure by name."""
    return (
        _module(name).FIGURE
        if name in FIGURES
        else load(cli.choose("table", name, TABLES + FIGURES))
    )


def everything() -> tuple[list[Table], list[Figure]]:
    """All of them."""
    return [load(name) for name in TABLES], [_module(name).FIGURE for name in FIGURES]


def _module(name: str) -> ModuleType:
    folder, _, module = name.rpartition("-")
    folder = folder or ("ours" if name in ("losses", "detections") else "pcl")
    return import_module(f"tables.{folder}.{module}")
