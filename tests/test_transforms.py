import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from protobench.data.loading import normaliser
from protobench.data.transforms import EvalInput


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 5))
def test_pixels_equal_torchvisions_resize_and_centre_crop(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = v2.Compose([v2.Resize(36), v2.CenterCrop(32)])(image)
    np.testing.assert_array_equal(EvalInput(resize=36, crop=32).pixels(image), np.asarray(theirs))


def test_warp_keeps_the_whole_image():
    image = Image.new("RGB", (100, 50))
    image.paste((255, 0, 0), (0, 0, 10, 50))
    warped = EvalInput(resize=36, crop=32, warp=True).pixels(image)
    assert warped.shape == (32, 32, 3)
    assert warped[:, 0, 0].min() > 200, "a centre crop would have lost the left border"


def test_a_batch_is_normalised_by_the_formula_and_itself_left_alone():
    pixels = torch.arange(2 * 5 * 4 * 3, dtype=torch.uint8).reshape(2, 5, 4, 3).permute(0, 3, 1, 2)
    before = pixels.clone()
    input_ = EvalInput(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, std = (torch.tensor(of).view(3, 1, 1) * 255 for of in (input_.mean, input_.std))
    found = normaliser(input_, "cpu")(pixels)
    assert torch.equal(found, (before.float() - mean) / std)
    assert torch.equal(pixels, before)
    assert found.is_contiguous(memory_format=torch.channels_last)
