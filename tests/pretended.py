"""What the two pretended GPUs (claimed_device.py, faked_device.py) share: a torch that says that
there is one GPU, cuda:0, though this machine may have none."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # optimisers import it, and it must find torch as it is
import torch.nn.functional as F
from torch import nn

CUDA = torch.device("cuda", 0)
HOME = Path(__file__).parent.parent
OURS = {Path(__file__).with_name(f"{name}_device.py") for name in ("claimed", "faked")}
TORCH = Path(torch.__file__).parent


class Generator(torch.Generator):
    """A generator that computes on the CPU and may claim to be the GPU's."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.claimed = on_gpu(device)
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self.claimed else torch.device("cpu")


def on_gpu(device: Any) -> bool:
    """Whether a device, or what stands for one (a name, a number), is the GPU."""
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def check_generator(generator: Any, gpu: bool) -> None:
    """torch's error where a generator and what it draws are on two devices."""
    if isinstance(generator, Generator) and generator.claimed != gpu:
        wanted, found = ("cuda", "cpu") if gpu else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def caller() -> str:
    """The line that called torch, as "pretrain/moco.py:120", or of another package's file."""
    frame = sys._getframe(1)
    while (path := Path(frame.f_code.co_filename)) in OURS or path.is_relative_to(TORCH):
        assert frame.f_back
        frame = frame.f_back
    where = path.relative_to(HOME) if path.is_relative_to(HOME) else path.name
    return f"{where}:{frame.f_lineno}"


@contextlib.contextmanager
def gpu(*more: tuple[Any, str, Any]) -> Iterator[None]:
    """While this lasts torch says that there is a GPU. ``more``: (owner, name, replacement)."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "pretended GPU",
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="pretended GPU", total_memory=80 * 2**30, major=9, minor=0
        ),
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (80 * 2**30, 80 * 2**30),
        "is_bf16_supported": lambda *_: True,
        **dict.fromkeys(("max_memory_allocated", "memory_allocated"), lambda device=None: 0),
        **dict.fromkeys(
            ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_device"),
            lambda device=None: None,
        ),
    }
    replaced: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, answer) for name, answer in answers.items()),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        # a DataLoader that pins memory asks for these
        (torch.accelerator, "is_available", lambda *_: True),
        (torch.accelerator, "current_accelerator", lambda *_: CUDA),
        (torch.accelerator, "current_device_index", lambda *_: 0),
        (torch.accelerator, "set_device_index", lambda *_: None),
        (torch, "Generator", Generator),
        (nn.Module, "_apply", _apply),
        (torch.Tensor, "__deepcopy__", _deepcopy),
        (nn.Parameter, "__deepcopy__", _deepcopy),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in [*replaced, *more]:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _apply(module: nn.Module, function: Callable[..., Any], recurse: bool = True) -> nn.Module:
    """Of ``nn.Module.to``: torch's own exchanges the contents of parameters, which tensors of other
    classes refuse; here the modules get new ones."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else function(buffer)
    return module


def _deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Torch's own reads memory, or asks a class for more than these have."""
    if id(tensor) not in memo:
        copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        made = nn.Parameter(copy, tensor.requires_grad)
        memo[id(tensor)] = made if isinstance(tensor, nn.Parameter) else copy
    return memo[id(tensor)]


def mistakes(x: Any) -> dict[str, Callable[[], Any]]:
    """What must not be done in a step, with x [8, 4] on the GPU."""
    return {
        "a tensor left on the CPU": lambda: x + torch.ones(4),
        "a target left on the CPU": lambda: F.cross_entropy(x, torch.zeros(8, dtype=torch.int64)),
        "an index of the GPU on the CPU": lambda: torch.ones(8)[x[:, 0].long()],
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.sum() > 0),
        "an index by a mask": lambda: x[x > 0],
        "an index by a list": lambda: x[[0, 1]],
        "an index on the CPU": lambda: x[torch.zeros(2, dtype=torch.int64)],
        "a constant sent": lambda: torch.tensor([1.0, 2.0, 3.0, 4.0], device="cuda"),
        "memory that is not pinned": lambda: torch.ones(4).to("cuda", non_blocking=True),
        "a blocking copy": lambda: torch.ones(4).pin_memory().to("cuda"),
        "a copy to the host": lambda: x.cpu(),
        "numpy": lambda: x.numpy(),
    }
