"""What is no checkpoint, or a dangerous one, is an error that says so; nothing in a file is ever run."""

import os
import pathlib
import pickle
import sys
import zipfile
from argparse import Namespace
from itertools import accumulate
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from protobench import checkpoints, tensor_files
from protobench.errors import UserError


def _save(path, content, **how):
    torch.save(content, path, **how)
    return path


def _refused(path):
    with pytest.raises(UserError) as error:
        tensor_files.read(path)
    assert error.value.hint
    assert error.value.at == path
    return str(error.value)


class Payload:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class Evaluated:
    def __reduce__(self):
        return eval, ("open('pwned', 'w')",)


class Unknown:
    pass


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "empty"), (b"<!DOCTYPE html><html>404", "a web page"), (b"\n  <HTML><body>", "a web page"), (b"<?xml version", "XML"),
    (b'{"error": "not found"}', "JSON text"), (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    (b"\x1f\x8b\x08rest", "gzip archive"), (b"\x89HDF\r\n\x1a\n", "Keras or HDF5"), (b"PK\x03\x04 truncated zip", "cannot read"),
    (b"\x00" * 100, "cannot read"), (b"x" * 257 + b"ustar" + b"0" * 300, "tar archive"), (b"\x80\x02}q\x00.", "cannot read"),
    (b"just some text", "error: "),
], ids=lambda value: value if isinstance(value, str) else "")
def test_files_that_are_no_checkpoints(tmp_path, content, complaint):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert complaint in _refused(path)


def test_missing_files_folders_and_foreign_archives(tmp_path):
    assert "no such checkpoint" in _refused(tmp_path / "absent.pth")
    assert "this is a folder" in _refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("weights.npy", b"0" * 100)
    assert "a zip archive" in _refused(tmp_path / "a.pth")
    (tmp_path / "model.ckpt-250228.index").write_bytes(b"\x00\x01" * 50)
    assert "TensorFlow" in _refused(tmp_path / "model.ckpt-250228.index")
    (tmp_path / "x.safetensors").write_bytes(b"something else")
    assert "no safetensors header" in _refused(tmp_path / "x.safetensors")


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "scripted.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"scripted/{name}", b"0" * 20)
    assert "TorchScript program" in _refused(tmp_path / "scripted.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_payloads_are_named_and_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    how = {"_use_new_zipfile_serialization": not legacy}
    told = _refused(_save(tmp_path / "x.pth", {"state_dict": {"w": torch.ones(1)}, "hook": Payload()}, **how))
    assert "holds more than tensors and plain values: posix.system" in told
    assert f"convert --trust {tmp_path / 'x.pth'} {tmp_path / 'x.safetensors'}" in told
    assert "Unknown" in _refused(_save(tmp_path / "y.pth", {"state_dict": {}, "logger": Unknown()}, **how))
    assert "eval" in _refused(_save(tmp_path / "e.pth", {"hook": Evaluated()}, **how))
    assert "Linear" in _refused(_save(tmp_path / "z.pth", nn.Linear(2, 2), **how))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_inert_leftovers_of_training_scripts_are_read(tmp_path, legacy):
    leftovers = {"args": Namespace(lr=0.1, out=pathlib.PurePosixPath("/a")), "best_acc1": np.float64(67.6), "folder": tmp_path,
                 "epoch": np.int64(3), "dtype": np.dtype("float32"), "flag": np.bool_(True)}
    path = _save(tmp_path / "x.pth", {"state_dict": {"w": torch.ones(2)}, **leftovers}, _use_new_zipfile_serialization=not legacy)
    file = tensor_files.read(path)
    assert list(file.tensors) == ["state_dict/w"]
    assert file.entries["best_acc1"] == 67.6
    assert file.entries["args"].lr == 0.1


def test_loggers_of_mmengine_and_lightning_are_read_as_inert(tmp_path, monkeypatch):
    """Every published mmselfsup 1.x file holds the former, lightly's the latter; neither package is needed."""
    history = ModuleType("mmengine.logging.history_buffer")
    attributes = ModuleType("pytorch_lightning.utilities.parsing")
    history.HistoryBuffer = type("HistoryBuffer", (), {"__module__": history.__name__})
    attributes.AttributeDict = type("AttributeDict", (dict,), {"__module__": attributes.__name__})
    buffer = history.HistoryBuffer()
    buffer._log_history, buffer._max_length = np.arange(5.0), 1_000_000
    content = {"state_dict": {"w": torch.ones(1)}, "message_hub": {"log_scalars": {"loss": buffer}},
               "hyper_parameters": attributes.AttributeDict(knn_k=200)}
    with monkeypatch.context() as patch:
        for module in (history, attributes):
            *parents, _ = accumulate(module.__name__.split("."), "{}.{}".format)
            for parent in parents:
                patch.setitem(sys.modules, parent, ModuleType(parent))
            patch.setitem(sys.modules, module.__name__, module)
        path = _save(tmp_path / "x.pth", content)
    file = tensor_files.read(path)
    assert file.entries["hyper_parameters"]["knn_k"] == 200
    assert "mmengine" not in type(file.entries["message_hub"]["log_scalars"]["loss"]).__module__


def test_a_flipped_byte_is_found_by_the_file_s_own_checksums(tmp_path):
    """torch.load does not look at them."""
    path = _save(tmp_path / "x.pth", {"w": torch.arange(1000.0), "v": torch.ones(3)})
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(1000.0).numpy().tobytes()[400:440])
    data[place] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    assert "cannot read" in _refused(path)


def test_files_saved_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = _save(tmp_path / "x.pth", {"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert list(tensor_files.read(path).tensors) == ["w"]


def test_dictionaries_that_hold_themselves_end(tmp_path):
    loop = {"w": torch.ones(1)}
    loop["again"] = loop
    assert "w" in tensor_files.read(_save(tmp_path / "x.pth", loop)).tensors


def test_a_path_that_is_no_utf8(tmp_path, encoder_file):
    path = tmp_path / os.fsdecode(b"\xff\xfe name with space.safetensors")
    path.write_bytes(encoder_file.read_bytes())
    assert checkpoints.load(path).account["matched"] == 72


def test_what_a_file_is_does_not_hang_on_its_suffix(tmp_path, encoder_file):
    path = tmp_path / "encoder.pth"
    path.write_bytes(encoder_file.read_bytes())
    assert checkpoints.load(path).account["matched"] == 72


def test_trust_unpickles_whole_models(tmp_path):
    path = _save(tmp_path / "x.pth", {"model": nn.Linear(2, 2), "logger": Unknown()})
    assert sorted(tensor_files.read(path, trust=True).tensors) == ["model/bias", "model/weight"]


def test_trust_names_the_package_that_is_missing(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    blob = pickle.dumps(Unknown(), protocol=2).replace(b"test_tensor_files", b"no_such_package_x")
    path.write_bytes(path.read_bytes()[:10])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", blob)
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")
    with pytest.raises(UserError, match="needs the package 'no_such_package_x'"):
        tensor_files.read(path, trust=True)
