"""Every hyper-parameter of every method: one module per method, found by its name."""

from importlib import import_module
from pkgutil import iter_modules

from pretrain.recipes.common import Recipe


def by_method() -> dict[str, dict[str, Recipe]]:
    """The recipes of every method in this folder by name: ``{"moco": {"v1": …, "mini": …}, …}``."""
    modules = sorted(module.name for module in iter_modules(__path__) if module.name != "common")
    return {name: import_module(f"{__name__}.{name}").RECIPES for name in modules}
