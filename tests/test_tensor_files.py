"""What is no checkpoint, or a dangerous one, is an error that says so; nothing in a file is ever
run."""

import contextlib
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
from argparse import Namespace
from itertools import accumulate
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from protobench.checkpoints import encoders, tensor_files
from protobench.runtime.errors import UserError


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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"\n  <HTML><body>", "a web page"),
        (b"<?xml version", "XML"),
        (b'{"error": "not found"}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\x1f\x8b\x08rest", "gzip archive"),
        (b"\x89HDF\r\n\x1a\n", "Keras or HDF5"),
        (b"PK\x03\x04 truncated zip", "cannot read"),
        (b"\x00" * 100, "cannot read"),
        (b"x" * 257 + b"ustar" + b"0" * 300, "tar archive"),
        (b"\x80\x02}q\x00.", "cannot read"),
        (b"just some text", "error: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
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
    content = {
        "state_dict": {"w": torch.ones(1)},
        "hook": Payload(),
        "other": Evaluated(),
        "logger": Unknown(),
    }
    file = tensor_files.read(
        _save(tmp_path / "x.pth", content, _use_new_zipfile_serialization=not legacy)
    )
    assert list(file.tensors) == ["state_dict/w"]
    assert file.left_as_data == ("__builtin__.eval", "posix.system", "test_tensor_files.Unknown")
    assert not (tmp_path / "pwned").exists()


def test_a_file_whose_tensors_code_makes_says_which(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = _refused(_save(tmp_path / "x.pth", {"state_dict": Payload()}))
    assert "only what its own code may make them from: posix.system" in told
    assert f"convert --trust {tmp_path / 'x.pth'} {tmp_path / 'x.safetensors'}" in told
    assert "pip install" not in told
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "y.pkl").write_bytes(b"c__main__\nSimCLR\n)\x81.")
    told = _refused(tmp_path / "y.pkl")
    assert "__main__.SimCLR" in told
    assert "convert" not in told, "nobody else can import what the script itself defined"


@pytest.mark.parametrize("legacy", [False, True])
def test_inert_leftovers_of_training_scripts_are_read(tmp_path, legacy):
    leftovers = {
        "args": Namespace(lr=0.1, out=pathlib.PurePosixPath("/a")),
        "best_acc1": np.float64(67.6),
        "folder": tmp_path,
        "epoch": np.int64(3),
        "dtype": np.dtype("float32"),
        "flag": np.bool_(True),
    }
    path = _save(
        tmp_path / "x.pth",
        {"state_dict": {"w": torch.ones(2)}, **leftovers},
        _use_new_zipfile_serialization=not legacy,
    )
    file = tensor_files.read(path)
    assert list(file.tensors) == ["state_dict/w"]
    assert file.entries["best_acc1"] == 67.6
    assert file.entries["args"].lr == 0.1


def test_loggers_of_mmengine_and_lightning_are_read_as_inert(tmp_path, monkeypatch):
    """Every published mmselfsup 1.x file holds the former, lightly's the latter; neither package is
    needed."""
    history = ModuleType("mmengine.logging.history_buffer")
    attributes = ModuleType("pytorch_lightning.utilities.parsing")
    history.HistoryBuffer = type("HistoryBuffer", (), {"__module__": history.__name__})
    attributes.AttributeDict = type("AttributeDict", (dict,), {"__module__": attributes.__name__})
    buffer = history.HistoryBuffer()
    buffer._log_history, buffer._max_length = np.arange(5.0), 1_000_000
    content = {
        "state_dict": {"w": torch.ones(1)},
        "message_hub": {"log_scalars": {"loss": buffer}},
        "hyper_parameters": attributes.AttributeDict(knn_k=200),
    }
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
    assert encoders.load(path).report.matched == 72


def test_what_a_file_is_does_not_hang_on_its_suffix(tmp_path, encoder_file):
    path = tmp_path / "encoder.pth"
    path.write_bytes(encoder_file.read_bytes())
    assert encoders.load(path).report.matched == 72


def test_trust_unpickles_whole_models(tmp_path):
    path = _save(tmp_path / "x.pth", {"model": nn.Linear(2, 2), "logger": Unknown()})
    assert sorted(tensor_files.read(path, trust=True).tensors) == ["model/bias", "model/weight"]


@pytest.mark.parametrize(
    ("module", "name"), [("no_such_package_x", "Unknown"), ("__main__", "NoSuchClass")]
)
def test_trust_names_the_code_that_is_missing_and_no_stranger_s_package(tmp_path, module, name):
    path = tmp_path / "x.pth"
    blob = pickle.dumps(Unknown(), protocol=2).replace(
        b"test_tensor_files\nUnknown", f"{module}\n{name}".encode()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (("data.pkl", blob), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"x/{member}", content)
    with pytest.raises(
        UserError, match=f"unpickling needs code that is not here: .*{module}"
    ) as error:
        tensor_files.read(path, trust=True)
    assert "pip" not in error.value.hint
    assert "--trust" not in error.value.hint


# Pickles of every age and origin ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_arrays_and_of_tensors_are_read(tmp_path, protocol):
    arrays = {
        "w": np.arange(6, dtype="f4").reshape(2, 3),
        "t": np.arange(6, dtype="f8").reshape(2, 3).T,
        "e": np.zeros((0, 2), "f2"),
        "n.num_batches_tracked": np.array(7),
        "labels": np.arange(3),
        "names": np.array(["a"], dtype=object),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "MOCO"}, protocol))
    file = tensor_files.read(path)
    assert list(file.tensors) == ["model/w", "model/t", "model/e", "model/n.num_batches_tracked"]
    for name, tensor in file.tensors.items():
        assert np.array_equal(tensor.numpy(), arrays[name.removeprefix("model/")])
        assert tensor.numpy().dtype == arrays[name.removeprefix("model/")].dtype
    assert file.entries["__author__"] == "MOCO"
    shared = torch.arange(6.0)
    tensors = {
        "w": shared[2:5],
        "p": nn.Parameter(shared.view(2, 3).T),
        "half": shared.half(),
        "none": shared[:0],
    }
    path.write_bytes(pickle.dumps(tensors, protocol))
    read = tensor_files.read(path).tensors
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


PYTHON_2 = (
    b"(dp0\nS'model'\np1\n(dp2\nS'w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n(I0\ntp6\n"
    b"S'b'\np7\ntp8\nRp9\n(I1\n(I2\ntp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n(I3\nS'<'\np15\n"
    b"NNNI-1\nI-1\nI0\ntp16\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\xe9@'\np17\ntp18\nbss."
)
"""{"model": {"w": array([1, 7.28125], float32)}} as Python 2 wrote it by default: raw bytes within
quotes."""


def test_pickles_of_python_2_are_read(tmp_path):
    (tmp_path / "old.pkl").write_bytes(PYTHON_2)
    assert tensor_files.read(tmp_path / "old.pkl").tensors["model/w"].tolist() == [1.0, 7.28125]


def test_an_old_ordered_dictionary_is_one(tmp_path):
    """Python 2 gives its pairs as an argument."""
    array = pickle.dumps(np.ones(2, "f4"), 2)[2:-1]
    (tmp_path / "x.pkl").write_bytes(
        b"\x80\x02ccollections\nOrderedDict\n]](U\x01w" + array + b"ea\x85R."
    )
    assert tensor_files.read(tmp_path / "x.pkl").tensors["w"].tolist() == [1.0, 1.0]


def test_arrays_beside_tensors_are_no_weights(tmp_path):
    file = tensor_files.read(_save(tmp_path / "x.pth", {"w": torch.ones(1), "losses": np.ones(3)}))
    assert list(file.tensors) == ["w"]
    assert list(tensor_files.read(_save(tmp_path / "y.pth", {"w": np.ones(3)})).tensors) == ["w"]


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_shared_storages_are_what_they_were(tmp_path, legacy):
    base = torch.arange(12.0)
    state = {
        "view": base[3:9].view(2, 3),
        "transposed": base.view(3, 4).T,
        "expanded": base[:1].expand(4),
        "again": base,
        "bf16": base.bfloat16(),
        "flag": torch.tensor([True, False]),
        "none": base[:0],
        "scalar": torch.tensor(3),
    }
    read = tensor_files.read(
        _save(tmp_path / "x.pth", state, _use_new_zipfile_serialization=not legacy)
    ).tensors
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor)
        assert (read[name].dtype, read[name].stride()) == (tensor.dtype, tensor.stride())
    assert read["again"].untyped_storage().data_ptr() == read["view"].untyped_storage().data_ptr()


