"""Looks at this machine and its installation: a line per check, and how to mend what is not as it
should be.

Examples:

    python -m protobench doctor
    python -m protobench doctor --data /data  # and whether the data sets below it can be read; decodes no image
    python -m protobench doctor --json            # for programs

Exit code 0 where there is no problem (warnings are none), 2 where there is one. Each check imports
the packages that it needs itself, and the flags are read without tyro: what is missing or broken is
a line here, not a traceback."""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from protobench.runtime import cli, colour, resource_errors
from protobench.runtime.errors import UserError, printable

Sign = Literal["ok", "info", "warning", "problem"]
SYMBOLS = {"ok": "✓", "info": "·", "warning": "▲", "problem": "✗"}

PACKAGES = {
    "numpy": "numpy",
    "scikit-learn": "sklearn.metrics",
    "pandas": "pandas",
    "liblinear-official": "liblinear.liblinear",
    "scipy": "scipy.stats",
    "pillow": "PIL.Image",
    "opencv-python-headless": "cv2",
    "safetensors": "safetensors.torch",
    "tyro": "tyro",
    "tqdm": "tqdm",
    "tabulate": "tabulate",
    "matplotlib": "matplotlib.figure",
    "jinja2": "jinja2",
    "filelock": "filelock",
    "threadpoolctl": "threadpoolctl",
}
"""What the suite needs beside torch, torchvision and faiss, and a module of each that loads its
compiled part."""
DETECTION = {
    "mmdet": "mmdet",
    "mmengine": "mmengine",
    "mmcv-lite": "mmcv",
    "pycocotools": "pycocotools.mask",
}
OURS = ("protobench", "pretrain", "evaluate", "tables")
HOME = Path(__file__).resolve().parents[2]

PAIR = (
    "pip uninstall -y torch torchvision && pip install torch torchvision (always both, from one"
    " index)"
)
TORCH_FOR = "see https://pytorch.org/get-started/locally for one of another CUDA version"
INSTALL_DETECTION = (
    "uv pip install -e '.[detection]' in the project's folder, or tox -e reproduce-table5, which"
    " does it all"
)

MEMORY = 3e9
"""Bytes; Table 1 on embedded data took 2.1 GiB on two cores."""
SHM = 2**30
"""Bytes; 8 workers with two batches of 256 ImageNet crops each take 0.6 GB."""
DISK = 2e9
"""Bytes; ImageNet's features take 10.5 GB, embedded data and everything made of it a fraction of
this."""
OPEN_FILES = 1024
"""Linux's default; workers hand over batches through open files."""
MEMINFO, SHM_FOLDER = Path("/proc/meminfo"), Path("/dev/shm")
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    sign: Sign
    check: str
    found: str
    fix: str = ""
    """a command or a sentence"""


# installation -------------------------------------------------------------------------------------


