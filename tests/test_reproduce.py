"""The whole job on real bundled data, in the tier that trains one epoch; in child processes, as a
user runs it."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from protobench import records
from protobench.checkpoints import resnet
from protobench.checkpoints.resnet import Arch
from protobench.data import image_list, imagenet
from protobench.data.synthetic import bundled
from protobench.runtime import processes
from tables import __main__ as tables_main
from tables.engine import catalogue
from tables.engine.jobs import executor, plan

ROOT = Path(__file__).parent.parent


def _start(tmp_path, *flags):
    words = [
        sys.executable,
        "-m",
        "tables",
        "reproduce",
        "table1",
        "--tier",
        "quick",
        "--results",
        tmp_path / "results",
        "--runs",
        tmp_path / "runs",
        *flags,
    ]
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c():
    """Shells make background jobs deaf to it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_continues(
    reproduce_table, tmp_path, monkeypatch
):
    flags = ("--rows", "random", "supervised", "--jobs", "1")
    process = _start(tmp_path, *flags)
    folder = tmp_path / "results" / "quick" / "records"
    deadline = time.time() + 240
    while not list(folder.glob("*.json")) and time.time() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept" in err
    assert "Warning" not in err, err
    assert "Traceback" not in err
    kept = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert 1 <= len(kept) < 4

    code, out, err = reproduce_table("--tier", "quick", *flags)
    assert code == 3, err
    assert "20 off-protocol, 10 cited, 40 not-run" in out
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(folder.glob("*.json"))) == 4
    assert not list((tmp_path / "runs").rglob(".*.tmp"))

    monkeypatch.setattr(processes, "pool", lambda *_, **__: pytest.fail("nothing is left to do"))
    code, again, _ = reproduce_table("--tier", "quick", *flags)
    assert code == 3
    assert again == out


def test_the_plan_runs_nothing(reproduce_table, tmp_path):
    code, out, _ = reproduce_table("--plan", "--seeds", "2")
    assert code == 0
    assert "units: 0 cached, 36 to run, 0 impossible" in out
    assert "minutes" in out
    assert "cited" in out
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "runs").exists()


def test_the_paper_tier_s_plan_names_what_is_missing_and_what_it_costs(
    reproduce_table, tmp_path, world
):
    torch.save(resnet.build("resnet50").state_dict(), tmp_path / "sup.pth")
    code, out, _ = reproduce_table(
        "--plan",
        "--tier",
        "paper",
        "--data",
        world,
        "--ckpt",
        f"supervised={tmp_path / 'sup.pth'}",
    )
    assert code == 0
    assert "in all: pretraining 2,192 V100-hours, scoring about 1.4 GPU-hours" in out
    assert "hours in IEEE fp32 / TF32 (computed, not measured)" in out
    assert "H100 55 / 25 hours" in out  # MoCo: 200 epochs of 996 / 466 s
    memory = "GPU memory: 41.3 GiB for a batch of 256 in fp32 on one GPU (computed)"  # SimCLR's
    assert f"{memory}; GPUs that would do: 2 of 24 GiB or 1 of 80 GiB" in out
    assert "GPU memory: 0.0 GiB" not in out, "Random takes no step"
    assert "PCL: pretraining 1 x 672 V100-hours (about a week on 4 V100" in out
    assert "Supervised: no pretraining, scoring about 0.2 GPU-hours" in out
    assert "GB" in out


def test_a_plan_reads_every_list_once(command, tmp_path, world, monkeypatch):
    """Listing ImageNet takes long, and a table's evaluation and its recipes ask for it."""
    listed = []
    monkeypatch.setattr(
        imagenet,
        "image_folder",
        lambda path, name: listed.append(path.name) or image_list.image_folder(path, name),
    )
    flags = ("--plan", "--tier", "paper", "--data", world)
    where = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
    command(tables_main.main, "reproduce", "table3", *flags, *where)
    assert sorted(listed) == ["train", "val"]


@pytest.mark.parametrize("flags", [("--plan",), ()])
def test_where_nothing_can_be_made_the_reasons_are_an_error(reproduce_table, tmp_path, flags):
    empty = tmp_path / "nothing"
    empty.mkdir()
    code, out, err = reproduce_table(*flags, "--tier", "paper", "--data", empty)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: nothing of table1 can be made: no ImageNet here: looked for ")
    assert str(empty / "imagenet" / "train") in line
    assert f"; no VOCdevkit here ({empty}); no Places205 list here (" in line
    assert "no encoder" not in line
    assert ("0 to run, 17 impossible" in out) == bool(flags)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "results").exists()


