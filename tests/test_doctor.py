"""Each check of ``doctor`` in the environment that it is there to find, and the command as a user
calls it."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections import namedtuple
from dataclasses import replace
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest

from protobench import __main__ as main
from protobench.data import image_list, voc
from protobench.data.datasets import DATASETS
from protobench.runtime import doctor
from protobench.runtime.doctor import Finding
from protobench.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_fake_outlives_its_test(tmp_path):
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def only(check):
    """The one finding of a check, as the command would show it."""
    (found,) = doctor.isolated("check", check)
    assert "\n" not in doctor.line(found)
    if found.sign in ("warning", "problem"):
        assert found.fix
    return found


def absent(monkeypatch, *modules):
    """Makes these, and what is below them, fail to import as if they were not installed.

    Every module keeps its place in sys.modules: that is the order in which Python takes them down
    at its end, and torch's complain at length in another."""
    for name in [*modules, *(loaded for module in modules for loaded in below(module))]:
        monkeypatch.setitem(sys.modules, name, None)


def below(module):
    """The names of what is loaded of a package, but for itself."""
    return [loaded for loaded in sys.modules if loaded.startswith(f"{module}.")]


def stated(monkeypatch, **lines):
    """What the installed distributions say that they need."""
    real = importlib.metadata.requires
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: lines[name] if name in lines else real(name)
    )


