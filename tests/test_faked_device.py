"""Steps of the papers' sizes on a GPU that does not compute (faked_device.py): their arithmetic,
kernels and memory, and that the host never waits.

Whoever changes one of these numbers for a reason writes the new one here."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import faked_device
import pretended
import pytest
import torch

from evaluate import linear, semisup
from pretrain import gpu_memory, loop
from pretrain.recipes import moco, pcl, simclr, spcl, supervised
from protobench import features
from protobench.checkpoints import resnet
from protobench.checkpoints.encoders import Encoder
from protobench.data.transforms import EvalInput

pytestmark = pytest.mark.skipif(bool(faked_device.MISSING), reason=faked_device.MISSING)

IMAGES = 1_281_167
RECIPES = {
    "moco": moco.V2,
    "pcl": pcl.V2,
    "simclr": simclr.PAPER,
    "spcl": spcl.IMAGENET,
    "supervised": supervised.PAPER,
}
GFLOP = {"moco": 32.5, "pcl": 32.5, "simclr": 48.6, "spcl": 48.7, "supervised": 24.3}
"""Per image. ResNet-50 has 8.2 forward and twice that backward; heads and logits add little."""
LAUNCHES = {
    ("moco", 1): 3864,
    ("moco", 8): 780,
    ("pcl", 1): 2273,
    ("pcl", 4): 869,
    ("simclr", 1): 550,
    ("simclr", 8): 1217,
    ("spcl", 1): 706,
    ("spcl", 8): 1378,
    ("supervised", 1): 467,
    ("supervised", 8): 1103,
}
"""Kernels of a step in fp32, by method and number of processes (PCL has four BatchNorm groups)."""
EVALUATIONS = {
    "features": (8.2, 125, 2.43),
    "semisup": (24.3, 470, 21.0),
    "linear": (0.0246, 44, 0.662),
}
"""GFLOP per image, kernels and GiB of a batch of 256."""


@cache
def step(name, precision, processes):
    """What the second step of a training takes on the first of ``processes`` GPUs."""
    recipe = RECIPES[name]
    recipe = replace(recipe, train=replace(recipe.train, precision=precision))
    n, size = recipe.train.batch_size, recipe.augment.size
    with faked_device.device(processes) as counts:
        labels = torch.arange(IMAGES) % 1000
        method = import_module(f"pretrain.{name}").build(recipe, labels, 1000, 0)
        method = method.to("cuda").to(memory_format=torch.channels_last).train()
        if name == "pcl":
            method.prototypes = [_clusters(k, recipe.dim) for k in recipe.num_prototypes]
        if name == "spcl":
            method.prototypes = [_clusters(k, 1)[2] for k in recipe.num_prototypes]
        training = loop.Training(recipe, method, range(IMAGES))
        views = [_pictures(n // processes, size) for _ in range(method.num_views)]
        index = torch.arange(n, device="cuda")
        for _ in range(2):
            counts.restart()
            loop.update(training.loss, training.optimizer, views, index, precision)
            if training.statistics:
                training.statistics.merge()
        return counts.taken()


def _clusters(k, dim):
    """Centroids, phi, and the cluster of every image, as an E-step leaves them."""
    where = {"device": "cuda"}
    return torch.randn(k, dim, **where), torch.ones(k, **where), torch.arange(IMAGES, **where)


def _pictures(n, size):
    return torch.randn(n, 3, size, size, device="cuda").contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize(("name", "processes"), LAUNCHES)
def test_a_step_starts_no_more_kernels_and_never_waits(name, processes):
    taken = step(name, "fp32", processes)
    share = RECIPES[name].train.batch_size // processes
    # SPCL's small heads see the global batch in every process
    assert taken.flops / share == pytest.approx(1e9 * GFLOP[name], rel=0.02)
    assert taken.launches == pytest.approx(LAUNCHES[name, processes], rel=0.02)
    assert (taken.waits, taken.wrong_layout) == ([], [])
    assert 0 <= taken.grown < 100, "of memory, nothing but sums is kept"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "processes"), LAUNCHES)
def test_a_step_takes_the_memory_that_was_computed_before_it(name, processes, precision):
    """pretrain/gpu_memory.py refuses by it what cannot fit."""
    recipe = replace(RECIPES[name], train=replace(RECIPES[name].train, precision=precision))
    peak = step(name, precision, processes).peak / 2**30
    assert peak == pytest.approx(gpu_memory.peak_gib(recipe, processes), rel=0.1)


def _evaluations():
    """A step of each evaluation that computes on the GPU in a loop, with ResNet-50."""
    network = resnet.build("resnet50")
    encoder = Encoder(network, EvalInput(), "", {})
    label_N = torch.zeros(256, dtype=torch.int64, device="cuda")
    pixels = torch.zeros(256, 3, 224, 224, dtype=torch.uint8).pin_memory()
    forward = features.Forward(encoder, encoder.input, "average", "cuda")
    params = {"seed": 0, "batch_norm": "train", "sgd_momentum": 0.9, "weight_decay": 1e-4}
    params |= {"backbone_lr": 0.01, "head_lr": 1.0}
    tuning = semisup.FineTuning(network, 1000, params, 0, "cuda")
    heads = linear.Heads((0.1, 1.0, 10.0), 2048, 1000, params | {"batch_norm": False}, "cuda")
    pictures, feature_ND = _pictures(256, 224), torch.randn(256, 2048, device="cuda")
    return {
        "features": lambda: forward(pixels),
        "semisup": lambda: tuning.step(pictures, label_N, 1.0),
        "linear": lambda: heads.step(feature_ND, label_N, 1.0),
    }


def test_evaluations_never_wait():
    with faked_device.device() as counts:
        for name, work in _evaluations().items():
            for _ in range(2):
                counts.restart()
                work()
            taken = counts.taken()
            assert (taken.waits, taken.wrong_layout, taken.grown) == ([], [], 0)
            gflop, launches, peak = EVALUATIONS[name]
            assert taken.flops / 256 == pytest.approx(1e9 * gflop, rel=0.01)
            assert taken.launches == pytest.approx(launches, rel=0.02)
            assert taken.peak / 2**30 == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("mistake", pretended.mistakes(None))
def test_mistakes_are_seen(mistake):
    with faked_device.device() as counts:
        work = pretended.mistakes(torch.randn(8, 4, device="cuda"))[mistake]
        counts.restart()
        told = ""
        try:
            work()
        except (RuntimeError, TypeError) as failure:  # torch's own, of several classes
            told = str(failure)
        assert "device" in told or "aten." in told or counts.taken().waits


def test_a_graph_that_is_kept_and_a_lost_layout_are_seen():
    with faked_device.device() as counts:
        layer, kept = torch.nn.Conv2d(3, 4, 1).to("cuda"), []
        x = torch.randn(2, 3, 8, 8, device="cuda")
        counts.restart()
        for _ in range(2):
            kept.append(layer(x).exp().mean())
        taken = counts.taken()
        assert taken.grown >= 2 * 2 * 4 * 8 * 8 * 4
        assert len(taken.wrong_layout) == 2
        counts.restart()
        kept[0].backward()
        kept.clear()
        assert counts.taken().grown < 0
