"""Checkpoints as each code base writes them, built from the facts of its layout: containers, names,
heads, other copies.

``mine`` are the weights that its authors evaluate, ``other`` those of a further copy, both under
torchvision's names."""

import contextlib
import pickle
import sys
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """``build(mine, other)`` gives the file's content; the rest is what loading it must find."""

    layout: str
    build: Callable[[State, State], Any]
    copy: str = "query"
    other: bool = False
    """whether the other copy can be had with --weights"""
    arch: str = "resnet18"
    normalisation: str = "imagenet"
    legacy: bool = False
    plain: bool = False
    """a plain pickle, not torch.save's"""
    left: str = ""
    """names of the file's own code, which is not run"""

    def save(self, path: Path, content: Any) -> Path:
        """Writes the file as its code base would, with that code at hand."""
        with (
            importable(),
            warnings.catch_warnings(action="ignore"),
        ):  # torch wants the sources of classes
            if self.plain:
                path.write_bytes(pickle.dumps(content))
            else:
                torch.save(content, path, _use_new_zipfile_serialization=not self.legacy)
        return path


# Code of the repositories that wrote the files, which no reader has -------------------------------

RAN: list[str] = []
"""What ran of it; nothing may."""


def _foreign(module: str, name: str, base: type = object) -> type:
    def told(self: Any, state: Any) -> None:
        RAN.append(f"{module}.{name}")
        self.__dict__.update(state)

    return type(name, (base,), {"__module__": module, "__qualname__": name, "__setstate__": told})


def exclude_bias_and_norm(p: Any) -> bool:
    """A filter of parameters; the training script defines it."""
    RAN.append("exclude_bias_and_norm")
    return p.ndim == 1


exclude_bias_and_norm.__module__ = "__main__"
OwnResNet, OwnBlock = (
    _foreign("models.resnet", name, nn.Module) for name in ("ResNet", "BasicBlock")
)
SimCLR = _foreign("__main__", "SimCLR", nn.Module)
LinearAverage = _foreign("lib.LinearAverage", "LinearAverage", nn.Module)


class Watch:
    """Tells of every attempt to import that code: for sys.meta_path."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name.split(".")[0] in ("models", "lib"):
            RAN.append(f"import {name}")


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """While a file is written; afterwards nothing of it is left."""
    made = {}
    for item in (exclude_bias_and_norm, OwnResNet, OwnBlock, SimCLR, LinearAverage):
        for name in accumulate(item.__module__.split("."), "{}.{}".format):
            if name != "__main__":
                made[name] = sys.modules.setdefault(name, ModuleType(name))
        setattr(sys.modules[item.__module__], item.__name__, item)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
        for item in (exclude_bias_and_norm, SimCLR):
            delattr(sys.modules["__main__"], item.__name__)


def whole(state: State, top: type, block: type = nn.Module) -> nn.Module:
    """The network itself, with a buffer that is not saved."""
    net = top()
    net.register_buffer("scratch", torch.ones(3), persistent=False)
    for name, tensor in state.items():
        *path, last = name.split(".")
        node = net
        for part in path:
            if part not in node._modules:
                node.add_module(part, block() if part.isdigit() else nn.Module())
            node = node._modules[part]
        if "running" in last or "num_batches" in last:
            node.register_buffer(last, tensor)
        else:
            node.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return net


def average(classes: int = 8) -> nn.Module:
    """InstDisc's memory bank."""
    bank = LinearAverage()
    bank.register_buffer("params", torch.tensor([0.07, 0.5]))
    bank.register_buffer("memory", torch.ones(classes, 4))
    return bank


def with_filter(content: dict[str, Any]) -> dict[str, Any]:
    for group in content["optimizer"]["param_groups"]:
        group |= {
            "weight_decay_filter": exclude_bias_and_norm,
            "lars_adaptation_filter": exclude_bias_and_norm,
        }
    return content


# Their contents -----------------------------------------------------------------------------------


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def head(prefix: str, *sizes: int) -> State:
    """An MLP as nn.Sequential names it: fc.0.weight, fc.2.weight, …"""
    return {f"{prefix}{2 * i}.weight": torch.ones(b, a) for i, (a, b) in enumerate(pairwise(sizes))}


def linear(prefix: str, classes: int = 1000, width: int = 512) -> State:
    return {f"{prefix}weight": torch.zeros(classes, width), f"{prefix}bias": torch.zeros(classes)}


