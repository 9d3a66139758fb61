"""Encoders from files: recognised by their parameter names, loaded whole or refused, every tensor accounted for.

The commonest way to a wrong number in this field is a checkpoint that was never really loaded (another key prefix,
``strict=False``, random weights evaluated without a word). Here a file either fills every tensor of the backbone or
is an error.
"""

import json
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from protobench import files
from protobench.backbones import ResNet, arch_name, arch_of
from protobench.errors import UserError
from protobench.transforms import EvalInput

LAYOUTS = {
    "MoCo/PCL": "module.encoder_q.",
    "MoCo/PCL, one process": "encoder_q.",
    "DistributedDataParallel": "module.",
    "torchvision": "",
}
"""Origin: what stands before ``conv1.weight``. The first that fits is taken; the order goes from long to short."""

WRAPPERS = ("_orig_mod.",)
"""Added by torch.compile anywhere in a name."""


@dataclass(frozen=True)
class Encoder:
    """A backbone ready to evaluate (eval mode), the input it expects, and the account of how it was loaded.

    ``key`` identifies the weights in caches and records.
    """

    backbone: ResNet
    input: EvalInput
    key: str
    account: dict[str, Any]

    def summary(self) -> str:
        """Two lines for the terminal: what was loaded, and the input it is given."""
        a, i = self.account, self.input
        dropped = ", ".join(a["dropped"]) or "nothing"
        where = f"from {a['prefix']!r}" if a["prefix"] else "at top level"
        return (f"{a['file']}: {a['origin']}, {a['arch']}, {a['matched']}/{a['expected']} backbone tensors {where}, "
                f"dropped {dropped}; sha256 {a['sha256'][:12]}\n"
                f"input: shorter side {i.resize}, centre {i.crop}, mean {i.mean}, std {i.std}")


def load(path: Path) -> Encoder:
    """Loads the backbone of a MoCo/PCL, torchvision or own checkpoint (``.safetensors`` or anything torch.load reads).

    Raises UserError where the file is missing, unreadable or unsafe, holds no ResNet under a known layout, or where a
    backbone tensor is missing, unexpected, of another shape, sparse or not finite.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", at=path, hint="nothing is evaluated in its place")
    state, metadata = _read(path)
    origin, prefix = _recognise(path, state)
    backbone_state = {name.removeprefix(prefix): tensor for name, tensor in state.items()
                      if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in _PARTS}
    try:
        arch = arch_of(backbone_state)
        with torch.device("meta"):
            backbone = ResNet(arch)
    except (UserError, ValueError, RuntimeError, ZeroDivisionError) as failure:
        raise UserError(f"{origin} checkpoint without a usable ResNet: {getattr(failure, 'what', failure)}", at=path) from failure
    expected = backbone.state_dict()
    _account_for(path, origin, backbone_state, expected)
    for name in expected:  # checkpoints from before 2018 lack the counters; nothing reads them
        backbone_state.setdefault(name, torch.zeros((), dtype=torch.long))
    backbone.load_state_dict(backbone_state, assign=True)
    kept = {prefix + name for name in backbone_state}
    sha256 = files.sha256_file(path)
    input_ = _input(path, metadata.get("input", {}))
    account = {
        "file": path.name, "sha256": sha256, "origin": metadata.get("origin", origin), "prefix": prefix,
        "arch": arch_name(arch), "matched": len(kept & state.keys()), "expected": len(expected),
        "dropped": sorted({_head(name, prefix) for name in state.keys() - kept}),
        "trained": metadata.get("trained"), "input": asdict(input_),
    }
    return Encoder(backbone.float().eval(), input_, metadata.get("key", sha256), account)


def _head(name: str, prefix: str) -> str:
    """What a left-out tensor belongs to: "module.encoder_q.fc", "module.queue"."""
    known = prefix if name.startswith(prefix) else ".".join(name.split(".")[:1]) + "."
    return known + name.removeprefix(known).split(".")[0]


def _input(path: Path, given: dict[str, Any]) -> EvalInput:
    try:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        input_ = EvalInput(**fields)
        if not 0 < input_.crop <= input_.resize or len(input_.mean) != 3 or len(input_.std) != 3:
            raise ValueError(f"crop {input_.crop} of {input_.resize}, mean {input_.mean}, std {input_.std}")
    except (TypeError, ValueError) as failure:
        raise UserError(f"the checkpoint's header describes no usable input: {failure}", at=path) from failure
    return input_


def export(path: Path, backbone: ResNet, *, key: str, input_: EvalInput, trained: dict[str, Any]) -> None:
    """Writes a backbone as safetensors under torchvision's names; ``trained`` (how it came to be) goes into the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    header = {"origin": "protobench", "key": key, "input": asdict(input_), "trained": trained}
    data = save(tensors, metadata={"protobench": files.canonical_json(header)})
    files.write_atomic(path, lambda file: file.write(data))