def versions(monkeypatch, **known):
    """Which distributions are installed: None for one that is not."""
    real = importlib.metadata.version

    def version(name):
        if name not in known:
            return real(name)
        if known[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(doctor.metadata, "version", version)


def distribution(folder, name, top_level):
    """An installed package as pip leaves it behind."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{top_level}\n")
    return folder


# installation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "sign", "words"),
    [
        ((3, 10, 14), "problem", "3.11 is needed"),
        ((3, 11, 0), "ok", ""),
        ((3, 13, 9), "ok", ""),
        ((3, 14, 0), "warning", "too new for mmengine"),
    ],
)
def test_python(version, sign, words):
    found = only(partial(doctor.interpreter, version))
    assert found.sign == sign
    assert words in found.found
    assert ".".join(map(str, version)) in found.found


@pytest.mark.parametrize(
    ("version", "cuda", "sign", "words"),
    [
        ("2.11.0+cu126", "12.6", "ok", "built for CUDA 12.6"),
        ("2.12.1+cpu", None, "ok", "built for the CPU only"),
        ("2.10.9+cu126", "12.6", "problem", "torch>=2.11 is needed"),
    ],
)
def test_torch_is_new_enough(monkeypatch, version, cuda, sign, words):
    stated(monkeypatch, protobench=["torch>=2.11", "torchvision"])
    monkeypatch.setitem(
        sys.modules,
        "torch",
        SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda, hip=None)),
    )
    found = only(doctor.torch_build)
    assert found.sign == sign
    assert words in found.found
    assert sign == "ok" or found.fix == 'pip install --upgrade "torch>=2.11" torchvision'


def test_absent_torch_is_one_line_and_the_gpu_s_no_second(monkeypatch):
    absent(monkeypatch, "torch")
    versions(monkeypatch, torch=None, protobench="0.1.0")
    stated(monkeypatch, protobench=["torch>=2.11"])
    found = only(doctor.torch_build)
    assert (found.sign, found.fix) == ("problem", 'pip install "torch>=2.11"')
    assert only(doctor.gpus).sign == "info"


def test_torchvision_s_operators_are_called():
    found = only(doctor.torchvision_pair)
    assert found.sign == "ok", found
    assert importlib.metadata.version("torchvision").split("+")[0] in found.found


def test_torchvision_without_its_operators_is_a_problem(monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    found = only(doctor.torchvision_pair)
    assert found.sign == "problem"
    assert "does not fit torch" in found.found
    assert "torchvision::nms does not exist" in found.found
    assert found.fix.startswith(
        "pip uninstall -y torch torchvision && pip install torch torchvision"
    )


def test_torchvision_that_cannot_even_be_imported_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    for loaded in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = only(doctor.torchvision_pair)
    assert found.sign == "problem"
    assert "RuntimeError: operator torchvision::nms does not exist" in found.found


def test_torchvision_of_another_torch_that_happens_to_work_is_a_warning(monkeypatch):
    stated(monkeypatch, torchvision=["numpy", "torchdata==1.0", "torch (==2.9.0)"])
    found = only(doctor.torchvision_pair)
    assert found.sign == "warning"
    assert "was made for torch 2.9.0" in found.found
    import torch

    stated(monkeypatch, torchvision=[f"torch=={torch.__version__.split('+')[0]}"])
    assert only(doctor.torchvision_pair).sign == "ok"


def test_torchvision_that_answers_wrongly_is_a_problem(monkeypatch):
    import torch

    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0, 1, 2]))
    assert "[0, 1, 2]" in only(doctor.torchvision_pair).found
    assert only(doctor.torchvision_pair).sign == "problem"


@pytest.mark.parametrize(
    ("failure", "sign"),
    [
        (
            NotImplementedError(
                "Could not run 'torchvision::nms' with arguments from the 'CUDA' backend"
            ),
            "problem",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "ok",
        ),
    ],
)  # the GPU's own line tells
def test_a_torchvision_for_the_cpu_beside_a_torch_for_the_gpu(monkeypatch, failure, sign):
    import torch
    import torchvision

    real, calls = torchvision.ops.nms, []

    def nms(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise failure
        return real(*arguments)

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    found = only(doctor.torchvision_pair)
    assert found.sign == sign
    assert len(calls) == 2
    assert sign == "ok" or "no operators for the GPU" in found.found


def test_every_package_that_the_project_depends_on_is_looked_at():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.match(r"[\w-]+", line)[0] for line in needed["dependencies"]}
    assert named == {*doctor.PACKAGES, "torch", "torchvision", "faiss-gpu"}
    assert {
        re.match(r"[\w-]+", line)[0] for line in needed["optional-dependencies"]["detection"]
    } == set(doctor.DETECTION)


def test_the_packages_of_these_tests_are_in_order():
    found = doctor.isolated("packages", doctor.packages)
    (fine,) = [finding for finding in found if finding.sign == "ok"]
    for name in ("numpy", "scikit-learn", "pandas", "liblinear-official"):
        assert f"{name} {importlib.metadata.version(name)}" in fine.found


def test_absent_broken_and_old_packages_are_told_apart(monkeypatch, tmp_path):
    (tmp_path / "abi_broken.py").write_text(
        "raise ImportError('numpy.core.multiarray failed to import\\n\\nmore')"
    )
    (tmp_path / "quits.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(
        doctor,
        "PACKAGES",
        {
            "fine": "json",
            "gone": "no_such_module",
            "lost": "nor_this.one",
            "broken": "abi_broken",
            "quitting": "quits",
            "old": "csv",
        },
    )
    versions(
        monkeypatch,
        protobench="0.1",
        fine="2.0.1",
        gone=None,
        lost=None,
        broken="1.1",
        quitting="0.3",
        old="1.9.9",
    )
    stated(
        monkeypatch, protobench=["fine>=2", "gone>=3.1", "old>=1.10", 'fine>=9; extra == "test"']
    )
    found = doctor.isolated("packages", doctor.packages)
    assert [finding.sign for finding in found] == ["problem"] * 4 + ["ok"]
    broken, quitting, old, gone, fine = found
    assert (
        broken.found
        == "broken 1.1 cannot be imported: ImportError: numpy.core.multiarray failed to import more"
    )
    assert broken.fix == 'pip install --force-reinstall "broken"'
    assert "SystemExit" in quitting.found
    assert (old.found, old.fix) == (
        "old 1.9.9; old>=1.10 is needed",
        'pip install --upgrade "old>=1.10"',
    )
    assert (gone.found, gone.fix) == (
        "not installed: gone>=3.1, lost",
        'pip install "gone>=3.1" "lost"',
    )
    assert fine.found == "fine 2.0.1"


def test_a_project_that_is_not_installed_is_to_be_installed_as_a_whole(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"gone": "no_such_module"})
    versions(monkeypatch, protobench=None, gone=None)
    assert only(doctor.packages).fix == f"pip install -e {ROOT}"


def test_an_opencv_that_wants_a_display_has_its_own_way_out(monkeypatch, tmp_path):
    (tmp_path / "needs_gl.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(doctor, "PACKAGES", {"opencv-python-headless": "needs_gl"})
    versions(monkeypatch, **{"opencv-python": "4.10", "opencv-python-headless": "4.10"})
    found = only(doctor.packages)
    assert "libGL.so.1" in found.found
    assert found.fix.startswith("pip uninstall -y opencv-python && pip install --force-reinstall")


class Index:
    def __init__(self, dimensions):
        self.dimensions = dimensions

    def add(self, x):
        assert x.shape[1] == self.dimensions

    search = lambda self, x, k: None  # noqa: E731


def fake_faiss(monkeypatch, gpus, *, torch_gpus, options="OPTIMIZE GPU", installed=("faiss-gpu",)):
    monkeypatch.setitem(
        sys.modules,
        "faiss",
        SimpleNamespace(
            __version__="1.15.1",
            IndexFlatL2=Index,
            get_num_gpus=lambda: gpus,
            get_compile_options=lambda: options,
        ),
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: torch_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: torch_gpus)
    monkeypatch.setattr(
        doctor.metadata, "packages_distributions", lambda: {"faiss": [*installed, None]}
    )


@pytest.mark.parametrize(
    ("gpus", "torch_gpus", "options", "installed", "sign", "fix"),
    [
        (0, 0, "OPTIMIZE GPU", "faiss-gpu", "ok", ""),
        (0, 0, "OPTIMIZE", "faiss-cpu", "ok", ""),
        (2, 2, "OPTIMIZE GPU", "faiss-gpu", "ok", ""),
        (0, 2, "OPTIMIZE GPU", "faiss-gpu", "warning", "update the NVIDIA driver"),
        (1, 2, "OPTIMIZE GPU", "faiss-gpu", "warning", "update the NVIDIA driver"),
        (
            0,
            1,
            "OPTIMIZE",
            "faiss_cpu",
            "warning",
            "pip uninstall -y faiss-cpu && pip install faiss-gpu",
        ),
        (0, 1, "OPTIMIZE", "faiss", "warning", "pip uninstall -y faiss && pip install faiss-gpu"),
    ],
)
def test_faiss_sees_as_many_gpus_as_torch(
    monkeypatch, gpus, torch_gpus, options, installed, sign, fix
):
    fake_faiss(monkeypatch, gpus, torch_gpus=torch_gpus, options=options, installed=(installed,))
    found = only(doctor.faiss_build)
    assert found.sign == sign
    assert found.fix.startswith(fix)
    assert f"sees {gpus or 'no'} GPU" in found.found
    assert f"torch sees {torch_gpus or 'none'}" in found.found
    assert ("k-means runs on the CPU" in found.found) == (sign == "warning")


def test_faiss_of_both_kinds_is_a_problem(monkeypatch, tmp_path):
    distribution(distribution(tmp_path, "faiss-cpu", "faiss"), "faiss-gpu", "faiss")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = only(doctor.faiss_build)
    assert found.sign == "problem"
    assert "faiss-cpu and faiss-gpu" in found.found
    assert found.fix == "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu"


def test_a_faiss_that_cannot_search_is_a_problem(monkeypatch):
    def add(*_):
        raise TypeError(
            "in method 'fvec_renorm_L2', argument 3 of type 'float *'"
        )  # as with the wrong NumPy

    monkeypatch.setattr(Index, "add", add)
    fake_faiss(monkeypatch, 0, torch_gpus=0)
    versions(monkeypatch, **{"faiss-gpu": "1.15.1"})
    found = only(doctor.faiss_build)
    assert found.sign == "problem"
    assert "faiss-gpu 1.15.1 cannot be imported" in found.found or "fvec_renorm_L2" in found.found
    assert "--force-reinstall" in found.fix


def test_absent_detection_is_a_warning(monkeypatch):
    absent(monkeypatch, "mmdet", "mmengine", "mmcv", "pycocotools")
    versions(
        monkeypatch, **dict.fromkeys(["mmdet", "mmengine", "mmcv", "mmcv-lite", "pycocotools"])
    )
    found = only(doctor.detection)
    assert found.sign == "warning"
    assert found.found.startswith("not installed: mmdet, mmengine, mmcv-lite, pycocotools;")
    assert "tables 5 and 6 cannot be made" in found.found
    assert "tox -e reproduce-table5" in found.fix


def packages_of_detection(monkeypatch, tmp_path, **broken):
    """Fakes of all that detection needs; ``broken``: the code of a module."""
    for module in ("mmdet", "mmengine", "mmcv", "pycocotools"):
        for loaded in (module, *below(module)):
            monkeypatch.delitem(sys.modules, loaded, raising=False)
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(broken.get(module, ""))
    (tmp_path / "pycocotools" / "mask.py").touch()
    if "compiled" in broken:
        (tmp_path / "mmcv" / "_ext.py").write_text(broken["compiled"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    versions(
        monkeypatch,
        **{
            "mmdet": "3.3",
            "mmengine": "0.10",
            "mmcv": "2.1",
            "mmcv-lite": None,
            "pycocotools": None,
        },
    )


@pytest.mark.parametrize(
    ("broken", "sign", "words"),
    [
        ({}, "ok", "mmdet 3.3, mmengine 0.10, mmcv 2.1, pycocotools of unknown version"),
        (
            {
                "mmdet": (
                    "assert False, 'MMCV==2.2.0 is used but incompatible. Please install"
                    " mmcv>=2.0.0rc4, <2.2.0.'"
                )
            },
            "warning",
            "mmdet: AssertionError: MMCV==2.2.0 is used but incompatible",
        ),
        (
            {"mmengine": "import pkg_resources_of_old"},
            "warning",
            "No module named 'pkg_resources_of_old'",
        ),
        (
            {"compiled": "raise ImportError('undefined symbol: _ZNK3c10')"},
            "warning",
            "compiled operators do not fit this torch",
        ),
        ({"compiled": ""}, "ok", "mmcv 2.1"),
    ],
)
def test_detection(monkeypatch, tmp_path, broken, sign, words):
    packages_of_detection(monkeypatch, tmp_path, **broken)
    found = only(doctor.detection)
    assert found.sign == sign
    assert words in found.found
    assert ("tables 5 and 6 cannot be made" in found.found) == (sign == "warning")


def test_submitit_is_optional(monkeypatch, tmp_path):
    absent(monkeypatch, "submitit")
    found = only(doctor.submitit)
    assert found.sign == "info"
    assert "only --slurm needs it" in found.found
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(__version__="1.5.4"))
    assert only(doctor.submitit) == Finding("ok", "submitit", "1.5.4")
    monkeypatch.delitem(sys.modules, "submitit")
    (tmp_path / "submitit.py").write_text("import no_such_cloudpickle")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert only(doctor.submitit).sign == "warning"


# names --------------------------------------------------------------------------------------------


def bare(*words, path=()):
    """``python -m protobench doctor`` where no package at all is installed but what lies in
    ``path``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-S", "-m", "protobench", "doctor", *words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
    )


