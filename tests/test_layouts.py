"""Every origin's files load whole and give the features of the weights themselves; what fits none
or two is refused."""

import sys
from functools import cache

import pytest
import torch
from origins import (
    DROPPED,
    ORIGINS,
    RAN,
    Watch,
    head,
    lightning,
    linear,
    mmengine,
    moco,
    optimizer,
    sequential,
    tensorflow,
    training,
    under,
)

from protobench.checkpoints import encoders, layouts, resnet
from protobench.checkpoints.layouts import LoadOptions
from protobench.checkpoints.resnet import ARCHS, Arch
from protobench.runtime.errors import UserError


@cache
def network(arch: str, seed: int) -> resnet.ResNet:
    """A network with weights and BatchNorm statistics unlike any initialisation's."""
    torch.manual_seed(seed)
    name, _, stem = arch.partition(", ")
    shape = ARCHS[name]
    if stem:
        shape = Arch(shape.block, shape.depths, shape.width, stem.removesuffix(" stem"))
    made = resnet.ResNet(shape).eval()
    for key, tensor in made.state_dict().items():
        if "running" in key or "bn" in key:
            tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    return made


def same_features(encoder, expected):
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return float((encoder.backbone(x) - expected(x)).abs().max()) == 0


@pytest.mark.parametrize("name", ORIGINS)
def test_every_origin_gives_the_features_of_the_weights_themselves(tmp_path, monkeypatch, name):
    origin = ORIGINS[name]
    mine, other = (network(origin.arch, seed) for seed in (0, 1))
    path = origin.save(tmp_path / "file", origin.build(mine.state_dict(), other.state_dict()))
    monkeypatch.setattr(sys, "meta_path", [Watch, *sys.meta_path])
    RAN.clear()
    encoder = encoders.load(path)
    assert RAN == [], "code of the repository that wrote the file was looked for, or ran"
    assert same_features(encoder, mine)
    report = encoder.report
    assert (report.origin, report.copy, report.arch) == (
        origin.layout,
        origin.copy,
        origin.arch,
    )
    assert (encoder.input.mean, encoder.input.std) == layouts.normalisation(origin.normalisation)
    counters = 20 if name == "torchvision, 2017" else 0
    assert report.matched == report.expected - counters == len(mine.state_dict()) - counters
    assert report.dropped == DROPPED[name].split()
    assert report.left_as_data == origin.left.split()
    assert ("read without running its code" in encoder.summary()) == bool(origin.left)
    assert not report.untouched
    if origin.other:
        which = "momentum" if origin.copy == "query" else "query"
        second = encoders.load(path, LoadOptions(weights=which))
        assert same_features(second, other)
        assert second.report.copy == which
        assert second.key != encoder.key
    elif "sequential" not in origin.layout:
        with pytest.raises(UserError, match="has no momentum copy"):
            encoders.load(path, LoadOptions(weights="momentum"))


def test_safetensors_of_other_programs_load(tmp_path):
    from safetensors.torch import save_file

    net = network("resnet18", 0)
    for name, prefix in (("timm", ""), ("hub", "module.encoder_q.")):
        path = tmp_path / f"{name}.safetensors"
        save_file(
            under(prefix, net.state_dict()) | {f"{prefix}fc.weight": torch.zeros(10, 512)},
            path,
            metadata={"format": "pt"},
        )
        assert same_features(encoders.load(path), net)


@pytest.mark.parametrize(
    "arch", [name for name in ARCHS if name not in ("resnet10-mini", "resnet200x2", "resnet50x4")]
)
def test_the_architecture_is_read_from_the_weights(arch):
    with torch.device("meta"):
        state = resnet.build(arch).state_dict()
    assert resnet.arch_name(resnet.arch_of(state)) == arch


