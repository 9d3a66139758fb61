"""ResNet-50 features: the default memory layout, as published code runs it, against ours (channels last), in fp32 and bf16."""

from dataclasses import replace

import torch
from alternate import alternate, heading, report

from protobench import backbones, features
from protobench.checkpoints import Encoder
from protobench.transforms import EvalInput

IMAGES = 32


def main() -> None:
    torch.manual_seed(0)
    backbone = backbones.build("resnet50").eval()
    encoder = Encoder(backbone, EvalInput(), "benchmark", {})
    pixels = torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (encoder.input.mean, encoder.input.std))
    theirs = backbones.build("resnet50").eval()
    theirs.load_state_dict(backbone.state_dict())

    @torch.no_grad()
    def published() -> torch.Tensor:
        return theirs((pixels.float() / 255 - mean) / std)

    heading()
    expected = published()
    for precision in ("fp32", "bf16"):
        ours = features.forward(replace(encoder, precision=precision), encoder.input, "average", "cpu")
        far = float((ours(pixels) - expected).abs().max() / expected.abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(ours(pixels), expected).min())
        times = alternate(published, lambda ours=ours: ours(pixels), 3)
        report(f"features of {IMAGES} images, {precision}", times, f"largest difference {far:.1e}, least cosine {cosine:.6f}")


if __name__ == "__main__":
    main()
