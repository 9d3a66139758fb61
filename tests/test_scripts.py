"""Every script as a user calls it: help is quick, and imports resolve to this project."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ["pretrain/moco.py", "pretrain/simclr.py", "pretrain/pcl.py", "pretrain/supervised.py", "pretrain/untrained.py",
           "evaluate/lowshot.py", "evaluate/fullsvm.py", "evaluate/linear.py", "evaluate/knn.py", "evaluate/ami.py",
           "evaluate/semisup.py", "evaluate/detection.py", "evaluate/course.py", "evaluate/tsne.py", "evaluate/gallery.py",
           "protobench/__main__.py", "tables/__main__.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_opens_with_examples_and_does_not_wait_for_torch(script):
    code = (f"import runpy, sys; sys.argv = [{script!r}, '--help']\ntry:\n    runpy.run_path({script!r}, run_name='__main__')\n"
            "finally:\n    print('torch imported:', 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Example" in done.stdout, done.stderr
    assert done.stdout.index("Example") < done.stdout.index("--")
    assert "torch imported: False" in done.stdout


@pytest.mark.parametrize("package", ["protobench", "pretrain", "evaluate", "tables"])
def test_packages_resolve_here(package):
    """Hugging Face evaluate and PyTables share two of these names."""
    assert Path(importlib.import_module(package).__file__).is_relative_to(ROOT)


def test_a_script_runs_from_any_folder(encoder_file, world, tmp_path):
    words = [sys.executable, ROOT / "evaluate" / "lowshot.py", "--ckpt", encoder_file, "--data", world, "--shots", "1",
             "--draws", "1", "--workers", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "record: results/scores" in done.stdout
