"""Times an epoch of the mini tier's PCL, E-step included, against one of MoCo."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from alternate import Figure, middle, show

from pretrain import loop
from pretrain.augment.loader import open_views
from pretrain.moco import MoCo
from pretrain.pcl import PCL
from pretrain.recipes import moco, pcl
from protobench.data import image_list
from protobench.data.synthetic import bundled


def rows() -> Iterator[Figure]:
    """Yields the row: alternate epochs, wall time, PCL without its warm-up."""
    torch.set_num_threads(1)
    source = image_list.image_folder(bundled.ensure() / "imagenet" / "train", "imagenet-train")
    methods = {
        "MoCo": MoCo(moco.MINI, seed=0),
        "PCL": PCL(replace(pcl.MINI, warmup=0), seed=0),
    }
    training = {
        name: loop.Training(method.recipe, method, open_views(method.recipe, source, 0, "cpu", 0))
        for name, method in methods.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in methods}
    e_step = []
    for _ in range(4):
        for name in methods:
            line = training[name].epoch()
            spent[name].append(line["seconds"])
            if name == "PCL":
                e_step.append(line["e_step_seconds"])
    ratios = [p / m for p, m in zip(spent["PCL"], spent["MoCo"], strict=True)]
    share = statistics.median(e_step) / statistics.median(spent["PCL"])
    yield Figure(
        "an epoch of mini PCL, E-step included, relative to MoCo, wall time",
        f"{middle(ratios)}×; the E-step is {100 * share:.0f} % of it; over 20 epochs with 2 of"
        f" warm-up {1 + 0.9 * (statistics.median(ratios) - 1):.2f}×",
        "≤ 1.4×",
    )


if __name__ == "__main__":
    show(rows())
