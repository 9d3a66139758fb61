"""``--gpus``: which GPUs of a machine are named, and one job on each of them. No GPU is needed: an
``nvidia-smi`` of ours lists pretended ones, jobs are tiny programs, and where the whole command
runs, its jobs compute on the CPU."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pretrain import gpu_memory
from pretrain.recipes import moco, spcl
from protobench.checkpoints import resnet
from protobench.checkpoints.resnet import Arch
from protobench.data.synthetic import bundled
from protobench.runtime.errors import UserError
from tables.engine import catalogue
from tables.engine.jobs import gpus, one_per_gpu, plan
from tables.engine.jobs.gpus import Gpu
from tables.engine.jobs.one_per_gpu import OnePerGpu, Part
from tables.engine.jobs.work import RunContext

ROOT = Path(__file__).parent.parent

H100 = "NVIDIA H100 80GB HBM3"


class Machine:
    """A pretended ``nvidia-smi``, first on the PATH."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def has(self, *names, total=81920, used=None, processes=(), parts=None):
        """GPUs of these models; ``used``: number -> MiB; ``parts``: number -> MIG profiles."""
        listed, memory = [], []
        for n, name in enumerate(names):
            listed.append(f"GPU {n}: {name} (UUID: GPU-{n}abc)")
            memory.append(f"GPU-{n}abc, {total}, {(used or {}).get(n, 4)}")
            for i, profile in enumerate((parts or {}).get(n, ())):
                listed.append(f"  MIG {profile}     Device  {i}: (UUID: MIG-{n}{i}def)")
        running = [f"GPU-{n}abc, {pid}" for n, pid in processes]
        self.says(
            f"""case "$1" in
-L) cat <<'END'\n{chr(10).join(listed)}\nEND\n;;
--query-gpu=*) cat <<'END'\n{chr(10).join(memory)}\nEND\n;;
--query-compute-apps=*) cat <<'END'\n{chr(10).join(running)}\nEND\n;;
*) exit 3 ;;
esac"""
        )

    def says(self, script):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path / "bin", monkeypatch)


def _until(condition, process=None, seconds=400):
    deadline = time.time() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)


def _chosen(wanted):
    return [gpu.uuid for gpu in gpus.selected(wanted)]


# Which GPUs ---------------------------------------------------------------------------------------


def test_all_or_numbers_or_uuids(machine):
    machine.has(H100, H100, H100)
    assert _chosen("all") == ["GPU-0abc", "GPU-1abc", "GPU-2abc"]
    assert _chosen("2, 0") == ["GPU-2abc", "GPU-0abc"]
    assert _chosen("GPU-1") == ["GPU-1abc"]
    (gpu,) = gpus.selected("2")
    assert (gpu.number, gpu.name, gpu.gib) == (2, H100, 80.0)


def test_a_restricted_parent_passes_on_no_more_than_it_has(machine, monkeypatch):
    machine.has(H100, H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0ab")
    assert _chosen("all") == ["GPU-2abc", "GPU-0abc"]
    assert _chosen("1") == ["GPU-0abc"], "places in CUDA_VISIBLE_DEVICES, as cuda:1"
    with pytest.raises(UserError, match="no GPU '2': CUDA_VISIBLE_DEVICES leaves 2, number 0 to 1"):
        gpus.selected("2")
    with pytest.raises(UserError, match="no GPU 'GPU-1abc'"):
        gpus.selected("GPU-1abc")


def test_numbers_in_a_restriction_are_ambiguous_among_different_models(machine, monkeypatch):
    """CUDA counts the fastest first, nvidia-smi by the bus."""
    machine.has("NVIDIA T400", H100)
    assert _chosen("1") == ["GPU-1abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="which GPU is 0"):
        gpus.selected("all")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert _chosen("all") == ["GPU-0abc"]


def test_a_divided_gpu_counts_as_its_parts(machine, monkeypatch):
    machine.has(H100, H100, parts={1: ("3g.40gb", "4g.40gb")})
    found = gpus.selected("all")
    assert [gpu.uuid for gpu in found] == ["GPU-0abc", "MIG-10def", "MIG-11def"]
    assert [gpu.joins_others for gpu in found] == [True, False, False]
    assert found[1].name == f"{H100}, MIG 3g.40gb"
    assert found[1].gib == 40
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-11def")
    assert _chosen("all") == _chosen("0") == ["MIG-11def"]


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ("", "names no GPU"),
        (" ", "names no GPU"),
        ("0,,1", "a number is missing"),
        ("0,", "a number is missing"),
        ("2", "no GPU '2': this machine has 2, number 0 to 1"),
        ("-1", "no GPU '-1'"),
        ("cuda:0", "no GPU 'cuda:0'"),
        ("GPU-", "no GPU 'GPU-'"),
        ("0,1,0", "GPU 0 is named twice"),
        ("1,GPU-1abc", "GPU 1 is named twice"),
    ],
)
def test_gpus_that_are_not_there(machine, wanted, complaint):
    machine.has(H100, H100)
    with pytest.raises(UserError, match=complaint):
        gpus.selected(wanted)