_PARTS = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of the file by name (wrappers stripped), and our own header where it has one."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise UserError("the checkpoint file is empty", at=path, hint="the download or copy failed; fetch it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError("this is a web page, not a checkpoint", at=path, hint="the download failed; open the file to see why")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                header = json.loads((tensors.metadata() or {}).get("protobench", "{}"))
                if not isinstance(header, dict):
                    raise ValueError("its protobench header is no object")
                return {name: tensors.get_tensor(name) for name in tensors.keys()}, header  # noqa: SIM118 (not a dict)
        with warnings.catch_warnings(action="ignore"):  # old storages, sparse layouts: what matters is checked below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError, RuntimeError, ValueError) as failure:
        raise UserError(f"cannot read the checkpoint: {_first_line(failure)}", at=path,
                        hint="it is truncated or damaged; compare its size and hash with the source") from failure
    except Exception as failure:  # pickle.UnpicklingError and whatever a hostile file provokes
        objects = ", ".join(sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(failure))))) or type(failure).__name__
        raise UserError(f"the checkpoint holds more than tensors and plain values: {objects}", at=path,
                        hint="it is never unpickled; save its state_dict alone, or convert it to safetensors") from failure
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    for wrapper in WRAPPERS:
        tensors = {name.replace(wrapper, ""): tensor for name, tensor in tensors.items()}
    return tensors, {}


def _first_line(failure: Exception) -> str:
    return (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]


def _recognise(path: Path, state: dict[str, Tensor]) -> tuple[str, str]:
    for origin, prefix in LAYOUTS.items():
        if prefix + "conv1.weight" in state:
            return origin, prefix
    stems = [name.removesuffix("conv1.weight") for name in state if name.endswith("conv1.weight") and "layer" not in name]
    raise UserError(
        f"no known layout: none of its {len(state)} tensors is one of "
        + ", ".join(f"{prefix}conv1.weight ({origin})" for origin, prefix in LAYOUTS.items()), at=path,
        hint=f"a ResNet seems to lie under {stems[0]!r}; rename that prefix to 'module.encoder_q.'" if stems
        else "its first names are " + ", ".join(sorted(state)[:3]) if state else "it holds no tensors")


def _usable(tensor: Tensor, counter: bool) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and (counter or (tensor.is_floating_point() and bool(torch.isfinite(tensor).all())))


def _account_for(path: Path, origin: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - found.keys() - counters)
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
                 for name in expected.keys() & found.keys() if found[name].shape != expected[name].shape]
    spoilt = [name for name, tensor in found.items() if not _usable(tensor, name in counters)]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": sorted(misshapen),
              "not dense finite floating-point numbers": sorted(spoilt)}
    if told := [f"{len(names)} {fault} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
                for fault, names in faults.items() if names]:
        raise UserError(f"{origin} checkpoint does not fill the backbone's {len(expected)} tensors: " + "; ".join(told),
                        at=path, hint="a half-loaded network is never evaluated")
