"""Vision transformers: every origin's files load whole and give the features of timm's own network;
what would give others is refused."""

import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from origins import under
from vit_origins import HEAD, MASK, ORIGINS, fixed, network

from evaluate import ami, detection, fullsvm, knn, linear, lowshot, semisup, tsne
from protobench import __main__ as program
from protobench import features, records
from protobench.checkpoints import encoders, vit
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import voc
from protobench.runtime.errors import UserError
from tables import __main__ as tables

HALF = "0.5,0.5,0.5,0.5,0.5,0.5"


@pytest.fixture(scope="module", autouse=True)
def timm():
    """Skipped, visibly, where the extra is not installed."""
    return pytest.importorskip("timm", reason="needs the extra vit")


def save(path, content):
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A file as DINO publishes it."""
    state = network(ORIGINS["DINO"], 0).state_dict()
    return save(tmp_path_factory.mktemp("dino") / "dino.pth", state)


@cache
def images(side, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def feature(backbone, x):
    with torch.inference_mode():
        return backbone(x)


def tokens(net, x):
    """What timm's own forward_features gives."""
    with torch.inference_mode():
        return net.forward_features(x)


# Recognising --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORIGINS)
def test_every_origin_gives_timm_s_features(tmp_path, name):
    origin = ORIGINS[name]
    mine, other = (network(origin, seed) for seed in (0, 1))
    content = origin.build(mine.state_dict(), other.state_dict())
    path = save(tmp_path / f"file{origin.suffix}", content)
    if origin.normalisation is None:
        with pytest.raises(UserError, match="how the inputs of this network were normalised"):
            encoders.load(path)
    size, patch, side = origin.network
    given = {} if origin.normalisation else {"normalisation": HALF}
    encoder = encoders.load(path, LoadOptions(crop=side, resize=side, **given))
    x = images(side, 1)
    assert (feature(encoder.backbone, x) - tokens(mine, x)[:, 0]).abs().max() <= 1e-5
    report = encoder.report
    assert (report.origin, report.copy) == (origin.layout, origin.copy)
    assert report.arch == f"{size}_patch{patch}"
    assert report.matched == report.expected == len(mine.state_dict())
    assert report.positions == f"{side // patch}x{side // patch}"
    assert report.feature == "class token"
    assert not report.untouched
    assert report.dropped == origin.dropped.split()
    assert encoder.input.std[0] == (0.229 if origin.normalisation else 0.5)
    if origin.other:
        weights = "query" if origin.copy == "momentum" else "momentum"
        second = encoders.load(path, LoadOptions(weights=weights, crop=side, resize=side, **given))
        assert (feature(second.backbone, x) - tokens(other, x)[:, 0]).abs().max() <= 1e-5
    else:
        with pytest.raises(UserError, match=r"has no .* copy"):
            encoders.load(
                path,
                LoadOptions(weights="query" if origin.copy != "query" else "momentum", **given),
            )


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [("DINO", 256, 224), ("MAE", 256, 224), ("DINOv2", 256, 224), ("timm, 384 pixels", 439, 384)],
)
def test_the_input_is_that_of_the_origin_or_of_the_positions(tmp_path, name, resize, crop):
    origin = ORIGINS[name]
    path = save(tmp_path / "x.pth", origin.build(network(origin, 0).state_dict(), {}))
    given = None if origin.normalisation else HALF
    input_ = encoders.load(path, LoadOptions(normalisation=given)).input
    assert (input_.resize, input_.crop) == (resize, crop)


def test_the_shorter_side_follows_the_crop(dino):
    for reading, expected in (
        (LoadOptions(crop=112), (128, 112)),
        (LoadOptions(crop=448), (512, 448)),
        (LoadOptions(crop=112, resize=112), (112, 112)),
    ):
        input_ = encoders.load(dino, reading).input
        assert (input_.resize, input_.crop) == expected
    for crop in (0, -16):
        with pytest.raises(UserError, match="no usable input"):
            encoders.load(dino, LoadOptions(crop=crop))


@pytest.mark.parametrize("size", vit.SIZES)
def test_sizes_and_heads_are_those_of_timm_s_networks(size, timm):
    patch = 14 if size == "vit_huge" else 16
    with torch.device("meta"):
        network = timm.create_model(f"{size}_patch{patch}_224", weight_init="skip")
    heads = network.blocks[0].attn.num_heads
    assert (network.embed_dim, len(network.blocks), heads) == vit.SIZES[size]