@pytest.mark.parametrize(
    ("restriction", "complaint"),
    [
        ("", "hides all"),
        ("-1", "hides all"),
        ("7", "names '7', which is not here"),
        ("0,0", "GPU 0 is named twice|GPU 1 is named twice"),
    ],
)
def test_restrictions_that_leave_no_gpu(machine, monkeypatch, restriction, complaint):
    machine.has(H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", restriction)
    with pytest.raises(UserError, match=complaint):
        gpus.selected("all")


def test_a_gpu_in_use_is_refused_by_how_much_of_it_is_taken(machine):
    machine.has(H100, H100, H100, used={1: 40960}, processes=[(1, 4711), (2, 12)])
    with pytest.raises(UserError) as mistake:
        gpus.selected("all")
    assert f"GPU 1 ({H100}) is in use: 40.0 of 80.0 GiB are taken by process 4711" in str(
        mistake.value
    )
    assert f"GPU 2 ({H100}) is in use: 0.0 of 80.0 GiB are taken by process 12" in str(
        mistake.value
    )
    assert mistake.value.hint == "wait for it, or --gpus 0"
    assert _chosen("0") == ["GPU-0abc"]
    machine.has(H100, used={0: 9000})
    with pytest.raises(UserError, match=r"8\.8 of 80\.0 GiB are taken\n"):
        gpus.selected("0")  # by processes of another container, which are not seen
    machine.has(H100, used={0: 600})
    assert _chosen("0") == ["GPU-0abc"], "a desktop"


def test_a_gpu_whose_memory_is_not_told(machine):
    machine.has("NVIDIA GB10", total="[N/A]", used={0: "[N/A]"})
    (gpu,) = gpus.selected("all")
    assert gpu.gib is None


def test_a_machine_without_gpus(machine, monkeypatch):
    machine.says("echo NVIDIA-SMI has failed because it cannot reach the driver.; exit 9")
    with pytest.raises(UserError, match="nvidia-smi says: NVIDIA-SMI has failed because"):
        gpus.selected("all")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no GPU here: nvidia-smi"):
        gpus.selected("all")


# One job on each ----------------------------------------------------------------------------------

PROGRAM = """
import json, os, sys, time
from pathlib import Path
folder = Path(os.environ["TEST_FOLDER"])
name = Path(sys.argv[1]).name.rpartition("-")[0]
seen = {"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "threads": os.environ["OMP_NUM_THREADS"]}
seen["cores"] = os.environ["PROTOBENCH_CORES"]
print("this is", name)
(folder / f"{name}.started").write_text(json.dumps(seen))
"""
"""The beginning of each tiny program, which knows its job by the name of its folder."""
TOGETHER = """
deadline = time.time() + 30
while len(list(folder.glob("*.started"))) < {count} and time.time() < deadline:
    time.sleep(0.01)
if time.time() >= deadline:
    sys.exit("alone")
"""
"""Ends when so many programs have started."""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes an executor of tiny programs on pretended GPUs."""
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path / "seen"))
    monkeypatch.setattr(one_per_gpu, "POLL_SECONDS", 0.02)

    def executor(count, rest, **settings):
        context = RunContext("paper", None, tmp_path / "results", tmp_path / "runs", "cuda", 0)
        return OnePerGpu(
            context,
            tuple(Gpu(f"GPU-{n}", H100, 80.0, 0.0, (), n) for n in range(count)),
            program=(sys.executable, "-S", "-c", PROGRAM + rest),
            **settings,
        )

    return executor


def _jobs(tmp_path, *names):
    """A job per name like moco:1."""
    table, jobs = catalogue.load("table1"), []
    for name in names:
        row, seed = name.split(":")
        folder = tmp_path / "runs" / "paper" / name
        jobs.append(
            plan.Job(
                table.row(row),
                int(seed),
                table.row(row).recipe("paper"),
                folder / "encoder.safetensors",
                False,
                "retrained",
                "0" * 16,
                "to run",
                "",
                (plan.EvalTask("lowshot", "voc07", "to run"),),
            )
        )
    return jobs


def _seen(tmp_path):
    return {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "seen").glob("*.started")
    }


def test_rows_and_seeds_run_side_by_side_each_on_its_own_gpu(tiny, tmp_path, capfd):
    """Every program waits until three run at once; with two it would fail."""
    jobs = _jobs(tmp_path, "moco:1", "moco:2", "pcl:1")
    assert tiny(3, TOGETHER.format(count=3), cores=16).run(jobs) == []
    seen = _seen(tmp_path)
    assert sorted(seen) == ["moco-1", "moco-2", "pcl-1"]
    assert sorted(one["gpus"] for one in seen.values()) == ["GPU-0", "GPU-1", "GPU-2"]
    assert {one["threads"] for one in seen.values()} == {"5"}
    assert {one["cores"] for one in seen.values()} == {"5"}  # that k-means takes
    assert "this is pcl-1" in (tmp_path / "runs" / "paper" / "pcl:1" / "output.log").read_text()
    err = capfd.readouterr().err
    for name, one in seen.items():
        number, job = one["gpus"].removeprefix("GPU-"), name.replace("-", " seed ")
        assert f"GPU {number}: {job}\n" in err


def test_a_gpu_that_is_free_takes_the_next_job_at_once(tiny, tmp_path):
    """One long job keeps its GPU; the other GPU does the rest, which the long one waits for."""
    jobs = _jobs(tmp_path, "pcl:1", "moco:1", "moco:2", "moco:3")
    rest = f"if name == 'pcl-1':{TOGETHER.format(count=4)}".replace("\n", "\n    ")
    assert tiny(2, rest).run(jobs) == []
    seen = _seen(tmp_path)
    assert {one["gpus"] for name, one in seen.items() if name != "pcl-1"} == {
        "GPU-1" if seen["pcl-1"]["gpus"] == "GPU-0" else "GPU-0"
    }


def test_a_single_job_has_all_cores(tiny, tmp_path):
    assert tiny(8, "", cores=6).run(_jobs(tmp_path, "moco:1")) == []
    assert _seen(tmp_path)["moco-1"]["threads"] == "6"


def test_the_share_of_the_cores_reads_images(tiny, tmp_path, monkeypatch):
    """Of real data; bundled images need no processes."""
    rest = """
import pickle
sys.path[:0] = os.environ["TEST_PATH"].split(":")
part, context = pickle.loads((Path(sys.argv[1]) / "part.pickle").read_bytes())
(folder / f"{name}.started").write_text(json.dumps({"workers": context.workers}))
"""
    monkeypatch.setenv("TEST_PATH", ":".join([str(ROOT), *sys.path]))
    jobs = _jobs(tmp_path, "moco:1", "moco:2")
    assert tiny(4, rest, cores=16).run(jobs) == []
    assert _seen(tmp_path)["moco-1"] == {"workers": 8}
    assert tiny(4, rest, cores=16, workers=3).run(jobs) == []
    assert _seen(tmp_path)["moco-1"] == {"workers": 3}


def test_a_job_that_fails_leaves_the_others_alone(tiny, tmp_path, capfd):
    jobs = _jobs(tmp_path, "moco:1", "pcl:1", "pcl:2", "simclr:1")
    rest = """
if name == "moco-1":
    (Path(sys.argv[1]) / "failure-3").write_text("error: the GPU's memory is too small")
    sys.exit(2)
if name == "pcl-1":
    os.kill(os.getpid(), 9)
if name == "pcl-2":
    sys.exit(4)
"""
    failed = tiny(1, rest).run(jobs)
    assert sorted(_seen(tmp_path)) == ["moco-1", "pcl-1", "pcl-2", "simclr-1"]
    assert len(failed) == 3
    log = tmp_path / "runs" / "paper" / "moco:1" / "output.log"
    assert f"moco seed 1 on GPU 0: error: the GPU's memory is too small\n  log: {log}" in failed
    assert any("pcl seed 1 on GPU 0: its process was killed" in line for line in failed)
    assert any("pcl seed 2 on GPU 0: its process ended with code 4" in line for line in failed)
    assert "GPU 0: pcl seed 2 failed" in capfd.readouterr().err


def _interrupt_when(condition):
    """Sends Ctrl-C to this program as soon as the condition holds."""

    def watch():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_ctrl_c_lets_all_jobs_save(tiny, tmp_path, capfd):
    """Two run, one waits and is not started any more."""
    seen = tmp_path / "seen"
    rest = """
import signal
def save(*_):
    (folder / f"{name}.saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(folder / f"{name}.ready").touch()
time.sleep(60)
"""
    _interrupt_when(lambda: len(list(seen.glob("*.ready"))) == 2)
    with pytest.raises(KeyboardInterrupt):
        tiny(2, rest).run(_jobs(tmp_path, "moco:1", "moco:2", "moco:3"))
    assert len(list(seen.glob("*.saved"))) == 2
    assert len(_seen(tmp_path)) == 2
    assert "stopping 2 jobs" in capfd.readouterr().err


def test_a_second_ctrl_c_kills_a_job_that_does_not_end(tiny, tmp_path):
    """And what it has started."""
    seen = tmp_path / "seen"
    rest = """
import signal, subprocess
def refuse(*_):
    (folder / f"{name}.refused").touch()
signal.signal(signal.SIGTERM, refuse)
child = subprocess.Popen(["sleep", "60"])
(folder / f"{name}.pids").write_text(f"{os.getpid()} {child.pid}")
while True:
    time.sleep(1)
"""
    _interrupt_when(lambda: (seen / "moco-1.pids").exists())
    _interrupt_when(lambda: (seen / "moco-1.refused").exists())
    with pytest.raises(KeyboardInterrupt):
        tiny(1, rest).run(_jobs(tmp_path, "moco:1"))
    pids = (seen / "moco-1.pids").read_text().split()
    _until(lambda: not any(map(_alive, pids)), seconds=20)


def _alive(pid):
    """A process that has ended may wait for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_ends_with_the_program_that_started_it(tmp_path):
    """Killed, which no program can answer."""
    code = f"open({str(tmp_path / 'there')!r}, 'w').close(); import time; time.sleep(60)"

    class Sleep:
        def __reduce__(self):
            return exec, (code,)

    (tmp_path / one_per_gpu.PART).write_bytes(pickle.dumps(Sleep()))
    words = f"{sys.executable} -m tables.engine.jobs.gpu_job {tmp_path}"
    starter = subprocess.Popen(
        ["sh", "-c", f"{words} & echo $!; wait"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with starter:
        pid = starter.stdout.readline().strip()
        _until((tmp_path / "there").exists, seconds=120)
        starter.kill()
    _until(lambda: not _alive(pid), seconds=20)


# Several GPUs for one job -------------------------------------------------------------------------


def _gpus(count, gib, uuid="GPU-"):
    return tuple(Gpu(f"{uuid}{n}", H100, gib, 0.0, (), n) for n in range(count))


def _job(tmp_path, recipe, row="moco"):
    (job,) = _jobs(tmp_path, f"{row}:1")
    return replace(job, recipe=recipe)


def _part_of(job, gpus):
    return one_per_gpu.part_of(job, gpus, None)


def test_a_batch_that_one_gpu_cannot_hold_takes_as_many_as_it_needs(tmp_path):
    """SPCL at 1024 images: four of 80 GB, two of them in bf16."""
    big, small = _job(tmp_path, spcl.IMAGENET), _job(tmp_path, moco.V2)
    evaluations = Part(big, encoder=False, tasks=big.tasks)
    assert _part_of(big, _gpus(8, 79.6)) == Part(big, 4, then=evaluations)
    half = replace(big.recipe, train=replace(big.recipe.train, precision="bf16"))
    assert _part_of(_job(tmp_path, half), _gpus(8, 79.6)).gpus == 2
    assert _part_of(small, _gpus(8, 79.6)) == Part(small, tasks=small.tasks)
    assert _part_of(big, _gpus(8, None)).gpus == 1, "nothing is known of the memory"
    scored = replace(big, encoder="done")
    assert _part_of(scored, _gpus(1, 79.6)) == Part(scored, tasks=scored.tasks)
    told = one_per_gpu.describe([big, small], _gpus(8, 79.6), None)
    assert told.endswith("side by side: 2 jobs; pretraining of moco on 4 together")


def test_an_evaluation_whose_batches_one_gpu_cannot_hold_takes_as_many_as_it_needs(tmp_path):
    """Mask R-CNN's 16 images: two GPUs of 80 GB, six of 24; one of 141."""
    job = _job(tmp_path, moco.V2)
    voc, coco = (plan.EvalTask("detection", name, "to run") for name in ("voc07", "coco"))
    job = replace(job, tasks=(coco, *job.tasks, voc, replace(voc, state="done")))

    def parts(job, gpus):
        part, found = one_per_gpu.part_of(job, gpus, tmp_path), []
        while part:
            found.append((part.gpus, part.encoder, part.tasks))
            part = part.then
        return found

    encoder, on_one, on_two = (1, True, ()), (1, False, job.tasks[1:3]), (2, False, (coco,))
    assert parts(job, _gpus(8, 79.6)) == [encoder, on_one, on_two]
    assert parts(job, _gpus(8, 23.6)) == [encoder, on_one, (6, False, (coco,))]
    assert parts(job, _gpus(4, 23.6)) == [encoder, on_one, (4, False, (coco,))], "close"
    assert parts(job, _gpus(1, 141.0)) == [(1, True, job.tasks[:3])]
    assert parts(replace(job, tasks=(coco,)), _gpus(2, 79.6)) == [encoder, on_two]
    scored = replace(job, encoder="done", tasks=(coco,))
    assert parts(scored, _gpus(2, 79.6)) == [(2, True, (coco,))]
    told = one_per_gpu.describe([job], _gpus(2, 79.6), tmp_path)
    assert told.endswith("side by side: 1 jobs; detection coco of moco on 2 together")
    with pytest.raises(UserError, match=r"a batch of detection coco needs at least 90 GiB .*; 2 s"):
        parts(job, _gpus(1, 79.6))
    on_scenes = replace(scored, world=1)
    assert parts(on_scenes, _gpus(1, 5.0)) == [(1, True, (coco,))]


def test_a_batch_that_they_cannot_hold_is_refused_with_the_number_that_would_do(tmp_path):
    big = _job(tmp_path, spcl.IMAGENET)
    with pytest.raises(
        UserError, match=r"a batch of 1024 in fp32 needs 16\d\.\d GiB .*; 4 such"
    ) as it:
        _part_of(big, _gpus(3, 79.6))
    assert it.value.hint == "give them, or --rows without moco"
    with pytest.raises(UserError, match="--gpus gives 1 that can work together"):
        _part_of(big, _gpus(8, 79.6, uuid="MIG-"))
    with pytest.raises(UserError, match="no number of such GPUs would do"):
        _part_of(big, _gpus(3, 1.6))


def test_where_it_is_close_one_gpu_is_taken(tmp_path):
    """As without --gpus; the job itself warns."""
    job = _job(tmp_path, moco.V2)
    gib = gpu_memory.peak_gib(job.recipe) + gpu_memory.RESERVED_GIB / 2
    assert _part_of(job, _gpus(1, gib)).gpus == 1
    assert _part_of(job, _gpus(2, gib)).gpus == 2


def test_jobs_of_several_gpus_and_of_one_fill_the_machine(tiny, tmp_path, monkeypatch):
    """Four GPUs: three for one pretraining, one for the others, which it waits for; then its
    evaluations on one."""
    jobs = _jobs(tmp_path, "moco:1", "pcl:1", "simclr:1")

    def part_of(job, *_):
        return Part(job, 3, then=Part(job)) if job.row.name == "moco" else Part(job)

    monkeypatch.setattr(one_per_gpu, "part_of", part_of)
    rest = (
        """
first = not (folder / f"{name}.gpus").exists()
with open(folder / f"{name}.gpus", "a") as file:
    file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
if name == "moco-1" and first:""".replace("\\\\", "\\")
        + TOGETHER.format(count=3).replace("\n", "\n    ")
    )
    assert tiny(4, rest).run(jobs) == []
    used = {path.stem: path.read_text().split() for path in (tmp_path / "seen").glob("*.gpus")}
    assert used["moco-1"][0] == "GPU-0,GPU-1,GPU-2"
    assert used["pcl-1"] == used["simclr-1"] == ["GPU-3"]
    assert len(used["moco-1"]) == 2
    assert "," not in used["moco-1"][1]


def test_evaluations_do_not_follow_a_pretraining_that_failed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(one_per_gpu, "part_of", lambda job, *_: Part(job, 2, then=Part(job)))
    failed = tiny(2, "(folder / f'{name}.{time.time_ns()}.run').touch(); sys.exit(1)").run(
        _jobs(tmp_path, "moco:1")
    )
    assert len(failed) == 1
    assert "moco seed 1 on GPU 0+1: its process ended with code 1" in failed[0]
    assert len(list((tmp_path / "seen").glob("*.run"))) == 1


def test_a_failed_evaluation_leaves_the_others_of_its_encoder(tiny, tmp_path, monkeypatch):
    """Each GPU of a follow-up on two has half of the cores from the start."""
    (job,) = _jobs(tmp_path, "moco:1")
    follow_up = Part(job, 2, encoder=False)
    evaluations = Part(job, encoder=False, tasks=job.tasks, then=follow_up)
    monkeypatch.setattr(one_per_gpu, "part_of", lambda *_: Part(job, then=evaluations))
    rest = """
with open(folder / f"{name}.parts", "a") as file:
    print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], file=file)
    file.flush()
sys.exit(len(open(file.name).readlines()) == 2)
"""
    (failed,) = tiny(2, rest, cores=16).run([job])
    assert failed.startswith("moco seed 1 on GPU 0: its process ended with code 1")
    parts = (tmp_path / "seen" / "moco-1.parts").read_text().splitlines()
    assert parts == ["GPU-0 8", "GPU-0 8", "GPU-0,GPU-1 8"]


def test_a_pretraining_and_an_evaluation_on_two_gpus_by_torchrun(world, tmp_path, monkeypatch):
    """On CPUs that pretend to be GPUs too small for the batch; and one that fails on a rank says
    why."""
    recipe = replace(moco.MINI, queue=64, train=replace(moco.MINI.train, epochs=1, batch_size=32))
    job = replace(_job(tmp_path, recipe), tasks=(plan.EvalTask("course", "imagenet", "to run"),))
    gib = gpu_memory.peak_gib(recipe, 2) + gpu_memory.RESERVED_GIB
    assert gpu_memory.gpus_needed(recipe, gib) == 2
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = RunContext("paper", world, tmp_path / "results", tmp_path / "runs", "cpu", 0)
    executor = OnePerGpu(context, _gpus(2, gib), workers=0)
    log = job.checkpoint.parent / "output.log"
    assert executor.run([job]) == [], log.read_text()
    with safe_open(job.checkpoint, "np") as file:
        assert json.loads(file.metadata()["protobench"])["trained"]["processes"] == 2
    assert list((tmp_path / "results").rglob("moco-1-course-imagenet-*.json"))

    knn = (plan.EvalTask("knn", "imagenet", "to run"),)
    scored = replace(job, encoder="done", tasks=knn)
    with monkeypatch.context() as patch:
        patch.setattr(one_per_gpu, "part_of", lambda job, *_: Part(job, 2, tasks=knn))
        assert executor.run([scored]) == [], log.read_text()
    assert list((tmp_path / "results").rglob("moco-1-knn-imagenet-*.json"))

    missing = replace(context, data=tmp_path / "nothing")
    again = replace(job, seed=2, checkpoint=tmp_path / "runs" / "again" / "encoder.safetensors")
    (failed,) = OnePerGpu(missing, _gpus(2, gib), workers=0).run([again])
    assert failed.startswith("moco seed 2 on GPU 0+1: error: no such folder\n"), failed


# The command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--gpus", "3"), "no GPU '3'"),
        (("--gpus", ""), "names no GPU"),
        (("--gpus", "0,0"), "named twice"),
        (("--gpus", "1"), "in use: 40.0 of 80.0 GiB"),
        (("--gpus", "all", "--jobs", "2"), "leave out --jobs"),
        (("--gpus", "all", "--device", "cpu"), "contradict"),
        (("--gpus", "all", "--slurm"), "--slurm-gpus"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    reproduce_table, tmp_path, machine, flags, complaint
):
    machine.has(H100, H100, used={1: 40960})
    code, _, err = reproduce_table(*flags)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_how_the_gpus_are_shared(reproduce_table, machine, world):
    machine.has(H100, H100, total=40960)
    flags = ("--plan", "--gpus", "all", "--tier", "paper", "--data", world, "--seeds", "2")
    code, out, err = reproduce_table(*flags, "--rows", "moco", "simclr")
    assert code == 0, err
    told = "side by side: 4 jobs; pretraining of simclr on 2 together"
    assert f"on 2 GPUs ({H100}), {told}" in out


@pytest.fixture
def start(request, tmp_path, machine):
    """Starts the whole command on two pretended GPUs, which compute on the CPU: "cuda" means it,
    for the programs that the command starts, too."""
    machine.has(H100, H100)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "from protobench.runtime import devices\n"
        "devices.device_of = lambda device: {'cuda': 'cpu'}[device]\n"
    )

    def start(*flags):
        words = [sys.executable, "-m", "tables", "reproduce", "table1", "--gpus", "all"]
        words += ["--results", tmp_path / "results", "--runs", tmp_path / "runs", *flags]
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        request.addfinalizer(process.communicate)
        request.addfinalizer(process.kill)
        return process

    return start


def test_the_whole_command_on_two_gpus_stopped_and_resumed(start, tmp_path):
    """Two given encoders, small pictures in the real layouts."""
    sizes = {"imagenet-train": 40, "imagenet-val": 20, "voc-trainval": 700, "voc-test": 100}
    data = bundled.ensure(tmp_path / "data", sizes | {"places-train": 200, "places-val": 40})
    for name in ("moco", "pcl"):
        torch.manual_seed(len(name))
        net = resnet.ResNet(Arch("basic", (1, 1, 1, 1), 16))
        net.bn1.running_mean += 0.1  # as if it had seen data
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
    flags = ["--tier", "paper", "--data", data, "--rows", "moco", "pcl", "--workers", "0"]
    flags += [
        word for name in ("moco", "pcl") for word in ("--ckpt", f"{name}={tmp_path / name}.pth")
    ]
    records = tmp_path / "results" / "paper" / "records"
    process = start(*flags)
    _until(lambda: list(records.glob("*.json")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=150)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "what was finished is kept" in err
    kept = {path: path.read_bytes() for path in records.glob("*.json")}
    assert 1 <= len(kept) < 4

    process = start(*flags)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 3, err
    assert "40 not-run, 10 cited, 20 off-protocol" in out
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(records.glob("*.json"))) == 4
    assert re.search(r"GPU [01]: (moco moco|pcl pcl)\.pth\n", err)
