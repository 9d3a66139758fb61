"""The ranks of one torchrun and what they exchange. Without torchrun there is one process of rank
0, and nothing here communicates.

What all ranks can compute is not exchanged: the order of the global batch, its views and all random
draws are functions of keys. GPU tensors are exchanged by NCCL, everything else by gloo."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from protobench.runtime.errors import UserError

T = TypeVar("T")

STEP, WORK = timedelta(hours=1), timedelta(days=1)
"""How long a process waits for the others: in a step's collectives, so that one that hangs or has
died costs an hour and not a day; and for work of the main process alone, which may cluster or score
millions of images."""
_for_work: Any = None
"""The group, by gloo, of what waits for such work; the default one where it was not made here."""


# Processes ----------------------------------------------------------------------------------------


def init(device: str) -> str:
    """Joins the process group if torchrun started several processes, and returns this rank's
    device: its own GPU if ``device`` is cuda. From then on only the main process prints, and torch
    and faiss take this GPU where none is named.

    Raises UserError for a numbered GPU, and if this machine has fewer GPUs than processes."""
    global _for_work
    if launched_world_size() > 1 and not dist.is_initialized():
        on_gpu = device.startswith("cuda")
        if ":" in device:
            raise UserError(
                f"--device {device} for {launched_world_size()} processes, each of which needs its"
                " own GPU",
                hint="--device cuda",
            )
        if on_gpu:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"process {local + 1} on this machine, which has"
                    f" {torch.cuda.device_count()} GPUs",
                    hint="lower torchrun's --nproc_per_node",
                )
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=STEP)
        _for_work = dist.new_group(backend="gloo", timeout=WORK)
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if dist.is_initialized() and device == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return device


def shutdown() -> None:
    """Leaves the process group."""
    global _for_work
    _for_work = None
    if dist.is_initialized():
        dist.destroy_process_group()


def launched_world_size() -> int:
    """Returns how many processes torchrun started, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """Returns how many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Returns how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the main process, rank 0, which writes files and prints."""
    return rank() == 0


# Work shared out ----------------------------------------------------------------------------------


def shard(n: int, of_rank: int | None = None) -> range:
    """Returns this rank's shard of range(n), or that of ``of_rank``. Shards are contiguous, in the
    order of ranks, and their sizes differ by one at most."""
    of_rank = rank() if of_rank is None else of_rank
    return range(n * of_rank // world_size(), n * (of_rank + 1) // world_size())


def shard_of(x: T) -> T:
    """Returns this rank's shard of an array, a tensor or a list along its first dimension."""
    part = shard(len(x))  # type: ignore[arg-type]
    own: T = x[part.start : part.stop]  # type: ignore[index]
    return own


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the block on the main process first, which fills caches that the others read."""
    if not is_main():
        barrier()
    yield
    if dist.is_initialized() and is_main():
        barrier()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Calls ``make`` on the main process and returns its result on all ranks."""
    if not dist.is_initialized():
        return make()
    made: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(made, group=_for_work, device=torch.device("cpu"))
    result: T = made[0]
    return result


# Collectives -------------------------------------------------------------------------------------


def all_gather(x: Tensor) -> list[Tensor]:
    """Returns the tensors of all ranks, in order; they must have the same shape."""
    if not dist.is_initialized():
        return [x]
    parts = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, x.contiguous())
    return parts


def data_parallel(
    module: nn.Module, *, static_graph: bool = False, unused: bool = False
) -> nn.Module:
    """Wraps a module in DistributedDataParallel: backward passes average gradients over all ranks.
    Parameters may lack a gradient if the graph is static or, with ``unused``, in any step. Buffers
    are not broadcast."""
    if not dist.is_initialized():
        return module
    # about a name that only older versions know
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            static_graph=static_graph,
            find_unused_parameters=unused,
        )


def concat_all_gather(x: Tensor, dim: int = 0) -> Tensor:
    """Concatenates the tensors of all ranks, without gradient."""
    return x.detach() if not dist.is_initialized() else torch.cat(all_gather(x.detach()), dim)


def concat_all_gather_with_grad(x: Tensor, dim: int = 0) -> Tensor:
    """Concatenates the tensors of all ranks. The backward pass sums the gradients of all ranks'
    losses for each part.

    If every rank computes the loss of the whole batch, averaging gradients as
    DistributedDataParallel does then gives the right one. (The common mistake is to put one's own
    part with gradient into ``concat_all_gather``: the loss is right, but the gradient is too small
    by a factor of the world size.)"""
    return _ConcatAllGather.apply(x, dim) if dist.is_initialized() else x


class _ConcatAllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return concat_all_gather(x, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = _AllReduceSum.forward(ctx, gradient)
        part = shard(total.shape[ctx.dim])
        return total.narrow(ctx.dim, part.start, len(part)), None


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sums over all ranks; the backward pass sums gradients likewise."""
    return _AllReduceSum.apply(x) if dist.is_initialized() else x


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradient)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Averages over all ranks, without gradient."""
    return all_reduce_sum(x.detach()) / world_size()


def all_reduce_max(*values: int) -> list[int]:
    """Returns the maximum over all ranks of each value."""
    if not dist.is_initialized():
        return list(values)
    agreed = torch.tensor(values)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def gather_rows_to_main(rows: Tensor | None, sizes: list[int]) -> Tensor | None:
    """Returns the rows [n, D] of all ranks on the main process, in order, without gradient and on
    the CPU; None on the others. ``sizes`` are the numbers of rows; a rank without any may give
    None. (Rows are padded to equal size for the collective and unpadded on the main process.)"""
    if not dist.is_initialized():
        return rows
    (columns,) = all_reduce_max(0 if rows is None else rows.shape[1])
    sent = torch.zeros(max(sizes), columns)
    if rows is not None:
        sent[: len(rows)] = rows
    parts = [torch.empty_like(sent) for _ in sizes] if is_main() else None
    dist.gather(sent, parts, group=_for_work)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]) if parts else None


def gather_to_main(values: list[T]) -> list[T]:
    """Returns the values of all ranks on the main process, in order; the others get no meaningful
    result."""
    if not dist.is_initialized():
        return values
    found: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(values, found, group=_for_work)
    return [value for part in found or () for value in part]


def barrier() -> None:
    """Waits until all ranks are here."""
    if dist.is_initialized():
        dist.barrier(group=_for_work)
