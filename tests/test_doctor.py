"""Each check of ``doctor`` in the environment that it is there to find, and the command as a user
calls it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from protobench import __main__ as main
from protobench import doctor
from protobench.data import image_list, voc
from protobench.data.datasets import DATASETS
from protobench.doctor import Finding

ROOT = Path(__file__).resolve().parent.parent
Usage = namedtuple("Usage", "total used free")


def only(check):
    """The one finding of a check; what is wrong has a fix."""
    (found,) = doctor.isolated(check)
    assert found.fix or found.sign in ("ok", "info")
    return found


def install(folder, name, top_level, requires=()):
    """Installs an empty package into ``folder`` as pip would."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "top_level.txt").write_text(f"{top_level}\n")
    (folder / top_level).mkdir(exist_ok=True)
    (folder / top_level / "__init__.py").touch()
    return folder


def bare(*words, path=()):
    """``python -m protobench doctor`` with no other packages than those in ``path``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [sys.executable, "-S", "-m", "protobench", "doctor", *words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


# Installation -------------------------------------------------------------------------------------


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    env = SimpleNamespace(
        python_version="3.11",
        os="Linux",
        torch_version="2.15",
        cuda_compiled_version="13.2",
        nvidia_driver_version="470.1",
        nvidia_gpu_models="GPU 0: V100\nGPU 1: V100",
        is_cuda_available="False",
    )
    monkeypatch.setattr("torch.utils.collect_env.get_env_info", lambda: env)
    found = only(doctor.environment)
    assert found.sign == "warning"
    assert "driver 470.1, GPU 0: V100; GPU 1: V100: torch cannot use it" in found.found
    env.is_cuda_available = "True"
    assert only(doctor.environment).sign == "info"
    env.nvidia_gpu_models, env.is_cuda_available = None, "False"
    assert only(doctor.environment).found.endswith("no GPU")


def test_unmet_requirements_are_told(monkeypatch, tmp_path):
    install(tmp_path, "protobench", "a", ["old>=2", "absent", 'never; extra == "test"'])
    install(tmp_path, "old", "b", ["opencv-python"])
    install(tmp_path, "opencv-python-headless", "c")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    sys.path_importer_cache.clear()
    old, absent = doctor.isolated(doctor.packages)
    assert old.sign == absent.sign == "problem"
    assert old.found == "protobench requires old>=2, which is 1.0"
    assert absent.found == "protobench requires absent, which is not installed"
    assert absent.fix == 'pip install "absent"'


def test_this_environment_has_what_it_requires():
    assert only(doctor.packages).sign == "ok"


def test_torchvisions_operators_are_called(monkeypatch):
    assert only(doctor.torchvision).sign == "ok"
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: SimpleNamespace(tolist=lambda: [0]))
    wrong = only(doctor.torchvision)
    assert wrong.sign == "problem"
    assert "nms on cpu keeps boxes [0] of three" in wrong.found
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert only(doctor.torchvision).fix.startswith("pip uninstall -y torch torchvision")


@pytest.mark.parametrize(
    ("gpus", "torch_gpus", "options", "sign", "fix"),
    [
        (0, 0, "OPTIMIZE", "ok", ""),
        (2, 2, "OPTIMIZE GPU", "ok", ""),
        (1, 2, "OPTIMIZE GPU", "warning", "update the NVIDIA driver"),
        (0, 1, "OPTIMIZE", "warning", "pip uninstall -y faiss-x && pip install faiss-gpu"),
    ],
)
def test_faiss_sees_as_many_gpus_as_torch(monkeypatch, gpus, torch_gpus, options, sign, fix):
    index = SimpleNamespace(add=lambda x: None, search=lambda x, k: None)
    fake = SimpleNamespace(
        __version__="1.15",
        IndexFlatL2=lambda dimensions: index,
        get_num_gpus=lambda: gpus,
        get_compile_options=lambda: options,
    )
    monkeypatch.setitem(sys.modules, "faiss", fake)
    monkeypatch.setattr("torch.cuda.is_available", lambda: torch_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: torch_gpus)
    monkeypatch.setattr(doctor, "_providers", lambda module: {"faiss-x"})
    found = only(doctor.faiss)
    assert found.sign == sign
    assert found.fix.startswith(fix)
    monkeypatch.setattr(doctor, "_providers", lambda module: {"faiss-cpu", "faiss-gpu"})
    assert only(doctor.faiss).found == "faiss-cpu and faiss-gpu lie in one folder"


def names_of(done):
    return [finding for finding in json.loads(done.stdout) if finding["check"] == "names"]


@pytest.mark.parametrize("name", ["evaluate", "tables"])
def test_an_installed_package_of_the_same_name_is_a_problem(tmp_path, name):
    """Hugging Face's evaluate and PyTables are such."""
    clash, *_ = names_of(bare("--json", path=[install(tmp_path, name, name)]))
    assert clash["sign"] == "problem"
    assert clash["found"] == f"{name}, which is installed, has a top-level package {name} too"
    assert clash["fix"].startswith(f"pip uninstall {name}")


