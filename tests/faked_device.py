"""A GPU that does not compute: torch's fake tensors claim cuda:0 at the papers' sizes, and what
would reach the device is counted.

``device()`` is entered around code that builds networks and takes steps. A tensor left on the CPU
raises torch's own error. So does what needs a result on the host: ``.item()``, ``bool()``, an index
by a mask. ``Counts`` counts the rest: kernels, FLOPs, memory, and where the host would wait for a
copy.

It sees no kernels: neither time nor rounding, TF32, cuDNN's choice (nor its workspace), streams,
NCCL, or fragmentation. Layouts in bf16 it has wrong, as they depend on cuDNN's version.

Together with claimed_device.py it is longer than such a stand-in should be. Both stay, for they see
different faults: this one sizes, waits and memory, the other one numbers and whole programs."""

import contextlib
import heapq
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretended
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from protobench.runtime import distributed

try:
    from torch._subclasses import fake_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore
except ImportError as missing:  # private parts of torch
    MISSING = f"this torch differs: {missing}"
else:

    class _Mode(fake_tensor.FakeTensorMode):
        avoid_device_init = True  # torch would look for a GPU, and have been told that there is one

    MISSING = "" if torch.version.cuda else "a torch without CUDA dispatches otherwise"


FREE = {"detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "_unsafe_view"}
"""Operators that start no kernel, beside those that return views."""


def _per_channel(x: Tensor, number: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(number))


SHAPES = {
    "batch_norm_stats": lambda x, *_: _per_channel(x, 2),
    "batch_norm_gather_stats_with_counts": lambda x, *_: _per_channel(x, 2),
    "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
    "batch_norm_backward_reduce": lambda gradient, *_: _per_channel(gradient, 4),
    "batch_norm_backward_elemt": lambda gradient, *_: torch.empty_like(gradient),
}
"""The results of operators whose shapes torch does not know, SyncBatchNorm's."""


@contextlib.contextmanager
def device(processes: int = 1) -> Iterator["Counts"]:
    """While this lasts, all tensors are fake and a cuda:0 is there to make them on. With several
    ``processes`` this is the first of a group, whose collectives give nothing."""
    counts = Counts()
    replaced = (
        (Tensor, "backward", _backward),
        (Tensor, "pin_memory", lambda tensor, device=None: counts.pin(tensor)),
        (Tensor, "numpy", _numpy),
        (fake_tensor, "init_gpu_context", lambda device: None),  # torch 2.11's asks a driver
        # torch's own waits for gradients in its engine
        (distributed, "data_parallel", lambda module, **_: module),
    )
    if processes > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    with pretended.gpu(*replaced), _Mode(), counts:
        try:
            yield counts
        finally:
            distributed.shutdown()


class Counts(TorchDispatchMode):
    """Counts what is called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.flops = self.bytes = self.before = self.peak = 0
        self.waits: list[str] = []
        """the line of code of each copy that the host waits for"""
        self.wrong_layout: list[str] = []
        """that of each convolution whose input is not in channels last"""
        self.storages: dict[int, Any] = {}
        self.pinned: dict[int, Tensor] = {}

    def restart(self) -> None:
        """Starts over, with what memory is held now."""
        self.launches = self.flops = 0
        self.before = self.peak = self.bytes
        self.waits, self.wrong_layout = [], []

    def taken(self) -> SimpleNamespace:
        """What has been counted since then."""
        return SimpleNamespace(
            launches=self.launches,
            flops=self.flops,
            waits=self.waits,
            wrong_layout=self.wrong_layout,
            peak=self.peak,
            grown=self.bytes - self.before,
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # in inference mode composed operators come whole
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        given = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        out = SHAPES[name](*args) if name in SHAPES else func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(x.is_cuda for x in given + made):
            self._count(func, name, args, kwargs, made, out)
        return out

    def _count(
        self, func: Any, name: str, args: Any, kwargs: Any, made: list[Tensor], out: Any
    ) -> None:
        returns = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        if not is_view and name not in FREE and func.namespace != "prim":
            self.launches += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        if self._waits(name, args, kwargs, made):
            self.waits.append(pretended.caller())
        last = torch.channels_last
        if name == "convolution" and not args[0].is_contiguous(memory_format=last):
            self.wrong_layout.append(pretended.caller())
        for tensor in made:
            if tensor.is_cuda:
                self._hold(tensor.untyped_storage())

    def _hold(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self._release(key, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _release(self, key: int, size: int) -> None:
        del self.storages[key]
        self.bytes -= size

    def _waits(self, name: str, args: Any, kwargs: Any, made: list[Tensor]) -> bool:
        """Whether the host waits: in a blocking copy, one from memory that is not pinned, or for an
        index that is on the host."""
        if name == "_to_copy":
            source, target = args[0], made[0]
        elif name == "copy_":
            target, source = args[:2]
        elif name in ("index", "index_put", "index_put_"):
            on_gpu = {x.is_cuda for x in args[1] if x is not None}
            if True in on_gpu and not args[0].is_cuda:  # torch's fake tensors let it pass
                raise RuntimeError("indices should be on the same device as the indexed tensor")
            return False in on_gpu and args[0].is_cuda
        else:
            return False
        if source.is_cuda == target.is_cuda:
            return False
        host = target if source.is_cuda else source
        blocking = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        return blocking or host.untyped_storage()._cdata not in self.pinned

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in memory that counts as pinned."""
        copy = tensor.clone()
        self.pinned[copy.untyped_storage()._cdata] = copy  # kept, so that no other has its number
        return copy


# In place of what torch cannot do without a GPU ---------------------------------------------------


def _numpy(tensor: Tensor, *, force: bool = False) -> np.ndarray:
    if tensor.is_cuda:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: a GPU tensor")
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


@torch.no_grad()
def _backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """``loss.backward()``, whose engine asks CUDA for streams: the same walk over the graph in
    Python, newest node first. What a node saved is free once it has been visited."""
    start = loss.grad_fn
    loss.detach_()  # so that this walk alone holds the graph
    waiting: list[tuple[int, int]] = []
    nodes: dict[int, tuple[Any, Any]] = {}
    gradients: dict[int, list[Any]] = {}

    def give(node: Any, place: int, gradient: Tensor, giver: Any = None) -> None:
        key = id(node)
        if key not in nodes:
            # in torch 2.11 what a function in Python saved is gone with the node before it
            in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
            nodes[key] = node, giver if in_python else None
            gradients[key] = [None] * len(node._input_metadata)
            # a leaf's turn comes at once, as torch's engine has it
            late = 0 if hasattr(node, "variable") else 1
            heapq.heappush(waiting, (late, -node._sequence_nr(), key))
        expected, before = node._input_metadata[place], gradients[key][place]
        if gradient.shape != expected.shape:  # of what was broadcast
            gradient = gradient.sum_to_size(expected.shape)
        gradient = gradient.to(expected.dtype)
        gradients[key][place] = gradient if before is None else before + gradient

    give(start, 0, torch.ones_like(loss))
    del start
    while waiting:
        *_, key = heapq.heappop(waiting)
        (node, giver), given = nodes.pop(key), gradients.pop(key)
        if hasattr(node, "variable"):
            leaf = node.variable
            leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            continue
        found = node(*given) if callable(node) else node.apply(*given)
        del given
        found = found if isinstance(found, tuple) else (found,)
        for (follower, place), gradient in zip(node.next_functions, found, strict=False):
            if follower is not None and gradient is not None:
                give(follower, place, gradient, node)
        del node, giver, found