def names_of(done):
    assert "Traceback" not in done.stderr, done.stderr
    return [
        finding for finding in json.loads(done.stdout)["findings"] if finding["check"] == "names"
    ]


@pytest.mark.parametrize("name", ["evaluate", "tables", "pretrain"])
def test_an_installed_package_of_the_same_name_is_a_problem(tmp_path, name):
    """Hugging Face evaluate and PyTables are such. In the project's folder ours is found, by a
    script theirs."""
    (distribution(tmp_path, name, name) / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    clash, *rest = names_of(bare("--json", path=[tmp_path]))
    assert clash["sign"] == "problem"
    assert f"'import {name}' gives {tmp_path / name}" in clash["found"]
    assert clash["fix"] == f"pip uninstall {name}"
    assert [finding["sign"] for finding in rest] == ["warning"]  # the others are found here alone


def test_an_installed_package_that_ours_hides_today_is_a_problem_still(tmp_path):
    (distribution(tmp_path, "evaluate", "evaluate") / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").touch()
    (clash,) = names_of(bare("--json", path=[ROOT, tmp_path]))
    assert clash["sign"] == "problem"
    assert "evaluate, which is installed, has a top-level evaluate" in clash["found"]
    assert "may give either" in clash["found"]
    assert clash["fix"] == "pip uninstall evaluate"


def test_a_stray_file_of_the_same_name_is_a_problem(tmp_path):
    (tmp_path / "evaluate.py").touch()
    clash, _ = names_of(bare("--json", path=[tmp_path]))
    assert clash["sign"] == "problem"
    assert (
        f"'import evaluate' gives {tmp_path / 'evaluate'}, not {ROOT / 'evaluate'}"
        in clash["found"]
    )
    assert "rename or remove it" in clash["fix"]


def test_another_copy_of_the_project_is_one_line(tmp_path):
    for name in doctor.OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (clash,) = names_of(bare("--json", path=[tmp_path]))
    assert clash["sign"] == "problem"
    assert "pretrain, evaluate, tables too" in clash["found"]
    assert f"pip install -e {ROOT}" in clash["fix"]


def test_names_are_in_order_where_the_project_is_on_the_path():
    (fine,) = names_of(bare("--json", path=[ROOT]))
    assert fine["sign"] == "ok"
    (warned,) = names_of(bare("--json"))
    assert warned["sign"] == "warning"
    assert warned["fix"] == f"pip install -e {ROOT}"


class EditableHook:
    """As setuptools installs one: asked after everything on the path."""

    @staticmethod
    def find_spec(name, path, target=None):
        return PathFinder.find_spec(name, [str(ROOT)])


@pytest.mark.parametrize("folder", [None, "tables"])
def test_a_mere_folder_hides_an_editable_installation(monkeypatch, tmp_path, folder):
    """Without __init__.py too: it is a package to Python, and is found before the hook is asked."""
    if folder:
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder, EditableHook])
    monkeypatch.setattr(
        doctor.metadata,
        "packages_distributions",
        lambda: {name: ["protobench"] for name in doctor.OURS},
    )
    found = only(doctor.names)
    assert found.sign == ("problem" if folder else "ok")
    assert not folder or f"'import tables' gives {tmp_path / 'tables'}" in found.found


