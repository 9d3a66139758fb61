"""Files for other programs: the names they read, read back with equal features, and a card that
says what they are."""

import io
import json
import pickle

import pytest
import torch
from origins import linear, training, under

from evaluate import lowshot
from protobench import __main__ as program
from protobench.checkpoints import encoders, export, resnet
from protobench.checkpoints.resnet import Arch
from protobench.runtime import files


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    net = resnet.build("resnet50").eval()
    for name, tensor in net.state_dict().items():
        if "bn" in name:
            tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    path = tmp_path_factory.mktemp("source") / "moco.pth.tar"
    state = net.state_dict()
    torch.save(
        training(
            under("module.encoder_q.", state)
            | linear("module.encoder_q.fc.", 128, 2048)
            | under("module.encoder_k.", state)
        ),
        path,
    )
    return path


def _export(command, source, out, *more):
    code, printed, err = command(program.main, "export", source, out, *more)
    assert code == 0, err
    assert "read back, features equal" in printed
    return torch.load(out, weights_only=True) if out.suffix != ".safetensors" else None


def test_what_torchvision_and_timm_read(command, source, tmp_path):
    import torchvision
    from safetensors.torch import load_file

    plain = _export(command, source, tmp_path / "a.pth")
    _export(command, source, tmp_path / "b.safetensors", "--layout", "timm")
    expected = {
        name for name in torchvision.models.resnet50().state_dict() if not name.startswith("fc.")
    }
    assert set(plain) == set(load_file(tmp_path / "b.safetensors")) == expected
    again = encoders.load(tmp_path / "b.safetensors")
    assert again.key != encoders.load(source).key, (
        "scores that use the momentum copy, which it has not, are others"
    )
    assert again.report.origin == "MoCo, PCL or MoPro"
    assert again.report.trained["file"] == "moco.pth.tar"
    assert again.projection is None
    _export(command, source, tmp_path / "c.safetensors", "--layout", "protobench")
    with_head = encoders.load(tmp_path / "c.safetensors")
    assert with_head.report.projection == encoders.load(source).report.projection != {}


def test_what_moco_s_linear_probe_reads(command, source, tmp_path):
    """It strips module.encoder_q., then wants exactly fc to be missing, and looks up every counter
    afterwards."""
    import torchvision

    content = _export(command, source, tmp_path / "m.pth.tar", "--layout", "moco")
    stripped = {
        k.removeprefix("module.encoder_q."): v
        for k, v in content["state_dict"].items()
        if k.startswith("module.encoder_q") and not k.startswith("module.encoder_q.fc")
    }
    model = torchvision.models.resnet50()
    assert set(model.load_state_dict(stripped, strict=False).missing_keys) == {
        "fc.weight",
        "fc.bias",
    }
    assert {name for name in model.state_dict() if not name.startswith("fc.")} == set(stripped)


def test_what_mmdet_reads(command, source, tmp_path):
    content = _export(command, source, tmp_path / "d.pth", "--layout", "mmdet")
    assert {"conv1.weight", "layer4.2.bn3.running_var"} <= set(content["state_dict"])
    assert "style='pytorch'" in (tmp_path / "d.pth.md").read_text()


def test_what_detectron2_reads(command, source, tmp_path):
    content = _export(command, source, tmp_path / "d2.pth", "--layout", "detectron2")
    assert content["matching_heuristics"] is True
    assert {
        "stem.conv1.weight",
        "stem.conv1.norm.running_mean",
        "res2.0.shortcut.weight",
        "res2.0.shortcut.norm.bias",
        "res5.2.conv3.norm.weight",
    } <= set(content["model"])
    assert not [
        name for name in content["model"] if "layer" in name or "bn" in name or "downsample" in name
    ]
    card = (tmp_path / "d2.pth.md").read_text()
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in card
    assert "STRIDE_IN_1X1: False" in card


def test_the_card_names_recipe_data_and_records(command, encoder_file, world, tmp_path):
    results = tmp_path / "results"
    code, _, err = command(
        lowshot.EVALUATION.main,
        "--ckpt",
        encoder_file,
        "--data",
        world,
        "--shots",
        1,
        2,
        "--draws",
        1,
        "--workers",
        0,
        "--results",
        results / "scores",
    )
    assert code == 0, err
    (record,) = [json.loads(path.read_text()) for path in results.rglob("*.json")]
    _export(command, encoder_file, tmp_path / "x.safetensors", "--results", results)
    card = (tmp_path / "x.safetensors.md").read_text()
    assert record["record_id"][:12] in card
    assert "lowshot | voc07 (bundled synthetic data) | mAP %, k=1: " in card
    assert '"method": "untrained"' in card
    assert files.sha256_file(tmp_path / "x.safetensors") in card
    _export(command, encoder_file, tmp_path / "y.safetensors", "--results", tmp_path / "none")
    assert "No record" in (tmp_path / "y.safetensors.md").read_text()


