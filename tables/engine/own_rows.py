"""Rows that users bring: checkpoints under a name that is none of a table's rows.

A table knows them by the records, whose source begins with OWN. So an own row stands in every table
of its tier that has columns of the evaluations that were made of it, and ``diff`` and the pages
show it as ``reproduce`` does. Several files of one name are seeds of one row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pretrain import history
from protobench.checkpoints import identity, released
from protobench.records import Record
from protobench.runtime.errors import UserError, printable
from tables.engine.schema import Exhibit, Figure, Row, Table

if TYPE_CHECKING:
    from protobench.checkpoints.encoders import Encoder

AnyExhibit = TypeVar("AnyExhibit", bound=Exhibit)

OWN = "own row: "
"""How the source of its records begins."""
RECIPE = "own row"
"""Stands in its records for a recipe: all files of a name may be averaged."""
LONGEST = 60


def is_own(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of an own row."""
    return str(record["subject"].get("source", "")).startswith(OWN)


def row(name: str, settings: tuple[tuple[str, Any], ...] = ()) -> Row:
    """The row of a name."""
    return Row(name, name, own=True, settings=settings, lacks=history.KINDS)


def added(exhibit: AnyExhibit, rows: Iterable[Row]) -> AnyExhibit:
    """A table with these rows after its own, by name, as far as it does not have them; a figure
    shows its own rows alone."""
    if not isinstance(exhibit, Table):
        return exhibit
    there = {one.name for one in exhibit.rows}
    new = sorted((one for one in rows if one.name not in there), key=lambda one: one.name)
    return replace(exhibit, rows=(*exhibit.rows, *new)) if new else exhibit


def may_stand_in(exhibit: Exhibit, record: Mapping[str, Any]) -> bool:
    """Whether an own row's record belongs to an exhibit, as far as its row tells: one that bears
    the name of a row of the paper does not."""
    names = {one.name for one in exhibit.rows if not one.own}
    return isinstance(exhibit, Table) and record["subject"]["row"] not in names


# What is given ------------------------------------------------------------------------------------


def check_name(exhibit: Exhibit, name: str) -> None:
    """Raise UserError for a name that an own row of this table or figure cannot have."""
    if isinstance(exhibit, Figure):
        raise UserError(
            f"{name!r} is no row of {exhibit.name}, and a figure has no other rows than its own",
            hint=f"rows: {', '.join(one.name for one in exhibit.rows)}; tables take own rows",
        )
    if not name.strip() or name != name.strip() or name != printable(name) or "\n" in name:
        raise UserError(
            f"{name!r} cannot be the name of a row",
            hint="printable text in one line, without spaces around it",
        )
    if len(name) > LONGEST:
        raise UserError(
            f"the name of a row has at most {LONGEST} characters, not {len(name)}: {name[:30]}…"
        )
    for one in exhibit.rows:
        if name.casefold() in (one.name.casefold(), one.title.casefold()):
            raise UserError(
                f"{name!r} reads like {exhibit.name}'s row {one.name!r}",
                hint=f"--ckpt {one.name}=FILE gives that row; a row of yours needs another name",
            )


def given(name: str, paths: Sequence[Path]) -> Row:
    """The row of files that are given under a name; kNN and the like take the pooled feature where
    a file has no projection head. UserError for a file that cannot be loaded, and for files of
    different networks."""
    from protobench.checkpoints import encoders

    loaded = [encoders.load(path) for path in paths]
    archs = dict.fromkeys(one.report.arch for one in loaded)
    if len(archs) > 1:
        raise UserError(
            f"the files of {name!r} are different networks: {', '.join(archs)}",
            at=paths[0],
            hint="files of one name are seeds of one row; give each network a name of its own",
        )
    return row(name, () if all(map(_has_head, loaded)) else (("feature", "pooled"),))


def _has_head(encoder: "Encoder") -> bool:
    return encoder.projection is not None


def require_different(files: Iterable[Path]) -> None:
    """Raise UserError for an encoder that is given twice, in one file or in several."""
    seen: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            continue  # whoever reads it says so
        if (other := seen.setdefault(identity.encoder_key(path), path)) is not path:
            raise UserError(
                "this checkpoint is given twice"
                if other == path
                else f"this checkpoint is given twice: {other} holds the same encoder",
                at=path,
                hint="every seed and every row needs an encoder of its own",
            )


def seeds(name: str, paths: Sequence[Path], have: Mapping[str, Record]) -> dict[int, Path]:
    """seed -> file: as in the records of a name, new files after these, from 1 in their order.

    UserError where the name has records of another file: they would be averaged with these."""
    known = {
        record["unit"]["encoder"]: (record["subject"]["seed"], record["subject"]["source"])
        for record in have.values()
        if is_own(record) and record["subject"]["row"] == name
    }
    keys = {identity.encoder_key(path): path for path in paths}
    if others := [source for key, (_, source) in known.items() if key not in keys]:
        told = others[0].removeprefix(OWN)
        raise UserError(
            f"{name!r} stands for other files in these results: {told}"
            + (f", and {len(others) - 1} more" if len(others) > 1 else ""),
            at=paths[0],
            hint="give all files of the row together, or another name, or another --results",
        )
    found = {seed: keys[key] for key, (seed, _) in known.items()}
    new = [path for key, path in keys.items() if key not in known]
    free = (n for n in range(1, len(paths) + 1) if n not in found)
    return dict(sorted((found | dict(zip(free, new, strict=False))).items()))


def source(path: Path, sha256: str) -> str:
    """What the records say of a given file."""
    known = released.identify(path, sha256)
    title = f" ({known.title})" if known else ""
    return f"{OWN}checkpoint {printable(path.name)}{title}, sha256 {sha256[:12]}"
