"""PCL's own work: concentration, negative prototypes, and an epoch beside one of MoCo.

    python benchmarks/pcl.py          # under a minute on one core

The published ways are written from their description: phi by a Python list per cluster, negatives by random.sample
over the set of ids that no image of the batch owns, per granularity and step.
"""

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import torch
from alternate import alternate, heading, report

from pretrain import loop, optim, recipes
from pretrain.moco import MoCo
from pretrain.pcl import PCL, concentration, draw_negatives
from pretrain.views import open_views
from protobench import images, mini


def published_concentration(distance: np.ndarray, assignment: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Eq. 12 over lists of distances, then the released code's three steps."""
    members: list[list[float]] = [[] for _ in range(k)]
    for image, cluster in enumerate(assignment):
        members[cluster].append(distance[image])
    phi = np.zeros(k)
    for cluster, own in enumerate(members):
        if len(own) > 1:
            phi[cluster] = np.asarray(own).mean() / math.log(len(own) + 10)
    largest = phi.max()
    for cluster, own in enumerate(members):
        if len(own) <= 1:
            phi[cluster] = largest
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    return temperature * phi / phi.mean()


def published_draw(positive: torch.Tensor, k: int, r: int) -> list[int]:
    """A sample without replacement from the set difference, in Python objects."""
    rest = set(range(k)) - set(positive.tolist())
    return random.sample(sorted(rest), r)


def main() -> None:
    """All of it."""
    torch.set_num_threads(1)
    heading()
    rng = np.random.default_rng(0)
    for k in (25_000, 100_000):
        assignment, distance = rng.integers(0, k, 1_281_167), rng.uniform(0.2, 1.2, 1_281_167).astype(np.float32)
        ours = concentration(distance, assignment, k, temperature=0.1)
        theirs = published_concentration(distance, assignment, k, 0.1)
        times = alternate(lambda a=assignment, d=distance, k=k: published_concentration(d, a, k, 0.1),
                          lambda a=assignment, d=distance, k=k: concentration(d, a, k, temperature=0.1), repeats=3)
        report(f"concentration, N = 1.28 M, K = {k}", times, f"max relative difference {np.abs(ours / theirs - 1).max():.1e}")
    generator = torch.Generator().manual_seed(0)
    for k in (25_000, 50_000, 100_000):
        positive = torch.randint(0, k, (64,), generator=generator)
        times = alternate(lambda p=positive, k=k: published_draw(p, k, 16_000),
                          lambda p=positive, k=k: draw_negatives(p, k, 16_000, generator), repeats=9)
        report(f"negative prototypes, r = 16000, K = {k}", times, "same law (tests/test_pcl.py)")
    epochs()


def epochs() -> None:
    """Epochs of embedded PCL and MoCo in turn, the E-step included; also PCL's share of it."""
    source = images.image_folder(mini.ensure() / "imagenet" / "train", "imagenet-train")
    methods = {"MoCo": MoCo(recipes.MOCO_MINI, seed=0), "PCL": PCL(replace(recipes.PCL_MINI, warmup=0), seed=0)}
    spent: dict[str, list[float]] = {name: [] for name in methods}
    e_step = []
    for epoch in range(5):
        for name, method in methods.items():
            recipe = recipes.MOCO_MINI if name == "MoCo" else recipes.PCL_MINI
            views = open_views(recipe, source, 0, "cpu", 0)
            line = loop._epoch(method, optim.optimizer(recipe.train, method), views, recipe, epoch, len(source))
            spent[name].append(line["seconds"])
            if name == "PCL":
                e_step.append(line["e_step_seconds"])
    ratios = [p / m for p, m in zip(spent["PCL"], spent["MoCo"], strict=True)]
    ratio, moco, pcl = (statistics.median(values) for values in (ratios, spent["MoCo"], spent["PCL"]))
    print(f"an epoch of embedded PCL against MoCo (wall): {ratio:.2f}x ({min(ratios):.2f}-{max(ratios):.2f}); "
          f"MoCo {moco:.2f} s, PCL {pcl:.2f} s, of which E-step {statistics.median(e_step):.2f} s. "
          f"Over 40 epochs with 4 of warm-up: {1 + 0.9 * (ratio - 1):.2f}x")


if __name__ == "__main__":
    main()
