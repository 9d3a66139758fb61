"""The GPUs of this machine as nvidia-smi lists them, and which of them ``--gpus`` names.

Nothing here touches CUDA: a program that asks CUDA for a GPU's memory holds some of it itself.
Jobs are given GPUs by their UUIDs, which mean the same whatever order CUDA counts in."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protobench.runtime.errors import UserError

IDLE_SHARE = 0.1
"""Of a GPU's memory. A GPU of which more is taken is in use, even if by no process that is seen
from here, as those of other containers are not; a desktop takes less."""
SECONDS = 60
"""In which nvidia-smi answers, if it does."""

GPU = re.compile(r"GPU \d+: (?P<name>.+) \(UUID: (?P<uuid>GPU-[^)]+)\)")
PART = re.compile(r"\s+(?P<name>MIG (?:\S*?(?P<gb>\d+)gb)?\S*)\s.*\(UUID: (?P<uuid>MIG-[^)]+)\)")
"""The lines of nvidia-smi -L: a GPU, and below it the parts that it is divided into."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG), that jobs can be given."""

    uuid: str
    """its name in CUDA_VISIBLE_DEVICES"""
    name: str
    """the model and, of a part, its profile"""
    gib: float | None = None
    """memory; None where nvidia-smi does not say"""
    used_gib: float | None = None
    """of that, what is taken"""
    processes: tuple[str, ...] = ()
    """ids of the processes that compute on it, as far as they are seen from here"""
    number: int = 0
    """what users call it: its place among those that this process may use"""

    @property
    def model(self) -> str:
        """The model of the whole GPU."""
        return self.name.partition(", MIG")[0]

    @property
    def joins_others(self) -> bool:
        """Whether it can share a job with other GPUs, which parts of GPUs cannot (NCCL)."""
        return not self.uuid.startswith("MIG-")

    @property
    def in_use(self) -> str:
        """How a program of somebody uses it; empty where it is idle."""
        taken = self.used_gib or 0.0
        if not self.processes and taken <= IDLE_SHARE * (self.gib or 0.0):
            return ""
        memory = f"{taken:.1f} of {self.gib:.1f} GiB are taken" if self.gib and taken else ""
        by = f"by process {', '.join(self.processes)}" if self.processes else ""
        return " ".join(word for word in (memory, by) if word)


def selected(wanted: str) -> tuple[Gpu, ...]:
    """The GPUs that ``wanted`` names: "all", or numbers or UUIDs with commas between them, in this
    order. Numbers are those of nvidia-smi or, where CUDA_VISIBLE_DEVICES is set, places in it.

    UserError without GPUs, for one that is not there or named twice, and for one in use."""
    words = [word.strip() for word in wanted.split(",")]
    if not all(words):
        raise UserError(
            f"--gpus {wanted!r} names no GPU"
            if not any(words)
            else f"--gpus {wanted!r}: a number is missing",
            hint="--gpus all, or for example --gpus 0,2",
        )
    visible = usable()
    gpus = visible if words == ["all"] else [_named(word, visible) for word in words]
    twice = [str(gpu.number) for i, gpu in enumerate(gpus) if gpu.uuid in _uuids(gpus[:i])]
    if twice:
        raise UserError(
            f"GPU {twice[0]} is named twice", hint="one job runs on a GPU at a time; name it once"
        )
    busy = [gpu for gpu in gpus if gpu.in_use]
    if busy:
        idle = ",".join(str(gpu.number) for gpu in visible if not gpu.in_use)
        raise UserError(
            "; ".join(f"GPU {gpu.number} ({gpu.name}) is in use: {gpu.in_use}" for gpu in busy),
            hint=f"wait for it, or --gpus {idle}" if idle else "wait for it; nvidia-smi shows it",
        )
    return tuple(gpus)


def usable() -> list[Gpu]:
    """The GPUs that this process may use, numbered from 0: those of CUDA_VISIBLE_DEVICES where it
    is set, else all. One that is divided (MIG) counts as its parts. UserError without any."""
    installed = _installed()
    restriction = os.environ.get("CUDA_VISIBLE_DEVICES")
    if restriction is None:
        gpus = [part for parts in installed for part in parts]
    else:
        words = [word.strip() for word in restriction.split(",") if word.strip() not in ("", "-1")]
        if not words:
            raise UserError(
                f"CUDA_VISIBLE_DEVICES={restriction!r} hides all GPUs",
                hint="unset it, or name some",
            )
        gpus = [_visible(word, installed) for word in words]
    return [replace(gpu, number=number) for number, gpu in enumerate(gpus)]


