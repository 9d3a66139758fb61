"""Writes a backbone for other programs, with a model card beside it; reads every file back and
compares it."""

import contextlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from protobench import records
from protobench.checkpoints import encoders, identity, released
from protobench.checkpoints.encoders import Encoder
from protobench.checkpoints.resnet import ResNet
from protobench.runtime import files
from protobench.runtime.errors import UserError

Target = Literal["protobench", "torchvision", "timm", "moco", "mmdet", "detectron2"]
"""protobench: ours, with the projection head; the others hold only the backbone, as their programs
expect it."""

PLAIN = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""Networks that other programs build under these names."""

USE = {
    "torchvision": (
        "model = torchvision.models.{arch}()\nmodel.fc ="
        " torch.nn.Identity()\nmodel.load_state_dict({load})"
    ),
    "timm": 'model = timm.create_model("{arch}", checkpoint_path="{file}", num_classes=0)',
    "moco": "python main_lincls.py -a {arch} --pretrained {file} …   # of facebookresearch/moco",
    "mmdet": (
        "backbone=dict(type='ResNet', depth=…, style='pytorch',  # not 'caffe': it would load"
        " without a word\n              init_cfg=dict(type='Pretrained', checkpoint='{file}'))"
    ),
    "detectron2": (
        'MODEL:\n  WEIGHTS: "{file}"\n  PIXEL_MEAN: {mean255}\n  PIXEL_STD: {std255}\n'
        '  RESNETS:\n    STRIDE_IN_1X1: False\nINPUT:\n  FORMAT: "RGB"'
    ),
}
"""How each program reads its file, for the card."""


def export(encoder: Encoder, path: Path, target: Target) -> None:
    """Writes ``encoder`` for ``target`` and reads it back; keeps it only if features and input are
    the same.

    Raises UserError for a suffix that the target does not read, for a network or an input that its
    names cannot express, for a vision transformer, and for file names that promise a hash."""
    backbone = encoder.resnet("the file itself already has timm's names, which timm reads")
    arch = encoder.report.arch
    if target in ("moco", "mmdet", "detectron2") and arch not in PLAIN:
        raise UserError(
            f"{target} would load a {arch} only in part, with just a warning",
            at=path,
            hint="--layout torchvision with a .safetensors file keeps any network",
        )
    if identity.HASH_IN_NAME.search(path.name) or path.name in {
        entry.file for entry in released.catalogue().values()
    }:
        raise UserError(
            "this is a published file's name, or promises a hash that the file will not have",
            at=path,
            hint="choose another",
        )
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if path.suffix == ".safetensors" and target in ("protobench", "torchvision", "timm"):
            # another key: scores that use several copies may differ from the source's
            key = files.sha256([encoder.key, "one copy"])
            encoders.export(
                temporary,
                backbone,
                key=key,
                input_=encoder.input,
                trained=_history(encoder),
                projection=encoder.projection if target == "protobench" else None,
                origin=encoder.report.origin,
            )
        elif path.suffix in (".pth", ".pt", ".tar") and target != "protobench":
            content = _content(encoder, backbone, target)
            files.write_atomic(temporary, partial(torch.save, content))
        else:
            raise UserError(
                f"{target} does not read {path.suffix or 'files without a suffix'}",
                at=path,
                hint={
                    "protobench": "give it the suffix .safetensors",
                    "torchvision": ".safetensors or .pth",
                    "timm": ".safetensors or .pth",
                }.get(target, "give it the suffix .pth"),
            )
        _verify(encoder, temporary, path)
        with files.writing(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # the file may be absent, or its folder
            temporary.unlink()


def _history(encoder: Encoder) -> dict[str, Any]:
    """How the weights were trained, or at least the file that they are from."""
    report = encoder.report
    return report.trained or {
        "file": report.file,
        "sha256": report.sha256,
        "origin": report.origin,
        "copy": report.copy,
    }


def _content(encoder: Encoder, backbone: ResNet, target: Target) -> dict[str, Any]:
    """What torch.save writes, with BatchNorm's counters, which MoCo's sanity check needs."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()
    }
    header = {
        "protobench": encoders.header(
            backbone,
            key=encoder.key,
            input_=encoder.input,
            trained=_history(encoder),
            origin=encoder.report.origin,
            content={"query": encoders.digest_of(state)},
        )
    }
    match target:
        case "moco":
            return {
                "epoch": 0,
                "arch": encoder.report.arch,
                **header,
                "state_dict": {
                    f"module.encoder_q.{name}": tensor for name, tensor in state.items()
                },
            }
        case "mmdet":
            return {"state_dict": state, **header}
        case "detectron2":
            return {
                "model": {_detectron(name): tensor for name, tensor in state.items()},
                "__author__": "protobench",
                "matching_heuristics": True,
                **header,
            }
    return state


