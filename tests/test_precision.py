"""Training in bf16, compiled networks, and steps that never wait for the device."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_methods
from torch import nn

from pretrain import loop, moco, optim, pcl, simclr, similarity, spcl
from pretrain.augment import loader
from pretrain.precision import in_fp32
from pretrain.recipes import common
from pretrain.recipes import moco as moco_recipes
from pretrain.recipes import pcl as pcl_recipes
from protobench.checkpoints import encoders
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic

METHODS = tiny_methods() | {
    "moco": tiny(moco_recipes.MINI, bn_groups=2),
    "pcl": tiny(pcl_recipes.MINI, num_prototypes=(60, 70), num_negatives=10, warmup=0),
}
WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::equal",
    "aten::bincount",
}
"""What the host reads a result of, or needs one's size of: on a GPU it waits for it."""


def _set_up(name, optimizer="sgd"):
    """A method after its start of an epoch, its optimiser, and a batch."""
    recipe = replace(METHODS[name], train=replace(METHODS[name].train, optimizer=optimizer))
    labels = torch.arange(200) % 20
    torch.manual_seed(0)
    method = __import__(f"pretrain.{name}", fromlist=["build"]).build(recipe, labels, 20, 0)
    features = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    method.start_epoch(0, lambda module, **how: features)
    batches = method.draw_batches(0, 1)
    index = torch.arange(32) if batches is None else torch.from_numpy(batches[0])
    batch = [torch.randn(32, 3, 32, 32) for _ in range(method.num_views)]
    return method.train(), optim.optimizer(recipe.train, method, method.unscheduled()), batch, index


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_device(name, optimizer):
    """By the operators that a step calls; on a GPU benchmarks/gpu.py asks CUDA itself."""
    method, optimizer, batch, index = _set_up(name, optimizer)
    loop.update(method.loss, optimizer, batch, index, "fp32")
    cpu = {"activities": [torch.profiler.ProfilerActivity.CPU], "acc_events": True}
    with torch.profiler.profile(**cpu) as profile:
        loss = loop.update(method.loss, optimizer, batch, index, "bf16")
    called = {event.key for event in profile.key_averages()}
    assert {"aten::convolution", "aten::mm"} & called, "the profiler saw nothing"
    assert not called & WAITS
    with torch.profiler.profile(**cpu) as profile:
        float(loss)
    assert {event.key for event in profile.key_averages()} & WAITS, "a wait would have been seen"


@pytest.mark.parametrize("name", METHODS)
def test_networks_compute_in_bf16_and_the_rest_in_fp32(name):
    """Weights stay fp32, and a loss in bf16 is that in fp32 but for the rounding of the
    networks."""
    losses, seen = {}, set()
    for precision in ("fp32", "bf16"):
        method, optimizer, batch, index = _set_up(name)
        for module in method.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
        losses[precision] = loop.update(method.loss, optimizer, batch, index, precision)
        assert losses[precision].dtype == torch.float32
        assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert seen == {torch.float32, torch.bfloat16}
    assert losses["fp32"] != losses["bf16"]
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.03, atol=0.03)


def _equations():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (
        nn.functional.normalize(torch.randn(16, 32, generator=generator), dim=1).bfloat16()
        for _ in range(3)
    )
    number = torch.arange(16)
    logits = 10 * torch.randn(16, 8, generator=generator).bfloat16()
    return {
        "info_nce": (moco.info_nce, a, b, c, 0.05),
        "proto_nce": (
            pcl.proto_nce,
            a,
            c,
            torch.full((16,), 0.05),
            number % 8,
            torch.arange(8, 12),
        ),
        "nt_xent": (simclr.nt_xent, a, b, 0.05),
        "contrastive_loss": (spcl.contrastive_loss, a, b, number, 0.05),
        "metric_loss": (spcl.metric_loss, logits, -logits),
        "prototype_loss": (spcl.prototype_loss, logits, number % 8),
        "symmetric_cross_entropy": (spcl.symmetric_cross_entropy, logits, number % 8, 0.1, 1.0),
        "tp_fn": (similarity.tp_fn, a, b, number % 4, number, number),
    }


