"""The encoders of SPCL's ablations: one recipe each for CIFAR-10 and for the synthetic data that
stands in for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pretrain.recipes import simclr, supervised, untrained
from pretrain.recipes import spcl as spcl_recipes
from tables.engine import encoders
from tables.engine.schema import Row

COST = "guess: ResNet-18 on CIFAR at 2500 views a second on a V100, not measured"
RANDOM = replace(encoders.RANDOM, paper=untrained.CIFAR10)
SUPERVISED = replace(
    encoders.SUPERVISED, paper=supervised.CIFAR10, gpu_hours=6, gpu_hours_source=COST
)
SIMCLR = replace(
    encoders.SIMCLR,
    paper=simclr.CIFAR10,
    gpu_hours=11,
    gpu_hours_source=COST,
)


def spcl(
    name: str = "spcl",
    title: str = "SPCL",
    *,
    paper: spcl_recipes.SPCL = spcl_recipes.CIFAR10,
    **changes: Any,
) -> Row:
    """SPCL with other values of some fields of the recipe, the same in all tiers."""
    return Row(
        name,
        title,
        replace(spcl_recipes.MINI, **changes),
        replace(paper, **changes),
        replace(spcl_recipes.SMALL, **changes),
        replace(spcl_recipes.SMALL_GPU, **changes),
        mini_seconds=65,
        gpu_hours=13,
        gpu_hours_source=COST,
    )


SPCL = spcl()
TRUTH = spcl(
    "spcl-gt", "SPCL, prototypes from the ground truth", pairs="labels", prototypes="labels"
)
NO_PROTOTYPE = spcl("spcl-no-prototype", "SPCL without prototype loss", gamma=0.0)
NO_METRIC = spcl("spcl-no-metric", "SPCL without metric loss", beta=0.0)
NO_CONTRASTIVE = spcl("spcl-no-contrastive", "SPCL without contrastive loss", alpha=0.0)
WEAK_CONTRASTIVE = spcl("spcl-weak-contrastive", "SPCL, contrastive loss x 0.1", alpha=0.1)
WEAK_METRIC = spcl("spcl-weak-metric", "SPCL, metric loss x 0.1", beta=0.1)
WEAK_PROTOTYPE = spcl("spcl-weak-prototype", "SPCL, prototype loss x 0.1", gamma=0.1)

LEAK = spcl("spcl-pairs-of-labels", "SPCL, pairs drawn by true class", pairs="labels")

SYMMETRIC = spcl("spcl-symmetric", "SPCL, symmetric", paper=spcl_recipes.CIFAR100, symmetric=True)
SYMMETRIC_WANG = spcl(
    "spcl-symmetric-wang",
    "SPCL, symmetric as Wang et al.",
    paper=spcl_recipes.CIFAR100,
    symmetric=True,
    sce_alpha=6.0,
    sce_beta=0.1,
)

NUM_PROTOTYPES = (25, 100, 400), (8, 512, 4096)
"""K of Figure 2(a), on synthetic data and on CIFAR-10 (the paper: "from 8 to 4096"); the second is
the one of all other rows."""
BATCH_SIZES = (32, 128, 512), (128, 512, 4096)
"""Batch sizes of Figure 2(a), likewise ("from 128 to 4096"). The learning rate goes with the batch:
SimCLR's rule, the paper has none."""
TEMPERATURES = (0.1, 0.2, 0.5), (0.1, 0.5, 1.0)
"""Temperatures of Figure 2(b); the paper's are in its picture only. The second is the one of all
other rows."""


Values = tuple[tuple[Any, ...], tuple[Any, ...]]
"""The values of the mini tier and of the paper's."""


def _of_batch(recipe: Any, size: int) -> Any:
    train = recipe.train
    return replace(
        recipe, train=replace(train, batch_size=size, lr=train.lr * size / train.batch_size)
    )


def _sweep(
    row: Row,
    name: str,
    change: Callable[[Any, Any], Any],
    values: Values,
) -> tuple[Row, ...]:
    """The row with each value in turn; the one that it has anyway keeps its name, and so its
    encoder."""
    swept = []
    for i, (mini, paper) in enumerate(zip(*values, strict=True), 1):
        recipes_ = change(row.mini, mini), change(row.paper, paper)
        same = recipes_ == (row.mini, row.paper)
        swept.append(
            row
            if same
            else replace(
                row,
                name=f"{row.name}-{name}-{i}",
                title=f"{row.title}, {name} {mini} ({paper})",
                mini=recipes_[0],
                paper=recipes_[1],
            )
        )
    return tuple(swept)


BY_PROTOTYPES = _sweep(
    SPCL, "prototypes", lambda recipe, k: replace(recipe, num_prototypes=(k,)), NUM_PROTOTYPES
)
BY_BATCH = _sweep(SPCL, "batch", _of_batch, BATCH_SIZES)
SPCL_BY_TEMPERATURE = _sweep(
    SPCL, "temperature", lambda recipe, t: replace(recipe, temperature=t), TEMPERATURES
)
SIMCLR_BY_TEMPERATURE = _sweep(
    SIMCLR, "temperature", lambda recipe, t: replace(recipe, temperature=t), TEMPERATURES
)
