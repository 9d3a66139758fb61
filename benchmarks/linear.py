"""Times a linear probe with four learning rates against one with a single rate (ResNet-50, 224
pixels); one forward pass of the frozen network serves all of them."""

from collections.abc import Iterator

import torch
from alternate import Figure, alternate, middle, show

from evaluate.linear import Heads
from protobench.checkpoints import resnet
from protobench.checkpoints.encoders import Encoder
from protobench.data.transforms import EvalInput
from protobench.features import Forward

BATCH, CLASSES = 16, 1000


def rows() -> Iterator[Figure]:
    """Yields the row; the pass through the frozen network is included."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(resnet.build("resnet50").eval(), EvalInput(), "", {"file": ""})
    compute = Forward(encoder, encoder.input, "average", "cpu")
    pixels, labels = (
        torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8),
        torch.randint(0, CLASSES, (BATCH,)),
    )
    params = {"seed": 0, "batch_norm": False, "sgd_momentum": 0.9, "weight_decay": 0.0}
    one, four = (
        Heads(rates, 2048, CLASSES, params, "cpu") for rates in ((10.0,), (1.0, 5.0, 10.0, 30.0))
    )
    for heads in (one, four):
        heads.step(compute(pixels), labels, 1.0)
    same = float((one.weight_LCD[0] - four.weight_LCD[2]).abs().max())
    assert same < 1e-6, "the heads disturb one another"
    times = alternate(
        lambda: one.step(compute(pixels), labels, 1.0),
        lambda: four.step(compute(pixels), labels, 1.0),
        4,
    )
    yield Figure(
        "a step of a linear probe with 4 learning rates, relative to 1 rate",
        middle((b / a for a, b in zip(*times, strict=True)), "× its time"),
    )


if __name__ == "__main__":
    show(rows())