def test_a_plan_of_which_a_part_can_be_made_tells_the_rest(reproduce_table, tmp_path, world):
    """VOC07 is there, ImageNet and Places205 are not: the untrained row alone, on one of two data
    sets."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VOCdevkit").symlink_to(world / "VOCdevkit")
    code, out, err = reproduce_table("--plan", "--tier", "paper", "--data", tmp_path / "data")
    assert code == 3, err
    assert "units: 0 cached, 2 to run, 16 impossible" in out
    assert "lowshot voc07 to run, lowshot places205 impossible (no Places205 list here" in out
    code, _, err = reproduce_table(
        "--plan",
        "--tier",
        "paper",
        "--data",
        tmp_path / "data",
        "--rows",
        "moco",
    )
    assert code == 2, "of this row nothing"
    assert "nothing of table1 can be made: no ImageNet here" in err


def test_what_is_there_already_is_no_reason_to_fail(tmp_path):
    """A record of an encoder whose other data set has gone."""
    row = catalogue.load("table1").row("random")
    tasks = (
        plan.EvalTask("lowshot", "voc07", "done"),
        plan.EvalTask("lowshot", "places205", "impossible", "gone"),
    )
    job = plan.Job(
        row,
        1,
        row.recipe("paper"),
        tmp_path / "encoder.safetensors",
        False,
        "retrained",
        "",
        "to run",
        "",
        tasks,
    )
    assert plan.why_nothing([job]) == ""
    assert plan.why_nothing([replace(job, tasks=tasks[1:])]) == "gone"
    assert plan.why_nothing([]) == ""


def test_a_plan_without_a_reader_ends_quietly(tmp_path):
    """As with ``--plan | head -1`` or a pager that was left."""
    process = _start(tmp_path, "--plan")
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 141


NARROW = Arch("basic", (1, 1, 1, 1), 16)


def _encoder_q(path, arch=None):
    """A network, small unless named, in MoCo's layout that has seen data, as far as its BatchNorm
    tells."""
    torch.manual_seed(0)
    net = resnet.build(arch) if arch else resnet.ResNet(NARROW)
    net.bn1.running_mean += 0.1
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in net.state_dict().items()}}, path
    )
    return path


def test_the_paper_tier_scores_given_checkpoints(reproduce_table, tmp_path):
    """Real layouts with bundled pictures and a small network in MoCo's layout: everything but the
    paper's data."""
    data = bundled.ensure(
        tmp_path / "data",
        {
            "imagenet-train": 40,
            "imagenet-val": 20,
            "voc-trainval": 700,
            "voc-test": 100,
            "places-train": 200,
            "places-val": 40,
        },
    )
    path = _encoder_q(tmp_path / "moco.pth.tar")
    args = (
        "--tier",
        "paper",
        "--data",
        data,
        "--rows",
        "moco",
        "--ckpt",
        f"moco={path}",
        "--device",
        "cpu",
        "--jobs",
        "1",
        "--workers",
        "0",
        "--wide",
    )
    code, out, err = reproduce_table(*args)
    assert code == 3, err
    assert "50 not-run, 10 cited, 10 off-protocol" in out
    assert (
        "voc07 is off protocol: 100 test images instead of 4952, 700 training images instead of"
        " 5011, resnet(block=basic, depths=(1, 1, 1, 1), width=16" in out
    )
    assert "controls (Random, Supervised): not run" in out
    (record,) = (
        records.read(p) for p in (tmp_path / "results" / "paper" / "records").glob("moco-0-*voc07*")
    )
    assert record["subject"]["source"].startswith("checkpoint moco.pth.tar, sha256")
    assert record["checkpoint"]["input"]["crop"] == 224
    _, plan_, _ = reproduce_table(*args, "--plan")
    assert "nothing to run" in plan_
    other_row = [word.replace("moco=", "pcl=") if isinstance(word, str) else word for word in args]
    other_row[other_row.index("moco")] = "pcl"
    assert "voc07 to run" in reproduce_table(*other_row, "--plan")[1], (
        "another row is another record"
    )