def _named(word: str, visible: list[Gpu]) -> Gpu:
    """The GPU that one word of ``--gpus`` names."""
    if word.isdigit() and int(word) < len(visible):
        return visible[int(word)]
    by_uuid = [gpu for gpu in visible if gpu.uuid.startswith(word)]
    if len(by_uuid) == 1 and word.startswith(("GPU-", "MIG-")):
        return by_uuid[0]
    restricted = "CUDA_VISIBLE_DEVICES" in os.environ
    left = "CUDA_VISIBLE_DEVICES leaves" if restricted else "this machine has"
    numbers = "0" if len(visible) == 1 else f"0 to {len(visible) - 1}"
    raise UserError(
        f"no GPU {word!r}: {left} {len(visible)}, number {numbers}",
        hint="--gpus all, or for example --gpus 0; nvidia-smi -L lists them",
    )


def _visible(word: str, installed: list[list[Gpu]]) -> Gpu:
    """The GPU that one word of CUDA_VISIBLE_DEVICES names."""
    if word.isdigit() and int(word) < len(installed):
        models = {parts[0].model for parts in installed}
        if len(models) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise UserError(
                f"which GPU is {word} in CUDA_VISIBLE_DEVICES? CUDA and nvidia-smi count different"
                f" models in different orders ({', '.join(sorted(models))})",
                hint="export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID (nvidia-smi -L)",
            )
        return installed[int(word)][0]
    by_uuid = [gpu for parts in installed for gpu in parts if gpu.uuid.startswith(word)]
    if len(by_uuid) == 1 and word.startswith(("GPU-", "MIG-")):
        return by_uuid[0]
    raise UserError(
        f"CUDA_VISIBLE_DEVICES names {word!r}, which is not here",
        hint="nvidia-smi -L lists the GPUs of this machine",
    )


def smallest_gib(gpus: Sequence[Gpu]) -> float | None:
    """The memory of the smallest of them; None where nvidia-smi tells of none."""
    return min((gpu.gib for gpu in gpus if gpu.gib is not None), default=None)


def able_to_join(gpus: Sequence[Gpu]) -> int:
    """How many of them a job can have together; any can have one."""
    return sum(gpu.joins_others for gpu in gpus) or 1


def _uuids(gpus: list[Gpu]) -> set[str]:
    return {gpu.uuid for gpu in gpus}


# nvidia-smi ---------------------------------------------------------------------------------------


def _installed() -> list[list[Gpu]]:
    """For every GPU of the machine what jobs can be given: itself, or its parts."""
    memory = {
        uuid: (_gib(total), _gib(used))
        for uuid, total, used in _rows("--query-gpu=uuid,memory.total,memory.used")
    }
    processes: dict[str, list[str]] = {}
    for uuid, process in _rows("--query-compute-apps=gpu_uuid,pid"):
        processes.setdefault(uuid, []).append(process)
    installed: list[list[Gpu]] = []
    for line in _smi("-L").splitlines():
        if found := GPU.match(line):
            total, used = memory.get(found["uuid"], (None, None))
            busy = tuple(processes.get(found["uuid"], ()))
            whole = Gpu(found["uuid"], found["name"], total, used, busy)
            installed.append([whole])
        elif found := PART.match(line):
            whole, parts = installed[-1][0], installed[-1]
            if parts[-1].joins_others:  # the first part takes the place of the whole
                parts.clear()
            busy = tuple(processes.get(found["uuid"], ()))
            gib = float(found["gb"]) if found["gb"] else None
            parts.append(Gpu(found["uuid"], f"{whole.model}, {found['name']}", gib, None, busy))
    if not installed:
        raise UserError("nvidia-smi lists no GPU", hint="leave out --gpus")
    return installed


def _rows(query: str) -> list[list[str]]:
    lines = _smi(query, "--format=csv,noheader,nounits").splitlines()
    return [
        [word.strip() for word in line.split(",")]
        for line in lines
        if line.startswith(("GPU-", "MIG-"))
    ]


def _gib(mib: str) -> float | None:
    """MiB as nvidia-smi prints them, which may be "[N/A]"."""
    return int(mib) / 1024 if mib.isdigit() else None


def _smi(*words: str) -> str:
    """What nvidia-smi prints. UserError without it, and where it fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, timeout=SECONDS
        )
    except FileNotFoundError:
        raise UserError(
            "no GPU here: nvidia-smi, a part of NVIDIA's driver that lists them, is not found",
            hint="leave out --gpus; --jobs N runs N processes side by side on the CPU",
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"nvidia-smi does not answer in {SECONDS} seconds", hint="a GPU or its driver hangs"
        ) from None
    if done.returncode:
        told = (done.stdout.strip() or done.stderr.strip()).splitlines() or ["no message"]
        raise UserError(
            f"no GPU that can be used: nvidia-smi says: {told[0]}",
            hint="python -m protobench doctor says more",
        )
    return done.stdout