def test_moco_v3_s_small_network_has_twice_the_usual_heads(tmp_path):
    """No tensor shows it, and with the usual number every feature would be another one."""
    origin = ORIGINS["MoCo v3, ViT-S"]
    state = network(origin, 0).state_dict()
    moco = encoders.load(save(tmp_path / "moco.pth", origin.build(state, state)))
    dino = encoders.load(save(tmp_path / "dino.pth", state | {"pos_embed": state["pos_embed"] + 1}))
    assert (moco.backbone.arch.heads, dino.backbone.arch.heads) == (12, 6)


@pytest.mark.parametrize("origin", ["MAE", "MoCo v3"])
@pytest.mark.parametrize("grid", [2, 14])
def test_fixed_positions_are_known_by_their_values(origin, grid):
    table = fixed(origin, grid, 192)
    assert vit.fixed_positions(table) == origin
    assert vit.fixed_positions(table.half()) == origin
    assert vit.fixed_positions(table + 0.01) == ""
    assert vit.fixed_positions(table[:, 1:]) == ""
    assert vit.fixed_positions(table.to("meta")) == ""


def test_fixed_positions_by_hand():
    """Width 8: the patch of row 0, column 1 begins with sin(1) in MAE, with sin(0) in MoCo v3."""
    mae, moco = (vit.sine_cosine(2, 8, column_first) for column_first in (True, False))
    assert mae.shape == (5, 8)
    assert not mae[0].any()
    place = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    assert mae[2].tolist() == pytest.approx([*place, 0, 0, 1, 1])
    assert moco[2].tolist() == pytest.approx([0, 0, 1, 1, *place])


# Position embeddings ------------------------------------------------------------------------------


def cubic(distance):
    """Keys' kernel with a = -0.75, PyTorch's."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def weights(new, old, scale):
    """[new, old]: each new place is a sum of four old ones, those beyond the edge being the edge's.
    ``scale``: how many new places an old one becomes."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) / scale - 0.5
        first = math.floor(centre)
        for j in range(first - 1, first + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return matrix


@pytest.mark.parametrize(("old", "new"), [(14, 10), (14, 28), (37, 16), (5, 7)])
@pytest.mark.parametrize("how", ["dino", "mae"])
def test_interpolation_is_the_origin_s(how, old, new):
    table = torch.randn(1, 1 + old * old, 4, generator=torch.Generator().manual_seed(0))
    matrix = weights(new, old, (new + 0.1 if how == "dino" else new) / old)
    map_SSD = table[0, 1:].reshape(old, old, 4).double().numpy()
    expected = np.einsum("ia,jb,abk->ijk", matrix, matrix, map_SSD).reshape(-1, 4)
    found = vit.interpolated(table, new, how)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=1e-5)


def test_interpolation_as_timm_does_it():
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, [10, 10])
    torch.testing.assert_close(vit.interpolated(table, 10, "timm"), expected, rtol=0, atol=1e-6)


def test_positions_are_interpolated_only_where_the_crop_differs(dino):
    own = encoders.load(dino)
    assert torch.equal(own.backbone.net.pos_embed, network(ORIGINS["DINO"], 0).pos_embed)
    smaller = encoders.load(dino, LoadOptions(crop=64, resize=64))
    assert smaller.backbone.net.pos_embed.shape == (1, 17, 192)
    assert smaller.report.positions == (
        "14x14, interpolated to 4x4 (bicubic by scale factor, as in DINO's code)"
    )
    assert "interpolated to 4x4" in smaller.summary()
    assert smaller.report.to_json()["positions"] == smaller.report.positions
    assert smaller.key != own.key == own.report.sha256


# Features -----------------------------------------------------------------------------------------


def test_each_feature_against_its_definition(dino):
    net, x = network(ORIGINS["DINO"], 0), images(224)
    final_NTD = tokens(net, x)
    blocks, hidden = [], {}
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: hidden.update({i: out}))
    tokens(net, x)
    with torch.inference_mode():
        blocks = [net.norm(hidden[i])[:, 0] for i in (8, 9, 10, 11)]
    expected = {
        "class": final_NTD[:, 0],
        "patches": final_NTD[:, 1:].mean(1),
        "class+patches": torch.cat([final_NTD[:, 0], final_NTD[:, 1:].mean(1)], 1),
        "last4": torch.cat(blocks, 1),
    }
    keys = set()
    for name, wanted in expected.items():
        encoder = encoders.load(dino, LoadOptions(vit_feature=name))
        found = feature(encoder.backbone, x)
        assert (found - wanted).abs().max() <= 1e-5
        assert encoder.backbone.out_channels == found.shape[1]
        assert encoder.report.to_json()["feature"] == vit.FEATURES[name]
        keys.add(encoder.key)
    assert len(keys) == 4
    assert encoders.load(dino, LoadOptions(vit_feature="class")).key == encoders.load(dino).key


