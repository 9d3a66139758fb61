"""Jobs by submitit: on this machine, interrupted as Slurm would, and as the sbatch files that Slurm
would get."""

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
import torch

from pretrain import loop
from pretrain.recipes import moco
from protobench.checkpoints import encoders, resnet
from protobench.data import imagenet
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from tables import __main__ as tables_main
from tables.engine import catalogue
from tables.engine.jobs import plan
from tables.engine.jobs.slurm import SlurmJob
from tables.engine.jobs.work import RunContext

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")

SBATCH = """#!/bin/sh
n=$(ls {folder}/submitted | wc -l)
for last; do :; done
cp "$last" {folder}/submitted/$((n + 100)).sh
echo "Submitted batch job $((n + 100))"
"""
SQUEUE = """#!/bin/sh
for last; do :; done
[ -e {folder}/ended ] || [ ! -e {folder}/submitted/$last.sh ] || echo $last
"""


def test_jobs_of_this_machine_make_the_table(reproduce_table, tmp_path):
    flags = ("--tier", "quick", "--rows", "random", "--slurm-cluster", "local", "--device", "cpu")
    code, out, err = reproduce_table("--slurm", *flags)
    assert code == cli.INCOMPLETE, err  # of 70 cells
    assert re.search(r"random-seed1-\w+: job \d+\n", out)
    assert re.search(r"random-seed1-\w+-lowshot-voc07-\w+: job \d+, after \d+\n", out)
    assert (tmp_path / "results" / "quick" / "table1.csv").exists()
    assert {
        path.name.rpartition("-")[0]
        for path in (tmp_path / "results" / "quick" / "records").glob("*.json")
    } == {"random-1-lowshot-voc07", "random-1-lowshot-places205"}
    code, out, err = reproduce_table("--slurm", *flags)
    assert "random-seed1" not in out, "nothing is left to submit"
    assert "10 off-protocol" in out


