"""Loads encoders from files: recognised by their parameter names, whole or not at all, with every
tensor accounted for.

The most common cause of a wrong number in this field is a checkpoint that was never really loaded
(another key prefix, ``strict=False``, random weights evaluated silently). Here a file either fills
every tensor of the backbone or is an error."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from protobench.checkpoints import heads, identity, layouts, recognise, released, tensor_files, vit
from protobench.checkpoints.layouts import Copy, LoadOptions
from protobench.checkpoints.load_report import LoadReport
from protobench.checkpoints.recognise import Match
from protobench.checkpoints.resnet import Arch, ResNet, arch_name, arch_of, named
from protobench.checkpoints.tensor_files import TensorFile
from protobench.checkpoints.vit import ViT, ViTArch
from protobench.data.transforms import NORMALISATIONS, EvalInput
from protobench.runtime import files
from protobench.runtime.errors import UserError, printable
from protobench.runtime.notices import some
from protobench.runtime.precision import Precision

State = dict[str, Tensor]
"""Tensors by torchvision's names, those of a vision transformer by timm's."""


@dataclass(frozen=True)
class Encoder:
    """A backbone ready to evaluate (in eval mode), the input that it expects, and how it was
    loaded.

    ``key`` identifies the weights and their input in caches and records."""

    backbone: ResNet | ViT
    input: EvalInput
    key: str
    report: LoadReport
    projection: nn.Module | None = None
    """the projection head of this copy, if the file has one of known shape: maps pooled features
    [N, D] to [N, C]"""
    precision: Precision = "fp32"
    """precision of the network's arithmetic"""
    input_certain: bool = True
    """whether the input's normalisation is known, from our header or the user, and not assumed for
    the file's origin"""

    def resnet(self, why: str) -> ResNet:
        """Returns the backbone. Raises UserError, with the reason, if it is no ResNet."""
        if not isinstance(self.backbone, ResNet):
            raise UserError(
                f"this needs a ResNet, not a vision transformer: {why}", at=self.report.file
            )
        return self.backbone

    def summary(self) -> str:
        """Returns a few lines for the terminal: what was loaded, what was left out, and the
        input."""
        return self.report.summary()


