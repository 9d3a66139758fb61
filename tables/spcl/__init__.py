"""SPCL: Siamese Prototypical Contrastive Learning (Mo, Sun and Li)."""

from tables.engine.schema import Paper

PAPER = Paper(
    name="SPCL",
    title="Siamese Prototypical Contrastive Learning",
    authors="Mo, Sun and Li",
    arxiv="2208.08819",
    version="v1",
    order=3,
)