def test_files_of_the_other_byte_order_are_read(tmp_path):
    path = _save(tmp_path / "x.pth", {"w": torch.tensor([1.0, 2.5])})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            swapped = (
                np.frombuffer(content, "f4").byteswap().tobytes() if name == "x/data/0" else content
            )
            archive.writestr(name, b"big" if name == "x/byteorder" else swapped)
    assert tensor_files.read(path).tensors["w"].tolist() == [1.0, 2.5]


def test_tensors_without_plain_numbers_are_seen_but_have_none(tmp_path):
    with warnings.catch_warnings(action="ignore"):  # torch's beta notes
        state = {
            "sparse": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "meta": torch.ones(2, 3, device="meta"),
            "quantised": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        }
        path = _save(tmp_path / "x.pth", state)
    read = tensor_files.read(path).tensors
    assert {name: (tensor.shape, tensor.device.type) for name, tensor in read.items()} == {
        name: (tensor.shape, "meta") for name, tensor in state.items()
    }


def test_torch_s_first_format_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.pth", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    assert "written by a torch before 0.1.10" in _refused(tmp_path / "x.pth")


# Hostile pickles ----------------------------------------------------------------------------------


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


TOUCH = _text("touch pwned")
OBJECT_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\n"
    b"U\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb\x89]K\x01atb."
)
HOSTILE = {
    "a call": b"cos\nsystem\n" + TOUCH + b"\x85R.",
    "a call of a call": b"cbuiltins\nmap\ncos\nsystem\n]" + TOUCH + b"a\x86R.",
    "a dotted name": (
        b"\x80\x04" + _text("os") + _text("path.os.system") + b"\x93" + TOUCH + b"\x85R."
    ),
    "protocol 0's object": b"(S'touch pwned'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\n" + TOUCH + b"o.",
    "keywords": b"\x80\x04csubprocess\nPopen\n" + TOUCH + b"\x85}" + _text("shell") + b"\x88s\x92.",
    "a state for a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + _text("__code__") + b"K\x01sb."
    ),
    "a state that sets the state": (
        b"clogging\nHandler\n)\x81}" + _text("__setstate__") + b"cos\nsystem\nsb" + TOUCH + b"b."
    ),
    "a pickle in a pickle": b"cpickle\nloads\nU\x05cos\n.\x85R.",
    "an extension": b"\x82\x01" + TOUCH + b"\x85R.",
    "a far place in the memo": b"]r\xff\xff\xff\xff.",
    "a false count": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a number in words": b"L" + b"9" * 100_000 + b"L\n.",
    "a deep key": b"})" + b"\x85" * 200_000 + b"K\x01s.",
    "a wide key": b"})" + b"2\x86" * 80 + b"K\x01s.",
    "a deep list": b"]" * 100_000 + b"a" * 99_999 + b".",
    "lists in lists in lists": (
        b"]q\x00"
        + b"".join(b"](" + bytes([ord("h"), i]) * 200 + b"eq" + bytes([i + 1]) for i in range(11))
        + b"."
    ),
    "a long name in a long name": (
        _text("n" * 100_000)
        + b"q\x000"
        + b"]q\x01"
        + b"".join(
            b"](" + (b"}h\x00h" + bytes([i]) + b"s") * 50 + b"eq" + bytes([i + 1])
            for i in range(1, 6)
        )
        + b"."
    ),
    "one long list in many dictionaries": (
        b"("
        + b"K\x01K\x02\x86" * 20_000
        + b"lq\x000("
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 3_000
        + b"l."
    ),
    "keys that collide": (
        b"}("
        + b"".join(
            b"\x8a\x10" + ((2**61 - 1) * k).to_bytes(16, "little") + b"K\x01"
            for k in range(1, 20_000)
        )
        + b"u."
    ),
    "no stack": b"\x85\x86R.",
    "no end": b"]",
    "no key": b"}]K\x01s}}K\x01s\x86.",
    "objects for numbers": OBJECT_ARRAY,
    "an array beyond its data": OBJECT_ARRAY.replace(b"O8", b"f4").replace(b"]K\x01a", b"U\x02ab"),
    "something outside": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01QK\x00K\x01\x85K\x01\x85\x89}tR."
    ),
}
HOSTILE["a module that holds itself"] = (
    b"cm\nM\n)\x81q\x02}("
    + _text("_parameters")
    + b"}"
    + _text("_buffers")
    + b"}"
    + _text("_modules")
    + b"}("
    + b"".join(_text(str(n)) + b"h\x02" for n in range(9))
    + b"uub."
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_ends(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(HOSTILE[name])
    assert "cannot read the checkpoint" in _refused(tmp_path / "x.pkl")
    assert not (tmp_path / "pwned").exists()


def _tensor(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85", key="0", kind="FloatStorage"):
    return (
        b"\x80\x02}"
        + _text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + _text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + _text(key)
        + _text("cuda:9")
        + b"K\x04tQ"
        + offset
        + size
        + stride
        + b"\x89}tRs."
    )


HUGE = b"\x8a\x08" + struct.pack("<q", 2**62 - 1)
BEYOND = {
    "longer": {"size": b"K\x05\x85"},
    "further": {"offset": b"K\x01"},
    "before": {"offset": b"J\xff\xff\xff\xff", "size": b"K\x01\x85"},
    "backwards": {"stride": b"J\xff\xff\xff\xff\x85"},
    "negative": {"size": b"J\xff\xff\xff\xff\x85"},
    "huge": {"size": HUGE + b"\x85"},
    "huge, repeated": {"size": HUGE + HUGE + b"\x86", "stride": b"K\x00K\x00\x86"},
    "many dimensions": {
        "size": b"(" + b"K\x01" * 5000 + b"t",
        "stride": b"(" + b"K\x01" * 5000 + b"t",
    },
    "two lengths": {"stride": b"K\x01K\x01\x86"},
    "no number": {"size": _text("ab")},
    "a fraction": {"offset": b"G" + b"\x3f" * 8},
    "no such storage": {"key": "7"},
    "another member": {"key": "../data.pkl"},
    "no type": {"kind": "UntypedStorage"},
    "no storage": {"kind": "Size"},
}


@pytest.mark.parametrize("name", [*BEYOND, ""])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", _tensor(**BEYOND.get(name, {})))
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    if name:
        assert "cannot read the checkpoint" in _refused(tmp_path / "x.pth")
    else:
        assert tensor_files.read(tmp_path / "x.pth").tensors["w"].tolist() == [1, 2, 3, 4]


def test_a_tensor_repeated_without_end_has_no_numbers(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr(
            "archive/data.pkl",
            _tensor(size=b"\x8a\x05\xff\xff\xff\xff\x7f\x85", stride=b"K\x00\x85"),
        )
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    assert tensor_files.read(tmp_path / "x.pth").tensors["w"].device.type == "meta"


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    st.sampled_from(["x.pth", "legacy.pth", "x.pkl"]),
    st.integers(0, 10**9),
    st.integers(0, 7),
    st.booleans(),
)
def test_a_damaged_pickle_is_read_or_refused_and_never_more(damageable, name, place, bit, cut):
    data = bytearray(damageable[name])
    if cut:
        data = data[: place % len(data)]
    else:
        data[place % len(data)] ^= 1 << bit
    path = damageable["folder"] / name
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        for tensor in tensor_files.read(path).tensors.values():
            assert tensor.numel() < 1 << 25
            if tensor.device.type == "cpu":
                tensor.sum()


@pytest.fixture(scope="module")
def damageable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damageable")
    state = {
        "a.weight": torch.ones(2, 3),
        "b": nn.Parameter(torch.zeros(4)),
        "args": Namespace(lr=0.1),
        "n": np.float64(3),
    }
    _save(folder / "x.pth", state)
    _save(folder / "legacy.pth", state, _use_new_zipfile_serialization=False)
    (folder / "x.pkl").write_bytes(pickle.dumps({"w": np.ones((2, 3), "f4"), "t": torch.ones(2)}))
    return {"folder": folder} | {path.name: path.read_bytes() for path in folder.iterdir()}