def load(
    path: Path,
    reading: LoadOptions | None = None,
    *,
    prefer: Copy | None = None,
    trust: bool = False,
) -> Encoder:
    """Loads the backbone of a checkpoint in any layout of ``layouts.LAYOUTS``.

    ``reading`` settles what the file leaves open; ``prefer`` is the copy to take if neither does
    and the file has it; ``trust`` unpickles everything, which may run code. Raises UserError if
    the file is missing, unreadable, unsafe or has another hash than expected, if it fits no layout
    or several, or if a backbone tensor is missing, unexpected, misshapen, sparse or not finite."""
    reading = reading or LoadOptions()
    tensor_files.check(path)
    with ThreadPoolExecutor(1) as aside:  # hashing takes as long as loading, and no GIL
        hashing, file = aside.submit(identity.sha256_of, path), None
        try:
            file = tensor_files.read(path, trust=trust)
            names = _stripped(path, file.tensors)
            match = recognise.recognise(
                path, names, [*file.entries, *_facts(path, file.tensors)], reading, prefer
            )
            found = {
                ours: names[theirs]
                for ours, theirs in recognise.backbone(match.layout, match.prefix, names).items()
            }
        except UserError as mistake:  # adds the path, and what was left as data
            left = file.left_as_data if file else ()
            told = (
                [f"objects of {some(left, 5)} were read without running their code"] if left else []
            )
            hint = "; ".join([*([mistake.hint] if mistake.hint else []), *told])
            raise UserError(mistake.what, at=mistake.at or path, hint=hint or None) from mistake
        backbone = _network(path, match, file, found, reading)
        arch, expected = backbone.arch, _named_as_in_files(backbone).state_dict()
        tensors = {ours: file.tensors[name] for ours, name in found.items()}
        state = _take(path, match, tensors, expected, reading.drop, copy=file.mapped)
        sha256 = hashing.result()
    projection = _projection(match, tensors, backbone.out_channels)
    head = projection.state_dict() if projection else {}
    recorded = identity.check_published_hashes(path, reading.sha256)
    _verify(file, match, path, state | _named("projection.", head))
    input_ = _input(path, match, arch, file, reading)
    known = released.identify(path, sha256)
    if known and known.arch != _name(arch):
        raise UserError(
            f"named like the published {known.title}, a {known.arch}, but holds a {_name(arch)}",
            at=path,
            hint=f"give it another name, or take the published file: {known.page}",
        )
    matched = len(state)
    for name in expected.keys() - state.keys():  # counters, which older checkpoints lack
        state[name] = torch.zeros((), dtype=torch.long)
    is_untouched, positions = _untouched(state), ""
    if isinstance(backbone, ViT):
        assert match.layout.transformer, "a file of a ViT has one of their layouts"
        is_untouched = vit.untouched(state)
        how = match.layout.transformer.positions
        try:
            backbone, state, positions = vit.fitted(backbone, state, input_.crop, how)
        except UserError as mistake:
            raise UserError(mistake.what, at=path, hint=mistake.hint) from mistake
    _named_as_in_files(backbone).load_state_dict(state, assign=True)
    report = LoadReport(
        file=printable(path.name),
        sha256=sha256,
        hash_verified=recorded or bool(file.header),
        origin=str(file.header.get("origin", match.layout.origin)),
        released=known,
        copy=match.copy,
        prefix=_shown(match, found),
        arch=_name(arch),
        matched=matched,
        expected=len(expected),
        dropped=_dropped(match, names, set(found) - state.keys()),
        trained=file.header.get("trained"),
        input=input_,
        untouched=is_untouched,
        projection={name: list(t.shape) for name, t in head.items()},
        left_as_data=[printable(name) for name in file.left_as_data[:100]],
        feature=vit.FEATURES[arch.feature] if isinstance(arch, ViTArch) else "",
        positions=positions,
    )
    key = _key(path, match, arch, file, reading, input_, prefer)
    certain = bool(file.header) or reading.normalisation is not None
    is_resnet = isinstance(backbone, ResNet)
    if is_resnet and not certain and not report.untouched and _without_statistics(state):
        raise UserError(
            "the first BatchNorm has no statistics (all means 0, all variances equal), so whether"
            f" the inputs were normalised as usual for {report.origin} cannot be checked",
            at=path,
            hint=(f"say how with --normalisation: {', '.join(NORMALISATIONS)}, or six numbers"),
        )
    return Encoder(backbone.eval(), input_, key, report, projection, reading.precision, certain)


# What the file holds ------------------------------------------------------------------------------


def _stripped(path: Path, tensors: State) -> dict[str, str]:
    """Returns name without wrappers -> name in the file."""
    names: dict[str, str] = {}
    for name in tensors:
        if (other := names.setdefault(recognise.strip(name), name)) != name:
            raise UserError(
                f"two tensors have one name without module. and _orig_mod.: {other} and {name}",
                at=path,
            )
    return names


def _facts(path: Path, tensors: State) -> list[str]:
    """What recognition needs beside names: whether convolutions have TensorFlow's memory layout,
    outputs last; whether position embeddings are an origin's fixed ones; the kind of file."""
    facts = [layouts.SAFETENSORS] if path.suffix == ".safetensors" else []
    for name, tensor in tensors.items():
        if re.search(r"(^|[./])pos_embed$", name) and (origin := vit.fixed_positions(tensor)):
            facts.append(layouts.FIXED_POSITIONS.format(origin))
    kernels = (
        tensor
        for name, tensor in tensors.items()
        if name.endswith("conv1.weight") and tensor.layout == torch.strided
    )
    if any(k.ndim == 4 and k.shape[0] > 1 and k.stride(0) == 1 < k.stride(1) for k in kernels):
        facts.append(layouts.TENSORFLOW)
    return facts


