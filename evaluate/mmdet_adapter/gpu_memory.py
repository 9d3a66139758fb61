"""How much GPU memory Mask R-CNN C4 needs at least in a training step, computed."""

from protobench.runtime.errors import UserError

LEAST_GIB_AN_IMAGE = {"fp32": 89 / 16, "tf32": 89 / 16, "bf16": 59 / 16}
"""By precision: a sixteenth of the peaks that torch's operators gave when they were run on the
shapes of COCO's 16 images of up to 1333 x 800, with 512 regions each (FakeTensorMode; no GPU has
run it). Lower bounds: workspaces and fragments come on top."""


def least_gib(batch_size: int, gpus: int, precision: str) -> float:
    """The GiB that a step needs at least on each of ``gpus``, which share the batch."""
    return -(-batch_size // gpus) * LEAST_GIB_AN_IMAGE[precision]


def check(batch_size: int, gpus: int, precision: str, gib: float) -> None:
    """Raises UserError where a batch cannot fit on ``gpus`` GPUs of ``gib`` GiB."""
    needed = least_gib(batch_size, gpus, precision)
    if needed <= gib:
        return
    numbers = range(gpus + 1, batch_size + 1)
    enough = next((n for n in numbers if least_gib(batch_size, n, precision) <= gib), None)
    ways = [f"use {enough} GPUs (torchrun --nproc_per_node {enough})"] if enough else []
    if precision != "bf16" and least_gib(batch_size, gpus, "bf16") <= gib:
        ways.append("--precision bf16 needs less; the record notes it")
    share = f"{batch_size} images in {precision}{f' on {gpus} GPUs' if gpus > 1 else ''}"
    raise UserError(
        f"Mask R-CNN: a batch of {share} needs at least {needed:.0f} GiB a GPU (computed), and the"
        f" GPU has {gib:.1f}",
        hint="; ".join(ways) or "take a GPU with more memory",
    )
