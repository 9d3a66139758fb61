"""From records to runs: which records a table or a figure is made of, and the values in them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protobench import records
from protobench.runtime import files
from tables.engine import own_rows
from tables.engine.schema import Column, Exhibit, RecordsByRow, TaskKey, Tier

Runs = dict[tuple[int, int], float]
"""(pretraining seed, draw) -> value"""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Collected:
    """A tier's records by row, and how many were left out because they are of other data,
    parameters or recipes."""

    rows: RecordsByRow
    stale: int


def collect(
    exhibit: Exhibit,
    results: Path,
    tier: Tier,
    requested_keys: Collection[str] = (),
) -> Collected:
    """``select_records`` of a results folder."""
    return select_records(exhibit, records.read_all(results / tier / "records"), requested_keys)


def select_records(
    exhibit: Exhibit,
    have: dict[str, dict[str, Any]],
    requested_keys: Collection[str] = (),
) -> Collected:
    """The records that a table or a figure is made of, out of ``have`` (by records.key).

    Where a row has records among ``requested_keys``, those alone. For every other row the newest
    per seed, evaluation and data set; all of one version, data and parameters, and of one recipe
    per row, with the parameters that the paper prints preferred to any that a user tried later. On
    the bundled data, "of one data" means: of the world of their seed, and all worlds of one kind.
    Own rows (own_rows.py) have all files that were ever given by their name, each with the newest
    of its records. Records of a rehearsal are of no table, wherever they lie.
    """
    names = {row.name for row in exhibit.rows if not (row.cited or row.own)}
    found = {
        key: record
        for key, record in have.items()
        if task_of(record) in exhibit.tasks
        and (
            own_rows.may_stand_in(exhibit, record)
            if own_rows.is_own(record)
            else record["subject"]["row"] in names
        )
        and record["subject"]["seed"] is not None
        and "rehearsal" not in record["data"]
    }
    requested = {key: record for key, record in found.items() if key in requested_keys}
    settled = {
        record["subject"]["row"] for record in requested.values() if not own_rows.is_own(record)
    }
    others = [
        record
        for key, record in found.items()
        if key not in requested and record["subject"]["row"] not in settled
    ]
    others.sort(
        key=lambda record: (_as_printed(record, exhibit.expected_params), record["finished"]),
        reverse=True,
    )
    kept: dict[tuple[str, int, TaskKey], dict[str, Any]] = {}
    kind_of: dict[TaskKey, str] = {}
    data_of: dict[tuple[TaskKey, int | None], list[str]] = {}
    params_of: dict[tuple[Any, ...], str] = {}
    recipe_of: dict[str, str] = {}
    stale = 0
    for record in [*requested.values(), *others]:
        unit, row, task = record["unit"], record["subject"]["row"], task_of(record)
        world, seed = record["data"].get("world"), record["subject"]["seed"]
        kind = files.sha256([unit["version"], record["data"].get("kind_of_world")])
        params = files.sha256(unit["params"])
        recipe = record["subject"]["recipe"]
        # the paper's own encoders may be scored on the paper's draws (Column.as_paper)
        settings = (
            row
            if own_rows.is_own(record)
            else (exhibit.row(row).settings, is_released(record["subject"]["source"]))
        )
        if (  # the first record of each kind sets what all others must have
            kind_of.setdefault(task, kind) != kind
            or data_of.setdefault((task, world), unit["data"]) != unit["data"]
            or params_of.setdefault((task, settings), params) != params
            or recipe_of.setdefault(row, recipe) != recipe
        ):
            stale += 1
            continue
        kept.setdefault((row, seed, task), record)
    rows: RecordsByRow = {}
    for row, seed, task in sorted(kept):
        rows.setdefault(row, []).append(kept[row, seed, task])
    return Collected(rows, stale)


def shares_data(found: Iterable[dict[str, Any]], task: TaskKey) -> bool:
    """Whether these records of a task are all about the same images, so that draw d is the same
    support set for every seed (draws and seeds are crossed). Otherwise every seed has images and
    draws of its own (draws are nested in seeds)."""
    return len({tuple(of["unit"]["data"]) for of in found if task_of(of) == task}) <= 1


def is_released(source: str) -> bool:
    """Whether an encoder of this source (``plan.Job.source``) is the paper's own, published by its
    authors."""
    return source.startswith("released")


def _as_printed(record: dict[str, Any], printed: dict[str, Any]) -> bool:
    return all(record["unit"]["params"].get(what) == value for what, value in printed.items())


def task_of(record: dict[str, Any]) -> TaskKey:
    """Evaluation and data set."""
    return record["unit"]["evaluation"], record["unit"]["data_name"]


def recorded(found: RecordsByRow, what: str) -> str:
    """What the environments of records say of ``what``; records of older versions say less."""
    values = {record["environment"].get(what) for of in found.values() for record in of}
    told = sorted(str(value) for value in values if value is not None)
    return (
        " and ".join([*told, "others not recorded"] if told and None in values else told)
        or NOT_RECORDED
    )


def metrics(found: RecordsByRow) -> dict[TaskKey, tuple[str, str]]:
    """Evaluation and data set -> name and unit of the metric, of those that have records; empty
    where a record does not say."""
    return {
        task_of(record): (record["metric"].get("name", ""), record["metric"].get("unit", ""))
        for of in found.values()
        for record in of
    }


def runs_of(found: list[dict[str, Any]], column: Column) -> Runs:
    """A cell's runs out of its row's records."""
    return {
        (record["subject"]["seed"], run["draw"]): run[column.value]
        for record in found
        if task_of(record) == column.task
        for run in record["runs"]
        if column.k in (None, run.get("k"))
    }


def samples(runs: Runs) -> list[float]:
    """One value per pretraining seed (mean over its draws), or per draw where there is a single
    seed."""
    seeds = sorted({seed for seed, _ in runs})
    if len(seeds) > 1:
        return [
            float(np.mean([value for (s, _), value in runs.items() if s == seed])) for seed in seeds
        ]
    return [runs[key] for key in sorted(runs)]


def grid(runs: Runs) -> np.ndarray:
    """[S, D]: seeds by the draws that all of them have."""
    seeds = sorted({seed for seed, _ in runs})
    draws = sorted({draw for _, draw in runs if all((seed, draw) in runs for seed in seeds)})
    return np.array([[runs[seed, draw] for draw in draws] for seed in seeds])
