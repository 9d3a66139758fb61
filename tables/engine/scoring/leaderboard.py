"""The leaderboard: every checkpoint that has been scored, in one static page, a CSV, and a page per
checkpoint.

All of it is a function of records. They are verified and copied beside the page, so that the folder
can be moved or published as it is, and every number leads to its record."""

import csv
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from protobench.checkpoints.released import Released
from protobench.records import Record
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError
from tables.engine.schema import TaskKey
from tables.engine.scoring import curves, report_card, standings, submissions
from tables.engine.scoring.report_card import Section
from tables.engine.scoring.standings import Board, Cell, Checkpoint, Column
from tables.engine.scoring.submissions import Submissions

HERE = Path(__file__).parent
RECORD, PAGE = re.compile(r"[0-9a-f]{12}\.json"), re.compile(r"[0-9a-f]{12}\.html")
TESTS = {
    "images": "image by image",
    "draws": "over draws",
    "none": "no test: a single number",
}
LOADED = (
    "file",
    "origin",
    "arch",
    "copy",
    "prefix",
    "matched",
    "expected",
    "sha256",
    "hash_verified",
    "untouched",
    "dropped",
)
"""Of what was loaded, what a checkpoint's page shows in words of its own."""


@dataclass(frozen=True)
class Written:
    """What ``build`` made."""

    page: Path
    checkpoints: int
    columns: int
    records: int


def main(folders: Sequence[Path], out: Path) -> int:
    """Build the leaderboard of the records in ``folders``, say what was made and what was left out;
    return the exit code: 3 where files were left out. Raises UserError where there is nothing."""
    inside = [folder for folder in folders if folder.resolve().is_relative_to(out.resolve())]
    if inside:
        raise UserError(
            "the leaderboard cannot be built from its own copies of the records",
            at=inside[0],
            hint="name the folder that they were copied from, or another --out",
        )
    places = dict.fromkeys(place for folder in folders for place in submissions.folders_in(folder))
    found = submissions.read(places)
    for left_out in found.refused:
        print(f"left out: {left_out.file}: {left_out.reason}", file=sys.stderr)
    if found.rehearsals:
        print(f"left out: {found.rehearsals} records of rehearsals", file=sys.stderr)
    if not found.scores:
        raise UserError(
            "none of the records is a score that can be shown",
            at=", ".join(map(str, places)),
            hint="score a checkpoint, for example: python evaluate/knn.py --ckpt FILE",
        )
    made = build(found, out)
    print(
        f"{made.checkpoints} checkpoints, {made.columns} columns, {made.records} records"
        f"\npage: {made.page}"
    )
    return cli.INCOMPLETE if found.refused else cli.SAME


def build(found: Submissions, out: Path) -> Written:
    """Write ``index.html``, ``leaderboard.csv``, ``checkpoints/`` and ``records/`` into ``out``;
    what lies there already and is equal stays untouched."""
    checkpoints = standings.checkpoints(found.scores.values(), found.histories.values())
    boards = standings.boards(checkpoints)
    environment = Environment(
        loader=FileSystemLoader([HERE, HERE.parent / "pages"]), autoescape=True, trim_blocks=True
    )
    protocols = list(
        dict.fromkeys(_protocol(column) for board in boards for column in board.columns)
    )
    index = environment.get_template("leaderboard.html.jinja").render(
        title="Leaderboard",
        boards=[_shown(board, protocols) for board in boards],
        protocols=protocols,
        checkpoints=len(checkpoints),
        refused=found.refused,
        rehearsals=found.rehearsals,
        tests=TESTS,
    )
    _write(out / "index.html", index + "\n")
    _write(out / "leaderboard.csv", table(boards))
    page = environment.get_template("checkpoint.html.jinja")
    papers = _papers(boards)
    for checkpoint in checkpoints:
        shown = page.render(title=checkpoint.name, **_card(checkpoint, boards, papers), tests=TESTS)
        _write(out / "checkpoints" / f"{checkpoint.id}.html", shown + "\n")
    _sweep(out / "checkpoints", PAGE, {f"{of.id}.html" for of in checkpoints})
    copies = found.scores | found.histories
    for path, record in copies.items():
        _write(out / "records" / _file(record), path.read_text(encoding="utf-8"))
    _sweep(out / "records", RECORD, set(map(_file, copies.values())))
    columns = sum(len(board.columns) for board in boards)
    return Written(out / "index.html", len(checkpoints), columns, len(copies))