def test_a_job_that_fails_says_why_and_loses_nothing(command, reproduce_table, tmp_path, world):
    """The tiny world has too few images for k = 16."""
    torch.manual_seed(0)
    path = tmp_path / "moco.pth"
    torch.save(resnet.ResNet(NARROW).state_dict(), path)
    code, _, err = reproduce_table(
        "--tier",
        "paper",
        "--data",
        world,
        "--rows",
        "moco",
        "--ckpt",
        f"moco={path}",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    assert code == 2
    assert "are to be drawn" in err
    assert "hint:" in err
    assert "the same command continues" in err
    assert "Traceback" not in err


def test_released_checkpoints_are_known_and_belong_to_their_row(reproduce_table, tmp_path):
    path = _encoder_q(tmp_path / "PCL_v1_epoch200.pth.tar", "resnet50")
    args = ("--plan", "--tier", "paper", "--data", tmp_path, "--rows", "pcl", "moco")
    code, out, err = reproduce_table(*args, "--ckpt", f"pcl={path}")
    assert code == 2, "there is no data to score it on"
    assert "nothing of table1 can be made" in err
    assert (
        "released checkpoint PCL_v1_epoch200.pth.tar: PCL v1, 200 epochs, by its name; its authors"
        " publish no hash" in out
    )
    code, _, err = reproduce_table(*args, "--ckpt", f"moco={path}")
    assert code == 2
    assert "this is the published PCL v1, 200 epochs: the row pcl, not moco" in err
    assert f"--ckpt pcl={path}" in err
    path = _encoder_q(tmp_path / "moco_v2_200ep_pretrain.pth.tar")
    code, _, err = reproduce_table(*args, "--ckpt", f"moco={path}")
    assert code == 2
    assert "not the published MoCo v2" in err


def test_a_given_file_that_cannot_be_loaded_is_told_before_anything_runs(reproduce_table, tmp_path):
    path = tmp_path / "moco.pth"
    path.write_text("<html>404</html>")
    code, _, err = reproduce_table(
        "--tier", "paper", "--data", tmp_path, "--plan", "--ckpt", f"moco={path}"
    )
    assert code == 2
    assert "a web page" in err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--tier", "paper"), "needs the real data"),
        (("--rows", "moko"), "did you mean 'moco'"),
        (("--rows", "jigsaw"), "is cited"),
        (("--ckpt", "moco"), "is not row=FILE"),
        (("--ckpt", "moco=x.pth"), "is trained by its recipe"),
        (("--tier", "paper", "--data", ".", "--ckpt", "moco=absent.pth"), "no such checkpoint"),
        (("--tier", "paper", "--data", ".", "--ckpt", "jigsaw=absent.pth"), "is cited"),
        (
            ("--tier", "paper", "--data", ".", "--rows", "pcl", "--ckpt", "moco=a.pth"),
            "which --rows leaves out",
        ),
        (("--seeds", "0"), "at least 1"),
        (("--jobs", "-1"), "at least 1"),
        (("--data", "."), "belongs to the paper tier"),
        (
            ("--tier", "paper", "--data", ".", "--ckpt", "moco=a.pth", "--ckpt", "moco=b.pth"),
            "twice",
        ),
        (("--teir", "mini"), "--tier"),
    ],
)
def test_mistakes_are_told_before_anything_runs(reproduce_table, tmp_path, flags, complaint):
    code, _, err = reproduce_table(*flags)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_torchrun_is_told_that_it_has_no_part_in_this(reproduce_table, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = reproduce_table("--tier", "quick")
    assert code == 2
    assert "--slurm-gpus" in err
    assert not (tmp_path / "runs").exists()


def test_two_runs_on_one_results_folder(reproduce_table, tmp_path):
    (tmp_path / "results").mkdir()
    with FileLock(tmp_path / "results" / ".lock"):
        code, _, err = reproduce_table("--tier", "quick", "--rows", "random")
    assert code == 2
    assert "another run is writing" in err
    assert not (tmp_path / "runs").exists()


needs_ps = pytest.mark.skipif(not shutil.which("ps"), reason="needs ps to find child processes")


@pytest.fixture
def busy(tmp_path):
    """A run in the middle of its work, and its workers."""
    process = _start(tmp_path, "--rows", "moco", "supervised")
    deadline = time.time() + 120
    while not list((tmp_path / "runs" / "quick").glob("*/output.log")) and time.time() < deadline:
        time.sleep(0.05)
    workers = _children(process.pid)
    assert workers
    return process, workers


@needs_ps
def test_sigterm_ends_the_workers_too_and_says_run_again(busy):
    process, workers = busy
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    _await_end(workers)


@needs_ps
def test_workers_end_when_their_parent_is_killed(busy):
    process, workers = busy
    process.kill()
    process.communicate(timeout=60)
    _await_end(workers)


def _children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def _await_end(pids):
    deadline = time.time() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_bar_counts_epochs_and_scores_of_jobs_under_way(world, monkeypatch, tmp_path):
    """A table of long scores would stand at 0 % for hours."""
    monkeypatch.setattr(bundled, "ensure", lambda **_: world)
    (job,) = plan.make_plan(
        catalogue.load("table3"),
        "mini",
        data=None,
        given={},
        rows=("moco",),
        seeds=1,
        results=tmp_path,
        runs=tmp_path / "runs",
    )
    training, first = plan.training_seconds(job), job.tasks[0]
    assert training == job.row.mini_seconds
    assert plan.estimate(job) == training + sum(map(plan.task_seconds, job.tasks))
    (tmp_path / "moco-1-old-score-0123.json").touch()
    bar = executor.JobsBar([job], tmp_path)
    bar.show([job])
    assert bar.bar.n == 0
    job.checkpoint.parent.mkdir(parents=True)
    (job.checkpoint.parent / "log.jsonl").write_text("{}\n" * (job.recipe.train.epochs // 2))
    bar.show([job])
    assert bar.bar.n == pytest.approx(training / 2)
    assert "moco:1" in bar.bar.postfix
    (tmp_path / f"moco-1-{first.evaluation}-{first.dataset}-0123456789ab.json").touch()
    bar.show([job])
    assert bar.bar.n == pytest.approx(training / 2 + plan.task_seconds(first))
    bar.show([])
    assert bar.bar.n == pytest.approx(plan.estimate(job))
    bar.bar.close()


def test_a_bar_of_half_seconds_reaches_its_end(monkeypatch, tmp_path):
    """tqdm forgets a total that is exceeded by half."""
    monkeypatch.setattr(plan, "estimate", lambda job: 2.5)
    bar = executor.JobsBar([object()], tmp_path)
    bar.show([])
    assert "/3 s of work" in str(bar.bar)
    bar.bar.close()