def test_what_a_target_cannot_express_is_refused(command, source, tmp_path):
    code, _, err = command(
        program.main, "export", source, tmp_path / "x.safetensors", "--layout", "mmdet"
    )
    assert code == 2
    assert "mmdet does not read .safetensors" in err
    code, _, err = command(program.main, "export", source, tmp_path / "x")
    assert code == 2
    padded = tmp_path / "padded.safetensors"
    torch.manual_seed(0)
    encoders.export(
        padded,
        resnet.ResNet(Arch("basic", (2, 2, 2, 2), 64, "cifar-padded")),
        key="k",
        input_=export.encoders.EvalInput(32, 32),
        trained=None,
    )
    code, _, err = command(program.main, "export", padded, tmp_path / "plain.pth")
    assert code == 2
    assert "cannot hold all that is needed" in err
    assert not (tmp_path / "plain.pth").exists()
    for target in ("moco", "mmdet", "detectron2"):
        code, _, err = command(
            program.main, "export", padded, tmp_path / "plain.pth", "--layout", target
        )
        assert code == 2
        assert f"{target} would load a resnet18, cifar-padded stem only in part" in err
    code, _, err = command(program.main, "export", padded, tmp_path / "again.safetensors")
    assert code == 0, err
    for name in ("x-deadbeef.pth", "PCL_v1_epoch200.pth.tar"):
        code, _, err = command(program.main, "export", source, tmp_path / name)
        assert code == 2
        assert "published file's name, or promises a hash" in err
    code, _, err = command(program.main, "export", source, source)
    assert code == 2
    assert "overwrite the checkpoint itself" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_input_travels_with_the_weights_or_the_export_is_refused(command, source, tmp_path):
    """A converted SimCLR wants inputs in 0 to 1."""
    for target, name in (
        ("moco", "m.pth"),
        ("mmdet", "d.pth"),
        ("detectron2", "d2.pth"),
        ("timm", "t.safetensors"),
    ):
        code, _, err = command(
            program.main,
            "export",
            source,
            tmp_path / name,
            "--layout",
            target,
            "--normalisation",
            "0-1",
        )
        assert code == 0, err
        again = encoders.load(tmp_path / name)
        assert again.input.std == (1.0, 1.0, 1.0)
        assert again.key != encoders.load(source).key
    code, _, err = command(
        program.main, "export", source, tmp_path / "flat.pth", "--normalisation", "0-1"
    )
    assert code == 2
    assert "expects another input" in err


class Logger:
    """What a training script leaves in its checkpoint."""


class Packed:
    """Weights that the file's own code unpacks."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        packed = io.BytesIO()
        torch.save(self.state, packed)
        return _unpack, (packed.getvalue(),)


def _unpack(packed):
    return torch.load(io.BytesIO(packed))


def test_objects_beside_the_weights_need_no_code(command, source, tmp_path):
    state = encoders.load(source).backbone.state_dict()
    path = tmp_path / "old.pth"
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}, "logger": Logger()},
        path,
    )
    code, out, err = command(program.main, "export", path, tmp_path / "new.safetensors")
    assert code == 0, err
    assert "read without running its code: objects of test_export.Logger left as data" in out
    loaded = encoders.load(tmp_path / "new.safetensors").backbone.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_convert_runs_code_only_when_told_so(command, source, tmp_path):
    state = encoders.load(source).backbone.state_dict()
    packed = tmp_path / "packed.pth"
    torch.save(
        {"state_dict": Packed({f"module.encoder_q.{k}": v for k, v in state.items()})}, packed
    )
    code, _, err = command(program.main, "export", packed, tmp_path / "new.safetensors")
    assert code == 2
    assert "only what its own code may make them from: test_export._unpack" in err
    assert f"convert --trust {packed} {tmp_path / 'packed.safetensors'}" in err
    code, _, err = command(program.main, "convert", packed, tmp_path / "new.safetensors")
    assert code == 2
    assert "add --trust" in err
    assert not (tmp_path / "new.safetensors").exists()
    code, out, err = command(
        program.main, "convert", "--trust", packed, tmp_path / "new.safetensors"
    )
    assert code == 0, err
    assert "any code in it runs now" in err
    assert "318/318" in out
    loaded = encoders.load(tmp_path / "new.safetensors").backbone.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_list_of_layouts_is_printed(command):
    code, out, _ = command(program.main, "layouts")
    assert code == 0
    assert "state_dict/encoder_q." in out


def test_inspect_prints_what_an_evaluation_would_load(command, source, tmp_path):
    code, out, _ = command(program.main, "inspect", source)
    assert code == 0
    assert "318/318 backbone tensors" in out
    code, out, _ = command(program.main, "inspect", source, "--json", "--weights", "momentum")
    assert json.loads(out)["copy"] == "momentum"
    (tmp_path / "page.pth").write_text("<html>404")
    code, _, err = command(program.main, "inspect", tmp_path / "page.pth")
    assert code == 2
    assert "a web page" in err
    (tmp_path / "haiku.pkl").write_bytes(pickle.dumps({"params": Logger()}))
    code, _, err = command(program.main, "inspect", tmp_path / "haiku.pkl")
    assert code == 2
    code, _, err = command(program.main, "inspct")
    assert code == 2
    assert "did you mean 'inspect'" in err
