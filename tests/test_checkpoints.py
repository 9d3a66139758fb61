"""The report of a loaded file, its hashes, and that no mutation of a valid file gives a
half-loaded network."""

import copy
import math
import os
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from origins import linear, moco, training, under

from pretrain.moco import MoCo
from pretrain.recipes import moco as moco_recipes
from protobench.checkpoints import encoders, heads, resnet
from protobench.checkpoints.layouts import LoadOptions
from protobench.checkpoints.resnet import Arch
from protobench.data.transforms import EvalInput
from protobench.runtime import files
from protobench.runtime.errors import UserError


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    net = resnet.build("resnet18").eval()
    for name, tensor in net.state_dict().items():
        if "bn" in name:
            tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    return net


def _save(path, content):
    torch.save(content, path)
    return path


def test_the_report_says_what_was_loaded_and_what_was_left_out(tmp_path, backbone):
    state = backbone.state_dict()
    path = _save(tmp_path / "x.pth", training(moco(state, state)))
    encoder = encoders.load(path)
    report = encoder.report
    assert report.sha256 == files.sha256_file(path) == encoder.key
    assert report.prefix == "state_dict/module.encoder_q."
    assert (report.matched, report.expected) == (len(state), len(state))
    assert report.dropped == ["encoder_k", "encoder_q.fc", "optimizer", "queue", "queue_ptr"]
    assert report.released is None
    said = encoder.summary()
    for words in (
        "MoCo, PCL or MoPro, resnet18",
        f"{len(state)}/{len(state)} backbone tensors",
        "query copy",
        "under 'state_dict/module.encoder_q.'",
        f"sha256 {report.sha256[:12]}",
        "encoder_k, encoder_q.fc",
        "shorter side 256, centre 224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
    ):
        assert words in said
    assert not encoder.backbone.training
    assert report.to_json() == {
        "file": "x.pth",
        "sha256": encoder.key,
        "hash_verified": False,
        "origin": "MoCo, PCL or MoPro",
        "released": None,
        "copy": "query",
        "prefix": "state_dict/module.encoder_q.",
        "arch": "resnet18",
        "matched": len(state),
        "expected": len(state),
        "dropped": ["encoder_k", "encoder_q.fc", "optimizer", "queue", "queue_ptr"],
        "trained": None,
        "input": asdict(encoder.input),
        "untouched": report.untouched,
        "projection": {name: list(t.shape) for name, t in encoder.projection.state_dict().items()}
        if encoder.projection
        else {},
    }, "records hold it so"


def test_old_files_without_counters_load(tmp_path, backbone):
    state = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
    report = encoders.load(_save(tmp_path / "old.pt", state)).report
    assert report.expected - report.matched == 20, (
        "only the 20 batch counters, which nothing reads, are absent"
    )


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
def test_counters_of_one_element_load_whatever_their_shape(tmp_path, backbone, shape):
    """Nothing reads them."""
    state = {
        k: torch.full(shape, 7) if "num_batches" in k else v
        for k, v in backbone.state_dict().items()
    }
    encoder = encoders.load(_save(tmp_path / "x.pt", state))
    assert encoder.report.matched == encoder.report.expected
    assert encoder.backbone.bn1.num_batches_tracked.shape == ()
    state["bn1.num_batches_tracked"] = torch.ones(2, dtype=torch.long)
    with pytest.raises(UserError, match=r"bn1\.num_batches_tracked is \(2,\), not \(\)"):
        encoders.load(_save(tmp_path / "x.pt", state))


def test_half_precision_becomes_single(tmp_path, backbone):
    loaded = encoders.load(
        _save(tmp_path / "half.pt", {k: v.half() for k, v in backbone.state_dict().items()})
    ).backbone
    assert loaded.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.conv1.weight, backbone.conv1.weight, rtol=1e-3, atol=1e-4)


def test_an_untrained_network_is_told(tmp_path, encoder_file, backbone):
    fresh = encoders.load(_save(tmp_path / "fresh.pth", resnet.build("resnet18").state_dict()))
    assert fresh.report.untouched
    assert "looks like an untrained network" in fresh.summary()
    assert not encoders.load(
        _save(tmp_path / "trained.pth", backbone.state_dict())
    ).report.untouched


