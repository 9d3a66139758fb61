"""How much GPU memory a detector that trains whole needs at least in a training step, computed."""

LEAST_GIB_AN_IMAGE = {"fp32": 5.65, "tf32": 5.65, "bf16": 4.1}
"""By precision, of Mask R-CNN C4 and of Faster R-CNN C4, which differ by half a percent: what an
image of 1067 x 800 pixels, padded to 1088, adds to the peak with its 512 regions, when torch's
operators are run on shapes alone (FakeTensorMode; a test does it again, no GPU has done it). Wider
images take more; weights, workspaces and fragments come on top."""


def least_gib(batch_size: int, gpus: int, precision: str) -> float:
    """The GiB that a step needs at least on each of ``gpus``, which share the batch."""
    return -(-batch_size // gpus) * LEAST_GIB_AN_IMAGE[precision]