def _network(
    path: Path, match: Match, file: TensorFile, found: dict[str, str], reading: LoadOptions
) -> ResNet | ViT:
    """Returns the network that the tensors belong to, on the meta device. Raises UserError if there
    is none, or another than --arch, or without timm for a vision transformer."""
    arch: Arch | ViTArch
    tensors = {ours: file.tensors[name] for ours, name in found.items()}
    if reading.vit_feature and not match.layout.transformer:
        raise UserError(
            f"--vit-feature {reading.vit_feature} is for vision transformers; this is a ResNet",
            at=path,
        )
    try:
        if match.layout.transformer:
            arch = vit.arch_of(tensors, match.layout.transformer, reading.vit_feature or "class")
        elif file.header:
            arch = Arch(**{**file.header["arch"], "depths": tuple(file.header["arch"]["depths"])})
        else:
            arch = arch_of(tensors, match.layout.cifar_stem)
        with torch.device("meta"):
            backbone = ViT(arch, arch.side) if isinstance(arch, ViTArch) else ResNet(arch)
    except UserError as mistake:
        raise UserError(
            f"{match.layout.origin} checkpoint: {mistake.what}", at=path, hint=mistake.hint
        ) from mistake
    except (TypeError, ValueError, LookupError, RuntimeError, OverflowError) as failure:
        raise UserError(
            f"the checkpoint's header describes no network: {failure}", at=path
        ) from failure
    if reading.arch and not _is_a(arch, reading.arch):
        raise UserError(
            f"the checkpoint holds a {_name(arch)}, not a {reading.arch}",
            at=path,
            hint="--arch only checks; leave it out, or give the intended file",
        )
    return backbone


def _named_as_in_files(backbone: ResNet | ViT) -> nn.Module:
    """The module whose tensors have the names that files have."""
    return backbone.net if isinstance(backbone, ViT) else backbone


def _name(arch: Arch | ViTArch) -> str:
    return arch.name if isinstance(arch, ViTArch) else arch_name(arch)


def _is_a(arch: Arch | ViTArch, name: str) -> bool:
    """Whether ``name`` is this network's, with whatever stem or patches."""
    if isinstance(arch, ViTArch):
        return name in (arch.name, arch.name.rpartition("_")[0])
    return named(name) in (arch, replace(arch, stem="imagenet"))


def _take(
    path: Path, match: Match, found: State, expected: State, drop: tuple[str, ...], *, copy: bool
) -> State:
    """Returns the backbone's tensors in float32, in memory. Raises UserError unless they are
    exactly the ``expected`` ones."""
    of_heads = {
        *layouts.HEADS,
        *match.layout.heads,
        *(() if match.layout.rename else drop),
    }  # renamed words may be the backbone's
    of_backbone = recognise.family_of(match.layout).named
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    unexpected = sorted(
        name
        for name in found.keys() - expected.keys()
        if of_backbone.match(name) or name.split(".")[0] not in of_heads
    )
    misshapen, spoilt, state = [], [], {}
    for name in sorted(expected.keys() & found.keys()):
        tensor = found[name]
        if name in counters and tensor.numel() == 1:  # some have a dimension; nothing reads them
            tensor = tensor.reshape(())
        if tensor.shape != expected[name].shape:
            misshapen.append(f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        elif (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or not (name in counters or tensor.is_floating_point())
        ):
            spoilt.append(name)
        else:
            state[name] = tensor.to(
                torch.long if name in counters else torch.float32, copy=copy
            ).contiguous()
            if not (
                torch.isfinite(state[name].sum()) or torch.isfinite(state[name]).all()
            ):  # the sum is the quick way
                spoilt.append(name)
    faults = {
        "missing": sorted(expected.keys() - found.keys() - counters),
        "unexpected": unexpected,
        "of another shape": misshapen,
        "not dense finite floating-point numbers": spoilt,
        "a negative variance": [
            name for name in state if name.endswith("running_var") and state[name].min() < 0
        ],
    }
    if told := [
        f"{len(names)} {fault} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for fault, names in faults.items()
        if names
    ]:
        parts = sorted({name.split(".")[0] for name in unexpected if not of_backbone.match(name)})
        heads_alone = parts and len(told) == 1 and not match.layout.rename
        raise UserError(
            f"{match.layout.origin} checkpoint does not fill the backbone's {len(expected)}"
            " tensors: " + "; ".join(told),
            at=path,
            hint=(
                f"if {', '.join(parts)} only belongs to a head: --drop {' '.join(parts)}"
                if heads_alone
                else "a half-loaded network is never evaluated"
            ),
        )
    return state


def _projection(match: Match, found: State, width: int) -> nn.Module | None:
    """Returns the copy's projection head; None if it has none of known shape (heads.py) that
    fits features of this width, or one with tensors that are not dense finite numbers."""
    prefix = match.layout.projection
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in found.items()
        if prefix and name.startswith(prefix)
    }
    head = heads.shaped_like(state, width)
    if head is None or not all(
        t.layout == torch.strided
        and t.device.type == "cpu"
        and (t.is_floating_point() or name.endswith("num_batches_tracked"))
        and torch.isfinite(t).all()
        and not (name.endswith("running_var") and t.min() < 0)
        for name, t in state.items()
    ):
        return None
    head.load_state_dict(
        {
            name: state[name].to(expected.dtype).contiguous()
            for name, expected in head.state_dict().items()
        },
        assign=True,
    )
    return head.eval()


