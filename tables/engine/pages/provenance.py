"""Where the numbers of a table or a figure come from, row by row."""

from typing import Any

import numpy as np

from tables.engine.schema import RecordsByRow, Row

HEADER = ("row", "encoder", "seeds", "code", "environment", "data", "cost")


def lines(rows: tuple[Row, ...], found: RecordsByRow) -> list[list[str]]:
    """A line per row, under HEADER."""
    return [_line(row, of) for row in rows if (of := found.get(row.name))]


def _line(row: Row, of: list[dict[str, Any]]) -> list[str]:
    environments = {
        ", ".join(
            f"{name} {value}"
            for name, value in record["environment"].items()
            if value is not None and name != "threads"
        )
        for record in of
    }
    code = {
        (record["code"]["commit"] or "unknown")[:12]
        + " with changes" * bool(record["code"]["dirty"])
        for record in of
    }
    data = {
        f"{record['unit']['data_name']}"
        f" {' '.join(print_[:12] for print_ in record['unit']['data'])}"
        for record in of
    }
    trained = sum(
        float((record["checkpoint"].get("trained") or {}).get("seconds") or 0)
        for record in {record["subject"]["seed"]: record for record in of}.values()
    )
    scored = sum(
        float(record.get("cost", {}).get("seconds", 0))
        for record in of
        if record["unit"]["evaluation"] != "course"
    )
    return [
        row.title,
        f"{of[0]['subject']['source']}, recipe {(of[0]['subject']['recipe'] or '')[:12]}",
        ", ".join(map(str, sorted({record["subject"]["seed"] for record in of}))),
        ", ".join(sorted(code)),
        "; ".join(sorted(environments)),
        "; ".join(sorted(data)),
        f"{np.round(trained):.0f} s pretraining, {scored:.0f} s scoring",
    ]
