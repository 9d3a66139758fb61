"""The processes of one torchrun, each with a rank; without torchrun there is one, of rank 0, and
nothing here does anything.

What all processes compute alike they need not exchange: the global batch's order, its views and all
draws are functions of keys. What is exchanged goes through torch.distributed: tensors of a GPU by
NCCL, everything else by gloo."""

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


# Who is there -------------------------------------------------------------------------------------


def init(device: str) -> str:
    """Meets the other processes, if there are any, and returns this one's device: its own GPU where
    ``device`` is cuda.

    All but the first print nothing from then on.
    """
    if launched_world_size() > 1 and not dist.is_initialized():
        on_gpu = device.startswith("cuda")
        if ":" in device:
            raise UserError(
                f"--device {device} for {launched_world_size()} processes, each of which takes a"
                " GPU of its own",
                hint="--device cuda",
            )
        if on_gpu:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"process {local + 1} of this machine, which has {torch.cuda.device_count()}"
                    " GPUs",
                    hint="lower torchrun's --nproc_per_node",
                )
            torch.cuda.set_device(local)
        # the others wait while the first clusters millions of images
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(days=1)
        )
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    if dist.is_initialized() and device == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def shutdown() -> None:
    """Parts from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched_world_size() -> int:
    """How many processes torchrun started, whether or not they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


# Who does what ------------------------------------------------------------------------------------


def shard(n: int, of_rank: int | None = None) -> range:
    """This process's part of 0 … n - 1, or that of ``of_rank``; the parts of all are contiguous, in
    order of rank, and differ by one at most."""
    of_rank = rank() if of_rank is None else of_rank
    return range(n * of_rank // world_size(), n * (of_rank + 1) // world_size())


def shard_of(x: T) -> T:
    """This process's part of an array, a tensor or a list, along its first dimension."""
    part = shard(len(x))  # type: ignore[arg-type]
    return x[part.start : part.stop]  # type: ignore[index]


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The others wait until the first process is through: it fills the caches that they read."""
    if not is_main():
        dist.barrier()
    yield
    if dist.is_initialized() and is_main():
        dist.barrier()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if not dist.is_initialized():
        return make()
    made: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(made, device=torch.device("cpu"))
    return made[0]


# What is exchanged --------------------------------------------------------------------------------


def all_gather(x: Tensor) -> list[Tensor]:
    """Every process's tensor, in order of rank; all have one shape."""
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
    """The module, for a forward pass in whose backward pass gradients become the mean over all
    processes. Parameters without gradient are allowed where the graph is static, or, ``unused``, in
    any step. Buffers are left alone."""
    if not dist.is_initialized():
        return module
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # of a name that older versions alone know
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            static_graph=static_graph,
            find_unused_parameters=unused,
        )


def concat_all_gather(x: Tensor, dim: int = 0) -> Tensor:
    """All processes' parts as one tensor; without gradient."""
    return x.detach() if not dist.is_initialized() else torch.cat(all_gather(x.detach()), dim)


def concat_all_gather_with_grad(x: Tensor, dim: int = 0) -> Tensor:
    """The same, and every process's loss reaches every part: in the backward pass the gradients of
    all are added up.

    A loss of the whole batch, computed by each process, then has the right gradient where these are
    averaged, as DistributedDataParallel does. (Putting one's own part into ``concat_all_gather`` is
    the common mistake: the loss is right, and the gradient smaller by the number of processes.)"""
    return _Whole.apply(x, dim) if dist.is_initialized() else x


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return concat_all_gather(x, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = _Sum.forward(ctx, gradient)
        part = shard(total.shape[ctx.dim])
        return total.narrow(ctx.dim, part.start, len(part)), None


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all processes, with gradient: its own gradient is summed likewise."""
    return _Sum.apply(x) if dist.is_initialized() else x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over all processes; without gradient."""
    return all_reduce_sum(x.detach()) / world_size()


def all_reduce_max(*values: int) -> list[int]:
    """The largest that any process gives, of each value."""
    if not dist.is_initialized():
        return list(values)
    agreed = torch.tensor(values)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def gather_rows_to_main(rows: Tensor | None, sizes: list[int]) -> Tensor | None:
    """The rows [n, D] of all processes in the first one, in order of rank, without gradient and on
    the CPU; None in the others. ``sizes``: how many each has; one without any may give None. They
    travel filled up to equal sizes, what fills is dropped."""
    if not dist.is_initialized():
        return rows
    (columns,) = all_reduce_max(0 if rows is None else rows.shape[1])
    sent = torch.zeros(max(sizes), columns)
    if rows is not None:
        sent[: len(rows)] = rows
    parts = [torch.empty_like(sent) for _ in sizes] if is_main() else None
    dist.gather(sent, parts)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]) if parts else None


def gather_to_main(values: list[T]) -> list[T]:
    """The values of all processes in the first one, in order of rank; what the others get is of no
    use."""
    if not dist.is_initialized():
        return values
    found: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(values, found)
    return [value for part in found or () for value in part]


def barrier() -> None:
    """Until all are here."""
    if dist.is_initialized():
        dist.barrier()
