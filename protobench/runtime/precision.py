"""In which precision a GPU computes.

torch lets cuDNN round the inputs of fp32 convolutions to TF32 (10 bits of mantissa instead of 23)
where the GPU can, which is so from the A100 on. The papers' V100s could not: their fp32 is IEEE's,
and so is "fp32" here. "tf32" has to be asked for. Matrix products of fp32, which are the heads',
the losses' and the neighbours', are IEEE's always.

Set by torch's ``fp32_precision`` alone: torch raises where that is mixed with ``allow_tf32``."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

from protobench.runtime.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
"""fp32: IEEE. tf32: as fp32, but convolutions on a GPU in TF32. bf16: networks by autocast."""


@contextlib.contextmanager
def arithmetic(
    precision: Precision, device: str | torch.device, *, fixed_shapes: bool = False
) -> Iterator[None]:
    """Inside, a GPU's fp32 convolutions are in TF32 if ``precision`` is tf32, else in IEEE fp32.
    With ``fixed_shapes`` cuDNN tries its algorithms once for every shape and takes the fastest.
    Does nothing on a CPU. Raises UserError for TF32 on a CPU, which has none."""
    if torch.device(device).type == "cpu":
        if precision == "tf32":
            raise UserError(
                "--precision tf32 is for GPUs: a CPU has no TF32", hint="--precision fp32"
            )
        yield
        return
    cudnn, matmul = _switches()
    switches = (cudnn.conv, cudnn.rnn, matmul)  # both of cuDNN: torch expects them to agree
    before, benchmark = [switch.fp32_precision for switch in switches], cudnn.benchmark
    convolutions = "tf32" if precision == "tf32" else "ieee"
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = convolutions
    matmul.fp32_precision = "ieee"
    cudnn.benchmark = fixed_shapes
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
        cudnn.benchmark = benchmark


def in_force(device: str | torch.device) -> dict[str, dict[str, str]]:
    """What headers and records say of a GPU's fp32, as torch's switches stand; nothing of a
    CPU's, which is IEEE's always."""
    if torch.device(device).type == "cpu":
        return {}
    cudnn, matmul = _switches()
    told = {
        "convolutions": cudnn.conv.fp32_precision,
        "matrix products": matmul.fp32_precision,
    }
    return {"fp32_precision": told}


def _switches() -> tuple[Any, Any]:
    """cuDNN's settings and those of matrix products; torch's types do not know them."""
    return torch.backends.cudnn, torch.backends.cuda.matmul