def table(boards: Iterable[Board]) -> str:
    """Return all cells as CSV, one per line. A name that a spreadsheet would take for a formula
    begins with an apostrophe."""
    lines = [
        _line(board, cell)
        for board in boards
        for checkpoint in board.checkpoints
        for column in board.columns
        if (cell := board.cells.get((checkpoint.key, column)))
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _inert(value) for name, value in line.items()})
    return text.getvalue()


def _line(board: Board, cell: Cell) -> dict[str, str]:
    column, rank, runs = cell.column, cell.rank, cell.runs
    return {
        "checkpoint": cell.checkpoint.name,
        "encoder": cell.checkpoint.key,
        "data": board.domain.name,
        "evaluation": column.evaluation,
        "dataset": column.dataset,
        "params": files.canonical_json(column.params),
        "label": column.label,
        "metric": column.metric,
        "value": f"{runs.mean:.6g}",
        "standard_deviation": "" if runs.spread is None else f"{runs.spread:.6g}",
        "draws": str(len(runs.values)),
        "best_rank": str(rank.best) if rank.told else "",
        "worst_rank": str(rank.worst) if rank.told else "",
        "ranked": str(rank.of),
        "record": _file(cell.record),
    }


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# The table ----------------------------------------------------------------------------------------


def _protocol(column: Column) -> str:
    return f"{column.evaluation}, {column.dataset}"


def _shown(board: Board, protocols: Sequence[str]) -> dict[str, Any]:
    """A board as the template shows it."""
    groups: dict[tuple[str, str, str], list[Column]] = {}
    for column in board.columns:
        groups.setdefault((_protocol(column), column.metric, column.unit), []).append(column)
    in_order = [column for columns in groups.values() for column in columns]
    number_of = {column: i for i, column in enumerate(in_order)}
    scored = Counter(column for _, column in board.cells)
    return {
        "domain": board.domain,
        "main": number_of[board.main],
        "groups": [
            {
                "evaluation": columns[0].evaluation,
                "dataset": columns[0].dataset,
                "metric": f"{metric}{f', {unit}' if unit else ''}",
                "protocol": protocols.index(protocol),
                "columns": [
                    {
                        "number": number_of[column],
                        "label": column.label or column.metric,
                        "detail": detail,
                        "scored": scored[column],
                        "column": column,
                        "pairs": board.pairs[column],
                        "params": files.canonical_json(column.params),
                    }
                    for column, detail in zip(columns, differences(columns), strict=True)
                ],
            }
            for (protocol, metric, unit), columns in groups.items()
        ],
        "rows": [
            {
                "checkpoint": checkpoint,
                "cells": [
                    (protocols.index(_protocol(column)), cell, cell and _file(cell.record))
                    for column in in_order
                    for cell in [board.cells.get((checkpoint.key, column))]
                ],
            }
            for checkpoint in board.checkpoints
        ],
    }


def differences(columns: Sequence[Column]) -> list[str]:
    """Return, for columns of one evaluation and data set, the parameters and images in which they
    differ; empty where they do not."""
    names = sorted({name for column in columns for name in column.params})
    varying = [
        name
        for name in names
        if len({files.canonical_json(column.params.get(name)) for column in columns}) > 1
    ]
    lists = {column.images for column in columns}
    told = []
    for column in columns:
        parts = [f"{name} {_plain(column.params.get(name, 'default'))}" for name in varying]
        parts += [f"images {column.images[0][:6]}"] if len(lists) > 1 and column.images else []
        told.append(", ".join(parts))
    return told


def _plain(value: Any) -> str:
    """A parameter's value for a heading."""
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# A checkpoint's page ------------------------------------------------------------------------------


def _papers(boards: Iterable[Board]) -> dict[TaskKey, Section]:
    """Return the papers' rows of the evaluations and data sets that were scored on real data."""
    scored: dict[TaskKey, Record] = {}
    for board in boards:
        if board.domain.kind == "real":
            for cell in board.cells.values():
                scored.setdefault((cell.column.evaluation, cell.column.dataset), cell.record)
    sections = report_card.sections({"": list(scored.values())})
    return {(of.evaluation, of.dataset): of for of in sections if of.papers}


