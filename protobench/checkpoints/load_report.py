"""What was loaded from a checkpoint, what was left out, and what was measured of it since."""

from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from protobench.checkpoints.layouts import Copy
from protobench.checkpoints.released import Released
from protobench.data.transforms import EvalInput
from protobench.runtime.errors import printable
from protobench.runtime.notices import some


@dataclass(frozen=True)
class InputFit:
    """How well the input's normalisation fits the weights (see input_check.py)."""

    images: int
    variance_ratio: float
    """variance of the first convolution's outputs over the one that its BatchNorm remembers"""
    doubt: str = ""
    """the warning, if the ratio is out of the usual range"""


@dataclass(frozen=True)
class Bf16Agreement:
    """Cosine similarity of bf16 and fp32 features (see features.py)."""

    images: int
    min_cosine: float
    mean_cosine: float


@dataclass
class LoadReport:
    """How an encoder was loaded. Every record of its scores holds this, as ``to_json`` gives it."""

    file: str
    """name of the checkpoint"""
    sha256: str
    hash_verified: bool
    """whether a hash came with the file: on the command line, beside it, in its name or header"""
    origin: str
    """the code base whose layout it has"""
    released: Released | None
    """the published checkpoint that it is, if any"""
    copy: Copy
    prefix: str
    """what stands before the backbone's names in the file"""
    arch: str
    matched: int
    """backbone tensors found in the file"""
    expected: int
    """tensors of the backbone"""
    dropped: list[str]
    """what was left out, by the first word of each name that tells it apart"""
    trained: dict[str, Any] | None
    """how the weights were trained, if this suite exported the file"""
    input: EvalInput
    untouched: bool
    """whether BatchNorm, or a vision transformer's LayerNorm, is still at its initial values"""
    projection: dict[str, list[int]]
    """shapes of the projection head's tensors; empty without a head of known shape"""
    left_as_data: list[str]
    """classes whose objects were read without running their code"""
    feature: str = ""
    """which of a vision transformer's outputs its feature is"""
    positions: str = ""
    """the grid of its position embeddings, and how they were interpolated if they were"""
    input_fit: InputFit | None = None
    bf16: Bf16Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as records hold it; what was not measured is absent."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        told["input"] = asdict(self.input)
        if known := self.released:
            told["released"] = {"name": known.name, "title": known.title, "proof": known.proof}
        for measured in ("input_fit", "bf16", "left_as_data", "feature", "positions"):
            if not told[measured]:
                del told[measured]
        if self.input_fit:
            told["input_fit"] = {k: v for k, v in asdict(self.input_fit).items() if v != ""}
        if self.bf16:
            told["bf16"] = asdict(self.bf16)
        return told

    def summary(self) -> str:
        """A few lines for the terminal."""
        where = f"under {self.prefix!r}" if self.prefix else "at top level"
        left_out = ", ".join(_abbreviated(self.dropped)) or "nothing"
        mean, std = (
            " ".join(f"{x:g}" for x in values) for values in (self.input.mean, self.input.std)
        )
        lines = [
            f"{self.file}: {self.origin}, {self.arch}",
            f"  {self.matched}/{self.expected} backbone tensors, {self.copy} copy, {where}",
            f"  sha256 {self.sha256[:12]}{' (verified)' * self.hash_verified};"
            f" left out: {left_out}",
            f"  input: shorter side {self.input.resize}, centre {self.input.crop},"
            f" mean {mean}, std {std}",
        ]
        if self.feature:
            lines.append(f"  feature: {self.feature}; positions {self.positions}")
        if self.left_as_data:
            lines.append(
                f"  read without running its code: objects of {some(self.left_as_data, 5)} left as"
                " data"
            )
        if self.released:
            lines.append(f"  a published checkpoint: {self.released.title} ({self.released.proof})")
        if self.untouched:
            norm = "LayerNorm" if self.feature else "BatchNorm"
            lines.append(
                f"  warning: {norm} is still at its initial values; this looks like an untrained"
                " network"
            )
        return printable("\n".join(lines))


def _abbreviated(names: list[str]) -> list[str]:
    """Sorted names for a person: more than eight with the same first word become one, as mmcv's
    ema_backbone_conv1_weight, …"""
    told = []
    for word, group in groupby(names, key=lambda name: name.partition("_")[0]):
        alike = list(group)
        told += [f"{word}_… ({len(alike)} names)"] if len(alike) > 8 else alike
    return told
