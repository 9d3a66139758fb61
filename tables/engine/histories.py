"""Curves over the epochs of a pretraining, from the records of training histories: what Figures 3
and 4 share."""

from collections.abc import Callable
from typing import Any

import numpy as np

HEADER = ("row", "seed", "epochs", "K", "quantity", "value")
"""The header of the CSV that ``lines`` fills."""
Value = Callable[[dict[str, Any]], float]
"""A number out of a probe."""


def of_clusters(k: str, what: str) -> Value:
    """A number of the clustering into ``k``: ami, mi, sd, …"""
    return lambda probe: float(probe["clusters"][k][what])


def of_features(probe: dict[str, Any]) -> float:
    """Mutual information of embedding and class."""
    return float(probe["feature_mi"])


def by_seed(records: list[dict[str, Any]], value: Value) -> dict[int, dict[int, float]]:
    """seed -> epochs done -> value."""
    return {
        record["subject"]["seed"]: {probe["epochs"]: value(probe) for probe in record["probes"]}
        for record in records
    }


def curve(
    axis: Any,
    records: list[dict[str, Any]],
    value: Value,
    *,
    label: str,
    colour: str,
    dash: str,
    marker: str,
) -> None:
    """The mean over the seeds, in a band from the least to the greatest."""
    seeds = list(by_seed(records, value).values())
    epochs = sorted(set.intersection(*(set(of) for of in seeds)))
    values_SE = np.array([[of[epoch] for epoch in epochs] for of in seeds])
    axis.plot(
        epochs,
        values_SE.mean(0),
        label=label,
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=4,
    )
    if len(seeds) > 1:
        axis.fill_between(
            epochs, values_SE.min(0), values_SE.max(0), color=colour, alpha=0.15, linewidth=0
        )


def lines(
    row: str, records: list[dict[str, Any]], value: Value, k: str, quantity: str
) -> list[list[str]]:
    """A curve's numbers, for the CSV."""
    return [
        [row, str(seed), str(epochs), k, quantity, f"{found:.6f}"]
        for seed, of in sorted(by_seed(records, value).items())
        for epochs, found in sorted(of.items())
    ]


def numbers(records: list[dict[str, Any]]) -> list[str]:
    """All K of the monitor's clusterings, sorted."""
    return sorted(records[0]["probes"][0]["clusters"], key=int)