def _card(
    checkpoint: Checkpoint, boards: Iterable[Board], papers: Mapping[TaskKey, Section]
) -> dict[str, Any]:
    """What the page of a checkpoint shows."""
    shown = {cell.record["record_id"] for cell in checkpoint.cells}
    by_domain = [
        (board.domain, cells)
        for board in boards
        if (cells := [cell for cell in checkpoint.cells if cell.column.domain == board.domain])
    ]
    records = [(record, "scores") for record in checkpoint.records]
    records += [(record, "history") for record in checkpoint.histories]
    return {
        "checkpoint": checkpoint,
        "loaded": loaded(checkpoint.report, checkpoint.released),
        "domains": [
            (domain, [(cell, _settings(cell.column), _file(cell.record)) for cell in cells])
            for domain, cells in by_domain
        ],
        "papers": [
            papers[task]
            for task in dict.fromkeys(
                (cell.column.evaluation, cell.column.dataset)
                for domain, cells in by_domain
                if domain.kind == "real"
                for cell in cells
            )
            if task in papers
        ],
        "curves": curves.of_pretraining(checkpoint.histories),
        "warnings": list(
            dict.fromkeys(
                str(text) for record in checkpoint.records for text in record.get("warnings", ())
            )
        ),
        "records": [
            {
                "file": _file(record),
                "about": f"{record['unit']['evaluation']}, {record['unit']['data_name']}",
                "finished": record["finished"],
                "superseded": kind == "scores" and record["record_id"] not in shown,
                "code": _code(record),
                "machine": _machine(record["environment"]),
                "seconds": record["cost"].get("seconds", ""),
            }
            for record, kind in records
        ],
    }


def loaded(report: Mapping[str, Any], known: Released | None) -> list[tuple[str, str]]:
    """Return what was loaded from the file, as names and values."""
    trained, input_ = report.get("trained"), report.get("input")
    verified = " (a hash that came with the file agrees)" * bool(report.get("hash_verified"))
    facts = [
        ("file", report["file"]),
        ("published as", f"{known.title}; {known.proof}; {known.page}" if known else ""),
        ("layout", report["origin"]),
        ("network", report["arch"]),
        (
            "weights",
            f"{report.get('matched', '?')} of {report.get('expected', '?')} tensors of the"
            f" backbone, {report.get('copy', '?')} copy",
        ),
        ("sha256", f"{report['sha256']}{verified}"),
        ("input", _sentence(input_) if isinstance(input_, dict) else ""),
        ("left out", ", ".join(map(str, report.get("dropped") or ()))),
        ("trained", _training(trained) if isinstance(trained, dict) else "elsewhere"),
        (
            "remark",
            "BatchNorm is at its initial values: it looks untrained"
            * bool(report.get("untouched")),
        ),
    ]
    others = set(report) - set(LOADED) - {"input", "trained", "released", "projection"}
    facts += [(name.replace("_", " "), _sentence(report[name])) for name in sorted(others)]
    return [(name, text) for name, text in facts if text]


def _training(trained: Mapping[str, Any]) -> str:
    """How this suite trained it."""
    recipe = trained.get("recipe")
    train = recipe.get("train") if isinstance(recipe, dict) else None
    epochs = train.get("epochs") if isinstance(train, dict) else None
    world = trained.get("world")
    parts = [
        f"{trained.get('method', '?')} by this suite, seed {trained.get('seed', '?')}",
        f"{epochs} epochs" if epochs is not None else "",
        f"bundled world {world}" if world is not None else "",
        f"{trained['seconds']} s" if "seconds" in trained else "",
    ]
    return ", ".join(filter(None, parts))


def _sentence(value: Any) -> str:
    """A nested value in plain words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_sentence(of)}" for name, of in value.items())
    return _plain(value)


def _settings(column: Column) -> str:
    return _sentence(dict(column.params))


def _code(record: Record) -> str:
    code = record["code"]
    return f"{str(code.get('commit') or 'unknown')[:12]}{' with changes' * bool(code.get('dirty'))}"


def _machine(environment: Mapping[str, Any]) -> str:
    told = [
        environment.get("gpu") or environment.get("processor"),
        f"torch {environment.get('torch')}",
    ]
    return ", ".join(str(of) for of in told if of)


# Files --------------------------------------------------------------------------------------------


def _file(record: Record) -> str:
    """The name of a record's copy."""
    return f"{record['record_id'][:12]}.json"


def _write(path: Path, text: str) -> None:
    """Write a file, unless it is there and equal. Whole or absent, but not fsynced, which takes
    most of the time of a thousand files: whatever a power cut takes is written again."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)


def _sweep(folder: Path, ours: re.Pattern[str], kept: set[str]) -> None:
    """Remove what an earlier run wrote here and no record stands behind any more."""
    for entry in os.scandir(folder):
        if ours.fullmatch(entry.name) and entry.name not in kept:
            with files.writing(folder / entry.name):
                os.unlink(entry.path)