def _input(
    path: Path, match: Match, arch: Arch | ViTArch, file: TensorFile, reading: LoadOptions
) -> EvalInput:
    """Returns the input from our header or the layout; ``reading`` overrides either."""
    try:
        if file.header:
            given = file.header["input"]
            fields: dict[str, Any] = {
                key: tuple(map(float, v)) if isinstance(v, list) else v for key, v in given.items()
            }
            input_ = EvalInput(**fields)
            if not all(
                type(size) is int and size < 10_000 for size in (input_.resize, input_.crop)
            ):
                raise ValueError(f"{input_.resize} and {input_.crop} are not sizes in pixels")
            if reading.normalisation:
                mean, std = layouts.normalisation(reading.normalisation)
                input_ = replace(input_, mean=mean, std=std)
        else:
            dataset = getattr(file.entries.get("opt"), "dataset", None)
            input_ = layouts.eval_input(
                path,
                match.layout,
                cifar=isinstance(arch, Arch) and arch.stem != "imagenet",
                wide=isinstance(arch, Arch) and arch.width > 64,
                dataset=dataset,
                given=reading.normalisation,
            )
            if isinstance(arch, ViTArch) and match.layout.transformer:
                crop = reading.crop or match.layout.transformer.crop or arch.side
                input_ = replace(input_, resize=round(crop * 256 / 224), crop=crop)
        resize, crop = (
            own if given is None else given
            for given, own in ((reading.resize, input_.resize), (reading.crop, input_.crop))
        )
        input_ = replace(input_, resize=resize, crop=crop)
        numbers = (input_.mean, input_.std)
        if (
            not 0 < crop <= resize
            or not all(isinstance(n, tuple) and len(n) == 3 for n in numbers)
            or min(input_.std) <= 0
        ):
            raise ValueError(f"crop {crop} of {resize}, mean {input_.mean}, std {input_.std}")
    except (TypeError, ValueError, AttributeError, KeyError) as failure:
        raise UserError(
            f"no usable input: {failure}", at=path, hint="--resize is at least --crop; see --help"
        ) from failure
    return input_


def _verify(file: TensorFile, match: Match, path: Path, state: State) -> None:
    """Raises UserError unless the weights are those that our header was written for."""
    content = file.header.get("content")
    if file.header and (
        not isinstance(content, dict) or digest_of(state) != content.get(match.copy)
    ):
        raise UserError(
            "the weights were changed: their hash differs from the header's",
            at=path,
            hint="the file is damaged or was edited; export it again",
        )