@pytest.mark.parametrize(
    "head",
    [
        {"weight": torch.ones(5), "bias": torch.ones(5)},
        {"weight": torch.ones(5, 512), "bias": torch.ones(4)},
        {"weight": torch.ones(5, 100), "bias": torch.ones(5)},
        {"weight": torch.ones(0, 512), "bias": torch.ones(0)},
        {"weight": torch.full((5, 512), float("nan")), "bias": torch.ones(5)},
        {"weight": torch.ones(5, 512, device="meta"), "bias": torch.ones(5, device="meta")},
        {
            "0.weight": torch.ones(8, 512),
            "0.bias": torch.ones(8),
            "2.weight": torch.ones(5, 9),
            "2.bias": torch.ones(5),
        },
        {"0.weight": torch.ones(8, 512), "3.weight": torch.ones(5, 8)},
    ],
    ids=str,
)
def test_a_head_of_no_use_leaves_the_backbone_usable(tmp_path, backbone, head):
    state = under("module.encoder_q.", backbone.state_dict()) | under("module.encoder_q.fc.", head)
    encoder = encoders.load(_save(tmp_path / "x.pth", {"state_dict": state}))
    assert encoder.projection is None
    assert encoder.report.projection == {}


def test_a_head_of_known_shape_is_kept(tmp_path, backbone):
    state = under("encoder_q.", backbone.state_dict()) | linear("encoder_q.fc.", 128)
    encoder = encoders.load(_save(tmp_path / "x.pth", {"state_dict": state}))
    assert encoder.report.projection == {"weight": [128, 512], "bias": [128]}
    assert encoder.projection(torch.ones(2, 512)).shape == (2, 128)


# Our own files ------------------------------------------------------------------------------------


def test_our_own_export_round_trips(tmp_path):
    method = MoCo(moco_recipes.MINI, seed=0)
    encoders.export(
        tmp_path / "e.safetensors",
        method.networks().backbone,
        key="k",
        input_=moco_recipes.MINI.input,
        trained={"method": "moco"},
    )
    encoder = encoders.load(tmp_path / "e.safetensors")
    assert encoder.key == "k"
    assert encoder.input == moco_recipes.MINI.input
    assert encoder.report.origin == "protobench"
    assert encoder.report.trained == {"method": "moco"}
    assert "centre 32" in encoder.summary()
    for name, tensor in method.networks().backbone.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], tensor)


def test_a_head_that_could_not_be_loaded_again_is_not_exported(tmp_path, backbone):
    head = torch.nn.Sequential(torch.nn.Linear(512, 8), torch.nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match="export the backbone alone"):
        encoders.export(
            tmp_path / "x.safetensors",
            backbone,
            key="k",
            input_=EvalInput(),
            trained=None,
            projection=head,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [heads.linear, heads.mlp, heads.mlp_with_batch_norm])
def test_every_head_round_trips(tmp_path, backbone, kind):
    """With its statistics, of the momentum copy too."""
    ours = [kind(512, 32, 8) for _ in range(2)]
    for head in ours:
        for _ in range(3):
            head.train()(torch.randn(6, 512))
    encoders.export(
        tmp_path / "x.safetensors",
        backbone,
        key="k",
        input_=EvalInput(),
        trained=None,
        projection=ours[0],
        momentum=(copy.deepcopy(backbone), ours[1]),
    )
    x = torch.randn(4, 512)
    for name, head in zip(("query", "momentum"), ours, strict=True):
        found = encoders.load(tmp_path / "x.safetensors", prefer=name)
        assert found.report.copy == name
        assert torch.equal(found.projection(x), head.eval()(x))
        assert {name: list(t.shape) for name, t in head.state_dict().items()} == (
            found.report.projection
        )


