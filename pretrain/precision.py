"""bf16 training: networks compute in bf16, weights and equations stay in fp32."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from protobench.runtime.precision import Precision

P = ParamSpec("P")
T = TypeVar("T")


def autocast(precision: Precision, device: str | torch.device) -> torch.autocast:
    """The context manager of a forward pass."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def in_fp32(equation: Callable[P, T]) -> Callable[P, T]:
    """Makes a function of tensors convert bf16 arguments to fp32 and compute in fp32, even under
    autocast. Logits are cosines divided by temperatures of 0.1, and bf16 has less than three
    significant digits."""

    @functools.wraps(equation)
    def exact(*args: P.args, **how: P.kwargs) -> T:
        given: Any = [
            arg.float() if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 else arg
            for arg in args
        ]
        with torch.autocast(given[0].device.type, enabled=False):
            return equation(*given, **how)

    return exact
