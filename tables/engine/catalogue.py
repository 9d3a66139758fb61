"""All tables and figures, found in the papers' folders.

A paper is a folder beside engine/: its ``__init__.py`` declares ``PAPER``, and every module in it
that declares a ``TABLE`` or a ``FIGURE`` is one of its exhibits. Nothing else names them."""

import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import tables as papers
from protobench.runtime.errors import UserError, choose
from tables.engine.schema import TIERS, Exhibit, Figure, Table, Tier


@cache
def exhibits() -> dict[str, Exhibit]:
    """Every table and figure by its name, sorted by paper, then by place in it, then by name."""
    found: dict[str, Exhibit] = {}
    for exhibit in sorted(_declared(), key=_place):
        if found.setdefault(exhibit.name, exhibit) is not exhibit:
            raise ValueError(f"two tables or figures are named {exhibit.name!r}")
    return found


def tables() -> dict[str, Table]:
    """The tables among them."""
    return {name: one for name, one in exhibits().items() if isinstance(one, Table)}


def figures() -> dict[str, Figure]:
    """The figures among them."""
    return {name: one for name, one in exhibits().items() if isinstance(one, Figure)}


def load(name: str, tier: Tier = "paper") -> Exhibit:
    """A table or a figure by its name, as the tier shows it. UserError, with a suggestion, for an
    unknown one, and for one that the tier does not have."""
    names = [*tables(), *figures()]
    form = exhibits()[choose("table or figure", name, names)].form(tier)
    if form is None:
        there = [one for one in names if exhibits()[one].form(tier)]
        raise UserError(
            f"{name} cannot be made of {TIERS[tier].dataset}, the data of tier {tier}",
            hint=f"{', '.join(there)} can",
        )
    return form


def _declared() -> Iterator[Exhibit]:
    for folder in pkgutil.iter_modules(papers.__path__, "tables."):
        if folder.ispkg and folder.name != "tables.engine":
            paper = import_module(folder.name)
            for found in pkgutil.iter_modules(paper.__path__, f"{folder.name}."):
                module = import_module(found.name)
                for declaration in ("TABLE", "FIGURE"):
                    if exhibit := getattr(module, declaration, None):
                        yield exhibit


def _place(exhibit: Exhibit) -> tuple[int, str, int, list[str | int]]:
    """For sorting: numbers in names count as numbers."""
    parts = re.split(r"(\d+)", exhibit.name)
    name = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    return exhibit.paper.order, exhibit.paper.name, exhibit.order, name
