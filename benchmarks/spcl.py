"""Times a step of SPCL against one of SimCLR on equally many images, and the share of the
clustering in an epoch."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from alternate import Figure, alternate, middle, show

from pretrain import loop, optim, simclr, spcl
from pretrain.augment.loader import open_views
from pretrain.recipes import simclr as simclr_recipes
from pretrain.recipes import spcl as spcl_recipes
from protobench.data import image_list
from protobench.data.synthetic import bundled
from protobench.kmeans import kmeans


def steps(
    name: str,
    ours: spcl_recipes.SPCL,
    theirs: simclr_recipes.SimCLR,
    size: int,
    pixels: int,
    repeats: int,
) -> Figure:
    """Compares loss, backward pass and update of both methods, alternately on the same random
    images and with equally many forward passes."""
    ours = replace(ours, train=replace(ours.train, batch_size=size))
    labels = torch.arange(10 * size) % 10
    methods = [simclr.build(theirs, labels, 10, 0), spcl.build(ours, labels, 10, 0)]
    methods[1].start_epoch(
        0,
        lambda module, **how: (
            np.random.default_rng(0).normal(size=(len(labels), 16)).astype(np.float32)
        ),
    )
    chosen = torch.from_numpy(methods[1].draw_batches(0, 1)[0])
    views = [
        torch.randn(size, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    ]
    calls = []
    for method in methods:
        method.to(memory_format=torch.channels_last).train()
        optimizer = optim.optimizer(ours.train, method, method.unscheduled())

        def step(method=method, optimizer=optimizer) -> None:
            loop.update(method.loss, optimizer, views, chosen, "fp32")

        step()
        calls.append(step)
    times = alternate(calls[0], calls[1], repeats)
    ratios = (b / a for a, b in zip(*times, strict=True))
    return Figure(
        f"a step of SPCL relative to SimCLR: {name}", middle(ratios, "× its time"), "≤ 1.1×"
    )


def epoch() -> Iterator[Figure]:
    """Measures how much of an epoch of mini SPCL are new views and features, and how much is
    k-means."""
    source = image_list.image_folder(bundled.ensure() / "imagenet" / "train", "imagenet-train")
    recipe = spcl_recipes.MINI
    method = spcl.build(recipe, torch.from_numpy(source.labels), len(source.classes), 0).to(
        memory_format=torch.channels_last
    )
    training = loop.Training(recipe, method, open_views(recipe, source, 0, "cpu", 0))
    lines = [training.epoch() for _ in range(3)]
    features = training.extract(spcl._Unit(method.backbone), epoch=3, dtype=np.float16)
    find = partial(
        kmeans,
        features,
        recipe.num_prototypes[0],
        seed=0,
        nredo=1,
        points_per_centroid=spcl.POINTS_PER_PROTOTYPE,
    )
    clustering = statistics.median(alternate(find, find, 5)[0])
    seconds, e_step = (
        statistics.median(line[what] for line in lines) for what in ("seconds", "e_step_seconds")
    )
    yield Figure(
        "k-means of SPCL's features, share of an epoch of the mini tier",
        f"{100 * clustering / seconds:.1f} %; with the features' own forward pass"
        f" {100 * e_step / seconds:.0f} %",
        "≤ 10 %",
    )


def rows() -> Iterator[Figure]:
    """Yields all rows."""
    torch.set_num_threads(1)
    yield steps(
        "mini network, 128 images of 32 pixels",
        spcl_recipes.MINI,
        simclr_recipes.MINI,
        128,
        32,
        15,
    )
    yield steps(
        "ResNet-18 with CIFAR's stem, 32 images, LARS",
        replace(spcl_recipes.CIFAR10, num_prototypes=(64,)),
        simclr_recipes.CIFAR10,
        32,
        32,
        3,
    )
    yield from epoch()


if __name__ == "__main__":
    show(rows())
