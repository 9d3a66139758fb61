import os
import pickle

import pytest
import torch
from torch import nn

from pretrain import recipes
from pretrain.moco import MoCo
from protobench import backbones, checkpoints
from protobench.errors import UserError


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return backbones.build("resnet18").eval()


def _save(path, content):
    torch.save(content, path)
    return path


def _moco(backbone, prefix="module.encoder_q."):
    """The layout of the MoCo and PCL releases: both encoders, a head, the queue, the optimiser."""
    state = {f"{prefix}{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {f"{prefix.replace('_q', '_k')}{name}": torch.zeros_like(t) for name, t in backbone.state_dict().items()}
    state |= {f"{prefix}fc.weight": torch.zeros(128, 512), "module.queue": torch.zeros(128, 64)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"lr": 0.03}}


LAYOUTS = {
    "MoCo/PCL": lambda b: _moco(b),
    "MoCo/PCL, one process": lambda b: _moco(b, "encoder_q."),
    "DistributedDataParallel": lambda b: {"state_dict": {f"module.{k}": v for k, v in b.state_dict().items()}},
    "torchvision": lambda b: b.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
}


@pytest.mark.parametrize("origin", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_layout_gives_the_same_features_as_the_weights_themselves(tmp_path, backbone, origin, legacy):
    path = tmp_path / "file.pth.tar"
    torch.save(LAYOUTS[origin](backbone), path, _use_new_zipfile_serialization=not legacy)
    encoder = checkpoints.load(path)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(encoder.backbone(x), backbone(x))
    assert encoder.account["origin"] == origin
    assert encoder.account["matched"] == encoder.account["expected"] == len(backbone.state_dict())
    assert f"{len(backbone.state_dict())}/{len(backbone.state_dict())}" in encoder.summary()


def test_what_is_left_out_is_named(tmp_path, backbone):
    encoder = checkpoints.load(_save(tmp_path / "x.pth", _moco(backbone)))
    assert encoder.account["dropped"] == ["module.encoder_k", "module.encoder_q.fc", "module.queue"]
    plain = checkpoints.load(_save(tmp_path / "y.pth", LAYOUTS["torchvision"](backbone)))
    assert plain.account["dropped"] == ["fc"]


def test_compiled_and_old_files_load(tmp_path, backbone):
    state = {f"_orig_mod.module.{k}": v for k, v in backbone.state_dict().items() if "num_batches" not in k}
    account = checkpoints.load(_save(tmp_path / "compiled.pt", state)).account
    assert account["expected"] - account["matched"] == 20, "only the 20 batch counters, which nothing reads, are absent"


def test_our_own_export_round_trips(tmp_path):
    method = MoCo(recipes.MOCO_MINI, seed=0)
    checkpoints.export(tmp_path / "e.safetensors", method.backbone, key="k", input_=recipes.MOCO_MINI.input,
                       trained={"method": "moco"})
    encoder = checkpoints.load(tmp_path / "e.safetensors")
    assert encoder.key == "k"
    assert encoder.input == recipes.MOCO_MINI.input
    assert encoder.account["input"]["crop"] == 32
    assert "centre 32" in encoder.summary()
    assert encoder.account["trained"] == {"method": "moco"}
    for name, tensor in method.backbone.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], tensor)


def _without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def _changed(backbone, name, tensor):
    return backbone.state_dict() | {name: tensor}


BAD = {
    "1 missing": lambda b: _without(b.state_dict(), "layer3.0.conv1"),
    "1 unexpected": lambda b: _changed(b, "layer1.0.extra.weight", torch.zeros(1)),
    "of another shape": lambda b: _changed(b, "layer2.0.conv1.weight", torch.zeros(3, 3)),
    "floating-point": lambda b: _changed(b, "layer2.0.conv1.weight", torch.full((128, 64, 3, 3), float("nan"))),
    "not dense": lambda b: _changed(b, "layer2.0.conv1.weight", torch.zeros(128, 64, 3, 3).to_sparse()),
    "finite": lambda b: _changed(b, "layer2.0.conv1.weight", torch.zeros(128, 64, 3, 3, dtype=torch.int8)),
    "dense finite": lambda b: _changed(b, "layer2.0.conv1.weight", torch.zeros(128, 64, 3, 3, dtype=torch.complex64)),
    "no known layout": lambda b: {f"model.trunk.{k}": v for k, v in b.state_dict().items()},
    "holds no tensors": lambda b: {"epoch": 3},
    "without a usable ResNet": lambda b: {"conv1.weight": torch.zeros(64, 3, 7, 7)},
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_half_loaded_network_is_never_returned(tmp_path, backbone, complaint):
    path = _save(tmp_path / "bad.pth", BAD[complaint](backbone))
    with pytest.raises(UserError) as error:
        checkpoints.load(path)
    assert complaint in str(error.value)
    assert error.value.at == path


def test_a_wrong_prefix_names_the_nearest_reading(tmp_path, backbone):
    state = {f"model.trunk.{k}": v for k, v in backbone.state_dict().items()}
    with pytest.raises(UserError, match="no known layout") as error:
        checkpoints.load(_save(tmp_path / "x.pth", state))
    assert "model.trunk." in str(error.value)


class Payload(nn.Module):
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "empty"), (b"<!DOCTYPE html><html>404", "web page"), (b"PK\x03\x04 truncated zip", "cannot read"),
    (pickle.dumps(Payload()), "more than tensors"), (b"\x00" * 100, "error: "),
], ids=["empty", "web page", "truncated zip", "payload", "zeros"])
def test_files_that_are_no_checkpoints(tmp_path, monkeypatch, content, complaint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        checkpoints.load(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_and_missing_files(tmp_path, encoder_file, backbone, suffix):
    path = tmp_path / f"x{suffix}"
    whole = encoder_file.read_bytes() if suffix == ".safetensors" else _save(tmp_path / "w", backbone.state_dict()).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.load(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoints.load(tmp_path / "absent.pth")
