"""Times ResNet-50 features: the default memory layout, as in published code, against ours (channels
last, BatchNorm folded into the convolutions), in fp32 and bf16."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from alternate import Ratio, alternate, ratio, show

from protobench import features
from protobench.checkpoints import resnet
from protobench.checkpoints.encoders import Encoder
from protobench.data.transforms import EvalInput

IMAGES = 16


def rows() -> Iterator[Ratio]:
    """Yields the rows for fp32, the default, and bf16."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = resnet.build("resnet50").eval()
    encoder = Encoder(backbone, EvalInput(), "benchmark", {})
    pixels = torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8)
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (encoder.input.mean, encoder.input.std)
    )
    theirs = resnet.build("resnet50").eval()
    theirs.load_state_dict(backbone.state_dict())

    @torch.no_grad()
    def published() -> torch.Tensor:
        return theirs((pixels.float() / 255 - mean) / std)

    expected = published()
    for precision in ("fp32", "bf16"):
        ours = features.Forward(
            replace(encoder, precision=precision), encoder.input, "average", "cpu"
        )
        far = float((ours(pixels) - expected).abs().max() / expected.abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(ours(pixels), expected).min())
        times = alternate(published, lambda ours=ours: ours(pixels), 3)
        yield ratio(
            f"ResNet-50 features of {IMAGES} images, ours in {precision}",
            times,
            f"{far:.0e} of the largest value, smallest cosine {cosine:.6f}",
            target=2.5,
        )


if __name__ == "__main__":
    show(rows())
