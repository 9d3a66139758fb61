"""What a GPU's fp32 is: set by the recipe or the flag for a run, restored after it, and written
into headers, records and the keys of features. Switches are torch's, which are there without a
GPU."""

import contextlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.evaluation import EvalConfig, Evaluation, Metric, Scores
from pretrain import loop
from pretrain.recipes import moco, untrained
from protobench import features, records
from protobench.checkpoints import encoders, identity
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import voc
from protobench.runtime import devices
from protobench.runtime.errors import UserError
from protobench.runtime.precision import arithmetic, in_force

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def switches():
    return CUDNN.conv.fp32_precision, MATMUL.fp32_precision, CUDNN.benchmark


@pytest.mark.parametrize(
    ("precision", "convolutions"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")]
)
def test_convolutions_are_as_asked_for_and_products_are_ieee(precision, convolutions):
    before = switches()
    with contextlib.suppress(KeyError), arithmetic(precision, "cuda:1", fixed_shapes=True):
        assert switches() == (convolutions, "ieee", True)
        assert CUDNN.rnn.fp32_precision == convolutions
        assert in_force("cuda") == {
            "fp32_precision": {"convolutions": convolutions, "matrix products": "ieee"}
        }
        with arithmetic("fp32", "cuda"):
            assert switches() == ("ieee", "ieee", False)
        assert switches() == (convolutions, "ieee", True)
        raise KeyError
    assert switches() == before


def test_a_cpu_is_left_as_it_is_and_has_no_tf32():
    before = switches()
    with arithmetic("fp32", "cpu", fixed_shapes=True):
        assert switches() == before
    assert in_force("cpu") == {}
    with pytest.raises(UserError, match="a CPU has no TF32"), arithmetic("tf32", "cpu"):
        pass


def test_the_older_switch_is_used_nowhere():
    """torch raises where it is mixed with the newer one."""
    root = Path(__file__).parent.parent
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True)
    older = ("allow_" + "tf32", "float32_matmul_" + "precision")
    texts = {name: (root / name).read_text() for name in listed.stdout.split()}
    found = {
        name
        for name, text in texts.items()
        if any(f".{word} " in text or f"{word}(" in text for word in older)
    }
    assert len(texts) > 100
    assert not found


class Stopped(Exception):  # noqa: N818 (no error)
    pass


@pytest.mark.parametrize(("precision", "convolutions"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_a_recipe_trains_in_its_precision_on_a_gpu(
    precision, convolutions, train_images, tmp_path, monkeypatch
):
    seen, before = [], switches()

    def build(*_):
        seen.append(switches())
        raise Stopped

    monkeypatch.setattr(devices, "memory_gib", lambda device: 80.0)
    monkeypatch.setattr(loop, "build", build)
    recipe = replace(moco.MINI, train=replace(moco.MINI.train, precision=precision))
    with pytest.raises(Stopped):
        loop.pretrain(recipe, train_images, tmp_path, seed=1, device="cuda")
    assert seen == [(convolutions, "ieee", True)]
    assert switches() == before


def test_a_cpu_s_encoder_says_nothing_of_it_and_a_tf32_recipe_is_refused(train_images, tmp_path):
    path = loop.pretrain(untrained.MINI, None, tmp_path / "a", seed=1)
    assert not {"gpu", "fp32_precision"} & identity.exported_as(path)["trained"].keys()
    recipe = replace(moco.MINI, train=replace(moco.MINI.train, precision="tf32"))
    with pytest.raises(UserError, match="a CPU has no TF32"):
        loop.pretrain(recipe, train_images, tmp_path / "b", seed=1)


def test_a_gpu_s_encoder_names_it_and_its_precision(tmp_path, monkeypatch):
    """A network without epochs, which needs no GPU to be written as if one had made it."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(devices, "memory_gib", lambda device: 80.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    path = loop.pretrain(untrained.MINI, None, tmp_path, seed=1, device="cuda:1")
    trained = identity.exported_as(path)["trained"]
    assert trained["gpu"] == "card cuda:1"
    assert trained["fp32_precision"] == {"convolutions": "ieee", "matrix products": "ieee"}


@pytest.mark.parametrize(
    ("device", "precision", "in_key"),
    [("cpu", "fp32", None), ("cuda", "fp32", "fp32"), ("cuda", "tf32", "tf32")],
)
def test_features_of_a_gpu_are_kept_by_their_precision(
    device, precision, in_key, encoder_file, world, monkeypatch
):
    """And those of a CPU under the names that they have always had."""

    def caught(identity):
        raise Stopped(identity)

    monkeypatch.setattr(features.input_check, "verify", lambda *_: None)
    encoder = encoders.load(encoder_file, LoadOptions(precision=precision))
    images = voc.read(world, "test")
    assert images.cache_key  # which is a hash, too
    monkeypatch.setattr(features.files, "sha256", caught)
    with pytest.raises(Stopped) as stopped:
        features.extract(encoder, images, device=device)
    (told,) = stopped.value.args
    assert told.get("precision") == in_key


def test_an_evaluation_is_computed_and_recorded_in_its_precision(
    encoder_file, world, tmp_path, monkeypatch
):
    seen = []

    def run(config, context):
        seen.append(switches()[0])
        return Scores([{"draw": 0, "value": 1.0}], Metric("x", "%", 1))

    evaluation = Evaluation(
        "x", EvalConfig, run, lambda record: [], "", read=lambda *_: (voc.read(world, "test"),)
    )
    monkeypatch.setattr(EvalConfig, "params", lambda self: {})
    monkeypatch.setattr(devices, "device_of", lambda device: device)
    told = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "tf32")):
        results, options = tmp_path / f"{device}-{precision}", LoadOptions(precision=precision)
        config = EvalConfig(
            encoder_file, data=world, device=device, results=results, load_options=options
        )
        record = records.read(evaluation.execute(config))
        told[device, precision] = record.get("fp32_precision", {}).get("convolutions")
    assert told == {("cpu", "fp32"): None, ("cuda", "fp32"): "ieee", ("cuda", "tf32"): "tf32"}
    assert seen[1:] == ["ieee", "tf32"]
