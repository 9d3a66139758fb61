"""The processes of one torchrun, each with a rank; without torchrun there is one, of rank 0, and nothing here does anything."""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from protobench.errors import UserError


def join(device: str) -> str:
    """Meets the other processes, if there are any, and returns this one's device: its own GPU where ``device`` is cuda.

    All but the first print nothing from then on.
    """
    if world() > 1 and not dist.is_initialized():
        if device == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(f"process {local + 1} of this machine, which has {torch.cuda.device_count()} GPUs",
                                hint="lower torchrun's --nproc_per_node")
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=1))
        if not first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if dist.is_initialized() and device == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def world() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The others wait until the first process is through: it fills the caches that they read."""
    if not first():
        dist.barrier()
    yield
    if dist.is_initialized() and first():
        dist.barrier()


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
