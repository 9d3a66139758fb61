"""The memory that a recipe needs on a GPU, computed: beside what autograd keeps in fact, and beside
peaks of torch's operators run on shapes alone; and what is said where it does not fit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pretrain import gpu_memory, loop
from pretrain.recipes import by_method, moco, pcl, simclr, spcl, supervised, untrained
from protobench import doctor
from protobench.checkpoints.resnet import build, named
from protobench.runtime import devices
from protobench.runtime.errors import UserError


def in_bf16(recipe):
    return replace(recipe, train=replace(recipe.train, precision="bf16"))


@pytest.mark.parametrize(
    ("recipe", "peaks"),
    [
        (moco.V2, (21.5, 11.5, 3.5, 2.2)),
        (pcl.V2, (21.6, 11.6, 3.6, 2.2)),
        (simclr.PAPER, (41.9, 21.8, 5.5, 3.0)),
        (spcl.IMAGENET, (167, 86, 21.2, 11.2)),
        (supervised.PAPER, (20.9, 10.9, 2.9, 1.7)),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_peaks_are_those_of_the_operators_run_on_shapes(recipe, peaks):
    """GiB in fp32 and bf16 on one GPU, and on each of eight."""
    computed = [
        gpu_memory.peak_gib(one, gpus) for gpus in (1, 8) for one in (recipe, in_bf16(recipe))
    ]
    assert computed == [pytest.approx(peak, rel=0.1) for peak in peaks]
    assert computed[:2] == [pytest.approx(peak, rel=0.03) for peak in peaks[:2]]


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnet50", 224), ("resnet18", 224), ("resnet18-cifar", 32), ("resnet10-mini", 32)],
)
def test_maps_and_weights_are_those_that_autograd_keeps(arch, size):
    """Two batches that differ by four images: what the larger one keeps more, in bytes."""
    network, kept = build(arch).to("meta").train(), []
    for images in (2, 6):
        storages = {}

        def pack(tensor, storages=storages):
            storage = tensor.untyped_storage()
            if not isinstance(tensor, nn.Parameter):
                storages[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(torch.zeros(images, 3, size, size, device="meta")).sum()
        kept.append(sum(storages.values()))
        del loss
    layers = list(gpu_memory.convolutions(named(arch), size))
    recipe = replace(
        supervised.PAPER, arch=arch, augment=replace(supervised.PAPER.augment, size=size)
    )
    few, many = (
        gpu_memory.peak_gib(replace(recipe, train=replace(recipe.train, batch_size=images)))
        for images in (2, 6)
    )
    assert (many - few) * 2**30 == pytest.approx(kept[1] - kept[0], rel=0.03)
    weights = sum(layer.weights + 2 * layer.channels for layer in layers)
    assert weights == sum(p.numel() for p in network.parameters())


def test_a_resnet_50_has_the_known_operations():
    """4.09 billion multiplications and additions with its classifier of 2 million, at 224 pixels
    (torchvision's table: 4.09 GFLOPS)."""
    flops = sum(layer.flops for layer in gpu_memory.convolutions(named("resnet50"), 224))
    assert flops / 2 + 2.048e6 == pytest.approx(4.09e9, rel=0.002)


def test_the_number_of_gpus_is_the_smallest_that_the_batch_splits_over():
    """SPCL's 164 GiB: on two GPUs of 79 GiB 82, on four 42. MoCo's eight groups of BatchNorm do
    not split over three."""
    assert gpu_memory.gpus_needed(spcl.IMAGENET, 79.1) == 4
    assert gpu_memory.gpus_needed(in_bf16(spcl.IMAGENET), 79.1) == 2
    assert gpu_memory.gpus_needed(moco.V2, 79.1) == 1
    assert 2 < gpu_memory.peak_gib(moco.V2, 3) + gpu_memory.RESERVED_GIB < 9.5
    assert gpu_memory.gpus_needed(moco.V2, 9.5) == 4
    assert gpu_memory.gpus_needed(spcl.IMAGENET, 1.0) is None
    assert gpu_memory.peak_gib(untrained.PAPER) == 0


def test_every_recipe_has_a_peak_that_falls_with_more_gpus_and_with_bf16():
    for recipe in (one for recipes in by_method().values() for one in recipes.values()):
        if recipe.train.epochs:
            whole = gpu_memory.peak_gib(recipe)
            assert 0 < gpu_memory.peak_gib(recipe, 2) < whole + 0.2, recipe
            assert gpu_memory.peak_gib(in_bf16(recipe)) < whole + 0.1, recipe


def test_what_does_not_fit_is_refused_with_what_would(capsys):
    with pytest.raises(UserError) as error:
        gpu_memory.check(spcl.IMAGENET, 1, 79.1)
    assert "a batch of 1024 in fp32 needs 164" in error.value.what
    assert "(computed), and the GPU has 79.1" in error.value.what
    assert "use 4 GPUs (torchrun --nproc_per_node 4)" in error.value.hint
    assert "--precision bf16 (off protocol) takes 42.5 GiB on each of 2 GPUs" in error.value.hint
    gpu_memory.check(spcl.IMAGENET, 4, 79.1)
    assert capsys.readouterr().err == ""
    gpu_memory.check(moco.V2, 1, 22.0)
    assert "it may run out of memory; use 2 GPUs" in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        gpu_memory.check(in_bf16(spcl.IMAGENET), 1, 0.5)
    assert (
        error.value.hint == "take GPUs with more memory; a smaller --batch-size is another recipe"
    )


def test_a_run_is_refused_before_its_first_step(train_images, tmp_path, monkeypatch):
    """Before the method is built, too, which no machine without a GPU could move to one."""
    asked = []
    monkeypatch.setattr(devices, "memory_gib", lambda device: asked.append(device) or 0.01)
    monkeypatch.setattr(loop, "build", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match="supervised: a batch of 128 in fp32 needs"):
        loop.pretrain(supervised.MINI, train_images, tmp_path, seed=1, device="cuda:1")
    assert asked == ["cuda:1"]


def test_doctor_names_the_recipes_that_do_not_fit_on_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "memory_gib", {"cuda:0": 191.0, "cuda:1": 79.1}.get)
    (finding,) = doctor.gpu_memory()
    assert finding.sign == "warning"
    assert "2 GPUs of 79.1 GiB at least: spcl imagenet needs 164.3 GiB on one" in finding.found
    assert finding.fix.startswith("use 4 GPUs")
    monkeypatch.setattr(devices, "memory_gib", lambda device: 191.0)
    assert [finding.sign for finding in doctor.gpu_memory()] == ["ok"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [finding.sign for finding in doctor.gpu_memory()] == ["info"]