def test_a_resnet_s_report_says_nothing_of_tokens(encoder_file):
    told = encoders.load(encoder_file).report.to_json()
    assert not {"feature", "positions"} & told.keys()
    with pytest.raises(UserError, match="--vit-feature patches is for vision transformers"):
        encoders.load(encoder_file, LoadOptions(vit_feature="patches"))


def test_an_untrained_network_is_told(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    fresh = VisionTransformer(embed_dim=192, num_heads=3, num_classes=0).state_dict()
    encoder = encoders.load(save(tmp_path / "fresh.pth", fresh))
    assert encoder.report.untouched
    assert "LayerNorm is still at its initial values" in encoder.summary()


# Refusals -----------------------------------------------------------------------------------------


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def distilled(state):
    longer = torch.cat([state["pos_embed"][:, :1], state["pos_embed"]], 1)
    return state | HEAD | {"pos_embed": longer, "dist_token": torch.zeros(1, 1, 192)}


def resized(name, *shape):
    return lambda s: s | {name: torch.ones(shape)}


BAD = {
    "register tokens, which is not supported": lambda s: (
        s | MASK | {"register_tokens": torch.zeros(1, 4, 192)}
    ),
    "a distilled network's second token": distilled,
    "relative positions (BEiT; ViTDet": lambda s: {
        "model": {
            f"backbone.net.{name}": tensor
            for name, tensor in (s | {"blocks.0.attn.rel_pos_h": torch.zeros(27, 64)}).items()
        }
        | {"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}
    },
    "relative positions": lambda s: {
        "model": s | {"blocks.0.attn.relative_position_bias_table": torch.zeros(732, 3)}
    },
    "windows of attention (Swin)": lambda s: {
        "model": {f"layers.0.{name}": tensor for name, tensor in s.items()}
    },
    "there are vision transformers under 'state_dict/backbone.'": lambda s: {
        "meta": {},
        "state_dict": under("backbone.", s) | {"rpn_head.rpn_conv.weight": torch.zeros(1)},
    },
    "no layout has a vision transformer in each of these places": lambda s: (
        {"model": s, "model_ema": s}
    ),
    "a gated feed-forward": lambda s: s | {"blocks.0.mlp.w12.weight": torch.zeros(8, 192)},
    "a convolutional stem": lambda s: s | {"patch_embed.proj.0.weight": torch.zeros(24, 3, 3, 3)},
    "a norm before the blocks": lambda s: s | {"norm_pre.weight": torch.ones(192)},
    "its last norm behind the mean": lambda s: (
        without(s, "norm.w") | {"fc_norm.weight": torch.ones(192)}
    ),
    "another kind of attention": lambda s: s | {"blocks.0.attn.q_bias": torch.zeros(192)},
    "14x14 positions of 14-pixel patches make an image of 196 pixels, but this code base trains at"
    " 224": resized("patch_embed.proj.weight", 192, 3, 14, 14),
    "12x12 positions of 16-pixel patches": resized("pos_embed", 1, 145, 192),
    "not those of a class token and a square grid": resized("pos_embed", 1, 150, 192),
    "the position embeddings (1, 196, 192) are not": resized("pos_embed", 1, 196, 192),
    "not one of square patches": resized("patch_embed.proj.weight", 192, 3, 16, 8),
    "no usual vision transformer has the width 200": resized(
        "patch_embed.proj.weight", 200, 3, 16, 16
    ),
    "has 12 blocks, not 11": lambda s: without(s, "blocks.11."),
    "1 missing (blocks.3.mlp.fc1.bias)": lambda s: without(s, "blocks.3.mlp.fc1.bias"),
    "1 unexpected (blocks.3.extra.weight)": resized("blocks.3.extra.weight", 4),
    "1 unexpected (rope.weight)": resized("rope.weight", 4),
    "blocks.2.norm1.bias is (7,), not (192,)": resized("blocks.2.norm1.bias", 7),
    "1 not dense finite": lambda s: s | {"norm.bias": torch.full((192,), torch.nan)},
    "cls_token missing": lambda s: without(s, "cls_token"),
}


@pytest.mark.parametrize("complaint", BAD)
def test_what_would_give_other_features_is_refused(command, tmp_path, complaint):
    state = network(ORIGINS["DINO"], 0).state_dict()
    path = save(tmp_path / "x.pth", BAD[complaint](state))
    code, out, err = command(program.main, "inspect", path)
    assert code == 2
    assert complaint in " ".join(err.split())
    assert "Traceback" not in err + out


ODD = (
    torch.zeros(()),
    torch.zeros(1, 0, 192),
    torch.zeros(0, 197, 192),
    torch.zeros(192, 3, 0, 0),
    torch.zeros(0, 3, 16, 16),
    torch.zeros(1, 197, 192, dtype=torch.long),
    torch.zeros(1, 197, 192).to_sparse(),
    torch.zeros(1, 1, 1).expand(1, 1_000_000, 192),
)


@pytest.mark.parametrize("odd", ODD, ids=lambda t: f"{tuple(t.shape)}-{t.dtype}-{t.layout}")
def test_odd_tensors_are_a_user_error(tmp_path, odd):
    state = network(ORIGINS["timm"], 0).state_dict() | HEAD
    for name in ("pos_embed", "patch_embed.proj.weight"):
        path = save(tmp_path / "x.pth", state | {name: odd})
        with pytest.raises(UserError):
            encoders.load(path, LoadOptions(normalisation="imagenet"))


def test_what_the_user_asks_for_must_be_possible(command, dino, encoder_file, tmp_path):
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(dino.read_bytes()[:-5000])
    for words, complaint in (
        ((dino, "--crop", 100), "no whole number of patches of 16"),
        ((dino, "--arch", "vit_small"), "holds a vit_tiny_patch16, not a vit_small"),
        ((dino, "--prefix", "encoder."), "how many attention heads"),
        ((dino, "--weights", "momentum"), "has no momentum copy"),
        ((truncated,), "damaged"),
    ):
        words = [str(word).replace("--", "--") for word in words]
        code, _, err = command(program.main, "inspect", *words)
        assert (code, complaint in " ".join(err.split())) == (2, True), err
        assert f"at: {words[0]}" in err
    assert encoders.load(dino, LoadOptions(arch="vit_tiny_patch16")).report.arch
    assert encoders.load(dino, LoadOptions(arch="vit_tiny")).report.arch


def test_the_word_prefix_picks_a_copy(tmp_path):
    origin = ORIGINS["DINO, full checkpoint"]
    mine, other = (network(origin, seed) for seed in (0, 1))
    path = save(tmp_path / "x.pth", origin.build(mine.state_dict(), other.state_dict()))
    encoder = encoders.load(path, LoadOptions(prefix="student/module.backbone."))
    assert encoder.report.copy == "query"


def test_without_timm_the_extra_is_named(command, dino, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    code, _, err = command(program.main, "inspect", dino)
    assert code == 2
    assert "needs the extra vit" in err
    assert "pip install 'protobench[vit]'" in err


def test_nothing_is_exported(command, dino, tmp_path):
    out = tmp_path / "out.pth"
    code, _, err = command(program.main, "export", dino, out, "--layout", "timm")
    assert code == 2
    assert "this needs a ResNet, not a vision transformer" in err
    assert not out.exists()


def test_inspect_and_layouts_show_them(command, dino):
    code, out, _ = command(program.main, "inspect", dino)
    assert code == 0
    assert "dino.pth: DINO, vit_tiny_patch16" in out
    assert "150/150 backbone tensors, query copy, at top level" in out
    assert "feature: class token; positions 14x14" in out
    code, out, _ = command(program.main, "layouts")
    for origin in ("DINO", "iBOT", "DINOv2", "MAE", "MoCo v3", "timm"):
        assert [
            line for line in out.splitlines() if line.startswith(f"{origin} ") and "ViT" in line
        ]


# Evaluations --------------------------------------------------------------------------------------

SMALL = ("--crop", 32, "--resize", 32, "--workers", 0)


def scored(command, evaluation, dino, world, results, *flags):
    words = ("--ckpt", dino, "--data", world, "--results", results, *SMALL, *flags)
    code, out, err = command(evaluation.main, *words)
    assert code == 0, err
    return out, [records.read(path) for path in sorted(results.glob("*.json"))]


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (lowshot, ("--shots", 1, "--draws", 1)),
        (fullsvm, ()),
        (knn, ("--feature", "pooled", "--k", 5)),
        (linear, ("--epochs", 1, "--lr", 1, "--batch-size", 32)),
        (ami, ("--feature", "pooled")),
        (tsne, ("--feature", "pooled")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_needs_a_feature_alone_is_scored(command, dino, world, tmp_path, module, flags):
    _, (record,) = scored(command, module.EVALUATION, dino, world, tmp_path, *flags)
    assert record["checkpoint"]["feature"] == "class token"
    assert record["checkpoint"]["arch"] == "vit_tiny_patch16"
    assert "input_fit" not in record["checkpoint"]
    assert all(math.isfinite(run["value"]) for run in record["runs"])


def test_features_of_two_kinds_are_cached_apart(command, dino, world, tmp_path):
    flags = ("--feature", "pooled", "--k", 5)
    dims = set()
    for kind in ("class", "patches", "class+patches", "class"):
        more = (*flags, "--vit-feature", kind)
        out, _ = scored(command, knn.EVALUATION, dino, world, tmp_path / kind, *more)
        dims.add((kind, "192" if " x 192," in out else "384"))
    assert dims == {("class", "192"), ("patches", "192"), ("class+patches", "384")}
    one, two = (
        records.read(next((tmp_path / kind).glob("*.json")))["unit"]["encoder"]
        for kind in ("class", "patches")
    )
    assert one != two


@pytest.mark.parametrize(
    ("module", "flags", "why"),
    [
        (linear, ("--dataset", "places205"), "pools the last convolutional map to 2x2"),
        (lowshot, ("--protocol", "goyal"), "pools the last convolutional map to 2x2"),
        (fullsvm, ("--protocol", "goyal"), "pools the last convolutional map to 2x2"),
        (semisup, (), "a recipe for ResNets"),
        (detection, (), "detectors take its stages"),
    ],
    ids=["places", "lowshot", "fullsvm", "semisup", "detection"],
)
def test_what_needs_a_convolutional_network_says_so_at_once(
    command, dino, tmp_path, module, flags, why
):
    """Before any data is read: the folder does not exist."""
    words = ("--ckpt", dino, "--data", tmp_path / "none", "--results", tmp_path, *flags)
    code, _, err = command(module.EVALUATION.main, *words)
    assert code == 2
    assert "this needs a ResNet, not a vision transformer" in err
    assert why in " ".join(err.split())
    assert "Traceback" not in err


def test_a_table_says_what_needs_a_resnet(command, dino, world, tmp_path):
    where = ("--data", world, "--results", tmp_path / "results", "--runs", tmp_path / "runs")
    flags = ("--tier", "paper", "--rows", "random", "--ckpt", f"mine={dino}", "--plan", *where)
    code, out, err = command(tables.main, "reproduce", "table3", *flags)
    assert (code, err) == (3, "")
    (line,) = (one for one in out.splitlines() if one.startswith("  mine "))
    assert "linear imagenet to run" in line
    why = "needs a ResNet, not a vision transformer: this protocol pools the last convolutional map"
    assert f"linear places205 impossible ({why} to 2x2)" in line


def test_the_report_card_says_what_needs_a_resnet(command, dino, world, tmp_path):
    words = (dino, "--data", world, "--results", tmp_path, *SMALL, "--plan")
    code, out, err = command(tables.main, "score", *words)
    assert code == 0, err
    told = " ".join(out.split())
    assert "needs a ResNet, not a vision transformer: it fine-tunes the whole network" in told
    assert "Traceback" not in out + err


def test_the_embedding_needs_a_head(command, dino, world, tmp_path):
    words = ("--ckpt", dino, "--data", world, "--results", tmp_path, *SMALL)
    code, _, err = command(knn.EVALUATION.main, *words)
    assert code == 2
    assert "--feature pooled" in err


# Precision and devices ----------------------------------------------------------------------------


def extracted(dino, world, folder, device="cpu", **reading):
    encoder = encoders.load(dino, LoadOptions(crop=32, resize=32, **reading))
    test = voc.read(world, "test")
    return features.extract(encoder, test, device=device, cache=folder), encoder.report


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["class", "last4"])
def test_gpu_features_agree_with_the_cpu(dino, world, tmp_path, kind):
    cpu, _ = extracted(dino, world, tmp_path, vit_feature=kind)
    gpu, _ = extracted(dino, world, tmp_path, "cuda", vit_feature=kind)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-3)


def test_bf16_is_measured_against_fp32(dino, world, tmp_path):
    fast, report = extracted(dino, world, tmp_path, precision="bf16")
    exact, _ = extracted(dino, world, tmp_path)
    assert 0.99 < report.bf16.min_cosine < 1
    assert 0 < np.abs(fast - exact).max() < 0.2
