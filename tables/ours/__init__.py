"""Figures of no paper: what the suite's own runs look like."""

from tables.engine.schema import Paper

PAPER = Paper(
    name="ours",
    title="No figure of the paper",
    version="the suite's own measurements",
    order=2,
)
