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
    "moco.MINI": "6ab60bc6ec6574789c218e4fb6bd579f475fded43be82a25a1a32a3301a1b47d",
    "moco.SMALL": "8bfed5b7e6191d9f9931d115d9fc2a6a068f5143a933e48a79a11fc65ca11e2b",
    "moco.SMALL_GPU": "05d39d0579653588ff6c77b20c3266c9b6a9c1b4af5ce3f9572f8bff2a26a201",
    "moco.V1": "17670d80bb6babf473d519ba4f00655ea7c1bfdebfd9438d906dba964ad3bcb1",
    "moco.V2": "d08486c4d4c51cd1d0e69d548cb6684864890fd83a258602d5c94a23e36e4699",
    "pcl.MINI": "9b3349e7e105133b17eabd9d7c5dc3aeae91ed130b2fbada4f3f1c1cc2535a5d",
    "pcl.MINI_V2": "6421242bf41bd17602b7b5d0785ef9f96d7952acba6fe710fcae2cd4515d9547",
    "pcl.SMALL": "1d661a3133dd418c5fd8a9023772d8d24c90dc109948244a255d6fb88ad77357",
    "pcl.SMALL_GPU": "b6442ba200ae4aa3ec96fcd2b748469df64418f19529b88e77b066417a1a7bf1",
    "pcl.SMALL_GPU_V2": "29da220bfb098dd8a50178f4fdb3f7abcbb2b7d3ad5976fd0a1238551ad2ba9c",
    "pcl.SMALL_V2": "974653042a338b4d96a7ec506ac23da6d710eb46624e5bcbf7bfce9d5276a2e8",
    "pcl.V1": "50323212919389f756ae531ecc5b347d53ff5c3d5f9a2746969aa414495f9070",
    "pcl.V2": "2c33b969c402fe4ca88b655090203a01694bd7773110c7fce1a60d6e593fc52b",
    "simclr.CIFAR10": "1a61496c2f38943fc1c696e204347b873881dc768eeb7dc8d620f7923cf91601",
    "simclr.MINI": "8bc1423fefde972694cd41a1037e7dd4c76e76a938dfe8504e6e3169936ee1b0",
    "simclr.PAPER": "edec5b6ab68826773ef34c3565505f298c49504cdcfb5c3fce21a2f397cbe502",
    "simclr.SMALL": "9f5514f7977fb75089c0e9bb639ce10b82a77c524515b2d23fe22d90ac12e529",
    "simclr.SMALL_GPU": "996fdc4fb9d27a83fdad6e956c5d905c4405a92828185036fa232c999958b9fa",
    "spcl.CIFAR10": "a1d178f460883e42bfd9661b634e12f924c5bff8a6910841f3212d46d8c1a611",
    "spcl.CIFAR100": "afd619c648000c0f5070fc47eebbf96fa92bdead1fe5f42e1443f94e940e7f20",
    "spcl.IMAGENET": "eb2b60725c9541520f30af8dd7e6ba2b8b30a813a3d0ea3a8eb04dec671c319f",
    "spcl.MINI": "517cbeaf3757e028a372469f208ef3c024a4e2ee3fcfc19f513f5d8eb20a5276",
    "spcl.SMALL": "70f72f7df12ef82edf314b1743487b38a45e8d51ce01723991a8e50eb985839e",
    "spcl.SMALL_GPU": "ab5ec96be9704528ed0a7dff0fa344b3ea6878459d2dcf65aab255046fefe438",
    "supervised.CIFAR10": "ae63e9ddcb322fab8aebd8d446f640898ee35581eeb5e60ff12c0a54d9f84b01",
    "supervised.CIFAR100": "02d46488ffe97a954008f4a8234c62e7127a74d1b86ad03c992bb83ea28ba7b3",
    "supervised.MINI": "08fdbe22434541324d9c25504b4e815f9655c9b569b65511f917186200cde199",
    "supervised.PAPER": "dac7cc8b0c2945376a388e8cef1c0a90a52589f085698ee47de5ea77db38d24e",
    "supervised.SMALL": "bc3d11656c179983a01528d8545401c4ded390f28b807c53dae19ca5542bb95f",
    "supervised.SMALL_GPU": "b90ef7e1bf249e820e5a33120a90038c8b947793648f6a6a4c1d487421368297",
    "untrained.CIFAR10": "04aece4e3f240f82ff14cbcaadcac39cdd35f3a3d6a935cbf057e3cbf4e56e5d",
    "untrained.CIFAR100": "e73316084cb13999647fe468bde93bb77401f4d273471df66695eed4fe363672",
    "untrained.MINI": "c6ee3e7629c6c05b900c174d35bfdabe29354243dc14138a1f1cdaccaadf915a",
    "untrained.PAPER": "f699f1d8f3f0bb8d91dfff57e1fa3ec28629b1e9a52381d60343350fb096a414",
    "untrained.SMALL": "e50ac6c4fb1e8236746adf19d453e008511d47ad1efcc6e58ef52cfd07e6e0a0",
    "untrained.SMALL_GPU": "04aece4e3f240f82ff14cbcaadcac39cdd35f3a3d6a935cbf057e3cbf4e56e5d",
}
"""Of seed 1 on the images below."""


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


def test_precision_compilation_and_profile_are_part_of_the_key():
    for part, field, value in (
        ("train", "precision", "bf16"),
        ("train", "compile", True),
        ("augment", "profile", "raw"),
    ):
        changed = replace(getattr(moco.MINI, part), **{field: value})
        recipe = replace(moco.MINI, **{part: changed})
        assert common.run_key(recipe, _images(), 1) != KEYS["moco.MINI"]


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
