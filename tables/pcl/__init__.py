"""PCL: Prototypical Contrastive Learning of Unsupervised Representations (Li et al., ICLR 2021)."""

from tables.engine.schema import Paper

PAPER = Paper(
    name="PCL",
    title="Prototypical Contrastive Learning of Unsupervised Representations",
    authors="Li et al.",
    arxiv="2005.04966",
    version="version of 2020 with five authors, before ICLR 2021",
    order=1,
)
