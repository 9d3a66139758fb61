"""A GPU that is a CPU: tensors that compute as always, and claim to be on cuda:0.

``device()`` is entered around any program, which then runs as ``--device cuda`` does and must give
the CPU's numbers. As CUDA does, it refuses what mixes two devices, draws from the other's
generator, or reads a GPU's tensor from NumPy; it notes where the host would wait, and raises there
in ``torch.cuda.set_sync_debug_mode("error")``.

It sees what Python calls: not what happens inside torch's own functions, backward passes included
(for those see faked_device.py), and neither kernels nor time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pretended
import torch
from pretended import CUDA, on_gpu
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

ASKING = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "is_nonzero", "equal"),
    *(
        "nonzero",
        "argwhere",
        "masked_select",
        "bincount",
        "unique",
        "unique_consecutive",
        "allclose",
    ),
}
"""Functions for whose result, or its size, the host waits."""
ACROSS = {"__getitem__", "__setitem__", "copy_", "_foreach_copy_", "to", "type_as", "new_tensor"}
"""Functions that may have tensors on both devices."""


class Claimed(Tensor):
    """A tensor of the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # the mode below sees every call

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)


class Device(TorchFunctionMode):
    """The GPU while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """where the host waited: a line of code and the function that it calls"""
        self.sync_debug_mode: int | str = "default"
        self.pinned: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        given = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
        claimed = any(isinstance(x, Claimed) for x in given)
        if name == "__get__":
            attribute = resolve_name(func)
            if claimed and attribute in ANSWERS:
                return ANSWERS[attribute]
        elif name in ("to", "cuda", "cpu"):
            return self._moved(name, *args, **kwargs)
        elif name in ("numpy", "__array__") and claimed:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu()")
        made = claimed
        if "device" in kwargs:
            made = on_gpu(kwargs["device"])
            kwargs["device"] = "cpu"
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        if "generator" in kwargs:
            pretended.check_generator(kwargs["generator"], made)
        self._check(name, claimed, given, args)
        if (claimed and self._asks(name, args)) or (made and name in ("tensor", "new_tensor")):
            self._wait(name)
        out = func(*args, **kwargs)
        return _claim(out, {id(x) for x in given}) if made else out

    def _check(self, name: str, claimed: bool, given: list[Tensor], args: Any) -> None:
        """torch's error where a call mixes devices; numbers on the CPU may go anywhere."""
        if name == "__getitem__" and not isinstance(args[0], Claimed):
            across = False
        else:
            across = name in ACROSS
        if claimed and not across and any(not isinstance(x, Claimed) and x.ndim for x in given):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices,"
                f" cuda:0 and cpu! (in {name})"
            )

    def _asks(self, name: str, args: Any) -> bool:
        """Whether the host waits in a call with a tensor of the GPU."""
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            mask = any(isinstance(x, Tensor) and x.dtype == torch.bool and x.ndim for x in index)
            host = any(
                isinstance(x, list | np.ndarray) or (isinstance(x, Tensor) and type(x) is Tensor)
                for x in index
            )
            return host or (mask and (name == "__getitem__" or isinstance(args[2], Tensor)))
        if name == "copy_":
            return self._blocks(args[1], args[0], *args[2:])
        return name in ASKING

    def _blocks(self, source: Tensor, target: Any, non_blocking: bool = False) -> bool:
        """Whether the host waits for a copy: always, but for one from pinned memory that it need
        not wait for."""
        if isinstance(source, Claimed) == isinstance(target, Claimed):
            return False
        return isinstance(source, Claimed) or not (non_blocking and self._is_pinned(source))

    def _wait(self, name: str) -> None:
        self.waits.append(f"{pretended.caller()} {name}")
        if self.sync_debug_mode in ("error", 2):
            raise RuntimeError(f"called a synchronizing CUDA operation: {name}")

    def _moved(self, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``tensor.to(…)``, which copies where the devices differ."""
        if args and isinstance(args[0], Tensor):
            args = ("cuda" if isinstance(args[0], Claimed) else "cpu", args[0].dtype, *args[1:])
        if name != "to":
            args = (name, *args)
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        was = isinstance(tensor, Claimed)
        gpu = was if device is None else on_gpu(device)
        out = tensor.to(
            dtype=dtype or tensor.dtype,
            memory_format=layout or torch.preserve_format,
            copy=copy or gpu != was,
        )
        if gpu != was:
            if was or not (non_blocking and self._is_pinned(tensor)):
                self._wait(name)
            out.__class__ = Claimed if gpu else Tensor
        elif gpu:
            out.__class__ = Claimed
        return out

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def pin(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Claimed):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only CPU memory can be pinned")
        copy = tensor.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy  # kept: no other takes its place
        return copy

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.sync_debug_mode = mode


ANSWERS = {
    "torch.Tensor.device.__get__": CUDA,
    "torch.Tensor.is_cuda.__get__": True,
    "torch.Tensor.is_cpu.__get__": False,
}


def _claim(out: Any, given: set[int]) -> Any:
    """Makes new tensors the GPU's."""
    for tensor in tree_leaves(out):
        if type(tensor) is Tensor and id(tensor) not in given:
            tensor.__class__ = Claimed
    return out


@contextlib.contextmanager
def device() -> Iterator[Device]:
    """While this lasts, there is a GPU that is the CPU."""
    gpu, init = Device(), torch.autocast.__init__

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    replaced = (
        (torch.autocast, "__init__", autocast),
        (torch.cuda, "set_sync_debug_mode", gpu.set_sync_debug_mode),
        (Tensor, "pin_memory", lambda tensor, device=None: gpu.pin(tensor)),  # in any thread
    )
    with pretended.gpu(*replaced), gpu:
        yield gpu