def optimizer(state: State) -> dict[str, Any]:
    return {
        "state": {
            i: {"momentum_buffer": torch.zeros_like(t)} for i, t in enumerate(state.values())
        },
        "param_groups": [{"lr": 0.03, "params": list(range(len(state)))}],
    }


def tensorflow(state: State) -> State:
    """Convolutions in TensorFlow's memory order (height, width, in, out), seen through a
    permutation."""
    return {
        name: t.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1) if t.ndim == 4 else t
        for name, t in state.items()
    }


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    def new(name: str) -> str:
        for old, to in pairs:
            name = name.replace(old, to)
        return name

    return {new(name): tensor for name, tensor in state.items()}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def training(state: State, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": state,
        "optimizer": optimizer(state),
        **more,
    }


def lightning(state: State, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 99,
        "global_step": 5,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [optimizer(state)],
        "lr_schedulers": [],
        **more,
    }


def mmengine(state: State) -> dict[str, Any]:
    return {
        "meta": {"cfg": "model = dict()", "seed": 0, "epoch": 200},
        "state_dict": state,
        "param_schedulers": [],
    }


def moco(mine: State, other: State) -> State:
    queue = {
        "module.queue": torch.ones(128, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return (
        under("module.encoder_q.", mine)
        | head("module.encoder_q.fc.", 512, 512, 128)
        | under("module.encoder_k.", other)
        | head("module.encoder_k.fc.", 512, 512, 128)
        | queue
    )


def sequential(state: State) -> State:
    """nn.Sequential(*list(resnet.children())[:-1])."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {
        f"{places[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor
        for name, tensor in state.items()
    }


def simclr_v2(state: State) -> State:
    """net.0 the stem, net.1 … net.4 the stages; a block's convolutions and norms are net.0,
    net.1.0, net.2, net.3.0, …"""
    new = {}
    for name, tensor in state.items():
        words = name.split(".")
        if words[0] == "conv1":
            key = "net.0.0.weight"
        elif words[0] == "bn1":
            key = f"net.0.1.0.{words[1]}"
        else:
            inner = {
                "conv1": "net.0",
                "bn1": "net.1.0",
                "conv2": "net.2",
                "bn2": "net.3.0",
                "conv3": "net.4",
                "bn3": "net.5.0",
                "downsample": "projection.bn.0" if words[3] == "1" else "projection.shortcut",
            }[words[2]]
            key = f"net.{words[0][-1]}.blocks.{words[1]}.{inner}.{words[-1]}"
        new[key] = tensor
    return new


def spcl(state: State) -> State:
    """Its own stem, and a bn1 that its forward never uses: the trap of loading by name."""
    spare = {
        f"bn1.{name}": torch.full_like(state[f"bn1.{name}"], 7)
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    own = {
        (
            name.replace("conv1.", "stem.conv0.", 1)
            if name.startswith("conv1.")
            else name.replace("bn1.", "stem.BN1.", 1)
            if name.startswith("bn1.")
            else name
        ): tensor
        for name, tensor in state.items()
    }
    return own | spare


def detectron2(state: State) -> State:
    new = {}
    for name, tensor in state.items():
        key = name if "layer" in name else f"stem.{name}"
        for n in (4, 3, 2, 1):
            key = key.replace(f"layer{n}", f"res{n + 1}")
        for n in (1, 2, 3):
            key = key.replace(f"bn{n}", f"conv{n}.norm")
        new[key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = (
            tensor
        )
    return new


def vissl(mine: State, other: State | None = None) -> dict[str, Any]:
    trunk = under("_feature_blocks.", mine)
    model = {"trunk": trunk, "heads": head("0.clf.", 512, 128)}
    loss = (
        {"loss": under("moco_encoder.trunk._feature_blocks.", other) | {"queue": torch.ones(8, 8)}}
        if other
        else {}
    )
    return {
        "phase_idx": 199,
        "type": "consolidated",
        "classy_state_dict": {"base_model": {"model": model, "meta": {}}},
        **loss,
    }


def mmcv(state: State) -> State:
    """A model in which mmcv 1.x averages: every parameter again, as a buffer whose name has no
    dots."""
    return under("backbone.", state) | {
        f"ema_backbone_{name.replace('.', '_')}": tensor + 1
        for name, tensor in state.items()
        if "running" not in name and "num_batches" not in name
    }


ORIGINS = {
    "MoCo v2 or PCL v2": Origin(
        "MoCo, PCL or MoPro", lambda m, o: training(moco(m, o)), other=True
    ),
    "MoCo v1, legacy format": Origin(
        "MoCo, PCL or MoPro",
        lambda m, o: training(under("module.encoder_q.", m) | linear("module.encoder_q.fc.", 128)),
        legacy=True,
    ),
    "MoPro": Origin(
        "MoCo, PCL or MoPro",
        lambda m, o: training(
            moco(m, o)
            | linear("module.encoder_q.classifier.")
            | linear("module.encoder_q.fc1.")
            | linear("module.encoder_q.fc2.")
            | {"module.prototypes": torch.ones(1000, 128)}
        ),
        other=True,
    ),
    "MoCo v3": Origin(
        "MoCo v3",
        lambda m, o: training(
            under("module.base_encoder.", m)
            | head("module.base_encoder.fc.", 512, 64)
            | under("module.momentum_encoder.", o)
            | head("module.predictor.", 64, 64),
            scaler={"scale": 1.0},
        ),
        other=True,
    ),
    "SimSiam": Origin(
        "SimSiam",
        lambda m, o: training(
            under("module.encoder.", m)
            | head("module.encoder.fc.", 512, 64)
            | head("module.predictor.", 64, 64)
        ),
    ),
    "torchvision": Origin(
        "torchvision's names",
        lambda m, o: OrderedDict(
            {
                k: torch.nn.Parameter(t) if t.is_floating_point() else t
                for k, t in (m | linear("fc.")).items()
            }
        ),
    ),
    "torchvision, 2017": Origin(
        "torchvision's names", lambda m, o: without_counters(m) | linear("fc."), legacy=True
    ),
    "timm, training": Origin(
        "timm, with averaged weights",
        lambda m, o: training(
            o | linear("fc."),
            state_dict_ema=m | linear("fc."),
            args=Namespace(model="resnet18"),
            version=2,
            metric=76.1,
        ),
        copy="momentum",
        other=True,
    ),
    "compiled, in DistributedDataParallel": Origin(
        "torchvision's names", lambda m, o: {"model": under("module._orig_mod.", m)}
    ),
    "DistributedDataParallel, compiled": Origin(
        "torchvision's names", lambda m, o: under("_orig_mod.module.", m)
    ),
    "MoCo, compiled inside": Origin(
        "MoCo, PCL or MoPro", lambda m, o: training(under("module.encoder_q._orig_mod.", m))
    ),
    "mmselfsup 1.x MoCo": Origin(
        "mmselfsup or mmpretrain, MoCo",
        lambda m, o: mmengine(
            under("backbone.", m)
            | head("neck.mlp.", 512, 128)
            | under("encoder_k.module.0.", o)
            | head("encoder_k.module.1.mlp.", 512, 128)
            | {"encoder_k.steps": torch.tensor(5), "queue": torch.ones(8, 8)}
        ),
        other=True,
    ),
    "mmselfsup 0.x MoCo": Origin(
        "mmselfsup or mmpretrain, MoCo",
        lambda m, o: mmengine(
            under("encoder_q.0.", m)
            | head("encoder_q.1.mlp.", 512, 128)
            | under("encoder_k.0.", o)
            | under("backbone.", m)
            | head("neck.mlp.", 512, 128)
        ),
        other=True,
    ),
    "mmselfsup BYOL": Origin(
        "mmselfsup or mmpretrain, BYOL",
        lambda m, o: mmengine(
            under("backbone.", m)
            | under("target_net.module.0.", o)
            | {"target_net.steps": torch.tensor(1)}
        ),
        other=True,
    ),
    "mmselfsup SimCLR": Origin(
        "mmselfsup or mmpretrain",
        lambda m, o: mmengine(under("backbone.", m) | linear("neck.fc0.")),
    ),
    "mmselfsup 0.x SimSiam": Origin(
        "mmselfsup or mmpretrain",
        lambda m, o: mmengine(under("backbone.", m) | under("encoder.0.", m)),
    ),
    "mmselfsup, extracted": Origin(
        "torchvision's names", lambda m, o: {"state_dict": m, "author": "MMSelfSup"}
    ),
    "solo-learn": Origin(
        "solo-learn",
        lambda m, o: lightning(
            under("backbone.", m)
            | under("momentum_backbone.", o)
            | head("projector.", 512, 128)
            | linear("classifier.", 100)
        ),
        other=True,
    ),
    "solo-learn, 2021": Origin(
        "solo-learn, before 2022",
        lambda m, o: lightning(
            under("encoder.", m)
            | under("momentum_encoder.", o)
            | head("projector.", 512, 128)
            | linear("classifier.", 100)
        ),
        other=True,
    ),
    "solo-learn, CIFAR": Origin(
        "solo-learn",
        lambda m, o: lightning(
            under("backbone.", m) | head("projector.", 512, 128) | linear("classifier.", 10)
        ),
        arch="resnet18, cifar-padded stem",
        normalisation="0.4914,0.4822,0.4465,0.247,0.243,0.261",
    ),
    "lightly MoCo": Origin(
        "lightly, MoCo",
        lambda m, o: lightning(
            under("backbone.", m)
            | under("key_backbone.", o)
            | head("projection_head.layers.", 512, 128),
            hyper_parameters={},
        ),
        other=True,
    ),
    "lightly BYOL": Origin(
        "lightly, BYOL",
        lambda m, o: lightning(
            under("backbone.", m)
            | under("teacher_backbone.", o)
            | linear("online_classifier.classification_head.")
        ),
        other=True,
    ),
    "lightly DINO": Origin(
        "lightly, DINO",
        lambda m, o: lightning(under("backbone.", m) | under("student_backbone.", o)),
        copy="momentum",
        other=True,
    ),
    "lightly SimCLR": Origin(
        "lightly or another Lightning module",
        lambda m, o: lightning(under("backbone.", m) | head("projection_head.layers.", 512, 128)),
    ),
    "lightly, sequential": Origin(
        "lightly, sequential backbone", lambda m, o: lightning(under("backbone.", sequential(m)))
    ),
    "VISSL": Origin("VISSL", lambda m, o: vissl(m)),
    "VISSL MoCo": Origin("VISSL", lambda m, o: vissl(m, o), other=True),
    "SimCLR, converted": Origin(
        "SimCLR, converted from TensorFlow",
        lambda m, o: {"state_dict": tensorflow(m | linear("fc."))},
        normalisation="0-1",
    ),
    "SimCLR 2x, converted": Origin(
        "SimCLR, converted from TensorFlow",
        lambda m, o: {"state_dict": tensorflow(m)},
        arch="resnet50x2",
        normalisation="0-1",
    ),
    "SimCLR v2, converted": Origin(
        "SimCLR v2, converted from TensorFlow",
        lambda m, o: {
            "resnet": simclr_v2(tensorflow(m)) | linear("fc.", 1000, 2048),
            "head": linear("layers.0.", 2048, 2048),
        },
        arch="resnet50",
        normalisation="0-1",
    ),
    "sthalles/SimCLR": Origin(
        "sthalles/SimCLR",
        lambda m, o: training(
            under("backbone.", m) | linear("backbone.fc.0.", 512) | linear("backbone.fc.2.", 128)
        ),
        normalisation="0-1",
    ),
    "SupContrast": Origin(
        "SupContrast",
        lambda m, o: {
            "opt": Namespace(dataset="cifar100", batch_size=512),
            "epoch": 1000,
            "optimizer": optimizer(m),
            "model": (
                under("encoder.module.", renamed(m, ("downsample.", "shortcut.")))
                | linear("head.0.", 512)
            ),
        },
        arch="resnet18, cifar stem",
        normalisation="0.5071,0.4867,0.4408,0.2675,0.2565,0.2761",
    ),
    "SwAV": Origin(
        "SwAV or DeepCluster v2",
        lambda m, o: (
            under("module.", m)
            | head("module.projection_head.", 512, 128)
            | {"module.prototypes.weight": torch.ones(30, 128)}
        ),
        normalisation="0.485,0.456,0.406,0.228,0.224,0.225",
    ),
    "DeepCluster v2, training": Origin(
        "SwAV or DeepCluster v2",
        lambda m, o: {
            "epoch": 1,
            "optimizer": optimizer(m),
            "state_dict": (
                under("module.", m) | {"module.prototypes.prototypes0.weight": torch.ones(30, 128)}
            ),
        },
        normalisation="0.485,0.456,0.406,0.228,0.224,0.225",
    ),
    "DINO": Origin(
        "DINO",
        lambda m, o: {
            "student": under("module.backbone.", o) | head("module.head.mlp.", 512, 64),
            "optimizer": optimizer(m),
            "epoch": 5,
            "teacher": under("module.backbone.", m),
            "args": Namespace(arch="resnet18"),
            "dino_loss": {"center": torch.ones(1, 8)},
        },
        copy="momentum",
        other=True,
    ),
    "DINO, VICReg or Barlow Twins, backbone": Origin("torchvision's names", lambda m, o: m),
    "Barlow Twins": Origin(
        "Barlow Twins or VICReg",
        lambda m, o: {
            "epoch": 1,
            "optimizer": optimizer(m),
            "model": under("module.backbone.", m) | head("module.projector.", 512, 64),
        },
    ),
    "SPCL": Origin(
        "SPCL",
        lambda m, o: {
            "encoder": spcl(m),
            "mlp": linear("projection_head.W1."),
            "optimiser": optimizer(m),
            "epoch": 5,
        },
    ),
    "SPCL, several GPUs, CIFAR": Origin(
        "SPCL",
        lambda m, o: {"encoder": under("module.", spcl(m)), "mlp": {}, "optimiser": {}, "epoch": 5},
        arch="resnet18, cifar stem",
        normalisation="cifar10",
    ),
    "PyContrast": Origin(
        "PyContrast or CMC",
        lambda m, o: {
            "model": under("module.encoder.", m) | head("module.head.", 512, 128),
            "model_ema": under("encoder.", o),
            "contrast": {"memory": torch.ones(8, 8)},
            "optimizer": {},
            "epoch": 1,
        },
        other=True,
    ),
    "detectron2": Origin(
        "detectron2",
        lambda m, o: {"model": detectron2(m), "__author__": "MOCO", "matching_heuristics": True},
        arch="resnet50",
    ),
    "detectron2, MoCo's converter": Origin(
        "detectron2",
        lambda m, o: {
            "model": {name: tensor.numpy() for name, tensor in detectron2(m).items()},
            "__author__": "MOCO",
            "matching_heuristics": True,
        },
        arch="resnet50",
        plain=True,
    ),
    "VICReg, training": Origin(
        "Barlow Twins or VICReg",
        lambda m, o: with_filter(
            {
                "epoch": 1000,
                "optimizer": optimizer(m),
                "model": under("module.backbone.", m) | head("module.projector.", 512, 64),
            }
        ),
        left="__main__.exclude_bias_and_norm",
    ),
    "InstDisc": Origin(
        "torchvision's names",
        lambda m, o: training(
            under("module.", m) | linear("module.fc.", 128),
            lemniscate=average(),
            best_prec1=torch.tensor(41.2),
        ),
        legacy=True,
        left="lib.LinearAverage.LinearAverage",
    ),
    "whole model of a package": Origin(
        "torchvision's names",
        lambda m, o: whole(m | linear("fc."), OwnResNet, OwnBlock),
        left="models.resnet.BasicBlock models.resnet.ResNet",
    ),
    "whole model, legacy format": Origin(
        "torchvision's names",
        lambda m, o: {"epoch": 3, "model": whole(m, OwnResNet)},
        legacy=True,
        left="models.resnet.ResNet",
    ),
    "whole model of a script": Origin(
        "sthalles/SimCLR",
        lambda m, o: {
            "arch": "resnet18",
            "state_dict": whole(
                under("backbone.", m)
                | linear("backbone.fc.0.", 512)
                | linear("backbone.fc.2.", 128),
                SimCLR,
            ),
        },
        normalisation="0-1",
        left="__main__.SimCLR",
    ),
    "whole model in DataParallel": Origin(
        "MoCo, PCL or MoPro",
        lambda m, o: {
            "model": nn.DataParallel(
                whole(under("encoder_q.", m) | under("encoder_k.", o), OwnResNet)
            )
        },
        other=True,
        left="models.resnet.ResNet",
    ),
    "mmengine, averaged": Origin(
        "mmengine, with averaged weights",
        lambda m, o: (
            mmengine(under("backbone.", m))
            | {"ema_state_dict": under("module.backbone.", o) | {"steps": torch.tensor(7)}}
        ),
        copy="momentum",
        other=True,
    ),
    "mmpretrain, averaged and extracted": Origin(
        "mmengine, with averaged weights",
        lambda m, o: {"meta": {}, "state_dict": m, "ema_state_dict": under("module.", o)},
        copy="momentum",
        other=True,
    ),
    "mmcv 1.x, averaged": Origin("mmselfsup or mmpretrain", lambda m, o: mmengine(mmcv(m))),
    "averaged, anyone's": Origin(
        "another, with averaged weights", lambda m, o: training(m, ema_state_dict=o), other=True
    ),
    "averaged, anyone's backbone": Origin(
        "another, with averaged weights",
        lambda m, o: training(
            under("backbone.", m) | linear("head."), ema_state_dict=under("module.backbone.", o)
        ),
        other=True,
    ),
    "AugNet": Origin(
        "AugNet",
        lambda m, o: under("module.pre.", m) | linear("module.pre.fc.", 768, 2048),
        arch="resnet50",
    ),
}

AVERAGED = " ".join(
    sorted(
        name
        for name in mmcv(torchvision.models.resnet18().state_dict())
        if name.startswith("ema_") and "_fc_" not in name
    )
)
DROPPED = {
    "MoCo v2 or PCL v2": "encoder_k encoder_q.fc optimizer queue queue_ptr",
    "MoCo v1, legacy format": "encoder_q.fc optimizer",
    "MoPro": (
        "encoder_k encoder_q.classifier encoder_q.fc encoder_q.fc1 encoder_q.fc2 optimizer"
        " prototypes queue queue_ptr"
    ),
    "MoCo v3": "base_encoder.fc momentum_encoder optimizer predictor",
    "SimSiam": "encoder.fc optimizer predictor",
    "torchvision": "fc",
    "torchvision, 2017": "fc",
    "timm, training": "fc optimizer state_dict",
    "compiled, in DistributedDataParallel": "",
    "DistributedDataParallel, compiled": "",
    "MoCo, compiled inside": "optimizer",
    "mmselfsup 1.x MoCo": "encoder_k neck queue",
    "mmselfsup 0.x MoCo": "encoder_k encoder_q neck",
    "mmselfsup BYOL": "target_net",
    "mmselfsup SimCLR": "neck",
    "mmselfsup 0.x SimSiam": "encoder",
    "mmselfsup, extracted": "",
    "solo-learn": "classifier momentum_backbone optimizer_states projector",
    "solo-learn, 2021": "classifier momentum_encoder optimizer_states projector",
    "solo-learn, CIFAR": "classifier optimizer_states projector",
    "lightly MoCo": "key_backbone optimizer_states projection_head",
    "lightly BYOL": "online_classifier optimizer_states teacher_backbone",
    "lightly DINO": "optimizer_states student_backbone",
    "lightly SimCLR": "optimizer_states projection_head",
    "lightly, sequential": "optimizer_states",
    "VISSL": "heads",
    "VISSL MoCo": "heads loss",
    "SimCLR, converted": "fc",
    "SimCLR 2x, converted": "",
    "SimCLR v2, converted": "fc head",
    "sthalles/SimCLR": "backbone.fc optimizer",
    "SupContrast": "head optimizer",
    "SwAV": "projection_head prototypes",
    "DeepCluster v2, training": "optimizer prototypes",
    "DINO": "dino_loss optimizer student",
    "DINO, VICReg or Barlow Twins, backbone": "",
    "Barlow Twins": "optimizer projector",
    "SPCL": "mlp optimiser unused",
    "SPCL, several GPUs, CIFAR": "unused",
    "PyContrast": "contrast head model_ema",
    "detectron2": "",
    "detectron2, MoCo's converter": "",
    "VICReg, training": "optimizer projector",
    "InstDisc": "best_prec1 fc lemniscate optimizer",
    "whole model of a package": "fc",
    "whole model, legacy format": "",
    "whole model of a script": "backbone.fc",
    "whole model in DataParallel": "encoder_k",
    "mmengine, averaged": "ema_state_dict",
    "mmpretrain, averaged and extracted": "ema_state_dict",
    "mmcv 1.x, averaged": AVERAGED,
    "averaged, anyone's": "ema_state_dict optimizer",
    "averaged, anyone's backbone": "ema_state_dict head optimizer",
    "AugNet": "pre.fc",
}
"""What loading leaves out of each, and says so."""