def digest_of(state: State) -> str:
    """Returns a hash of a backbone's tensors: names, shapes and values, without counters."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        digest.update(f"{name} {tuple(state[name].shape)} ".encode())
        digest.update(state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _shown(match: Match, found: dict[str, str]) -> str:
    """Returns the prefix as it is in the file, with wrappers."""
    ours, theirs = next(
        (ours, theirs) for ours, theirs in found.items() if ours.startswith(("layer", "blocks."))
    )
    return theirs.removesuffix(ours) if theirs.endswith(ours) else match.prefix


def _dropped(match: Match, names: dict[str, str], beside: set[str]) -> list[str]:
    """Returns what was left out, by the first distinctive word of each name: "encoder_k",
    "encoder_q.fc", "optimizer"."""
    *container, prefix = match.prefix.split("/")
    told = {prefix + name.split(".")[0] for name in beside}
    for name in names:
        if not name.startswith(match.prefix) or "/" in name[len(match.prefix) :]:
            *where, last = name.split("/")
            shared = len(
                list(
                    takewhile(lambda pair: pair[0] == pair[1], zip(where, container, strict=False))
                )
            )
            told.add(where[shared] if shared < len(where) else last.split(".")[0])
    return sorted(told)


def _untouched(state: State) -> bool:
    """Whether BatchNorm has never been trained, nor seen data: it has its initial values."""
    norms = {
        name: tensor
        for name, tensor in state.items()
        if re.search(r"(^|\.)(bn\d|downsample\.1)\.", name)
        and not name.endswith("num_batches_tracked")
    }
    return all(
        bool((tensor == (1.0 if name.endswith(("weight", "running_var")) else 0.0)).all())
        for name, tensor in norms.items()
    )


def _without_statistics(state: State) -> bool:
    """Whether the first BatchNorm's running statistics say nothing about the inputs, as after it
    was fused into the convolution."""
    mean, variance = state["bn1.running_mean"], state["bn1.running_var"]
    return bool((mean == 0).all() and (variance == variance[0]).all())


def _key(
    path: Path,
    match: Match,
    arch: Arch | ViTArch,
    file: TensorFile,
    reading: LoadOptions,
    input_: EvalInput,
    prefer: Copy | None,
) -> str:
    """Returns the key of the file, or another one if ``reading`` gives a different encoder than a
    load with default options."""
    usual = identity.encoder_key(path)
    try:
        same_input = _input(path, match, arch, file, LoadOptions()) == input_
    except UserError:  # the file does not tell its input
        same_input = False
    usual_copy = reading.weights == "auto" or (
        prefer is None and reading.weights == match.layout.evaluated
    )
    exact = reading.precision == "fp32"
    usual_feature = reading.vit_feature in (None, "class")
    if same_input and usual_copy and usual_feature and reading.prefix is None and exact:
        return usual
    return files.sha256(
        [usual, match.prefix, asdict(arch), asdict(input_), *(() if exact else [reading.precision])]
    )


# Writing ------------------------------------------------------------------------------------------


def export(
    path: Path,
    backbone: ResNet,
    *,
    key: str,
    input_: EvalInput,
    trained: dict[str, Any] | None,
    origin: str = "protobench",
    projection: nn.Module | None = None,
    momentum: tuple[ResNet, nn.Module] | None = None,
) -> None:
    """Writes a backbone as safetensors with torchvision's names and, if given, its projection head
    (``projection.…``) and the momentum encoder's backbone and head (``momentum.…``). The header
    holds its shape, the input that it expects, hashes of its weights, and ``trained``: how it was
    trained. Raises ValueError for a head that could not be loaded again."""
    for head in (projection, momentum and momentum[1]):
        if head and not heads.shaped_like(head.state_dict(), backbone.out_channels):
            raise ValueError(
                "no head of checkpoints/heads.py for this backbone has these tensors:"
                f" {', '.join(head.state_dict())}; export the backbone alone"
            )
    copies = {"query": _with_head(backbone, projection)} | (
        {"momentum": _with_head(*momentum)} if momentum else {}
    )
    tensors = {
        ("momentum." if copy == "momentum" else "") + name: tensor.detach().cpu().contiguous()
        for copy, state in copies.items()
        for name, tensor in state.items()
    }
    sealed = header(
        backbone,
        key=key,
        input_=input_,
        trained=trained,
        origin=origin,
        content={copy: digest_of(state) for copy, state in copies.items()},
    )
    data = save(tensors, metadata={"format": "pt", "protobench": sealed})
    files.write_atomic(path, lambda file: file.write(data))


def header(
    backbone: ResNet,
    *,
    key: str,
    input_: EvalInput,
    trained: dict[str, Any] | None,
    origin: str,
    content: dict[str, str],
) -> str:
    """Returns the header of an exported file, as JSON with a hash of all of it."""
    told = json.loads(
        files.canonical_json(
            {
                "origin": origin,
                "key": key,
                "arch": asdict(backbone.arch),
                "input": asdict(input_),
                "trained": trained,
                "content": content,
            }
        )
    )
    return files.canonical_json({**told, "sha256": files.sha256(told)})


def _with_head(backbone: ResNet, projection: nn.Module | None) -> State:
    return {
        **backbone.state_dict(),
        **_named("projection.", projection.state_dict() if projection else {}),
    }


def _named(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
