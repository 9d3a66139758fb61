"""Checks this machine and its installation: one line per finding, with the fix if it is wrong.

Examples:

    python -m protobench doctor
    python -m protobench doctor --data /data  # also whether its data sets can be read
    python -m protobench doctor --json        # for programs

Exit code 0 if there is no problem (warnings are none), 2 if there is one. Each check imports the
packages that it needs itself, so a missing or broken one is a line here and no traceback.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from protobench.runtime import cli, colour
from protobench.runtime.errors import UserError, printable

SYMBOLS = {"ok": "✓", "info": "·", "warning": "▲", "problem": "✗"}
OURS = ("protobench", "pretrain", "evaluate", "tables")
HOME = Path(__file__).resolve().parents[1]
STAND_INS = {"opencv-python": "opencv-python-headless"}
"""Requirements that another package meets."""
SHM_FOLDER, SHM = Path("/dev/shm"), 2**30
"""Bytes; 8 workers with two batches of 256 ImageNet crops each use 0.6 GB."""
DISK = 2e9
"""Bytes; ImageNet's features use 10.5 GB, the bundled synthetic data and its features far less."""


@dataclass(frozen=True)
class Finding:
    """What a check says of one thing."""

    sign: Literal["ok", "info", "warning", "problem"]
    found: str
    fix: str = ""


def environment() -> Iterator[Finding]:
    """System, versions and GPUs, and whether torch can use the GPUs that the driver lists."""
    from torch.utils.collect_env import get_env_info

    env = get_env_info()
    gpus = "; ".join((env.nvidia_gpu_models or "").splitlines())
    found = (
        f"Python {env.python_version}, {env.os}; torch {env.torch_version}, built for CUDA"
        f" {env.cuda_compiled_version}; driver {env.nvidia_driver_version}, {gpus or 'no GPU'}"
    )
    if gpus and env.is_cuda_available != "True":
        fix = "update the NVIDIA driver, or install a torch that fits it"
        yield Finding("warning", f"{found}: torch cannot use it", fix)
    else:
        yield Finding("info", found)


def packages() -> Iterator[Finding]:
    """Requirements of installed packages that are not met, as ``pip check`` finds them."""
    from packaging.requirements import Requirement

    unmet = 0
    for distribution in metadata.distributions():
        for required in map(Requirement, distribution.requires or ()):
            name = STAND_INS.get(required.name, required.name)
            version = _version(name)
            if required.marker and not required.marker.evaluate({"extra": ""}):
                continue
            if version and required.specifier.contains(version, prereleases=True):
                continue
            unmet += 1
            yield Finding(
                "problem" if distribution.name == "protobench" else "warning",
                f"{distribution.name} requires {name}{required.specifier}, which is"
                f" {version or 'not installed'}",
                f'pip install "{name}{required.specifier}"',
            )
    if not unmet:
        yield Finding("ok", "all requirements of installed packages are met")


def torchvision() -> Iterator[Finding]:
    """Whether torchvision fits torch. Calls a compiled operator: there is none beside a torch of
    another kind."""
    versions = f"torchvision {_version('torchvision')} with torch {_version('torch')}"
    try:
        import torch
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            kept = nms(boxes.to(device), scores.to(device), 0.5).tolist()
            if kept != [0, 2]:
                raise RuntimeError(f"nms on {device} keeps boxes {kept} of three, not [0, 2]")
    except Exception as failure:
        yield Finding(
            "problem",
            f"{versions}: {_reason(failure)}",
            "pip uninstall -y torch torchvision && pip install torch torchvision, from one index",
        )
    else:
        yield Finding("ok", f"{versions}: its operators work")


def faiss() -> Iterator[Finding]:
    """Whether faiss works and sees the GPUs that torch sees."""
    installed = sorted(_providers("faiss"))
    reinstall = f"pip uninstall -y {' '.join(installed)} && pip install faiss-gpu"
    if len(installed) > 1:
        yield Finding("problem", f"{' and '.join(installed)} lie in one folder", reinstall)
        return
    import faiss
    import numpy as np
    import torch

    index = faiss.IndexFlatL2(2)
    index.add(np.eye(2, dtype=np.float32))
    index.search(np.eye(2, dtype=np.float32), 1)
    seen = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = f"faiss {faiss.__version__} sees {seen or 'no'} GPUs, torch {there or 'none'}"
    if seen >= there:
        yield Finding("ok", found)
        return
    built_for_gpus = "GPU" in faiss.get_compile_options().split()
    yield Finding(
        "warning",
        f"{found}: k-means runs on the CPU, and large ones are refused",
        "update the NVIDIA driver, or install a faiss that fits it"
        if built_for_gpus
        else reinstall,
    )


def gpu_memory() -> Iterator[Finding]:
    """Which recipes do not fit on one of this machine's GPUs, as computed, and what they need."""
    import torch

    from pretrain import gpu_memory
    from pretrain.recipes import by_method
    from protobench.runtime import devices

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if not gpus:
        yield Finding("info", "no GPU that torch can use")
        return
    gib = min(devices.memory_gib(f"cuda:{gpu}") for gpu in gpus)
    found = f"{len(gpus)} GPUs of {gib:.1f} GiB{' at least' if len(gpus) > 1 else ''}"
    large = [
        (f"{method} {name}", recipe)
        for method, recipes in by_method().items()
        for name, recipe in recipes.items()
        if not gpu_memory.fits(recipe, 1, gib)
    ]
    if not large:
        yield Finding("ok", f"{found}: every recipe fits on one (computed)")
    for name, recipe in large:
        needed = f"{name} needs {gpu_memory.peak_gib(recipe):.1f} GiB on one (computed)"
        yield Finding("warning", f"{found}: {needed}", gpu_memory.advice(recipe, gib))


