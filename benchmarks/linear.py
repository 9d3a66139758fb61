"""A linear probe with one learning rate beside one with four, ResNet-50 at 224 pixels: the same forward pass feeds all."""

import torch
from alternate import alternate, heading, report

from evaluate.linear import Heads
from protobench import backbones
from protobench.checkpoints import Encoder
from protobench.features import forward
from protobench.transforms import EvalInput

BATCH, CLASSES = 32, 1000


def main() -> None:
    torch.manual_seed(0)
    encoder = Encoder(backbones.build("resnet50").eval(), EvalInput(), "", {"file": ""})
    compute = forward(encoder, encoder.input, "average", "cpu")
    pixels, labels = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8), torch.randint(0, CLASSES, (BATCH,))
    params = {"seed": 0, "batch_norm": False, "sgd_momentum": 0.9, "weight_decay": 0.0}
    one, four = (Heads(rates, 2048, CLASSES, params, "cpu") for rates in ((10.0,), (1.0, 5.0, 10.0, 30.0)))
    heading()
    times = alternate(lambda: four.step(compute(pixels), labels, 1.0), lambda: one.step(compute(pixels), labels, 1.0), 5)
    same = float((one.weight_LCD[0] - four.weight_LCD[2]).abs().max())
    report("a step with 4 learning rates, and with 1", times, f"rate 10 in both: {same:.1e}")


if __name__ == "__main__":
    main()
