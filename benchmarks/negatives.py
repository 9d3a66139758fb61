"""Times the draw of negative prototypes for a step: random.sample over a set of Python integers, as
published, and a permutation.

In every step and for every granularity, the published way finds K again in the assignment of all
images, lists all ids, removes the batch's from their set, and turns the sample into a tensor."""

import random
from collections.abc import Iterator

import torch
from alternate import Ratio, alternate, ratio, show

from pretrain.pcl import draw_negatives

IMAGES, BATCH, R = 1_281_167, 64, 16_000


def published(prototype: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Draws without replacement from a set difference."""
    every = [number for number in range(prototype.max() + 1)]
    rest = set(every) - set(prototype[index].tolist())
    return torch.LongTensor(random.sample(tuple(rest), R))  # before 3.11, sample made the tuple


def rows() -> Iterator[Ratio]:
    """Yields the rows for K = 25 000, 50 000 and 100 000."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for k in (25_000, 50_000, 100_000):
        prototype = torch.randint(0, k, (IMAGES,), generator=generator)
        index = torch.randint(0, IMAGES, (BATCH,), generator=generator)

        def ours(
            prototype: torch.Tensor = prototype, index: torch.Tensor = index, k: int = k
        ) -> torch.Tensor:
            return draw_negatives(prototype[index], k, R, generator)

        for way in (ours(), published(prototype, index)):
            assert len(set(way.tolist()) - set(prototype[index].tolist())) == R
        times = alternate(lambda p=prototype, i=index: published(p, i), ours, 21)
        yield ratio(
            f"negative prototypes, r = 16k, K = {k // 1000}k, batch of {BATCH}",
            times,
            "same distribution (tests/test_pcl.py)",
            target=10,
            bytes_moved=4 * k + k + 8 * R,
        )


if __name__ == "__main__":
    show(rows())