def names() -> Iterator[Finding]:
    """Whether ``import tables`` and the like find this project's packages. PyTables has that name
    too, and Hugging Face's evaluate another."""
    wrong = False
    for name in OURS:
        spec = importlib.util.find_spec(name)
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        place = next(filter(None, places), "nothing")
        if others := " ".join(sorted(_providers(name) - {"protobench"})):
            found = f"{others}, which is installed, has a top-level package {name} too"
            fix = f"pip uninstall {others}, or use an environment without it"
        elif not Path(place).resolve().is_relative_to(HOME):
            found = f"'import {name}' gives {place}, not {HOME / name}"
            fix = f"remove it from PYTHONPATH, or rename it; pip install -e {HOME}"
        else:
            continue
        wrong = True
        yield Finding("problem", found, fix)
    if _version("protobench") is None:
        yield Finding("warning", "this project is not installed", f"pip install -e {HOME}")
    elif not wrong:
        yield Finding("ok", f"{', '.join(OURS)} are those in {HOME}")


def shared_memory() -> Iterator[Finding]:
    """Whether /dev/shm, through which workers hand over batches of images, has space."""
    if not SHM_FOLDER.is_dir():
        yield Finding("info", "this system has none and needs none")
        return
    space = shutil.disk_usage(SHM_FOLDER)
    found = f"{space.total / 1e9:.2f} GB, {space.free / 1e9:.2f} GB free"
    if space.free >= SHM:
        yield Finding("ok", found)
    else:
        fix = "docker run --shm-size=8g (or --ipc=host), remove what fills it, or --workers 0"
        yield Finding("warning", f"{found}: workers may die of a bus error", fix)


def cache() -> Iterator[Finding]:
    """Whether the cache folder, or where it would be made, is writable and has space."""
    from protobench.runtime import files

    folder = files.cache_dir().absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    fix = "fix its permissions or free some space, or set PROTOBENCH_CACHE to another folder"
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            files.sync(file)  # some disks only say now that they are full
    except OSError as failure:
        yield Finding("problem", f"{folder}: cannot write: {failure.strerror or failure}", fix)
        return
    found = f"{folder}: {free / 1e9:.1f} GB free"
    yield Finding("ok", found) if free >= DISK else Finding("warning", f"{found}: little", fix)


def data(root: Path) -> Iterator[Finding]:
    """Which data sets under ``root`` the suite's readers accept. Lists images, decodes none."""
    from protobench.data import published, verify
    from protobench.data.datasets import DATASETS

    any_here = False
    for name, dataset in DATASETS.items():
        try:
            lists = dataset.read_both(root)
        except UserError as mistake:
            here = verify.has_folder(dataset, root)
            at = f" ({mistake.at})" if mistake.at else ""
            found = f"{name}: {mistake.what}{at}"
            yield Finding("problem", found, mistake.hint or "") if here else Finding("info", found)
        else:
            here, (train, test) = True, lists
            found = f"{name}: {len(train)} + {len(test)} images, {len(train.classes)} classes"
            if odd := list(dict.fromkeys(published.counts(train) + published.counts(test))):
                fix = f"unpack it again; python -m protobench check-data {root} tells more"
                yield Finding("warning", f"{found}: {'; '.join(odd)}", fix)
            else:
                yield Finding("ok", found)
        any_here = any_here or here
    if not any_here:
        fix = "give --data the folder that holds imagenet/, VOCdevkit/, …"
        yield Finding("problem", f"none of the data sets is in {root}", fix)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "environment": environment,
    "packages": packages,
    "torchvision": torchvision,
    "faiss": faiss,
    "GPU memory": gpu_memory,
    "names": names,
    "/dev/shm": shared_memory,
    "cache": cache,
}


def isolated(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What ``check`` finds, or a problem if it raises anything. Hides what packages print."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return list(check())
    except (Exception, SystemExit) as failure:  # a package may do anything when it is imported
        return [Finding("problem", _reason(failure), "reinstall the package that fails")]


def line(name: str, finding: Finding) -> str:
    """A finding as it is printed."""
    text = finding.found + (f"; fix: {finding.fix}" if finding.fix else "")
    sign = colour.painted(SYMBOLS[finding.sign])
    return f"{sign} {finding.sign:<8} {name:<12} {printable(' '.join(text.split()))}"


def main(args: Sequence[str]) -> int:
    """The command line; returns 0, or 2 if there is a problem."""
    parser = argparse.ArgumentParser(
        "python -m protobench doctor",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder with imagenet/, …")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    options = parser.parse_args(args)
    all_found = []
    checks = CHECKS | ({"data": partial(data, options.data)} if options.data else {})
    for name, check in checks.items():
        for finding in isolated(check):
            all_found.append({"check": name, **asdict(finding)})
            if not options.json:
                print(line(name, finding), flush=True)
    signs = [found["sign"] for found in all_found]
    if options.json:
        print(json.dumps(all_found, indent=1))
    else:
        print(f"problems: {signs.count('problem')}, warnings: {signs.count('warning')}")
    return cli.TROUBLE if "problem" in signs else cli.SAME


def _reason(failure: BaseException) -> str:
    return re.sub(r"\s+", " ", f"{type(failure).__name__}: {failure}")[:300]


def _providers(module: str) -> set[str]:
    """The installed distributions that have this top-level module."""
    found = metadata.packages_distributions().get(module, ())
    return {name.lower().replace("_", "-") for name in found if name}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