@pytest.mark.parametrize(
    "damage",
    [
        {"1.running_var": torch.full((32,), -1.0)},
        {"1.running_mean": torch.full((32,), float("nan"))},
        {"1.bias": torch.zeros(31)},
        {"4.weight": None},
    ],
    ids=str,
)
def test_a_damaged_head_is_left_out_whole(tmp_path, backbone, damage):
    head = heads.mlp_with_batch_norm(512, 32, 8).state_dict() | damage
    head = {name: tensor for name, tensor in head.items() if tensor is not None}
    state = under("encoder_q.", backbone.state_dict()) | under("encoder_q.fc.", head)
    assert encoders.load(_save(tmp_path / "x.pth", {"state_dict": state})).projection is None


def test_our_header_keeps_what_no_weight_shows(tmp_path):
    shape = Arch("basic", (1, 1, 1, 1), 8, "cifar-padded")
    encoders.export(
        tmp_path / "e.safetensors",
        resnet.ResNet(shape),
        key="k",
        input_=EvalInput(32, 32),
        trained=None,
    )
    assert encoders.load(tmp_path / "e.safetensors").backbone.arch == shape


def test_swapped_tensors_and_flipped_bits_are_found_by_the_recorded_hash(tmp_path, encoder_file):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    state = load_file(encoder_file)
    with safe_open(encoder_file, "pt") as file:
        metadata = file.metadata()
    save_file(state, tmp_path / "same.safetensors", metadata=metadata)
    assert encoders.load(tmp_path / "same.safetensors").report.hash_verified
    a, b = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    save_file(
        state | {a: state[b], b: state[a]}, tmp_path / "swapped.safetensors", metadata=metadata
    )
    data = bytearray(encoder_file.read_bytes())
    data[-100] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    for name in ("swapped", "flipped"):
        with pytest.raises(UserError, match="the weights were changed"):
            encoders.load(tmp_path / f"{name}.safetensors")


GOOD = {
    "origin": "protobench",
    "key": "k",
    "trained": {},
    "input": {"resize": 32, "crop": 32},
    "arch": {"block": "basic", "depths": [2, 2, 2, 2], "width": 64, "stem": "imagenet", "inner": 1},
}
WRONG = {
    "stem": {"arch": {**GOOD["arch"], "stem": "foo"}},
    "list": {"arch": {**GOOD["arch"], "stem": ["imagenet"]}},
    "block": {"arch": {**GOOD["arch"], "block": "foo"}},
    "depths": {"arch": {**GOOD["arch"], "depths": "abcd"}},
    "three": {"arch": {**GOOD["arch"], "depths": [2, 2, 2]}},
    "width": {"arch": {**GOOD["arch"], "width": 1.5}},
    "huge": {"arch": {**GOOD["arch"], "width": 10**9}},
    "no arch": {"arch": 7},
    "no key": {"key": None},
    "colour": {"input": {"colour": 1}},
    "crop": {"input": {"crop": 300}},
    "input": {"input": 7},
    "mean": {"input": {"mean": [0, 0, "a"]}},
    "std": {"input": {"std": [0, 0, 0]}},
    "content": {"content": {}},
    "null": {"content": None},
    "part": {"input": {"crop": 1.5}},
    "true": {"input": {"crop": True}},
    "abc": {"input": {"mean": "abc"}},
    "unsealed": {"sha256": "0"},
}


@pytest.mark.parametrize("name", WRONG)
def test_headers_that_describe_nothing_are_refused(tmp_path, backbone, name):
    from safetensors.torch import save_file

    told = {**GOOD, "content": {"query": encoders.digest_of(backbone.state_dict())}}
    for wrong, path in (
        ({}, tmp_path / "good.safetensors"),
        (WRONG[name], tmp_path / "bad.safetensors"),
    ):
        header = {**told, **wrong}
        sealed = files.canonical_json({"sha256": files.sha256(header), **header})
        save_file(backbone.state_dict(), path, metadata={"protobench": sealed})
    assert encoders.load(tmp_path / "good.safetensors").key == "k"
    with pytest.raises(UserError):
        encoders.load(tmp_path / "bad.safetensors")


# Hashes -------------------------------------------------------------------------------------------


