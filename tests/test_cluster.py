"""Jobs by submitit: on this machine, interrupted as Slurm would, and as the sbatch files that Slurm would get."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import replace

import pytest

from pretrain import loop, recipes
from protobench import checkpoints, cli, imagenet, mini
from tables import __main__ as tables_main
from tables import catalogue, plan
from tables.cluster import Unit
from tables.work import Where

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")

SBATCH = """#!/bin/sh
n=$(ls {folder}/submitted | wc -l)
for last; do :; done
cp "$last" {folder}/submitted/$((n + 100)).sh
echo "Submitted batch job $((n + 100))"
"""


def _reproduce(command, tmp_path, *flags):
    return command(tables_main.main, "reproduce", "table1", "--results", tmp_path / "results", "--runs", tmp_path / "runs",
                   "--slurm", *flags)


def test_jobs_of_this_machine_make_the_table(command, tmp_path):
    flags = ("--tier", "quick", "--rows", "random", "--slurm-cluster", "local", "--device", "cpu")
    code, out, err = _reproduce(command, tmp_path, *flags)
    assert code == cli.INCOMPLETE, err
    assert re.search(r"random-seed1-\w+: job \d+\n", out)
    assert re.search(r"random-seed1-\w+-lowshot-voc07: job \d+, after \d+\n", out)
    assert (tmp_path / "results" / "quick" / "table1.csv").exists()
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "results" / "quick" / "records").glob("*.json")} == {
        "random-1-lowshot-voc07", "random-1-lowshot-places205"}
    code, out, err = _reproduce(command, tmp_path, *flags)
    assert "random-seed1" not in out, "nothing is left to submit"
    assert "10 off-protocol" in out


def _unit(tmp_path, world, epochs):
    """A pretraining of many epochs on few images."""
    (job,) = plan.make_plan(catalogue.load("table1"), "quick", data=None, given={}, rows=("moco",), seeds=1,
                            results=tmp_path / "results", runs=tmp_path / "runs")
    recipe = replace(recipes.MOCO_MINI, queue=64, train=replace(recipes.MOCO_MINI.train, epochs=epochs, batch_size=32))
    return Unit(replace(job, recipe=recipe), None, Where("paper", world, tmp_path / "results", tmp_path / "runs", "cpu", 0))


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps to find the job's processes")
def test_an_interrupted_job_is_requeued_and_ends_as_if_it_had_not_been(world, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "ensure", lambda: world)
    unit = _unit(tmp_path, world, 12)
    executor = submitit.AutoExecutor(tmp_path / "slurm", cluster="local")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(unit)
    folder = unit.job.checkpoint.parent
    deadline = time.time() + 120
    while len((folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []) < 3:
        assert time.time() < deadline, job.stderr()
        time.sleep(0.02)
    for task in _children(job._process.pid):  # as submitit's controller, and Slurm, do when time is nearly over
        os.kill(task, signal.SIGUSR2)
    job.wait()
    log = "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.err"))
    log += "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.out"))
    assert "Requeued job" in log
    train = imagenet.read(world, "train")
    whole = loop.pretrain(unit.job.recipe, train, tmp_path / "whole", seed=unit.job.seed)
    ours, theirs = (checkpoints.load(path).backbone.state_dict() for path in (unit.job.checkpoint, whole))
    assert checkpoints.digest_of(ours) == checkpoints.digest_of(theirs)
    assert not list(folder.glob("checkpoint-*"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine that seems to have Slurm; what is submitted lies in the folder returned."""
    (tmp_path / "submitted").mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("srun", "#!/bin/sh\n"), ("sacct", "#!/bin/sh\n"),
                       ("squeue", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755 | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "submitted"


def test_slurm_gets_one_job_per_missing_unit_with_its_dependencies(command, tmp_path, slurm):
    flags = ("--tier", "quick", "--rows", "moco", "pcl", "--seeds", 1, "--slurm-gpus", 4, "--slurm-nodes", 2, "--slurm-partition",
             "gpu", "--slurm-hours", 12)
    code, out, err = _reproduce(command, tmp_path, *flags)
    assert code == cli.INCOMPLETE, err
    jobs = {path.stem: path.read_text() for path in slurm.glob("*.sh")}
    names = {number: re.search(r"--job-name=(\S+)", text)[1] for number, text in jobs.items()}
    assert len(jobs) == 2 * (1 + 2) + 1
    training = {number for number, name in names.items() if re.fullmatch(r"(moco|pcl)-seed1-\w+", name)}
    assert len(training) == 2
    for number, text in jobs.items():
        assert "--requeue" in text
        assert "--partition=gpu" in text
        assert "--signal=USR2@180" in text
        assert "--time=720" in text
        if number in training:
            assert "--nodes=2" in text
            assert "--ntasks-per-node=4" in text
            assert "--gpus-per-node=4" in text
            assert "--dependency" not in text
        elif names[number] == "table":
            others = sorted(set(jobs) - {number})
            assert sorted(re.search(r"--dependency=afterany:(\S+)", text)[1].split(":")) == others
        else:
            (own,) = (n for n in training if names[number].startswith(names[n] + "-"))
            assert f"--dependency=afterok:{own}\n" in text
            assert "--kill-on-invalid-dep=yes" in text
            assert "--ntasks-per-node=1" in text
    assert json.loads((tmp_path / "runs" / "quick" / "slurm" / "jobs.json").read_text()) == {v: k for k, v in names.items()}
    code, out, _ = _reproduce(command, tmp_path, *flags)
    assert code == cli.INCOMPLETE
    assert out.count("on its way") == len(jobs)
    assert len(list(slurm.glob("*.sh"))) == len(jobs), "nothing is submitted twice"


def test_without_slurm_or_with_senseless_numbers_nothing_is_submitted(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for flags, complaint in (((), "no Slurm on this machine"), (("--slurm-gpus", 0), "at least 1"),
                             (("--slurm-hours", -1), "is positive")):
        code, _, err = _reproduce(command, tmp_path, "--tier", "quick", "--rows", "random", *flags)
        assert code == 2
        assert complaint in err
        assert "Traceback" not in err
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    code, _, err = _reproduce(command, tmp_path, "--tier", "quick", "--rows", "random")
    assert code == 2
    assert "--slurm needs submitit" in err


def _children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]