def _detectron(name: str) -> str:
    """detectron2's name: layer1.0.bn1.weight -> res2.0.conv1.norm.weight."""
    words = name.split(".")
    if words[0].startswith("layer"):
        words[0] = f"res{int(words[0][-1]) + 1}"
    else:
        words.insert(0, "stem")
    name = (
        ".".join(words)
        .replace(".downsample.0.", ".shortcut.")
        .replace(".downsample.1.", ".shortcut.norm.")
    )
    for n in (1, 2, 3):
        name = name.replace(f".bn{n}.", f".conv{n}.norm.")
    return name


def _verify(encoder: Encoder, written: Path, path: Path) -> None:
    try:
        again = encoders.load(written)
    except UserError as refusal:
        raise UserError(
            f"a file of this format cannot hold all that is needed: {refusal.what}",
            at=path,
            hint="export it as .safetensors",
        ) from refusal
    side = min(encoder.input.crop, 64)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((again.backbone(x) - encoder.backbone.cpu()(x)).abs().max())
    if difference != 0 or again.input != encoder.input:
        what = (
            f"gives other features (by up to {difference:.3g})"
            if difference
            else f"expects another input ({again.input})"
        )
        raise UserError(
            f"the file, read back, {what}; it was not kept",
            at=path,
            hint="bare names cannot express it; export it as .safetensors",
        )


# The card -----------------------------------------------------------------------------------------


def card(encoder: Encoder, path: Path, target: Target, results: Path) -> str:
    """Returns the model card in Markdown: what the file is, how to load it, how its weights were
    trained, and which records score them."""
    report, i = encoder.report, encoder.input
    load = (
        f'safetensors.torch.load_file("{path.name}")'
        if path.suffix == ".safetensors"
        else f'torch.load("{path.name}")'
    )
    use = f'encoder = protobench.checkpoints.encoders.load(Path("{path.name}")).backbone'
    if report.arch in PLAIN and target != "protobench":
        use = USE[target].format(
            arch=report.arch,
            file=path.name,
            load=load,
            mean255=[round(255 * m, 3) for m in i.mean],
            std255=[round(255 * s, 3) for s in i.std],
        )
    facts = [
        ("architecture", report.arch),
        ("tensors", f"{report.matched} of {report.expected} from the source, no head"),
        (
            "input",
            (
                f"RGB in 0 to 1, mean {list(i.mean)}, std {list(i.std)}; evaluated at {i.crop} x"
                f" {i.crop} pixels, the centre of the image resized to {i.resize}"
            ),
        ),
        ("source", f"{report.file} ({report.origin}, {report.copy} copy), sha256 {report.sha256}"),
        (
            "published as",
            (
                f"{report.released.title}; {report.released.proof}"
                if report.released
                else "not a known release"
            ),
        ),
        ("this file", f"{path.name}, layout {target}, sha256 {identity.sha256_of(path)}"),
    ]
    lines = [
        "---",
        "tags: [self-supervised-learning, resnet]",
        "---",
        "",
        f"# {path.name}",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {what} | {_cell(value)} |" for what, value in facts]
    lines += ["", "## Loading", "", "```", *use.splitlines(), "```", "", "## Training", ""]
    lines += (
        ["```json", json.dumps(report.trained, indent=1, sort_keys=True), "```"]
        if report.trained
        else ["Not known here; see the source."]
    )
    lines += ["", "## Scores", ""]
    found = [
        f"| {record['record_id'][:12]} | {record['unit']['evaluation']} | {_cell(_data(record))} |"
        f" {_cell(_score(record))} |"
        for record in _records_of(encoder, results)
    ]
    lines += (
        ["| record | evaluation | data | score |", "|---|---|---|---|", *found]
        if found
        else [f"No record under {results}/ scores it."]
    )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _records_of(encoder: Encoder, results: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(results.rglob("*.json")) if results.is_dir() else []:
        try:
            record = records.read(path)
        except UserError:
            continue  # no record, or a damaged one, which tables report
        if record["unit"].get("encoder") == encoder.key:
            yield record


def _data(record: dict[str, Any]) -> str:
    return str(record["unit"]["data_name"]) + " (bundled synthetic data)" * bool(
        record["data"].get("embedded")
    )


def _score(record: dict[str, Any]) -> str:
    by_k: dict[Any, list[float]] = {}
    for run in record["runs"]:
        by_k.setdefault(run.get("k"), []).append(run["value"])
    means = ", ".join(
        (f"k={k}: " if k is not None else "") + f"{sum(values) / len(values):.3g}"
        for k, values in by_k.items()
    )
    return f"{record['metric']['name']} {record['metric']['unit']}".strip() + f", {means}"
