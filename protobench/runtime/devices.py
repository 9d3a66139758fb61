"""The device that a script runs on."""

import torch

from protobench.runtime.errors import UserError


def device_of(device: str) -> str:
    """Resolves "auto" to cuda if there is a GPU. Raises UserError for an absent or unknown
    device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"unknown device {device!r}", hint="auto, cpu, cuda or cuda:1")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "no GPU that torch can use",
            hint="--device cpu, or install a torch for this machine's driver",
        )
    if device.startswith("cuda:") and not (
        device[5:].isdigit() and int(device[5:]) < torch.cuda.device_count()
    ):
        raise UserError(
            f"no GPU {device!r}: this machine has {torch.cuda.device_count()}, from cuda:0"
        )
    return device


def gpu_name(device: str) -> str | None:
    """Returns the name of a GPU; None for the CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def memory_gib(device: str) -> float:
    """Returns the GiB of memory of a GPU, used or not."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    return total / 2**30