def _unit(tmp_path, world, epochs):
    """A pretraining of many epochs on few images."""
    (job,) = plan.make_plan(
        catalogue.load("table1"),
        "quick",
        data=None,
        given={},
        rows=("moco",),
        seeds=1,
        results=tmp_path / "results",
        runs=tmp_path / "runs",
    )
    recipe = replace(
        moco.MINI,
        queue=64,
        train=replace(moco.MINI.train, epochs=epochs, batch_size=32),
    )
    return SlurmJob(
        replace(job, recipe=recipe, world=None),
        None,
        RunContext("paper", world, tmp_path / "results", tmp_path / "runs", "cpu", 0),
    )


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps to find the job's processes")
def test_an_interrupted_job_is_requeued_and_ends_as_if_it_had_not_been(
    request, world, tmp_path, monkeypatch
):
    monkeypatch.setattr(bundled, "ensure", lambda **_: world)
    unit = _unit(tmp_path, world, 12)
    executor = submitit.AutoExecutor(tmp_path / "slurm", cluster="local")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(unit)
    request.addfinalizer(lambda: job.cancel(check=False))
    folder = unit.job.checkpoint.parent
    deadline = time.time() + 120
    while (
        len(
            (folder / "log.jsonl").read_text().splitlines()
            if (folder / "log.jsonl").exists()
            else []
        )
        < 3
    ):
        assert time.time() < deadline, job.stderr()
        time.sleep(0.02)
    for task in _children(
        job._process.pid
    ):  # as submitit's controller, and Slurm, do when time is nearly over
        os.kill(task, signal.SIGUSR2)
    job.wait()
    log = "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.err"))
    log += "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.out"))
    assert "Requeued job" in log
    train = imagenet.read(world, "train")
    whole = loop.pretrain(unit.job.recipe, train, tmp_path / "whole", seed=unit.job.seed)
    ours, theirs = (
        encoders.load(path).backbone.state_dict() for path in (unit.job.checkpoint, whole)
    )
    assert encoders.digest_of(ours) == encoders.digest_of(theirs)
    assert not list(folder.glob("checkpoint-*"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine that seems to have Slurm; what is submitted lies in the folder returned."""
    (tmp_path / "submitted").mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("sbatch", SBATCH.format(folder=tmp_path)),
        ("srun", "#!/bin/sh\n"),
        ("sacct", "#!/bin/sh\n"),
        ("squeue", SQUEUE.format(folder=tmp_path)),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755 | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "submitted"


def test_slurm_gets_one_job_per_missing_unit_with_its_dependencies(
    command, reproduce_table, tmp_path, slurm
):
    flags = (
        "--tier",
        "quick",
        "--rows",
        "moco",
        "pcl",
        "--seeds",
        1,
        "--slurm-gpus",
        4,
        "--slurm-nodes",
        2,
        "--slurm-partition",
        "gpu",
        "--slurm-hours",
        12,
    )
    code, out, err = reproduce_table("--slurm", *flags)
    assert code == cli.INCOMPLETE, err
    jobs = {path.stem: path.read_text() for path in slurm.glob("*.sh")}
    names = {number: re.search(r"--job-name=(\S+)", text)[1] for number, text in jobs.items()}
    assert len(jobs) == 2 * (1 + 2) + 1
    training = {
        number for number, name in names.items() if re.fullmatch(r"(moco|pcl)-seed1-\w+", name)
    }
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
            assert "--kill-on-bad-exit=1" in text
        elif names[number] == "table-table1":
            others = sorted(set(jobs) - {number})
            assert sorted(re.search(r"--dependency=afterany:(\S+)", text)[1].split(":")) == others
        else:
            (own,) = (n for n in training if names[number].startswith(names[n] + "-"))
            assert f"--dependency=afterok:{own}\n" in text
            assert "--kill-on-invalid-dep=yes" in text
            assert "--ntasks-per-node=1" in text
    ledger = json.loads((tmp_path / "runs" / "quick" / "slurm" / "jobs.json").read_text())
    assert sorted(ledger.values()) == sorted(
        number for number, name in names.items() if name != "table-table1"
    )
    code, out, _ = reproduce_table("--slurm", *flags)
    assert code == cli.INCOMPLETE
    assert out.count("on its way") == len(jobs) - 1
    assert len(list(slurm.glob("*.sh"))) == len(jobs) + 1, (
        "only the table, which then waits for the same"
    )
    code, out, _ = command(
        tables_main.main,
        "reproduce",
        "table7",
        "--results",
        tmp_path / "results",
        "--runs",
        tmp_path / "runs",
        "--slurm",
        "--tier",
        "quick",
        "--rows",
        "moco",
        "--seeds",
        1,
        "--slurm-gpus",
        8,
    )
    assert re.search(r"moco-seed1-\w+: on its way, job", out), "tables share encoders"
    assert "table-table7: job" in out
    (tmp_path / "ended").touch()  # of all jobs nothing is left, and no account of them is kept
    code, out, _ = reproduce_table("--slurm", *flags)
    assert code == cli.INCOMPLETE
    assert "on its way" not in out


def test_checkpoints_of_one_folder_are_several_units(reproduce_table, tmp_path, slurm):
    for row in ("moco", "pcl"):
        torch.manual_seed(len(row))
        torch.save(resnet.build("resnet18").state_dict(), tmp_path / f"{row}.pth")
    data = bundled.ensure(
        tmp_path / "data",
        {
            "imagenet-train": 20,
            "imagenet-val": 20,
            "voc-trainval": 40,
            "voc-test": 40,
            "places-train": 20,
            "places-val": 20,
        },
    )
    code, out, err = reproduce_table(
        "--slurm",
        "--tier",
        "paper",
        "--data",
        data,
        "--rows",
        "moco",
        "pcl",
        "--ckpt",
        f"moco={tmp_path / 'moco.pth'}",
        "--ckpt",
        f"pcl={tmp_path / 'pcl.pth'}",
    )
    assert code == cli.INCOMPLETE, err
    names = [re.search(r"--job-name=(\S+)", path.read_text())[1] for path in slurm.glob("*.sh")]
    assert len(set(names)) == len(names) > 2
    assert {name.partition("-")[0] for name in names} == {"moco", "pcl", "table"}
    assert "on its way" not in out


def test_without_slurm_or_with_senseless_numbers_nothing_is_submitted(
    command, reproduce_table, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    for flags, complaint in (
        ((), "no Slurm on this machine"),
        (("--slurm-gpus", 0), "at least 1"),
        (("--slurm-hours", -1), "is positive"),
        (("--slurm-hours", "inf"), "at most a year"),
        (("--slurm-cluster", "local", "--slurm-nodes", 2), "this one machine"),
        (("--slurm-gpus", 3), "moco: a batch of 128 images does not split over 3 processes"),
    ):
        code, _, err = reproduce_table(
            "--slurm", "--tier", "quick", "--rows", "random", "moco", *flags
        )
        assert code == 2
        assert complaint in err
        assert "Traceback" not in err
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    code, _, err = reproduce_table("--slurm", "--tier", "quick", "--rows", "random")
    assert code == 2
    assert "--slurm needs submitit" in err
    code, _, err = command(
        tables_main.main, "reproduce", "table1", "--tier", "quick", "--slurm-gpus", 2
    )
    assert code == 2
    assert "add --slurm" in err


def _children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]