def interpreter(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The suite needs Python 3.11, mmengine one below 3.14."""
    found = f"{'.'.join(map(str, version))} at {sys.executable}"
    if version < (3, 11):
        return Finding(
            "problem",
            "Python",
            f"{found}: 3.11 is needed",
            "make the environment with Python 3.11, 3.12 or 3.13",
        )
    if version >= (3, 14):
        return Finding(
            "warning",
            "Python",
            f"{found}: too new for mmengine, so tables 5 and 6 cannot be made",
            "for those make the environment with Python 3.11, 3.12 or 3.13",
        )
    return Finding("ok", "Python", found)


def torch_build() -> Finding:
    """Version, and what it was built for."""
    try:
        import torch
    except Exception as failure:
        return _broken("torch", "torch", failure)
    built = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {hip}"
        if (hip := getattr(torch.version, "hip", None))
        else "the CPU only"
    )
    found, wanted = f"{torch.__version__}, built for {built}", _requirement("torch")
    if _older(torch.__version__, wanted):
        return Finding(
            "problem",
            "torch",
            f"{found}; {wanted} is needed",
            f'pip install --upgrade "{wanted}" torchvision',
        )
    return Finding("ok", "torch", found)


def torchvision_pair() -> Finding:
    """Whether torchvision fits torch: its compiled operators are called, which are absent beside a
    torch of another kind."""
    wanted = next(
        (line for line in _required_by("torchvision") if re.match(r"torch\b", line)), "torch"
    )
    version = _version("torchvision")
    try:
        import torch
        import torchvision

        version = torchvision.__version__
        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        kept = torchvision.ops.nms(boxes, scores, 0.5).tolist()
        if torch.cuda.is_available():
            with contextlib.suppress(
                RuntimeError
            ):  # a GPU that cannot be used has a line of its own
                _on_gpu(torchvision, boxes, scores)
    except Exception as failure:
        if version is None:
            return _broken("torchvision", "torchvision", failure)
        pair = (
            f"{version} does not fit torch {_version('torch') or '(not installed)'}, it wants"
            f" {wanted}"
        )
        return Finding("problem", "torchvision", f"{pair}: {_reason(failure)}", PAIR)
    if kept != [0, 2]:
        return Finding(
            "problem",
            "torchvision",
            f"{version}: nms keeps boxes {kept} of three, not [0, 2]",
            PAIR,
        )
    exact = re.search(r"==\s*([\d.]+)", wanted)
    if exact and _numbers(exact[1]) != _numbers(torch.__version__)[: len(_numbers(exact[1]))]:
        return Finding(
            "warning",
            "torchvision",
            f"{version} was made for torch {exact[1]}, not {torch.__version__}",
            PAIR,
        )
    return Finding("ok", "torchvision", f"{version}, its operators work with this torch")


def _on_gpu(torchvision: ModuleType, boxes: Any, scores: Any) -> None:
    try:
        torchvision.ops.nms(boxes.cuda(), scores.cuda(), 0.5)
    except NotImplementedError as failure:  # a RuntimeError too, but not the GPU's fault
        raise ImportError("it has no operators for the GPU") from failure


def packages() -> list[Finding]:
    """Every other package that the suite needs: one line for those that work, one for those that
    are absent, one for each that is broken or too old."""
    working, absent, wrong = [], [], []
    for distribution, module in PACKAGES.items():
        version, wanted = _version(distribution), _requirement(distribution)
        try:
            loaded = importlib.import_module(module)
        except (Exception, SystemExit) as failure:
            if version is None and isinstance(failure, ModuleNotFoundError):
                absent.append(wanted)
            else:
                wrong.append(_broken("packages", distribution, failure))
            continue
        version = version or str(getattr(loaded, "__version__", "of unknown version"))
        if _older(version, wanted):
            wrong.append(
                Finding(
                    "problem",
                    "packages",
                    f"{distribution} {version}; {wanted} is needed",
                    f'pip install --upgrade "{wanted}"',
                )
            )
        else:
            working.append(f"{distribution} {version}")
    if absent:
        wrong.append(
            Finding("problem", "packages", f"not installed: {', '.join(absent)}", _install(*absent))
        )
    return [*wrong, *([Finding("ok", "packages", ", ".join(working))] if working else [])]


def faiss_build() -> Finding:
    """Version, whether it searches, and whether it sees the GPUs that torch sees."""
    installed = sorted(_providers("faiss", metadata.packages_distributions()))
    if len(installed) > 1:
        return Finding(
            "problem",
            "faiss",
            f"{' and '.join(installed)} lie in one folder: what is imported is a mixture",
            f"pip uninstall -y {' '.join(installed)} && pip install faiss-gpu",
        )
    try:
        import faiss
        import numpy as np

        index = faiss.IndexFlatL2(2)
        index.add(np.eye(2, dtype=np.float32))
        index.search(np.eye(2, dtype=np.float32), 1)
        seen = int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0
    except Exception as failure:
        return _broken("faiss", installed[0] if installed else "faiss-gpu", failure)
    try:
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # torch has a line of its own
        there = 0
    found = f"{faiss.__version__}, sees {_counted(seen, 'GPU')}, torch sees {there or 'none'}"
    if seen >= there:
        return Finding("ok", "faiss", found)
    found += ": k-means runs on the CPU, and large ones are refused"
    if installed == ["faiss-cpu"] or "GPU" not in faiss.get_compile_options().split():
        return Finding(
            "warning",
            "faiss",
            f"{found}; this is a faiss for the CPU",
            f"pip uninstall -y {' '.join(installed) or 'faiss-cpu'} && pip install faiss-gpu",
        )
    return Finding(
        "warning",
        "faiss",
        found,
        "update the NVIDIA driver (nvidia-smi names the CUDA version it is good for), or install a"
        " faiss-gpu that fits it; then python -c 'import faiss; print(faiss.get_num_gpus())'",
    )


def detection() -> Finding:
    """MMDetection and what it stands on: only tables 5 and 6 need it."""
    versions: list[str] = []
    wrong: list[str] = []
    absent: list[str] = []
    for distribution, module in DETECTION.items():
        name = (
            "mmcv" if distribution == "mmcv-lite" and _version("mmcv") else distribution
        )  # the compiled one serves as well
        try:
            loaded = importlib.import_module(module)
        except (Exception, SystemExit) as failure:
            if _version(name) is None and isinstance(failure, ModuleNotFoundError):
                absent.append(name)
            else:
                wrong.append(f"{name}: {_reason(failure)}")
            continue
        versions.append(
            f"{name} {_version(name) or getattr(loaded, '__version__', 'of unknown version')}"
        )
    try:
        importlib.import_module("mmcv._ext")
    except ModuleNotFoundError:  # mmcv-lite has none, and the suite needs none
        pass
    except Exception as failure:
        wrong.append(
            f"mmcv's compiled operators do not fit this torch: {_reason(failure)} (pip uninstall"
            " mmcv)"
        )
    if not wrong and not absent:
        return Finding("ok", "detection", ", ".join(versions))
    why = "; ".join([*(["not installed: " + ", ".join(absent)] if absent else []), *wrong])
    return Finding(
        "warning", "detection", f"{why}; tables 5 and 6 cannot be made", INSTALL_DETECTION
    )


def submitit() -> Finding:
    """Only clusters need it."""
    try:
        import submitit as package
    except ModuleNotFoundError as failure:
        if failure.name == "submitit":
            return Finding(
                "info", "submitit", "not installed; only --slurm needs it", "pip install submitit"
            )
        return _broken("submitit", "submitit", failure, "warning")
    except Exception as failure:
        return _broken("submitit", "submitit", failure, "warning")
    return Finding("ok", "submitit", str(getattr(package, "__version__", _version("submitit"))))


def names() -> list[Finding]:
    """Whether this project's packages are what Python finds under their names, here and from any
    other folder."""
    wrong: list[Finding] = []
    hidden: dict[Path, list[str]] = {}
    absent, installed = [], metadata.packages_distributions()
    # python -m puts the current folder first. A script has its own there, and finds only what is
    # elsewhere
    local = bool(sys.path) and Path(sys.path[0] or ".").resolve() == Path.cwd()
    for name in OURS:
        specs = [
            _spec(name, searched)
            for searched in ([sys.path, sys.path[1:]] if local else [sys.path])
        ]
        places = [_place(spec) for spec in specs if spec]
        foreign = next((place for place in places if not place.is_relative_to(HOME / name)), None)
        if others := " ".join(sorted(_providers(name, installed) - {"protobench"})):
            gives = f"gives {foreign}" if foreign else "may give either"
            mixed = (
                HOME.name == "site-packages"
            )  # both in one folder: removing the other takes files of this one along
            again = " && pip install --force-reinstall --no-deps protobench" if mixed else ""
            wrong.append(
                Finding(
                    "problem",
                    "names",
                    f"{others}, which is installed, has a top-level {name} as this project has: "
                    f"'import {name}' {gives}",
                    f"pip uninstall {others}{again}",
                )
            )
        elif foreign:
            hidden.setdefault(foreign.parent, []).append(name)
        elif None in specs:
            absent.append(name)
    for folder, found in hidden.items():
        more = f"; {', '.join(found[1:])} too" if found[1:] else ""
        wrong.append(
            Finding(
                "problem",
                "names",
                f"'import {found[0]}' gives {folder / found[0]}, not {HOME / found[0]}{more}",
                "rename or remove it, take its folder off PYTHONPATH, or, where it is another copy"
                f" of this project, pip install -e {HOME}",
            )
        )
    if absent:
        wrong.append(
            Finding(
                "warning",
                "names",
                f"{', '.join(absent)}: found from this folder alone, as this project is not "
                "installed",
                f"pip install -e {HOME}",
            )
        )
    return wrong or [Finding("ok", "names", f"{', '.join(OURS)} are this project's, at {HOME}")]


def _spec(name: str, places: Sequence[str]) -> ModuleSpec | None:
    """What an import would find that looked in ``places`` and then where editable installations
    hook in, but not in sys.modules, which may hold it already."""
    if found := PathFinder.find_spec(name, list(places)):
        return found
    hooks = [
        finder
        for finder in sys.meta_path
        if "editable" in f"{getattr(finder, '__module__', '')} {finder}".lower()
    ]
    return next((spec for hook in hooks if (spec := hook.find_spec(name, None)) is not None), None)


def _place(spec: ModuleSpec) -> Path:
    """A module's file without its suffix, a package's folder: either way the name that is imported
    stands last."""
    folders = list(spec.submodule_search_locations or ())
    return (
        Path(folders[0]).resolve()
        if folders
        else Path(spec.origin or spec.name).resolve().with_suffix("")
    )


# machine ------------------------------------------------------------------------------------------


def gpus() -> list[Finding]:
    """What torch can compute on."""
    try:
        import torch
    except Exception:  # has a line of its own
        return [Finding("info", "GPU", "not looked for, as torch cannot be imported")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()  # says in a warning that the driver is too old
    if available:
        return [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    there, chosen = _driver_lists(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not there or (chosen is not None and chosen.strip() in ("", "-1")):
        hidden = (
            f" ({_counted(len(there), 'GPU')} hidden by CUDA_VISIBLE_DEVICES={chosen!r})"
            if there
            else ""
        )
        return [Finding("info", "GPU", f"none{hidden}: everything runs on the CPU")]
    found = f"{', '.join(there)}, but torch cannot use it"
    if not torch.version.cuda:
        return [Finding("warning", "GPU", f"{found}: this torch is not built for CUDA", PAIR)]
    why = (
        f": {_short(str(told[0].message))}"
        if told
        else f" (CUDA_VISIBLE_DEVICES={chosen})"
        if chosen
        else ""
    )
    return [
        Finding(
            "warning",
            "GPU",
            found + why,
            f"update the NVIDIA driver, or install a torch that fits it: {TORCH_FOR}",
        )
    ]


def _driver_lists() -> list[str]:
    """The GPUs that the driver knows, whatever torch was built for."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [] if done.returncode else done.stdout.splitlines()
    return [line.split(" (UUID")[0] for line in lines if line.startswith("GPU ")]


def _gpu(torch: Any, number: int) -> Finding:
    check, built = f"GPU {number}", torch.cuda.get_arch_list()
    major, minor = capability = torch.cuda.get_device_capability(number)
    total = torch.cuda.get_device_properties(number).total_memory
    found = (
        f"{torch.cuda.get_device_name(number)}, {total / 1e9:.0f} GB, compute capability"
        f" {major}.{minor}"
    )
    if not runs_on(capability, built):
        age = (
            "old"
            if 10 * major + minor < min(int(arch.split("_")[1].rstrip("af")) for arch in built)
            else "new"
        )
        return Finding(
            "problem",
            check,
            f"{found}: too {age} for this torch, which is built for {', '.join(built)}",
            f"install a torch built for sm_{major}{minor}, {TORCH_FOR}; or --device cpu",
        )
    try:
        torch.ones(1, device=f"cuda:{number}").add_(1).item()
        free = torch.cuda.mem_get_info(number)[0]
    except Exception as failure:
        return Finding(
            "problem",
            check,
            f"{found}: adding two numbers on it fails: {_reason(failure)}",
            "see with nvidia-smi whether another program holds it, and its driver; or --device cpu",
        )
    return Finding("ok", check, f"{found}, {free / 1e9:.0f} GB free")


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether a torch ``built`` for these (sm_86, sm_90a, compute_90, …) has code for a GPU:
    machine code of its major version and no newer minor one, or PTX, which the driver translates
    for any newer GPU. True where the list is not of this kind (ROCm)."""
    found = [
        match for arch in built if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch))
    ]
    for kind, major, minor, exact in (match.groups() for match in found):
        target = int(major), int(minor)
        if capability == target or (
            exact != "a"
            and capability > target
            and (kind == "compute" or capability[0] == target[0])
        ):
            return True
    return not found


def memory() -> Finding:
    """Of the machine, or of the container where that is less."""
    if not MEMINFO.is_file():
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
            return Finding("info", "memory", "this system does not tell")
        return Finding(
            "ok",
            "memory",
            f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        )
    told: dict[str, str] = dict(
        re.findall(r"^(\w+): +(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    )
    total, available = (
        int(told["MemTotal"]) * 1024,
        int(told.get("MemAvailable", told["MemFree"])) * 1024,
    )
    limits = [
        int(text)
        for path in MEMORY_LIMITS
        if path.is_file() and (text := path.read_text().strip()).isdigit()
    ]
    limit = min(limits, default=total)
    found = f"{min(total, limit) / 1e9:.1f} GB, {min(available, limit) / 1e9:.1f} GB available"
    if limit < total:
        found += f" (the container's limit; the machine has {total / 1e9:.1f} GB)"
    if min(available, limit) < MEMORY:
        return Finding(
            "warning",
            "memory",
            f"{found}: little",
            "end other programs, raise the container's limit (--memory), or "
            "run one process at a time: --jobs 1 --workers 0",
        )
    return Finding("ok", "memory", found)


def shared_memory() -> Finding:
    """The processes that read images hand their batches over through /dev/shm."""
    if not SHM_FOLDER.is_dir():
        return Finding("info", "/dev/shm", "this system has none and needs none")
    space = shutil.disk_usage(SHM_FOLDER)
    found = f"{space.total / 1e9:.2f} GB, {space.free / 1e9:.2f} GB free"
    if space.total < SHM:
        return Finding(
            "warning",
            "/dev/shm",
            f"{found}: too small for batches of large images, workers die of a bus error",
            "docker run --shm-size=8g (or --ipc=host), or --workers 0",
        )
    if space.free < SHM:
        return Finding(
            "warning",
            "/dev/shm",
            f"{found}: nearly full",
            "see with ls -l /dev/shm what fills it, or --workers 0",
        )
    return Finding("ok", "/dev/shm", found)


def cache() -> Finding:
    """The folder of embedded data and features."""
    from protobench.runtime import files

    return disk("cache", files.cache_dir(), "set PROTOBENCH_CACHE to a folder on another disk")


def disk(check: str, folder: Path, otherwise: str) -> Finding:
    """Whether ``folder``, or where it would be made, can be written and has room. Writes a nameless
    file, which leaves nothing."""
    place = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path)
    )
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # some disks say only then that they are full
    except OSError as failure:
        return Finding(
            "problem",
            check,
            f"{folder.absolute()}: cannot write in {place}: {failure.strerror or failure}",
            f"mend its permissions or make room, or {otherwise}",
        )
    found = f"{folder.absolute()}: {free / 1e9:.1f} GB free, can be written"
    if free < DISK:
        return Finding(
            "warning",
            check,
            f"{found}: little (ImageNet's features take 10.5 GB)",
            f"make room, or {otherwise}",
        )
    return Finding("ok", check, found)


def open_files() -> Finding:
    """The limit on open files."""
    try:
        import resource
    except ImportError:
        return Finding("info", "open files", "this system has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    none = resource.RLIM_INFINITY
    if soft == none or soft >= OPEN_FILES:
        return Finding("ok", "open files", "no limit" if soft == none else f"at most {soft}")
    reached = 4096 if hard == none else min(4096, hard)
    fix = (
        f"ulimit -n {reached} in this shell"
        if hard == none or hard >= OPEN_FILES
        else (
            f"have the hard limit of {hard} raised (LimitNOFILE, docker run --ulimit nofile=4096),"
            " or --workers 0"
        )
    )
    return Finding(
        "warning",
        "open files",
        f"at most {soft}: few for workers, which hand over batches through open files",
        fix,
    )


def expat(version: tuple[int, int, int] | None = None) -> Finding:
    """The XML parser; from 2.4.1 on it refuses small files that grow to gigabytes."""
    from xml.parsers import expat as parser

    version = version or parser.version_info
    found = ".".join(map(str, version))
    if version < (2, 4, 1):
        return Finding(
            "warning",
            "expat",
            f"{found}: does not withstand XML bombs, 2.4.1 does",
            "update Python, or the system's libexpat; until then read no annotations that you do"
            " not trust",
        )
    return Finding("ok", "expat", found)


def git() -> Finding:
    """Records name the commit that made them."""
    without, package = "records will not name the commit that made them", HOME / "protobench"
    if not shutil.which("git"):
        return Finding(
            "warning",
            "git",
            f"not installed: {without}",
            "install git (apt install git, for example)",
        )
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not done.returncode:
        return Finding("ok", "git", f"commit {done.stdout.strip()}")
    if "safe.directory" in done.stderr:
        return Finding(
            "warning",
            "git",
            f"refuses this folder, as it belongs to another user: {without}",
            f"git config --global --add safe.directory {HOME}",
        )
    return Finding(
        "warning",
        "git",
        f"{HOME} is no clone: {without}",
        "git clone the project and pip install -e it",
    )


def threads() -> Finding:
    """How many cores there are to use, and what was said about them."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    said, found = os.environ.get("OMP_NUM_THREADS"), f"{_counted(cores, 'core')} to use"
    if said is None:
        return Finding(
            "info", "threads", f"{found}; OMP_NUM_THREADS is not set, so libraries choose"
        )
    if not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", said):
        return Finding(
            "warning",
            "threads",
            f"{found}; OMP_NUM_THREADS={said!r} is no number of threads",
            f"export OMP_NUM_THREADS={cores}, or unset OMP_NUM_THREADS",
        )
    return Finding("info", "threads", f"{found}; OMP_NUM_THREADS={said}")


# data ---------------------------------------------------------------------------------------------


def embedded() -> Finding:
    """The embedded data, where it was made already: every byte is what was written."""
    from protobench.data.synthetic import bundled
    from protobench.runtime import files

    made = sorted(path.parent for path in files.cache_dir().glob("*-v*/manifest.json"))
    for folder in made:
        bundled.verify(folder)
    if not made:
        return Finding(
            "info",
            "data",
            "no --data; the embedded data is not made yet: first use does it, in half a minute",
        )
    return Finding(
        "ok",
        "data",
        f"no --data; embedded data, whole: {', '.join(folder.name for folder in made)}",
    )


def data_set(root: Path, name: str) -> Finding:
    """Whether the suite's own reader takes a data set below ``root``; it lists images and labels
    and decodes none."""
    from protobench.data import published, verify
    from protobench.data.datasets import DATASETS

    try:
        train, test = DATASETS[name].read_both(root)
    except UserError as mistake:
        here = verify.has_folder(DATASETS[name], root)
        return Finding("problem" if here else "info", name, _told(mistake), mistake.hint or "")
    place = Path(os.path.commonpath([images.root.absolute() for images in (train, test)]))
    found = f"{len(train)} + {len(test)} images, {len(train.classes)} classes, at {place}"
    if not (odd := list(dict.fromkeys(published.counts(train) + published.counts(test)))):
        return Finding("ok", name, found)
    return Finding(
        "warning",
        name,
        f"{found}: {'; '.join(odd)}, so cells made with it are off protocol",
        f"unpack it again; python -m protobench check-data {root} tells more",
    )


# all of it ----------------------------------------------------------------------------------------

CHECKS: tuple[tuple[str, Callable[[], Finding | list[Finding]]], ...] = (
    ("Python", interpreter),
    ("torch", torch_build),
    ("torchvision", torchvision_pair),
    ("packages", packages),
    ("faiss", faiss_build),
    ("names", names),
    ("detection", detection),
    ("submitit", submitit),
    ("git", git),
    ("expat", expat),
    ("GPU", gpus),
    ("memory", memory),
    ("/dev/shm", shared_memory),
    ("threads", threads),
    ("open files", open_files),
    ("cache", cache),
    ("results", partial(disk, "results", Path("results"), "give --results another folder")),
    (
        "runs",
        partial(
            disk, "runs", Path("runs"), "give --runs (of a single method: --out) another folder"
        ),
    ),
)


def diagnose(data: Path | None = None) -> Iterator[Finding]:
    """Every finding, as soon as it is made; ``data``: the root of real data sets."""
    for name, check in CHECKS:
        yield from isolated(name, check)
    if data is None:
        yield from isolated("data", embedded)
    elif not data.is_dir():
        yield Finding(
            "problem",
            "data",
            f"no such folder: {data}",
            "give --data the folder that holds imagenet/, VOCdevkit/, …",
        )
    else:
        from protobench.data.datasets import DATASETS

        found = []
        for name in DATASETS:
            for finding in isolated(name, partial(data_set, data, name)):
                found.append(finding)
                yield finding
        if all(finding.sign == "info" for finding in found):
            yield Finding(
                "problem",
                "data",
                f"none of the data sets is in {data}",
                "give --data the folder that holds imagenet/, VOCdevkit/, …",
            )


def isolated(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """What ``check`` found, or a problem that names it and what it raised. What packages print and
    warn is not let through."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = check()
    except UserError as mistake:
        return [Finding("problem", name, _told(mistake), mistake.hint or "")]
    except ImportError as failure:
        return [
            Finding(
                "problem",
                name,
                f"not looked at: {_reason(failure)}",
                "mend the packages that other lines name",
            )
        ]
    except (Exception, SystemExit) as surprise:  # a package may do anything while it is imported
        if known := resource_errors.explained(surprise):
            return [Finding("problem", name, _told(known), known.hint or "")]
        return [
            Finding(
                "problem",
                name,
                f"this check itself failed: {_reason(surprise)}",
                "please report this line",
            )
        ]
    return found if isinstance(found, list) else [found]


def line(finding: Finding) -> str:
    """As it is printed; only the symbol is coloured, as the word says the same."""
    sign = colour.painted(SYMBOLS[finding.sign]) + f" {finding.sign:<8}"
    fix = (
        finding.fix and ("; " if finding.sign == "info" else "; fix: ") + finding.fix
    )  # of an info there is nothing to mend
    return f"{sign} {finding.check:<12} {_one_line(finding.found + fix)}"


def main(args: Sequence[str]) -> int:
    """The command line; 0, or 2 where there is a problem."""
    parser = argparse.ArgumentParser(
        "python -m protobench doctor",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="ROOT",
        help=(
            "folder with imagenet/, VOCdevkit/, places205/, coco/, "
            "cifar-10-batches-py/, cifar-100-python/, or one of these; without it the embedded data"
        ),
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(args)
    found = []
    for finding in diagnose(options.data):
        found.append(finding)
        if not options.json:
            print(line(finding), flush=True)
    problems, cautions = (
        sum(finding.sign == sign for finding in found) for sign in ("problem", "warning")
    )
    if options.json:
        told = [
            {key: _one_line(value) for key, value in asdict(finding).items()} for finding in found
        ]
        print(
            json.dumps(
                {"problems": problems, "warnings": cautions, "findings": told},
                indent=1,
                ensure_ascii=False,
            )
        )
    else:
        print(f"{_counted(problems, 'problem')}, {_counted(cautions, 'warning')}")
    return cli.TROUBLE if problems else cli.SAME


# texts and versions -------------------------------------------------------------------------------


def _broken(
    check: str, distribution: str, failure: BaseException, sign: Sign = "problem"
) -> Finding:
    """A package that cannot be imported: absent, or installed and of no use."""
    wanted, version = _requirement(distribution), _version(distribution)
    if version is None:
        return Finding(
            sign, check, f"{distribution} is not installed ({_reason(failure)})", _install(wanted)
        )
    fix = f'pip install --force-reinstall "{wanted}"'
    if distribution.startswith("opencv") and _version("opencv-python"):
        fix = (  # it lies in the same folder and needs a display's libraries
            f"pip uninstall -y opencv-python && {fix}"
        )
    return Finding(
        sign, check, f"{distribution} {version} cannot be imported: {_reason(failure)}", fix
    )


def _install(*wanted: str) -> str:
    """Where this project is not installed either, its own installation brings all."""
    return (
        "pip install " + " ".join(f'"{one}"' for one in wanted)
        if _version("protobench")
        else f"pip install -e {HOME}"
    )


def _reason(failure: BaseException) -> str:
    return _short(f"{type(failure).__name__}: {failure}")


def _told(mistake: UserError) -> str:
    return mistake.what + (
        "" if mistake.at is None or str(mistake.at) in mistake.what else f" ({mistake.at})"
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


def _one_line(text: str) -> str:
    return printable(" ".join(text.splitlines()))


def _counted(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}{'' if number == 1 else 's'}"


def _providers(name: str, installed: Mapping[str, list[str]]) -> set[str]:
    """Of the distributions ``installed``, by their top-level names, those that have ``name``."""
    return {found.lower().replace("_", "-") for found in installed.get(name, ()) if found}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _required_by(distribution: str) -> list[str]:
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def _requirement(distribution: str) -> str:
    """As this project states it, ``numpy>=2``; the mere name where it states none."""
    stated = re.compile(rf"{re.escape(distribution)}(>=[\d.]+)?")
    return next(
        (line for line in _required_by("protobench") if stated.fullmatch(line)), distribution
    )


def _older(version: str, requirement: str) -> bool:
    return _numbers(version) < _numbers(requirement.partition(">=")[2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