@pytest.mark.parametrize("name", _equations())
def test_equations_are_computed_in_fp32(name):
    """Cosines over a small temperature: cast to bf16, logits would be off by tenths."""
    equation, *given = _equations()[name]
    with torch.autocast("cpu", torch.bfloat16):
        found = equation(*given)
    exact = equation(
        *[
            arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
            for arg in given
        ]
    )
    torch.testing.assert_close(found.double(), exact.double(), rtol=1e-5, atol=1e-6)


def test_nothing_is_made_less_exact():
    assert in_fp32(lambda x: x @ x)(torch.eye(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_clustered_in_the_precision_of_the_run(precision, train_images):
    seen = set()
    opened = loader.open_views(METHODS["pcl"], train_images, 0, "cpu", 0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    network[0].register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    recipe = replace(METHODS["pcl"], train=replace(METHODS["pcl"].train, precision=precision))
    found = loop.Training(recipe, pcl.build(recipe, torch.zeros(200), 0, 0), opened).extract(
        network
    )
    assert found.dtype == np.float32
    assert seen == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}


def _dark_and_bright():
    """64 images in two classes that any network tells apart within a few steps, however its
    processor rounds."""
    pixels = np.concatenate(
        [np.random.default_rng(0).integers(low, low + 60, (32, 32, 32, 3)) for low in (0, 180)]
    )
    return ImageList(
        "two",
        Path("two"),
        tuple(map(str, range(64))),
        np.repeat([0, 1], 32),
        ("dark", "bright"),
        pixels=pixels.astype(np.uint8),
    )


def test_a_run_in_bf16_is_another_run_and_learns(tmp_path):
    easy, recipe = _dark_and_bright(), METHODS["supervised"]
    half = replace(recipe, train=replace(recipe.train, precision="bf16", epochs=4))
    assert common.run_key(half, easy, 1) != common.run_key(
        replace(half, train=replace(half.train, precision="fp32")), easy, 1
    )
    path = loop.pretrain(half, easy, tmp_path, seed=1)
    assert encoders.load(path).report.trained["recipe"]["train"]["precision"] == "bf16"
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0] / 2, "over many seeds and instruction sets it ended below a tenth"


def test_a_method_that_clusters_takes_what_bf16_gives(train_images, tmp_path):
    recipe = METHODS["pcl"]
    loop.pretrain(
        replace(recipe, train=replace(recipe.train, precision="bf16")),
        train_images,
        tmp_path,
        seed=1,
    )


def test_networks_are_compiled_and_keep_their_names(train_images, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    names = {}
    for name in METHODS:
        method, *_ = _set_up(name)
        compiled.clear()
        loop.compile_networks(method)
        names[name] = sorted(
            child
            for child, module in method.named_children()
            if any(module is one for one in compiled)
        )
    assert names["moco"] == names["pcl"] == ["encoder_k", "encoder_q"]
    assert names["simclr"] == ["backbone", "projection"]
    assert names["spcl"] == ["backbone", "metric", "projection"]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_as_one_that_is_not(train_images, tmp_path, monkeypatch):
    """Through torch.compile's tracing, but its eager backend: what a compiler makes of it rounds
    otherwise and takes minutes."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="eager"))
    recipe = METHODS["pcl"]
    paths = [
        loop.pretrain(
            replace(recipe, train=replace(recipe.train, compile=chosen)),
            train_images,
            tmp_path / str(chosen),
            seed=1,
        )
        for chosen in (False, True)
    ]
    plain, compiled = (encoders.load(path).backbone.state_dict() for path in paths)
    assert plain.keys() == compiled.keys()
    assert all(torch.equal(plain[name], compiled[name]) for name in plain)


def test_compiling_without_a_compiler_is_a_clear_error(monkeypatch, train_images, tmp_path):
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    recipe = METHODS["moco"]
    with pytest.raises(UserError, match="--compile needs a C\\+\\+ compiler"):
        loop.pretrain(
            replace(recipe, train=replace(recipe.train, compile=True)),
            train_images,
            tmp_path,
            seed=1,
        )
