"""Recipes of the collision dial, an experiment of this suite."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from pretrain.recipes import pcl
from pretrain.recipes.moco import MoCo
from pretrain.recipes.pcl import PCL


@dataclass(frozen=True)
class Collisions(PCL):
    """PCL, or MoCo where ``num_prototypes`` is empty, with a dial for class collisions."""

    method: ClassVar[str] = "collisions"
    weight: float = 1.0
    """of the negatives of the query's own class in InfoNCE's sum; 1: all count alike, 0: those are
    left out"""
    prototypes: Literal["clusters", "permuted", "classes"] = "clusters"
    """permuted: every image has the prototype of another image, drawn anew in every epoch.
    classes: k-means runs within each true class, so that every prototype is of one class"""


def dial(
    recipe: MoCo,
    weight: float = 1.0,
    prototypes: Literal["clusters", "permuted", "classes"] = "clusters",
) -> Collisions:
    """A recipe of MoCo or of PCL with the dial set, and otherwise unchanged."""
    own = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return Collisions(
        **({"num_prototypes": ()} | own),  # those of PCL; MoCo has none
        weight=weight,
        prototypes=prototypes,
    )


def without_prototypes(recipe: PCL) -> MoCo:
    """MoCo with all that it shares with a recipe of PCL."""
    return MoCo(**{field.name: getattr(recipe, field.name) for field in fields(MoCo)})


def collision_rate(weight: float, classes: int) -> float:
    """The share of a query's own class in the weight of all negatives, where all classes are
    equally frequent: p = w / (w + classes - 1)."""
    return weight / (weight + classes - 1)


MINI, MINI_MOCO = dial(pcl.MINI, 16.0), dial(without_prototypes(pcl.MINI), 16.0)
"""Of 20 classes: 46 % collisions instead of 5 %."""

RECIPES = {"mini": MINI, "mini-moco": MINI_MOCO}
