"""Shows whether this machine trains the same encoders, bit for bit, as others, by hashes of short
trainings under four instruction sets.

    python benchmarks/machine.py                  # everything, about three minutes on one core
    python benchmarks/machine.py --methods moco   # some methods, under all settings

The trainings are MoCo, SimCLR and PCL of the mini tier: two epochs (one of them PCL's warm-up),
seed 1, one thread, each setting in a process of its own. Equal hashes mean equal bits in every
tensor. Sums are rounded in another order on another processor, or with other instructions on the
same one, so hashes are expected to differ between machines; on one machine they must not differ
between runs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tabulate import tabulate

from pretrain import loop
from pretrain.recipes import moco, pcl, simclr
from protobench import records
from protobench.data import imagenet
from protobench.data.synthetic import bundled, manifest

EPOCHS = 2
METHODS = {
    "moco": moco.MINI,
    "simclr": simclr.MINI,
    "pcl": replace(pcl.MINI, warmup=1),
}
SETTINGS = {
    "default": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "AVX2, MKL compatible": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",
    },
    "SSE4.1, MKL compatible": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}
"""Environment variables that choose the instructions of torch's kernels, of oneDNN and of MKL."""
KNOWN = {
    "AMD EPYC with AVX-512, torch 2.15": {
        "default": {
            "moco": "21582ce2ed73afd5",
            "simclr": "4305edd090dda1fc",
            "pcl": "3d311de547a18a69",
        },
        "AVX2": {
            "moco": "330b900d85a5031c",
            "simclr": "d7338feff5ca5711",
            "pcl": "02aceb3bc3f04e47",
        },
        "AVX2, MKL compatible": {
            "moco": "079d5c53b5dd391b",
            "simclr": "bcb77a0ab705a13a",
            "pcl": "b07ca3018d798f8c",
        },
        "SSE4.1, MKL compatible": {
            "moco": "f74dde76f489c2b2",
            "simclr": "4b1f06866cd9ec44",
            "pcl": "f5029b2071a651af",
        },
    },
}
"""The hashes measured so far: machine -> setting -> method -> hash."""
DATA = "d2867fe94f45d697"
"""The first digits of the data's fingerprint (protobench/data/synthetic/bundled.py) where the
hashes above were measured."""


@dataclass(frozen=True)
class Trained:
    """One short training."""

    method: str
    hash: str
    seconds: float


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """Returns the first 16 digits of the SHA-256 of all tensors' bytes, in the order of their
    names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def train(method: str, data: Path) -> Trained:
    """Pretrains briefly in this process, on one thread."""
    torch.set_num_threads(1)
    recipe = METHODS[method]
    recipe = replace(recipe, train=replace(recipe.train, epochs=EPOCHS))
    images, started = imagenet.read(data, "train"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tensors = load_file(loop.pretrain(recipe, images, Path(folder), seed=1))
    return Trained(method, hash_of(tensors), time.perf_counter() - started)


def under(setting: str, methods: Iterable[str], data: Path) -> list[Trained]:
    """Trains in a child process, which reads the setting when it loads its libraries."""
    pinned = {name for variables in SETTINGS.values() for name in variables}
    environment = {name: value for name, value in os.environ.items() if name not in pinned}
    done = subprocess.run(
        [sys.executable, __file__, "--child", data, "--methods", *methods],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment | SETTINGS[setting] | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    return [
        Trained(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")
    ]


def equal_to(setting: str, trained: Trained) -> str:
    """Names the machines that are known to give the same bits."""
    return " and ".join(
        name
        for name, known in KNOWN.items()
        if known.get(setting, {}).get(trained.method) == trained.hash
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        for method in chosen.methods:
            print(json.dumps(vars(train(method, chosen.child))), flush=True)
        return 0
    data = bundled.ensure()
    fingerprint = manifest.verify(data)[:16]
    told = (
        fingerprint
        if fingerprint == DATA
        else f"{fingerprint} (the known hashes belong to other data)"
    )
    print(
        f"{records.processor() or 'unknown processor'}, {torch.backends.cpu.get_cpu_capability()};"
        f" torch {torch.__version__}; data {told}",
        flush=True,
    )
    rows = []
    for number, setting in enumerate(SETTINGS, start=1):
        print(f"[{number}/{len(SETTINGS)}] {setting}", file=sys.stderr, flush=True)
        rows += [
            [
                setting,
                trained.method,
                trained.hash,
                f"{trained.seconds:.1f}",
                equal_to(setting, trained),
            ]
            for trained in under(setting, chosen.methods, data)
        ]
    print(
        tabulate(
            rows,
            ["setting", "method", "hash", "seconds", "equal to"],
            tablefmt="simple",
            disable_numparse=True,
        )
    )
    print(
        "\n"
        + "\n".join(
            f"{setting}: {' '.join(f'{name}={value}' for name, value in variables.items())}"
            for setting, variables in SETTINGS.items()
            if variables
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
