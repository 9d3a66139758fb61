"""Every method that is trained, found by its recipes, small enough for two hundred images."""

from dataclasses import fields, replace

from pretrain import recipes

SMALLER = {"queue": 64, "num_prototypes": (8,), "warmup": 1}


def tiny(recipe, epochs=2, **changes):
    """A recipe of batches of 32, and with less of what many images need."""
    own = {field.name for field in fields(recipe)}
    smaller = {name: value for name, value in SMALLER.items() if name in own}
    train = replace(recipe.train, epochs=epochs, batch_size=32)
    return replace(recipe, train=train, **smaller | changes)


def tiny_methods(epochs=2):
    """``{method: recipe}``; a new method is among them by itself."""
    mini = {name: named["mini"] for name, named in recipes.by_method().items()}
    return {name: tiny(recipe, epochs) for name, recipe in mini.items() if recipe.train.epochs}