def test_arch_only_confirms(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(network("resnet18", 0).state_dict(), path)
    assert encoders.load(path, LoadOptions(arch="resnet18")).report.arch == "resnet18"
    with pytest.raises(UserError, match="holds a resnet18, not a resnet50"):
        encoders.load(path, LoadOptions(arch="resnet50"))
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        encoders.load(path, LoadOptions(arch="resnet500"))


def _refused(tmp_path, content, reading=None):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        encoders.load(tmp_path / "x.pth", reading)
    return str(error.value)


def test_a_wrong_prefix_names_the_nearest_layout_and_the_way_out(tmp_path):
    net = network("resnet18", 0)
    told = _refused(tmp_path, {"state_dict": under("module.encoder_qq.", net.state_dict())})
    assert "there are ResNets under 'state_dict/encoder_qq.'" in told
    assert "nearest: MoCo, PCL or MoPro, which has state_dict/encoder_q.conv1.weight" in told
    assert "--prefix encoder_qq. --normalisation imagenet" in told
    encoder = encoders.load(
        tmp_path / "x.pth", LoadOptions(prefix="module.encoder_qq.", normalisation="imagenet")
    )
    assert same_features(encoder, net)
    assert encoder.report.origin == "prefix given"
    assert "how the inputs of this network" in _refused(
        tmp_path, torch.load(tmp_path / "x.pth"), LoadOptions(prefix="encoder_qq.")
    )
    with pytest.raises(UserError, match=r"no ResNets under --prefix 'backbone\.'"):
        encoders.load(tmp_path / "x.pth", LoadOptions(prefix="backbone."))


def test_the_same_prefix_without_its_marks_is_not_enough(tmp_path):
    told = _refused(
        tmp_path, {"state_dict": under("module.encoder.", network("resnet18", 0).state_dict())}
    )
    assert (
        "nearest: SimSiam, which has state_dict/encoder.conv1.weight too, but beside other names"
        in told
    )
    assert "--prefix encoder." in told


def test_a_prefix_keeps_what_the_layout_knows(tmp_path):
    """It chooses a copy; stem, normalisation and refusals stay."""
    for name, prefix in (
        ("SimCLR, converted", ""),
        ("sthalles/SimCLR", "backbone."),
        ("solo-learn, CIFAR", "backbone."),
    ):
        origin = ORIGINS[name]
        torch.save(origin.build(network(origin.arch, 0).state_dict(), {}), tmp_path / "x.pth")
        plain, named = (
            encoders.load(tmp_path / "x.pth", reading)
            for reading in (None, LoadOptions(prefix=prefix))
        )
        assert plain.input == named.input
        assert plain.backbone.arch == named.backbone.arch
        assert plain.report.origin == named.report.origin
    state = network("resnet18", 0).state_dict()
    assert "pad one side only" in _refused(tmp_path, tensorflow(state), LoadOptions(prefix=""))
    assert "converted from TensorFlow" in _refused(
        tmp_path,
        {"a": under("b.", tensorflow(state))},
        LoadOptions(prefix="b.", normalisation="0-1"),
    )
    second = ORIGINS["MoCo v3"].build(state, network("resnet18", 1).state_dict())
    torch.save(second, tmp_path / "x.pth")
    assert (
        encoders.load(
            tmp_path / "x.pth", LoadOptions(prefix="module.momentum_encoder.")
        ).report.copy
        == "momentum"
    )


def test_other_lightning_modules_are_not_taken_for_solo_learn(tmp_path):
    """solo-learn alone pads its CIFAR stem by 2; what is not surely its own is asked about."""
    cifar = network("resnet18, cifar stem", 0).state_dict()
    assert "no known layout" in _refused(
        tmp_path, lightning(under("encoder.", cifar) | head("projection.model.", 512, 128))
    )
    told = _refused(tmp_path, lightning(under("backbone.", cifar) | linear("classifier.", 10)))
    assert "how the inputs of this CIFAR-stem network" in told
    assert (
        encoders.load(tmp_path / "x.pth", LoadOptions(normalisation="cifar10")).backbone.arch.stem
        == "cifar"
    )


def test_averaged_weights_with_names_without_dots_are_told_in_one_word(tmp_path):
    origin = ORIGINS["mmcv 1.x, averaged"]
    path = origin.save(tmp_path / "x.pth", origin.build(network("resnet18", 0).state_dict(), {}))
    assert "left out: ema_… (60 names)\n" in encoders.load(path).summary()


def test_averaged_weights_of_something_else_change_nothing(tmp_path):
    state = network("resnet18", 0).state_dict()
    averaged = {"steps": torch.tensor(1), "head.weight": torch.ones(2)}
    torch.save({"state_dict": state, "ema_state_dict": averaged}, tmp_path / "x.pth")
    assert encoders.load(tmp_path / "x.pth").report.origin == "torchvision's names"


def test_places_that_no_layout_has_together_name_none_as_the_nearest(tmp_path):
    state = network("resnet18", 0).state_dict()
    told = _refused(
        tmp_path, mmengine(under("backbone.", state)) | {"ema": under("backbone.", state)}
    )
    assert "there are ResNets under 'ema/backbone.', 'state_dict/backbone.'" in told
    assert "no layout has a ResNet in each of these places" in told
    assert "nearest" not in told
    told = _refused(tmp_path, {"state_dict": under("backbone.", state)})
    assert "known layouts have state_dict/backbone.conv1.weight, each beside other names" in told
    assert "nearest" not in told
    assert "--prefix backbone." in told


def test_detectors_are_not_taken_for_self_supervised_backbones(tmp_path):
    state = under("backbone.", network("resnet18", 0).state_dict()) | {
        "rpn_head.rpn_conv.weight": torch.zeros(1)
    }
    assert "no known layout" in _refused(tmp_path, {"meta": {}, "state_dict": state})


def test_two_tensors_for_one_place_are_refused(tmp_path):
    state = network("resnet18", 0).state_dict()
    clash = sequential(state) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    assert "get one name in the backbone" in _refused(tmp_path, clash)
    detectron = ORIGINS["detectron2"].build(network("resnet50", 0).state_dict(), {})
    assert "no known layout" in _refused(tmp_path, detectron | {"ema": detectron["model"]})
    assert "two tensors have the name" in _refused(
        tmp_path, {"state_dict/conv1.weight": torch.zeros(1), "state_dict": state}
    )


def test_a_part_of_a_renamed_layout_is_never_dropped(tmp_path):
    content = ORIGINS["SimCLR v2, converted"].build(network("resnet50", 0).state_dict(), {})
    content["resnet"]["net.0.2.weight"] = torch.zeros(64, 64, 3, 3)
    told = _refused(tmp_path, content, LoadOptions(drop=("net",)))
    assert "1 unexpected (net.0.2.weight)" in told
    assert "--drop" not in told


def test_a_narrow_network_with_a_cifar_stem_keeps_its_stride(tmp_path):
    net = resnet.ResNet(Arch("basic", (2, 2, 2, 2), 32, "cifar"))
    torch.save(net.state_dict(), tmp_path / "x.pth")
    assert (
        encoders.load(tmp_path / "x.pth", LoadOptions(normalisation="cifar10")).backbone.arch
        == net.arch
    )


def test_two_networks_that_no_layout_explains_are_refused(tmp_path):
    a, b = (network("resnet18", seed).state_dict() for seed in (0, 1))
    told = _refused(tmp_path, training(under("encoder_q.", a) | under("backbone.", b)))
    assert "'state_dict/backbone.', 'state_dict/encoder_q.'" in told
    encoder = encoders.load(
        tmp_path / "x.pth", LoadOptions(prefix="backbone.", normalisation="imagenet")
    )
    assert same_features(encoder, network("resnet18", 1))
    told = _refused(tmp_path, {"state_dict": a, "model": b})
    assert "'model/', 'state_dict/'" in told


def test_two_layouts_that_both_fit_are_refused(tmp_path):
    a, b = (network("resnet18", seed).state_dict() for seed in (0, 1))
    content = lightning(
        under("backbone.", a) | under("key_backbone.", b) | under("momentum_backbone.", b)
    )
    assert "no known layout" in _refused(tmp_path, content)
    content = {"meta": {}, "pytorch-lightning_version": "2", "state_dict": under("backbone.", a)}
    told = _refused(tmp_path, content)
    assert "two layouts fit: mmselfsup or mmpretrain (state_dict/backbone.) and lightly" in told
    assert "--prefix" in told


def test_networks_that_are_no_resnets(tmp_path):
    import torchvision

    with torch.device("meta"):
        names = torchvision.models.vit_b_16().state_dict()
    told = _refused(tmp_path, {name: torch.zeros(1) for name in names})
    assert "vision transformer" in told
    assert "class_token" in told
    assert "none of its 1 tensors belongs to a ResNet" in _refused(
        tmp_path, {"features.0.weight": torch.zeros(1)}
    )
    assert "holds no tensors" in _refused(tmp_path, {"epoch": 3})
    assert "an optimiser's state" in _refused(
        tmp_path, {"optimizer": optimizer({"a": torch.zeros(2)})}
    )
    deep = {k: v for k, v in network("resnet18", 0).state_dict().items() if k != "conv1.weight"}
    assert "a deep stem" in _refused(tmp_path, deep | {"conv1.0.weight": torch.zeros(32, 3, 3, 3)})
    grouped = network("resnet50", 0).state_dict() | {
        "layer1.0.conv2.weight": torch.zeros(64, 2, 3, 3)
    }
    assert "grouped convolutions" in _refused(tmp_path, grouped)


def test_networks_whose_forward_no_file_tells(tmp_path):
    state = network("resnet18", 0).state_dict()
    assert "pad one side only" in _refused(tmp_path, tensorflow(state))
    places = {"4": "2", "5": "3", "6": "4", "7": "5"}
    generator = {
        f"backbone.{places.get(name[0], name[0])}{name[1:]}": t
        for name, t in sequential(state).items()
    }
    assert "no ReLU" in _refused(tmp_path, lightning(generator))


def test_normalisations_that_the_file_does_not_tell_must_be_given(tmp_path):
    cifar = network("resnet18, cifar stem", 0).state_dict()
    told = _refused(tmp_path, cifar)
    assert "how the inputs of this CIFAR-stem network were normalised" in told
    assert "--normalisation" in told
    encoder = encoders.load(tmp_path / "x.pth", LoadOptions(normalisation="cifar10"))
    assert (encoder.input.resize, encoder.input.crop) == (32, 32)
    assert encoder.input.mean == (0.4914, 0.4822, 0.4465)
    assert "wide network" in _refused(tmp_path, network("resnet50x2", 0).state_dict())
    encoder = encoders.load(
        tmp_path / "x.pth",
        LoadOptions(normalisation="0.5,0.5,0.5,0.2,0.2,0.2", resize=300, crop=288),
    )
    assert (encoder.input.std, encoder.input.resize, encoder.input.crop) == (
        (0.2, 0.2, 0.2),
        300,
        288,
    )
    for wrong in ("imagnet", "1,2,3", "0.5,0.5,0.5,0.2,0.2,0", "nan,0,0,1,1,1"):
        told = _refused(tmp_path, cifar, LoadOptions(normalisation=wrong))
        assert "is not a normalisation" in told
    assert "--resize is at least --crop" in _refused(
        tmp_path, cifar, LoadOptions(normalisation="cifar10", crop=64)
    )


def test_an_input_asked_for_gives_another_key(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(training(moco(*(network("resnet18", seed).state_dict() for seed in (0, 1)))), path)
    readings = [
        None,
        LoadOptions(weights="momentum"),
        LoadOptions(normalisation="0-1"),
        LoadOptions(resize=288),
        LoadOptions(crop=192),
    ]
    assert len({encoders.load(path, reading).key for reading in readings}) == len(readings)
    for same in (
        LoadOptions(weights="query"),
        LoadOptions(normalisation="imagenet"),
        LoadOptions(resize=256, crop=224),
    ):
        assert encoders.load(path, same).key == encoders.load(path).key, (
            "what is the default anyway changes nothing"
        )
    with pytest.raises(UserError, match="--resize is at least --crop"):
        encoders.load(path, LoadOptions(crop=0))


def test_unknown_tensors_beside_the_stages_need_a_word(tmp_path):
    state = network("resnet18", 0).state_dict() | head("my_head.", 512, 10)
    told = _refused(tmp_path, {"state_dict": state})
    assert "1 unexpected (my_head.0.weight)" in told
    assert "--drop my_head" in told
    assert same_features(
        encoders.load(tmp_path / "x.pth", LoadOptions(drop=("my_head",))), network("resnet18", 0)
    )
    inside = network("resnet18", 0).state_dict() | {"layer1.0.se.weight": torch.zeros(3)}
    assert "--drop" not in _refused(tmp_path, inside)
    assert "1 unexpected (layer1.0.se.weight)" in _refused(
        tmp_path, inside, LoadOptions(drop=("layer1",))
    )


def test_spcl_s_unused_batchnorm_is_not_taken_for_the_real_one(tmp_path):
    """Loading its file by name alone would put a spare bn1 where stem.BN1 belongs."""
    net = network("resnet18", 0)
    torch.save(ORIGINS["SPCL"].build(net.state_dict(), {}), tmp_path / "checkpoint.pt")
    loaded = encoders.load(tmp_path / "checkpoint.pt").backbone
    assert torch.equal(loaded.bn1.weight, net.bn1.weight)
    assert not (loaded.bn1.weight == 7).any()


def test_names_that_collide_without_wrappers_are_refused(tmp_path):
    state = network("resnet18", 0).state_dict()
    assert "two tensors have one name" in _refused(tmp_path, state | under("module.", state))
