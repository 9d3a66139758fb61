"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen et al., 2020)."""

from tables.engine.schema import Paper

PAPER = Paper(
    name="MoCo v2",
    title="Improved Baselines with Momentum Contrastive Learning",
    authors="Chen et al.",
    arxiv="2003.04297",
    version="v1",
    order=4,
)