def test_a_stray_file_of_the_same_name_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "evaluate.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    clash = only(doctor.names)
    assert clash.sign == "problem"
    assert f"'import evaluate' gives {tmp_path / 'evaluate.py'}, not" in clash.found


def test_the_project_may_be_used_without_being_installed(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    found = only(doctor.names)
    assert (found.sign, found.fix) == ("warning", f"pip install -e {ROOT}")


# Machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "sign"), [(8e9, "ok"), (5e7, "warning")])
def test_shared_memory(monkeypatch, tmp_path, free, sign):
    monkeypatch.setattr(doctor, "SHM_FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(8e9, 8e9 - free, free))
    assert only(doctor.shared_memory).sign == sign
    monkeypatch.setattr(doctor, "SHM_FOLDER", tmp_path / "absent")
    assert only(doctor.shared_memory).sign == "info"


def test_the_cache_is_tried_where_it_would_be_made_and_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "not" / "there"))
    assert only(doctor.cache).sign == "ok"
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(doctor, "DISK", 1e18)
    assert "little" in only(doctor.cache).found

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    found = only(doctor.cache)
    assert found.sign == "problem"
    assert found.found.endswith("cannot write: No space left on device")


# Data ---------------------------------------------------------------------------------------------


def data_of(root):
    return {
        finding.found.partition(":")[0]: finding
        for finding in doctor.isolated(partial(doctor.data, root))
    }


def test_data_sets_are_listed_and_not_decoded(world, monkeypatch):
    monkeypatch.setattr(image_list.ImageList, "read", lambda *_: pytest.fail("decoded"))
    found = data_of(world)
    assert found.keys() == DATASETS.keys()
    assert found["imagenet"] == Finding("ok", "imagenet: 200 + 40 images, 20 classes")
    assert found["voc07"] == Finding("ok", "voc07: 200 + 120 images, 20 classes")


def test_data_that_is_not_as_published_absent_or_incomplete(world, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(world, root)
    (root / "manifest.json").unlink()
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for label in lists.glob("zero_*.txt"):  # the bundled synthetic data is as it should be
        label.rename(label.with_name(label.name.replace("zero", "nought")))
    shutil.rmtree(root / "places205")
    found = data_of(root)
    assert found["voc07"].sign == "warning"
    assert "voc07-trainval has 200 images, not 5011" in found["voc07"].found
    assert found["places205"].sign == "info"
    (lists / "test.txt").unlink()
    assert data_of(root)["voc07"].sign == "problem"
    assert data_of(root)["voc07"].fix == voc.TEST_ANNOTATIONS
    *_, last = doctor.isolated(partial(doctor.data, tmp_path / "absent"))
    assert last.sign == "problem"
    assert "none of the data sets" in last.found


# The command --------------------------------------------------------------------------------------


def test_whatever_a_check_raises_is_a_finding(capsys):
    def raises(failure):
        def check():
            print("what packages print is not shown")
            raise failure
            yield

        return check

    assert only(raises(ZeroDivisionError("by\nzero"))).found == "ZeroDivisionError: by zero"
    assert only(raises(SystemExit(1))).sign == "problem"
    with pytest.raises(KeyboardInterrupt):
        doctor.isolated(raises(KeyboardInterrupt()))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("signs", "code", "summary"),
    [
        (["ok", "warning", "warning"], 0, "problems: 0, warnings: 2"),
        (["warning", "problem", "ok"], 2, "problems: 1, warnings: 1"),
    ],
)
def test_warnings_do_not_fail_and_problems_do(command, monkeypatch, signs, code, summary):
    findings = [Finding(sign, "as\x1b found", "do it") for sign in signs]
    monkeypatch.setattr(doctor, "CHECKS", {"thing": lambda: iter(findings)})
    got, out, _ = command(main.main, "doctor")
    assert got == code
    *lines, last = out.splitlines()
    assert last == summary
    assert lines == [
        f"{doctor.SYMBOLS[sign]} {sign:<8} thing        as\\x1b found; fix: do it" for sign in signs
    ]
    got, out, _ = command(main.main, "doctor", "--json")
    assert got == code
    assert [finding["sign"] for finding in json.loads(out)] == signs


def test_this_machine_is_checked(command, world):
    code, out, err = command(main.main, "doctor", "--data", world)
    assert not err
    assert {line[11:23].strip() for line in out.splitlines()[:-1]} == {*doctor.CHECKS, "data"}
    assert code == (2 if "✗" in out else 0)


def test_where_nothing_is_installed_every_check_still_has_its_line(tmp_path):
    done = bare("--data", tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert {line[11:23].strip() for line in done.stdout.splitlines()[:-1]} == {
        *doctor.CHECKS,
        "data",
    }


def test_a_mistyped_flag_is_refused_and_help_has_examples(command):
    code, out, err = command(main.main, "doctor", "--dta", "x")
    assert (code, out) == (2, "")
    assert "--dta" in err
    code, out, _ = command(main.main, "doctor", "--help")
    assert code == 0
    assert 0 < out.index("Examples") < out.index("  --data ROOT")
    code, _, err = command(main.main, "docter")
    assert code == 2
    assert "did you mean 'doctor'" in err