def test_where_both_are_installed_into_one_folder_ours_is_installed_again(monkeypatch, tmp_path):
    home = tmp_path / "site-packages"
    for name in doctor.OURS:
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").touch()
    monkeypatch.setattr(doctor, "HOME", home)
    monkeypatch.setattr(sys, "path", [str(home)])
    monkeypatch.setattr(
        doctor.metadata,
        "packages_distributions",
        lambda: (
            {name: ["protobench"] for name in doctor.OURS} | {"tables": ["protobench", "Tables"]}
        ),
    )
    found = only(doctor.names)
    assert found.fix == "pip uninstall tables && pip install --force-reinstall --no-deps protobench"


# machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90", "sm_120"], True),
        ((8, 6), ["sm_75", "sm_80"], True),  # a newer minor version
        ((8, 0), ["sm_86", "sm_90"], False),  # an older one
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((12, 0), ["sm_75", "sm_90"], False),
        ((12, 0), ["sm_75", "sm_90", "compute_90"], True),
        ((7, 0), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 4), ["gfx942", "gfx90a"], True),
    ],
)
def test_which_gpus_a_build_has_code_for(capability, built, runs):
    assert doctor.runs_on(capability, built) == runs


class Gpu:
    """What torch tells of a GPU."""

    def __init__(self, capability, built=("sm_75", "sm_80", "sm_90"), failure=None):
        self.capability, self.built, self.failure = capability, list(built), failure
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 2,
            get_arch_list=lambda: self.built,
            get_device_capability=lambda _: self.capability,
            get_device_name=lambda number: f"Test GPU no. {number}",
            get_device_properties=lambda _: SimpleNamespace(total_memory=80_000_000_000),
            mem_get_info=lambda _: (70_000_000_000, 80_000_000_000),
        )

    def ones(self, size, device):
        if self.failure:
            raise self.failure
        return SimpleNamespace(add_=lambda _: SimpleNamespace(item=lambda: 2.0))