def test_a_hash_that_is_given_is_checked(tmp_path, backbone):
    path = _save(tmp_path / "x.pth", backbone.state_dict())
    sha256 = files.sha256_file(path)
    assert not encoders.load(path).report.hash_verified
    assert encoders.load(path, LoadOptions(sha256=sha256[:8].upper())).report.hash_verified
    with pytest.raises(UserError, match="but --sha256 says 00000000"):
        encoders.load(path, LoadOptions(sha256="00000000"))
    with pytest.raises(UserError, match="gives no SHA-256"):
        encoders.load(path, LoadOptions(sha256="xyz"))
    beside = tmp_path / "x.pth.sha256"
    beside.write_text(f"{sha256}  x.pth\n")
    assert encoders.load(path).report.hash_verified
    beside.write_text(f"{'0' * 64}  other.pth\n{sha256}  x.pth\n")
    assert encoders.load(path).report.hash_verified
    beside.write_text(f"SHA256 (x.pth) = {sha256}\n")
    assert encoders.load(path).report.hash_verified
    beside.write_text("nonsense")
    with pytest.raises(UserError, match=r"x\.pth\.sha256 gives no SHA-256"):
        encoders.load(path)
    beside.write_text("0" * 64)
    with pytest.raises(UserError, match=r"but x\.pth\.sha256 says"):
        encoders.load(path)


def test_a_hash_in_the_name_is_checked(tmp_path, backbone):
    path = _save(tmp_path / "x.pth", backbone.state_dict())
    sha256 = files.sha256_file(path)
    for name, good in (
        (f"net-{sha256[:8]}.pth", True),
        ("net-0123abcd.pth", False),
        ("net-20261121.pth", None),
        ("moco_r50_v2-e3b0c442.pth", None),
        ("run-446655440000ab.pth", None),
    ):
        # a date; the hash of nothing, as one publisher has it; the end of a UUID
        copy = tmp_path / name
        shutil.copy(path, copy)
        if good is False:
            with pytest.raises(UserError, match="but its name says 0123abcd"):
                encoders.load(copy)
            assert encoders.load(copy, LoadOptions(sha256=sha256[:16])).report.hash_verified, (
                "what is given counts more"
            )
        else:
            assert encoders.load(copy).report.hash_verified == bool(good)


# Half-loaded networks -----------------------------------------------------------------------------


def _without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


