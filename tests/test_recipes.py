"""Recipes and methods: keys of runs never change, and no method has a hook that nobody calls."""

import inspect
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from pretrain import loop, recipes
from pretrain.method import Method
from pretrain.recipes import common, moco
from protobench.data.image_list import ImageList

METHODS = recipes.by_method()
KEYS = {
    "moco.MINI": "fdfe7d469bfcc00735e55ce65c6153d0c60132de5b179fd9ec20918532a589b2",
    "moco.V1": "314f8998acff496d4f9d8ec1c840d9536af2213891dcced8b4d81b9f84692bae",
    "moco.V2": "e293a0559158a01f9a154daeac46d8893e7bcbf9728d909157f4dd7a83c0e422",
    "pcl.MINI": "768ede981fcff0b35e851154a44b1e45c8e1295c4631a5ee083dfebc4a2c92c5",
    "pcl.MINI_V2": "576cfc4e3de17f218181bbd5689df7904fcf7dc684edd142a7362de6b7124245",
    "pcl.V1": "f679837df5cb9711c4eb5d39db9ca7249747c47cefb522a358c8ca754a455129",
    "pcl.V2": "739ee2d5d5cf9d3a41e9fac960a6f3fa2f0beebd542b52089759ec1ad8764d27",
    "simclr.CIFAR10": "4454ac9213270d9b00efafb5e00d81375b73128fbb6d9e902cc9901a3d37e0a1",
    "simclr.MINI": "741e70dcbbcba9ae9d4444b0b32d16dd8b8e583402b21638362cc9ddd67cccb0",
    "simclr.MINI_ABLATION": "8e5bc447648fde43d98077260c495563fc7f1d0e22526f4fb96678c7305ade21",
    "simclr.PAPER": "541e6c71e8709a5aaf62ead4fcf16fe0f2597bffddd3da00f6ed45ed61aa30bf",
    "spcl.CIFAR10": "b643b723f15c18b9f8bff90465af72dad8811efabba0d7b9df37abd229f37760",
    "spcl.CIFAR100": "ac6e42a6862c4470209c602b99da60bdb426cc8e83b1a754c678b6112ff58da8",
    "spcl.IMAGENET": "3eb5d0421b183da1298cd11e60175d58f25de2b1ae68a94fe56f70f5c2324264",
    "spcl.MINI": "03a062916ae04ac3280206e995bf7b35820af77a56af821b3dcfb8f35ba442c2",
    "spcl.MINI_ABLATION": "623a806a05b0071d973d47104d7bc0a178e044794c5ceb5381c75e14b09fadc9",
    "supervised.CIFAR10": "ab4f980c4a77699600b7a10ee7fdf3bf353093b0f4dea484f66c64c5be42de1d",
    "supervised.CIFAR100": "3b5eea858ba3d693d57c03d363c785d99e273e11087c7e9fdef92226d0570fd0",
    "supervised.MINI": "f588c9fbc47e81bfd7b08e3ec227d685f698beadd4049e0421b3b2d01da91f54",
    "supervised.PAPER": "f44b3a7f7722cad097459f0df97f6c3b6fd3d820ab280d14753ad5f19aa60a00",
    "untrained.CIFAR10": "926d04cc03fdae497e048a9f811a72bedc7a38b6a3eec6559f571151210789d5",
    "untrained.CIFAR100": "98ff181a038e9223380f33ca0db571f1c1dccfe5411d0734c33b984661e149cc",
    "untrained.MINI": "4a9a9f514d1942f769b72aaa0b186cf8be1e463973737127bea03dfb9e2af933",
    "untrained.PAPER": "3860a4da166ebc1e0a30e7b1f74733338b7053e323a2ebb0c020c91da38dddde",
}
"""Of seed 1 on the images below, as before recipes had a file per method."""


def _images():
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    return ImageList("x", None, ("a",), np.zeros(1, np.int64), ("a",), pixels=pixels)


def test_every_named_recipe_keeps_its_key():
    keys = {
        f"{method}.{name}": common.run_key(value, _images(), 1)
        for method in METHODS
        for name, value in vars(import_module(f"pretrain.recipes.{method}")).items()
        if isinstance(value, common.Recipe)
    }
    assert {name: keys[name] for name in KEYS} == KEYS


def test_fields_added_later_count_where_they_differ_from_their_default():
    for part, field, value in (
        ("train", "precision", "bf16"),
        ("train", "compile", True),
        ("augment", "profile", "raw"),
    ):
        changed = replace(getattr(moco.MINI, part), **{field: value})
        recipe = replace(moco.MINI, **{part: changed})
        assert common.run_key(recipe, _images(), 1) != KEYS["moco.MINI"]


def test_drawn_negatives_have_another_key_than_before_they_came_from_a_permutation():
    before = "3fefcd79064bc37eb3f3a8efb9638f0ae09235a26db1fb5174f8c340567d2f96"
    assert KEYS["pcl.V1"] != before


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_names_the_modules_of_its_method(method):
    assert {recipe.method for recipe in METHODS[method].values()} == {method}
    assert "mini" in METHODS[method]


def _class_of(name):
    torch.manual_seed(0)
    recipe = METHODS[name]["mini"]
    module = import_module(f"pretrain.{name}")
    return type(module.build(recipe, torch.arange(4000) % 20, 20, 0)), module


@pytest.mark.parametrize("name", METHODS)
def test_every_public_function_of_a_method_is_a_hook_or_called_by_the_method(name):
    """A misspelt hook would be silently never called."""
    cls, module = _class_of(name)
    assert issubclass(cls, Method)
    source = inspect.getsource(module)
    own = {
        attribute
        for attribute, value in vars(cls).items()
        if not attribute.startswith("_") and (callable(value) or isinstance(value, property))
    }
    known = {name for base in cls.__bases__ for name in dir(base)}  # a method may build on another
    uncalled = [hook for hook in own - known if not re.search(rf"\bself\.{hook}\b", source)]
    assert not uncalled, "no such hook, and no caller"


def test_the_loop_calls_every_hook():
    source = inspect.getsource(loop)
    for hook in vars(Method):
        if not hook.startswith("_"):
            assert re.search(rf"method\.{hook}\b", source), hook
