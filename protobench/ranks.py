"""The processes of one torchrun, each with a rank; without torchrun there is one, of rank 0, and nothing here does anything."""

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor


def join(device: str) -> str:
    """Meets the other processes, if there are any, and returns this one's device: its own GPU where ``device`` is cuda.

    All but the first print nothing from then on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if not first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if dist.is_initialized() and device == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def leave() -> None:
    """Parts from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def first() -> bool:
    """Whether this process is the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(n: int) -> range:
    """This process's part of 0 … n - 1; the parts of all are contiguous, in order of rank, and differ by one at most."""
    if not dist.is_initialized():
        return range(n)
    rank, count = dist.get_rank(), dist.get_world_size()
    return range(n * rank // count, n * (rank + 1) // count)


def gathered(x: Tensor) -> list[Tensor]:
    """Every process's tensor, in order of rank; all have one shape."""
    if not dist.is_initialized():
        return [x]
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts
