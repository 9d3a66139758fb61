"""bf16 training: networks compute in bf16, weights and equations stay in fp32."""

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]
P = ParamSpec("P")
T = TypeVar("T")


def autocast(precision: Precision, device: str | torch.device) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def in_fp32(equation: Callable[P, T]) -> Callable[P, T]:
    """An equation that takes bf16 to fp32 and computes there, whatever is cast around it: logits
    are cosines divided by temperatures of 0.1, and bf16 has less than three digits."""

    @functools.wraps(equation)
    def exact(*args: P.args, **how: P.kwargs) -> T:
        given: Any = [
            arg.float() if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 else arg
            for arg in args
        ]
        with torch.autocast(given[0].device.type, enabled=False):
            return equation(*given, **how)

    return exact
