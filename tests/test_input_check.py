"""A normalisation that contradicts the weights is refused; one that fits is not, on whatever
images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate import knn
from protobench.checkpoints import encoders, input_check
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import coco, imagenet, places, voc
from protobench.data.image_list import ImageList
from protobench.data.loading import CentreCrops, batches, normaliser
from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime.errors import UserError


def _weights(encoder_file, world, normalisation):
    """A backbone's tensors under torchvision's names, whose BatchNorm has seen the bundled images
    so normalised."""
    mean, std = NORMALISATIONS[normalisation]
    backbone = encoders.load(encoder_file).backbone.train()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            torch.nn.init.uniform_(
                module.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(0)
            )
    images = imagenet.read(world, "train")
    for pixels in batches(
        CentreCrops(images, EvalInput(36, 32)), workers=0, device="cpu", batch_size=50
    ):
        backbone(normaliser(EvalInput(mean=mean, std=std), "cpu")(pixels))
    return {name: tensor.detach().clone() for name, tensor in backbone.state_dict().items()}


@pytest.fixture(scope="module")
def trained(encoder_file, world, tmp_path_factory):
    """A checkpoint without our header: nothing in it tells how its inputs were normalised."""
    path = tmp_path_factory.mktemp("plain") / "plain.pth"
    torch.save(_weights(encoder_file, world, "imagenet"), path)
    return path


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "cifar100"])
def test_a_normalisation_that_fits_passes_on_any_images(trained, world, scene_data, name, capsys):
    for images in (
        imagenet.read(world, "val"),
        voc.read(world, "test"),
        places.read(world, "val"),
        coco.read(scene_data, "val"),
    ):
        encoder = encoders.load(trained, LoadOptions(normalisation=name, resize=36, crop=32))
        input_check.verify(encoder, images, encoder.input)
        assert 0.2 < encoder.report.input_fit.variance_ratio < 2
    assert "does not fit" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", ["0-1", "0,0,0,0.0039,0.0039,0.0039", "0.5,0.5,0.5,0.01,0.01,0.01"]
)
def test_one_that_contradicts_the_weights_is_refused_where_it_was_assumed(
    trained, world, given, capsys
):
    images = imagenet.read(world, "val")
    encoder = encoders.load(trained, LoadOptions(normalisation=given, resize=36, crop=32))
    input_check.verify(encoder, images, encoder.input)
    assert "does not fit the weights" in capsys.readouterr().err, (
        "given explicitly it is taken, aloud"
    )
    assert "does not fit the weights" in encoder.report.input_fit.doubt
    assumed = encoders.load(trained, LoadOptions(normalisation=given, resize=36, crop=32))
    with pytest.raises(UserError, match="does not fit the weights") as error:
        input_check.verify(replace(assumed, input_certain=False), images, assumed.input)
    assert (
        "--normalisation imagenet fits best" in error.value.hint
        or "--normalisation cifar10" in error.value.hint
    )


def test_weights_of_a_converted_simclr_are_not_scored_with_imagenet_s_normalisation(
    encoder_file, world, tmp_path, command
):
    """google-research/simclr#12: trained on inputs in 0 to 1, saved under plain names."""
    torch.save(_weights(encoder_file, world, "0-1"), tmp_path / "simclr.pth")
    encoder = encoders.load(
        tmp_path / "simclr.pth", LoadOptions(normalisation="imagenet", resize=36, crop=32)
    )
    with pytest.raises(UserError, match=r"\d\d times the variance") as error:
        input_check.verify(
            replace(encoder, input_certain=False), imagenet.read(world, "val"), encoder.input
        )
    assert "--normalisation 0-1 fits best" in error.value.hint
    words = [
        "--ckpt",
        tmp_path / "simclr.pth",
        "--data",
        world,
        "--feature",
        "pooled",
        "--k",
        5,
        "--crop",
        32,
        "--resize",
        36,
        "--workers",
        0,
        "--results",
        tmp_path / "results",
    ]
    code, _, err = command(knn.EVALUATION.main, *words, "--normalisation", "0-1")
    assert (code, "does not fit" in err) == (0, False)


def test_what_cannot_be_checked_is_asked_for_or_left_alone(trained, encoder_file, world, tmp_path):
    images = imagenet.read(world, "val")
    untrained = encoders.load(encoder_file)
    input_check.verify(untrained, images, untrained.input)
    assert untrained.report.input_fit is None
    state = torch.load(trained)
    state["bn1.running_mean"].zero_()
    state["bn1.running_var"].fill_(1.0)
    torch.save(state, tmp_path / "fused.pth")
    with pytest.raises(
        UserError, match=r"BatchNorm has no statistics|does not say how the inputs"
    ) as error:
        encoders.load(tmp_path / "fused.pth")
    assert "--normalisation" in error.value.hint
    assert encoders.load(
        tmp_path / "fused.pth", LoadOptions(normalisation="imagenet")
    ).input_certain


def test_images_without_contrast_raise_a_doubt_and_no_refusal(trained, capsys):
    grey = np.full((8, 40, 40, 3), 120, np.uint8)
    images = ImageList("grey", None, ("x",) * 8, np.zeros(8, np.int64), ("c",), pixels=grey)
    encoder = encoders.load(trained, LoadOptions(normalisation="imagenet", resize=36, crop=32))
    input_check.verify(replace(encoder, input_certain=False), images, encoder.input)
    assert "does not fit" in capsys.readouterr().err
