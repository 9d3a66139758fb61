"""How fast this machine pretrains, measured in seconds: images read, steps taken, features made.

A rehearsal measures before it trains. Under torchrun all processes measure together, and rates are
those of all of them."""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pretrain import loop, optim
from pretrain.augment.loader import FolderViews, open_views
from pretrain.recipes.common import Recipe
from pretrain.throughput import Throughput
from protobench import keyed, records
from protobench.checkpoints.resnet import ResNet
from protobench.checkpoints.vit import ViT
from protobench.data import crop_cache
from protobench.data.image_list import ImageList
from protobench.data.loading import batches
from protobench.data.transforms import EvalInput
from protobench.runtime import cores, distributed

READ_AT_A_TIME, ROUNDS = 32, 2
"""Images of a batch that is read, and how many such batches each worker reads after its first."""
PEAK_STEPS = {"cpu": 1, "cuda": 10}
"""Steps that are timed, after one that is not."""
EMBEDDED = {"cpu": 8, "cuda": 256}
"""Images of a batch of features."""


def of_training(
    recipe: Recipe, images: ImageList, whole: ImageList, *, device: str, workers: int
) -> Throughput:
    """Measures a pretraining: steps of ``recipe`` on ``images``, a rehearsal's few, after a
    clustering where the method has one; reading from all over ``whole``, the real list."""
    views = open_views(recipe, images, 0, device, workers)
    method = loop.build(recipe, images, 0).to(device).to(memory_format=torch.channels_last)
    training = loop.Training(recipe, method, views)
    epoch = recipe.train.epochs - 1
    method.start_epoch(epoch, training.extract)
    method.train()
    drawn = method.draw_batches(epoch, training.steps)
    drawn = views.order(epoch) if drawn is None else drawn
    batch, index = next(iter(views.batches(epoch, method.num_views, drawn[:1])))
    optim.set_rate(training.optimizer, 1e-4)
    if on_gpu := device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    steps = PEAK_STEPS["cuda" if on_gpu else "cpu"]
    for step in range(steps + 1):
        if step == 1:
            started = _now(device)
        loop.update(training.loss, training.optimizer, batch, index, recipe.train.precision)
    seconds = _now(device) - started
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    made = None
    if isinstance(views, FolderViews):
        everywhere = FolderViews(recipe, whole, 0, device, workers)
        keys = _sample(len(whole), workers)
        made = _rate(everywhere.batches(epoch, method.num_views, keys), keys, workers, device)
    networks = method.networks()
    return _machine(
        networks.backbone,
        recipe.input,
        whole,
        device,
        workers,
        views=made,
        trained=len(index) * steps / seconds,
        batch=len(index),
        peak_gib=peak and round(peak, 2),
    )


def of_scoring(
    backbone: ResNet | ViT, input_: EvalInput, whole: ImageList, *, device: str, workers: int
) -> Throughput:
    """Measures what scoring a given encoder needs: centre crops of ``whole`` and their features."""
    return _machine(backbone.to(device), input_, whole, device, workers)


def _machine(
    backbone: ResNet | ViT,
    input_: EvalInput,
    whole: ImageList,
    device: str,
    workers: int,
    **more: Any,
) -> Throughput:
    on_gpu, crops = device.startswith("cuda"), None
    if whole.pixels is None:
        keys = _sample(len(whole), workers)
        loader = batches(
            crop_cache.centre_crops(whole, input_),
            workers=workers,
            device=device,
            batch_sampler=[distributed.shard_of(row).tolist() for row in keys],
        )
        crops = _rate(loader, keys, workers, device)
    return Throughput(
        device=torch.cuda.get_device_name(device) if on_gpu else records.processor() or "CPU",
        on_gpu=on_gpu,
        processes=distributed.world_size(),
        workers=min(workers, usable := cores.usable()),
        cores=usable,
        flops=_flops(device),
        crops=crops,
        embedded=_embedded(backbone, input_, device),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        **more,
    )


def _sample(images: int, workers: int) -> np.ndarray:
    """Images all over the list, int64 [batches, N]."""
    rows = max(workers, 1) * (1 + ROUNDS)
    size = READ_AT_A_TIME * distributed.world_size()
    return keyed.generator("throughput").integers(0, images, (rows, size))


def _rate(made: Iterator[Any], keys: np.ndarray, workers: int, device: str) -> float:
    """Images/s once each worker has started and read a batch."""
    made, first = iter(made), max(workers, 1)
    for _ in range(first):
        next(made)
    started, later = _now(device), 0
    for _ in made:
        later += 1
    images: int = later * keys.shape[1]
    return images / (_now(device) - started)


@torch.inference_mode()
def _embedded(backbone: ResNet | ViT, input_: EvalInput, device: str) -> float:
    kind = "cuda" if device.startswith("cuda") else "cpu"
    size, steps, was_training = EMBEDDED[kind], PEAK_STEPS[kind], backbone.training
    x = torch.randn(size, 3, input_.crop, input_.crop, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    backbone.eval()
    backbone(x)
    started = _now(device)
    for _ in range(steps):
        backbone(x)
    seconds = _now(device) - started
    backbone.train(was_training)
    return steps * size * distributed.world_size() / seconds


@torch.inference_mode()
def _flops(device: str) -> float:
    """Of points [N, C] against centroids [K, C], k-means' shapes."""
    on_gpu = device.startswith("cuda")
    n, k, c = (16_384, 25_000, 128) if on_gpu else (2048, 4096, 128)
    a, b = torch.randn(n, c, device=device), torch.randn(k, c, device=device)
    a @ b.T
    started = _now(device)
    for _ in range(steps := 10):
        a @ b.T
    return 2.0 * n * k * c * steps / (_now(device) - started)


def _now(device: str) -> float:
    """The time when the device has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