WEIGHT = "layer2.0.conv1.weight"
BAD = {
    "1 missing (layer3.0.conv1.weight)": lambda s: _without(s, "layer3.0.conv1"),
    "4 missing (layer3.0.bn1.bias, layer3.0.bn1.running_mean, layer3.0.bn1.running_var, …)": (
        lambda s: _without(s, "layer3.0.bn1.")
    ),
    "1 unexpected": lambda s: s | {"layer1.0.extra.weight": torch.zeros(1)},
    "is (3, 3), not (128, 64, 3, 3)": lambda s: s | {WEIGHT: torch.zeros(3, 3)},
    f"not dense finite floating-point numbers ({WEIGHT})": lambda s: (
        s | {WEIGHT: torch.full((128, 64, 3, 3), float("nan"))}
    ),
    "1 not dense": lambda s: s | {WEIGHT: torch.zeros(128, 64, 3, 3).to_sparse()},
    "1 not dense finite": lambda s: s | {WEIGHT: torch.zeros(128, 64, 3, 3, dtype=torch.int8)},
    "1 not dense finite floating": lambda s: (
        s | {WEIGHT: torch.zeros(128, 64, 3, 3, dtype=torch.complex64)}
    ),
    "a negative variance (bn1.running_var)": lambda s: s | {"bn1.running_var": -torch.ones(64)},
    "no usual ResNet has 2-1-2-2 basic blocks": lambda s: _without(s, "layer2.1"),
    "conv1.weight missing": lambda s: _without(s, "conv1.weight"),
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_half_loaded_network_is_never_returned(tmp_path, backbone, complaint):
    path = _save(tmp_path / "bad.pth", BAD[complaint](dict(backbone.state_dict())))
    with pytest.raises(UserError, match=re.escape(complaint)) as error:
        encoders.load(path)
    assert error.value.at == path


def test_a_sparse_tensor_with_false_indices_is_refused(tmp_path, backbone):
    with torch.sparse.check_sparse_tensor_invariants(False):
        bad = torch.sparse_coo_tensor(
            torch.tensor([[10**9], [0], [0], [0]]), torch.ones(1), (128, 64, 3, 3)
        )
    path = _save(tmp_path / "bad.pth", backbone.state_dict() | {WEIGHT: bad})
    with pytest.raises(UserError):
        encoders.load(path)


MUTATIONS = (
    "drop",
    "rename",
    "reshape",
    "nan",
    "truncate",
    "flip",
    "prefix",
    "swap",
    "dtype",
    "add",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A whole small file with a recorded hash, and its state."""
    torch.manual_seed(0)
    state = resnet.build("resnet10-mini").state_dict()
    return tmp_path_factory.mktemp("tiny"), {
        name: torch.rand_like(t.float()) + 0.1 if "num" not in name else t
        for name, t in state.items()
    }


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.sampled_from(MUTATIONS), st.integers(0, 10**9), st.booleans())
def test_any_mutation_gives_the_whole_network_or_a_user_error(tiny, mutation, place, ours):
    folder, state = tiny
    names = [name for name in state if "num" not in name]
    name = names[place % len(names)]
    new = dict(state)
    match mutation:
        case "drop":
            del new[name]
        case "rename":
            new[name[: len(name) - 1 - place % 3] + "x"] = new.pop(name)
        case "reshape":
            new[name] = torch.zeros(*state[name].shape, 2)
        case "nan":
            new[name] = state[name].clone()
            new[name].view(-1)[place % new[name].numel()] = math.nan if place % 2 else math.inf
        case "swap":
            alike = [
                other
                for other in names
                if state[other].shape == state[name].shape and other != name
            ]
            if alike:
                other = alike[place % len(alike)]
                new[name], new[other] = state[other], state[name]
        case "dtype":
            new[name] = state[name].long()
        case "add":
            new["layer1.0.more.weight"] = torch.zeros(2)
        case "prefix":
            new = under("model.net.", new)
    path = folder / ("x.safetensors" if ours else "x.pth")
    whole = {
        "state_dict": under("module.encoder_q.", new) | linear("module.encoder_q.fc.", 10, 128)
    }
    if ours:
        _export(path, new, state)
    else:
        torch.save(whole, path)
    recorded = files.sha256_file(
        _save(
            folder / "good.pth",
            {
                "state_dict": (
                    under("module.encoder_q.", state) | linear("module.encoder_q.fc.", 10, 128)
                )
            },
        )
    )
    data = bytearray(path.read_bytes())
    if mutation == "flip":
        data[place % len(data)] ^= 1 << place % 8
    elif mutation == "truncate":
        data = data[: place % len(data)]
    path.write_bytes(data)
    reading = LoadOptions(
        normalisation="imagenet", sha256=recorded if mutation == "swap" and not ours else None
    )
    try:
        loaded = encoders.load(path, reading).backbone.state_dict()
    except UserError:
        return
    assert mutation not in (
        "drop",
        "reshape",
        "nan",
        "truncate",
        "dtype",
        "add",
        "prefix",
    ), f"{mutation} of {name} was loaded"
    for key in names:
        assert torch.equal(loaded[key], state[key]), f"{mutation}: {key} is not the file's"


def _export(path, new, state):
    """Our own format with ``new`` tensors under the header of ``state``."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    net = resnet.build("resnet10-mini")
    net.load_state_dict(state)
    encoders.export(path, net, key="k", input_=EvalInput(32, 32), trained={})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: tensor.contiguous() for name, tensor in new.items()}, path, metadata=metadata)


def test_files_that_cannot_be_read(tmp_path, backbone):
    path = _save(
        tmp_path / "x.pth",
        backbone.state_dict() | {WEIGHT: torch.zeros(128, 64, 3, 3, device="meta")},
    )
    with pytest.raises(UserError):
        encoders.load(path)
    with pytest.raises(UserError, match="cannot read"):
        encoders.load(tmp_path / ("n" * 300))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="not a regular file"):
        encoders.load(tmp_path / "fifo")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError):
        encoders.load(tmp_path / "a")
    hostile = _save(tmp_path / "y.pth", {"\x1b[31mred\nline": torch.ones(1)})
    with pytest.raises(UserError) as error:
        encoders.load(hostile)
    assert "\x1b" not in str(error.value)