@pytest.mark.parametrize(
    ("gpu", "sign", "words", "fix"),
    [
        (Gpu((9, 0)), "ok", "Test GPU no. 0, 80 GB, compute capability 9.0, 70 GB free", ""),
        (
            Gpu((3, 7)),
            "problem",
            (
                "compute capability 3.7: too old for this torch, which is built for sm_75, sm_80,"
                " sm_90"
            ),
            "install a torch built for sm_37",
        ),
        (Gpu((12, 1)), "problem", "too new for this torch", "--device cpu"),
        (
            Gpu(
                (9, 0),
                failure=RuntimeError("CUDA error: all CUDA-capable devices are busy\nCompile with"),
            ),
            "problem",
            "CUDA error: all CUDA-capable devices are busy",
            "nvidia-smi",
        ),
    ],
)
def test_gpus(monkeypatch, gpu, sign, words, fix):
    monkeypatch.setitem(sys.modules, "torch", gpu)
    found = doctor.isolated("GPU", doctor.gpus)
    assert [finding.check for finding in found] == ["GPU 0", "GPU 1"]
    assert {finding.sign for finding in found} == {sign}
    assert words in found[0].found
    assert fix in found[0].fix


def no_gpu(monkeypatch, *, smi="", cuda="13.2", warning=None, code=0):
    def is_available():
        if warning:
            warnings.warn(warning, stacklevel=1)
        return False

    monkeypatch.setitem(
        sys.modules,
        "torch",
        SimpleNamespace(
            cuda=SimpleNamespace(is_available=is_available), version=SimpleNamespace(cuda=cuda)
        ),
    )

    def nvidia_smi(words, **_):
        assert words == ["nvidia-smi", "-L"]
        if not smi:
            raise FileNotFoundError(words[0])
        return SimpleNamespace(returncode=code, stdout=smi)

    monkeypatch.setattr(doctor.subprocess, "run", nvidia_smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


SMI = "GPU 0: NVIDIA H200 (UUID: GPU-7d1c)\n"


def test_no_gpu_is_no_fault(monkeypatch):
    no_gpu(monkeypatch)
    assert only(doctor.gpus) == Finding("info", "GPU", "none: everything runs on the CPU")
    no_gpu(monkeypatch, smi=SMI, code=9)  # nvidia-smi without a driver
    assert only(doctor.gpus).sign == "info"


def test_a_hidden_gpu_is_no_fault_either(monkeypatch):
    no_gpu(monkeypatch, smi=SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = only(doctor.gpus)
    assert found.sign == "info"
    assert "1 GPU hidden by CUDA_VISIBLE_DEVICES=''" in found.found


@pytest.mark.parametrize(
    ("how", "words", "fix"),
    [
        ({"cuda": None}, "not built for CUDA", "pip install torch torchvision"),
        (
            {"warning": "The NVIDIA driver on your system is too old\n(found version 11040)."},
            "is too old (found version 11040)",
            "update the NVIDIA driver",
        ),
        ({}, "GPU 0: NVIDIA H200, but torch cannot use it", "update the NVIDIA driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch, how, words, fix):
    no_gpu(monkeypatch, smi=SMI, **how)
    found = only(doctor.gpus)
    assert found.sign == "warning"
    assert words in found.found
    assert fix in found.fix


@pytest.mark.parametrize(
    ("available", "limit", "sign", "words"),
    [
        (24_000_000, None, "ok", "32.8 GB, 24.6 GB available"),
        (24_000_000, "max", "ok", "32.8 GB, 24.6 GB available"),
        (
            24_000_000,
            "9223372036854771712",
            "ok",
            "32.8 GB, 24.6 GB available",
        ),  # how cgroup v1 spells max
        (1_000_000, None, "warning", "1.0 GB available"),
        (
            24_000_000,
            "2000000000",
            "warning",
            "2.0 GB, 2.0 GB available (the container's limit; the machine has 32.8 GB)",
        ),
    ],
)
def test_memory(monkeypatch, tmp_path, available, limit, sign, words):
    (tmp_path / "meminfo").write_text(
        f"MemTotal:       32000000 kB\nMemFree:   1 kB\nMemAvailable:   {available} kB\n"
        "HugePages_Total:       0\n"
    )
    if limit:
        (tmp_path / "max").write_text(f"{limit}\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "MEMORY_LIMITS", (tmp_path / "max", tmp_path / "absent"))
    found = only(doctor.memory)
    assert found.sign == sign
    assert words in found.found
    assert sign == "ok" or "--workers 0" in found.fix


def test_memory_where_there_is_no_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "absent")
    assert only(doctor.memory).sign == "ok"
    monkeypatch.delattr(os, "sysconf_names")
    assert only(doctor.memory).sign == "info"


@pytest.mark.parametrize(
    ("space", "sign", "fix"),
    [
        (Usage(64 * 2**20, 0, 64 * 2**20), "warning", "--shm-size=8g"),  # docker's default
        (Usage(8 * 2**30, 8 * 2**30, 2**20), "warning", "ls -l /dev/shm"),
        (Usage(8 * 2**30, 0, 8 * 2**30), "ok", ""),
    ],
)
def test_shared_memory(monkeypatch, tmp_path, space, sign, fix):
    monkeypatch.setattr(doctor, "SHM_FOLDER", tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: {tmp_path: space}[path])
    found = only(doctor.shared_memory)
    assert found.sign == sign
    assert fix in found.fix
    assert sign == "ok" or "--workers 0" in found.fix
    assert f"{space.total / 1e9:.2f} GB" in found.found


def test_a_system_without_shared_memory_needs_none(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHM_FOLDER", tmp_path / "absent")
    assert only(doctor.shared_memory).sign == "info"


def test_a_folder_that_is_not_there_yet_is_tried_where_it_would_be_and_nothing_is_left(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: {tmp_path: Usage(9e9, 0, 5e9)}[path]
    )
    found = only(doctor.cache)
    assert found == Finding("ok", "cache", f"{tmp_path / 'a' / 'b'}: 5.0 GB free, can be written")
    assert not list(tmp_path.iterdir())


def test_little_room_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(9e9, 8e9, 1e9))
    found = only(doctor.cache)
    assert found.sign == "warning"
    assert "1.0 GB free" in found.found
    assert "PROTOBENCH_CACHE" in found.fix


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    monkeypatch.chdir(tmp_path)
    for check, flag in (("results", "--results"), ("runs", "--runs")):
        found = only(dict(doctor.CHECKS)[check])
        assert found.sign == "problem"
        assert (
            found.found == f"{tmp_path / check}: cannot write in {tmp_path}: {os.strerror(number)}"
        )
        assert flag in found.fix


def test_a_disk_that_is_full_only_when_it_has_to_write(monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.os, "fsync", full)
    assert only(doctor.cache).sign == "problem"


def test_a_file_in_the_folder_s_place_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "results").write_text("a file")
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "results" / "cache"))
    found = only(doctor.cache)
    assert found.sign == "problem"
    assert "cannot write in" in found.found


@pytest.mark.parametrize(
    ("soft", "hard", "sign", "fix"),
    [
        (1024, 4096, "ok", ""),
        (-1, -1, "ok", ""),
        (256, 524288, "warning", "ulimit -n 4096"),
        (256, -1, "warning", "ulimit -n 4096"),
        (256, 2048, "warning", "ulimit -n 2048"),
        (256, 256, "warning", "hard limit of 256"),
    ],
)
def test_open_files(monkeypatch, soft, hard, sign, fix):
    resource = pytest.importorskip("resource")
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: tuple(unlimited if n == -1 else n for n in (soft, hard))
    )
    found = only(doctor.open_files)
    assert found.sign == sign
    assert fix in found.fix
    assert "no limit" in found.found if soft == -1 else f"at most {soft}" in found.found


@pytest.mark.parametrize(
    ("version", "sign"),
    [((2, 2, 10), "warning"), ((2, 4, 0), "warning"), ((2, 4, 1), "ok"), (None, "ok")],
)
def test_expat(version, sign):
    assert only(partial(doctor.expat, version)).sign == sign


def test_git_is_there_and_this_is_a_clone(monkeypatch, tmp_path):
    assert only(doctor.git).sign == "ok" or not shutil.which("git") or not (ROOT / ".git").exists()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        found = only(doctor.git)
    assert (found.sign, found.found[:13]) == ("warning", "not installed")
    (tmp_path / "protobench").mkdir()
    monkeypatch.setattr(doctor, "HOME", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = only(doctor.git)
    assert found.sign == "warning"
    assert "is no clone" in found.found
    told = SimpleNamespace(
        returncode=128,
        stdout="",
        stderr="fatal: detected dubious ownership …\n git config safe.directory x",
    )
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: told)
    assert only(doctor.git).fix == f"git config --global --add safe.directory {tmp_path}"


@pytest.mark.parametrize(
    ("said", "sign"),
    [
        (None, "info"),
        ("4", "info"),
        ("4,2", "info"),
        ("all", "warning"),
        ("0", "warning"),
        ("", "warning"),
    ],
)
def test_threads(monkeypatch, said, sign):
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    found = only(doctor.threads)
    assert found.sign == sign
    assert said is None or said in found.found


# data ---------------------------------------------------------------------------------------------


@pytest.fixture
def root(world, tmp_path):
    """A copy of the tiny world that may be spoilt and does not say that it is embedded data."""
    shutil.copytree(world, tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    return tmp_path / "data"


@pytest.fixture
def no_image_is_decoded(monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(image_list.ImageList, "read", refuse)


def test_data_sets_are_listed_and_not_decoded(world, no_image_is_decoded):
    for name, words in (
        ("imagenet", "200 + 40 images, 20 classes"),
        ("voc07", "200 + 120 images, 20 classes"),
        ("places205", "60 + 60 images, 10 classes"),
    ):
        found = only(partial(doctor.data_set, world, name))
        assert found.sign == "ok"
        assert found.found.startswith(f"{words}, at {world}")


def test_data_that_is_not_as_published_is_a_warning(root, monkeypatch):
    for label in (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").glob("zero_*.txt"):
        label.rename(
            label.with_name(label.name.replace("zero", "nought"))
        )  # the embedded data is ok as it is
    found = only(partial(doctor.data_set, root, "voc07"))
    assert found.sign == "warning"
    assert "voc07-trainval has 200 images, not 5011" in found.found
    assert "voc07-test has 120 images, not 4952" in found.found
    assert f"python -m protobench check-data {root}" in found.fix
    splits = tuple(
        replace(split, images=count, class_hash="")
        for split, count in zip(DATASETS["voc07"].splits, (200, 120), strict=True)
    )
    monkeypatch.setitem(DATASETS, "voc07", replace(DATASETS["voc07"], splits=splits))
    assert only(partial(doctor.data_set, root, "voc07")).sign == "ok"


def test_half_a_data_set_is_a_problem_in_its_reader_s_words(root):
    (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    found = only(partial(doctor.data_set, root, "voc07"))
    assert found.sign == "problem"
    assert "VOC2007 has no test list" in found.found
    assert found.fix == voc.TEST_ANNOTATIONS


def test_an_absent_data_set_is_no_fault_but_none_at_all_is(root, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", ())
    shutil.rmtree(root / "places205")
    told = {finding.check: finding for finding in doctor.diagnose(root)}
    assert told["places205"].sign == "info"
    assert "no Places205 list here" in told["places205"].found
    assert told["imagenet"].sign == "ok"
    assert "data" not in told
    shutil.rmtree(root / "imagenet")
    shutil.rmtree(root / "VOCdevkit")
    *rest, last = doctor.diagnose(root)
    assert {finding.sign for finding in rest} == {"info"}
    assert (last.sign, last.found) == ("problem", f"none of the data sets is in {root}")
    (missing,) = doctor.diagnose(root / "absent")
    assert missing.sign == "problem"
    assert "no such folder" in missing.found


def test_embedded_data_is_verified_where_it_was_made(root, world, monkeypatch, tmp_path):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "CHECKS", ())
    (unmade,) = doctor.diagnose()
    assert unmade.sign == "info"
    assert not (tmp_path / "cache").exists()
    shutil.copytree(world, tmp_path / "cache" / "mini-v1-abc")
    (whole,) = doctor.diagnose()
    assert whole.sign == "ok"
    assert "mini-v1-abc" in whole.found
    next((tmp_path / "cache").rglob("*.jpg")).write_bytes(b"damaged")
    (damaged,) = doctor.diagnose()
    assert damaged.sign == "problem"
    assert "was changed" in damaged.found
    assert "delete this folder" in damaged.fix


# the command --------------------------------------------------------------------------------------


def test_whatever_a_check_raises_is_a_line(capsys):
    def raises(failure):
        def check():
            print("what packages print is not shown")
            raise failure

        return check

    assert (
        only(raises(ZeroDivisionError("division\nby zero"))).found
        == "this check itself failed: ZeroDivisionError: division by zero"
    )
    assert "SystemExit" in only(raises(SystemExit(1))).found
    assert "No module named 'x'" in only(raises(ModuleNotFoundError("No module named 'x'"))).found
    assert only(raises(UserError("torn", at="here", hint="mend"))) == Finding(
        "problem", "check", "torn (here)", "mend"
    )
    assert "memory" in only(raises(MemoryError())).found
    with pytest.raises(KeyboardInterrupt):
        doctor.isolated("check", raises(KeyboardInterrupt()))
    assert capsys.readouterr().out == ""


def test_what_a_check_warns_of_does_not_reach_the_terminal():
    def check():
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        return Finding("ok", "check", "fine")

    assert only(check).found == "fine"


@pytest.mark.parametrize(
    ("signs", "code", "summary"),
    [
        (["ok", "info"], 0, "no problems, no warnings"),
        (["ok", "warning", "warning"], 0, "no problems, 2 warnings"),
        (["warning", "problem", "ok"], 2, "1 problem, 1 warning"),
    ],
)
def test_warnings_do_not_fail_and_problems_do(command, monkeypatch, tmp_path, signs, code, summary):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(
        doctor,
        "CHECKS",
        tuple((sign, partial(Finding, sign, "thing", "as found", "mend it")) for sign in signs),
    )
    got, out, _ = command(main.main, "doctor")
    assert got == code
    *lines, data, last = out.splitlines()
    assert last == summary
    assert data.startswith("· info     data")
    assert [line.split()[1] for line in lines] == signs
    for line, sign in zip(lines, signs, strict=True):
        assert (
            line == f"{doctor.SYMBOLS[sign]} {sign:<8} thing        as found;"
            f" {'' if sign == 'info' else 'fix: '}mend it"
        )
    got, out, _ = command(main.main, "doctor", "--json")
    assert got == code
    told = json.loads(out)
    assert [finding["sign"] for finding in told["findings"]] == [*signs, "info"]
    assert (told["problems"], told["warnings"]) == (signs.count("problem"), signs.count("warning"))
    assert told["findings"][0] == {
        "sign": signs[0],
        "check": "thing",
        "found": "as found",
        "fix": "mend it",
    }


def test_only_a_terminal_gets_colours_and_names_of_files_cannot_forge_them(monkeypatch):
    finding = Finding("problem", "cache", "/a\x1b[32m/b: cannot\nwrite", "✓ mend")
    plain = doctor.line(finding)
    assert plain == "✗ problem  cache        /a\\x1b[32m/b: cannot write; fix: ✓ mend"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert doctor.line(finding) == "\x1b[31m✗\x1b[0m" + plain[1:]
    for sign, code in (("ok", 32), ("warning", 33)):
        assert doctor.line(Finding(sign, "a", "b")).startswith(
            f"\x1b[{code}m{doctor.SYMBOLS[sign]}\x1b[0m {sign}"
        )


def test_this_machine_is_looked_at_whole(command, world):
    code, out, err = command(main.main, "doctor", "--data", world)
    assert not err
    *lines, last = out.splitlines()
    seen = [line[11:24].strip() for line in lines]
    for name in (*dict(doctor.CHECKS), *DATASETS):
        assert name in seen or (name == "GPU" and "GPU 0" in seen), out
    assert not [line for line in lines if "itself failed" in line]
    signs = [line.split()[1] for line in lines]
    assert code == (2 if "problem" in signs else 0)
    assert all(
        "; fix: " in line
        for line, sign in zip(lines, signs, strict=True)
        if sign in ("warning", "problem")
    )
    assert re.fullmatch(r"(no|\d+) problems?, (no|\d+) warnings?", last)


def test_where_nothing_is_installed_every_check_still_has_its_line(tmp_path):
    """Not even what reads the flags of the other commands."""
    done = bare("--data", tmp_path)
    assert done.returncode == 2
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert set(dict(doctor.CHECKS)) <= {line[11:24].strip() for line in lines}
    for name in ("torch", "torchvision", "packages", "faiss"):
        (line,) = [line for line in lines if line[11:24].strip() == name]
        assert line.startswith("✗ problem")
        assert "pip install" in line
    assert "numpy" in done.stdout


def test_a_mistyped_flag_is_refused_and_help_has_examples(command):
    code, out, err = command(main.main, "doctor", "--dta", "x")
    assert code == 2
    assert "--dta" in err
    assert not out
    code, out, _ = command(main.main, "doctor", "--help")
    assert code == 0
    assert 0 < out.index("Examples") < out.index("  --data ROOT")
    code, _, err = command(main.main, "docter")
    assert code == 2
    assert "did you mean 'doctor'" in err


def test_nothing_but_the_standard_library_is_imported_before_the_checks():
    code = (
        "import sys, protobench.runtime.doctor\n"
        "known = {*sys.stdlib_module_names, 'protobench', '__main__'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - known))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
