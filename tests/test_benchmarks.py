"""Benchmarks run, agree and are listed; nothing is timed here."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_one_another(monkeypatch):
    """Stages import their neighbours, as a script's own folder allows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_stage_is_run_by_tox():
    import all as whole

    apart = {"all", "alternate", "gpu", "hard_links", "machine", "normalisation", "scale", "worlds"}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - apart == set(whole.STAGES)


def test_a_page_says_what_fell_short():
    import all as whole
    from alternate import Figure, ratio

    fast = ratio("quick", ([1.0, 1.2, 0.9], [0.01, 0.01, 0.01]), "equal", target=40)
    slow = ratio("slow", ([1.0, 1.0, 1.0], [0.5, 0.4, 0.6]), "1e-6", target=3)
    page = whole.page("Title", [fast, slow, Figure("whole", "3 s", "≤ 10 s")], ["about"])
    quick = next(line for line in page.splitlines() if "quick" in line)
    assert [cell.strip() for cell in quick.split("|")[1:-1]] == [
        "quick",
        "1 s",
        "10 ms",
        "100× (90–120)",
        "≥ 40×",
        "equal",
        "",
    ]
    assert "≥ 3× **short**" in page
    assert "| whole   | 3 s        | ≤ 10 s   |" in page
    assert page == whole.page("Title", [fast, slow, Figure("whole", "3 s", "≤ 10 s")], ["about"])


@pytest.mark.parametrize("stage", ["concentration", "average_precision", "negatives"])
def test_the_published_ways_agree_with_ours(stage):
    """On small problems: a benchmark against a wrong rendering of the published way would
    flatter."""
    import average_precision as published_ap
    import concentration as published_phi
    import negatives as published_draw
    import torch

    from evaluate.svm.average_precision import average_precision
    from pretrain.pcl import concentration

    rng = np.random.default_rng(0)
    if stage == "concentration":
        assignment, distance = (
            rng.integers(0, 50, 400),
            rng.uniform(0.2, 1.2, 400).astype(np.float32),
        )
        theirs = published_phi.published(distance, assignment, 50, 0.1)
        np.testing.assert_allclose(
            concentration(distance, assignment, 50, temperature=0.1), theirs, rtol=1e-6
        )
    elif stage == "average_precision":
        score, positive = rng.normal(size=(200, 3)), rng.random((200, 3)) < 0.2
        theirs = [published_ap.published(score[:, c], positive[:, c]) for c in range(3)]
        np.testing.assert_allclose(average_precision(score, positive), theirs, atol=1e-12)
    else:
        prototype = torch.randint(0, 17_000, (20_000,))
        drawn = published_draw.published(prototype, torch.arange(8)).tolist()
        assert len(set(drawn)) == published_draw.R
        assert not set(drawn) & set(prototype[:8].tolist())


def test_a_stage_keeps_its_rows_for_the_page(tmp_path):
    rows = tmp_path / "rows"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "average_precision.py", "--rows", rows],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert row["kind"] == "Ratio"
    assert float(row["agreement"]) < 1e-12


def test_a_hash_of_an_encoder_is_of_all_bytes_in_the_order_of_names():
    import machine
    import torch

    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3]])
    whole = hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()[:16]
    assert machine.hash_of({"a": a, "b": b}) == machine.hash_of({"b": b, "a": a}) == whole
    assert (
        machine.hash_of(
            {"a": torch.tensor([1.0, np.nextafter(np.float32(2), np.float32(3))]), "b": b}
        )
        != whole
    )


def test_a_machine_that_gives_the_known_bits_is_named():
    import machine

    known = machine.KNOWN["AMD EPYC with AVX-512, torch 2.15"]["AVX2"]["pcl"]
    assert (
        machine.equal_to("AVX2", machine.Trained("pcl", known, 1.0))
        == "AMD EPYC with AVX-512, torch 2.15"
    )
    assert machine.equal_to("default", machine.Trained("pcl", known, 1.0)) == ""
    hashes = [
        known
        for by_setting in machine.KNOWN.values()
        for found in by_setting.values()
        for known in found.values()
    ]
    assert len(set(hashes)) == len(hashes), "no two settings or machines gave the same so far"


def test_a_short_training_runs_in_a_child_under_its_setting(world, monkeypatch):
    import machine

    monkeypatch.setenv(
        "ATEN_CPU_CAPABILITY", "default"
    )  # of the user's shell: no part of "default" here
    monkeypatch.setitem(machine.SETTINGS, "default", {"PROTOBENCH_TEST": "1"})
    handed = []
    run = subprocess.run
    monkeypatch.setattr(
        machine.subprocess,
        "run",
        lambda *words, **how: handed.append(how["env"]) or run(*words, **how),
    )
    (trained,) = machine.under("default", ["simclr"], world)
    assert trained.method == "simclr"
    assert re.fullmatch("[0-9a-f]{16}", trained.hash)
    assert "ATEN_CPU_CAPABILITY" not in handed[0]
    assert (handed[0]["PROTOBENCH_TEST"], handed[0]["OMP_NUM_THREADS"]) == ("1", "1")


@pytest.mark.filterwarnings("ignore")
def test_the_gpu_s_benchmark_runs_on_a_cpu_in_small(command):
    import gpu

    code, out, err = command(
        gpu.main, "--device", "cpu", "--tiny", "--only", "kmeans", "knn", "views"
    )
    assert code == 0, err
    assert "k-means by faiss, N = 2000, K = 40" in out
    assert "kNN, 100 queries" in out
    assert "colour and blur of crops" in out


def test_the_gpu_s_steps_run_on_a_cpu_in_small(monkeypatch):
    import gpu

    from pretrain import loop

    compiled = []
    monkeypatch.setattr(gpu, "MEASURED", {})
    monkeypatch.setattr(loop, "compile_networks", compiled.append)
    stages = [row.stage for row in gpu.steps(gpu.TINY, "cpu")]
    for name in ("moco", "simclr", "pcl", "spcl"):
        assert any(f"a step of {name}" in stage for stage in stages)
    assert len(compiled) == 1
    for row in gpu.precisions(gpu.TINY, "cpu"):
        assert "fp32 0.0e+00, bf16 " in row.measured, "a CPU agrees with itself"
        assert "bf16 0.0e+00" not in row.measured
    (missing,) = gpu.epoch(gpu.TINY, "cpu")
    assert "no time measured of: 20, 40" in missing.measured
    list(gpu.clusterings(gpu.TINY, "cpu"))
    (row,) = gpu.epoch(gpu.TINY, "cpu")
    assert "with one start of k-means" in row.measured


def test_a_stage_that_fails_or_comes_too_late_is_a_row(monkeypatch):
    import gpu

    def broken(sizes, device):
        yield gpu.Figure("first", "1 s")
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setitem(gpu.STAGES, "steps", broken)
    told = [row.measured for row in gpu._guarded("steps", gpu.TINY, "cpu", 0.0)]
    assert told == ["1 s", "**failed**: RuntimeError: out of memory"]
    (late,) = gpu._guarded("steps", gpu.TINY, "cpu", 1000.0)
    assert "left out after 16.7 minutes" in late.measured


def test_a_step_s_limit_is_the_larger_of_arithmetic_and_traffic(monkeypatch):
    """MoCo v2 at 256 images: 32.5 GFLOP an image (three passes with gradient, one without), and
    22.2 MB of maps, a convolution's output passing 21 times: 119 GB."""
    import gpu

    speeds = {"flops": 798e12, "bytes": 3e12}
    monkeypatch.setattr(gpu, "flops", lambda precision, device: speeds["flops"])
    monkeypatch.setattr(gpu, "bandwidth", lambda device: speeds["bytes"])
    recipe = gpu.recipe_of("moco", gpu.Sizes())
    assert (recipe.train.batch_size, recipe.queue) == (256, 65536)
    assert gpu.recipe_of("spcl", gpu.Sizes()).train.batch_size == 1024
    traffic = gpu.limit(recipe, 256, "bf16", "cuda")
    assert traffic == pytest.approx(119e9 / 3e12, rel=0.01)
    assert gpu.limit(recipe, 256, "tf32", "cuda") == pytest.approx(2 * traffic)
    speeds["bytes"] = 1e15
    assert gpu.limit(recipe, 256, "bf16", "cuda") == pytest.approx(256 * 32.5e9 / 798e12, rel=0.01)


def test_peaks_are_measured_on_random_numbers(monkeypatch):
    import gpu
    import torch

    seen = []
    monkeypatch.setattr(gpu, "spent", lambda work, device: seen.append(work) or 1.0)
    gpu.flops.__wrapped__("fp32", "cpu")
    for cell in (cell.cell_contents for cell in seen[0].__closure__):
        assert not isinstance(cell, torch.Tensor) or len(cell.unique()) > 1000


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu():
    import gpu
    import torch

    sizes = gpu.replace(
        gpu.TINY, batch=64, prototypes=(300, 400), negatives=100
    )  # so few that negatives are drawn
    for name in gpu.RECIPES:
        step = gpu.Step(name, sizes, "cuda", "bf16", torch.channels_last, compiled=False)
        step()
        assert gpu._waits(step, "cuda") == "the host never waits"


def test_variances_between_and_within_worlds_are_recovered():
    import worlds

    rng = np.random.default_rng(0)
    lead_WS = 3 + 2 * rng.normal(size=(400, 1)) + rng.normal(size=(400, 5))
    found = worlds.components(lead_WS)
    assert found.mean == pytest.approx(3, abs=0.3)
    assert found.between == pytest.approx(4, rel=0.15)
    assert found.within == pytest.approx(1, rel=0.1)
    for interval, truth in ((found.between_interval, 4), (found.within_interval, 1)):
        assert interval[0] < truth < interval[1]


def test_intervals_of_both_variances_cover():
    import worlds

    rng, rounds = np.random.default_rng(1), 1000
    hits = {"between": 0, "within": 0}
    for _ in range(rounds):
        lead_WS = 0.5 * rng.normal(size=(4, 1)) + rng.normal(size=(4, 3))
        found = worlds.components(lead_WS)
        hits["between"] += found.between_interval[0] <= 0.25 <= found.between_interval[1]
        hits["within"] += found.within_interval[0] <= 1 <= found.within_interval[1]
    assert hits["within"] / rounds == pytest.approx(0.95, abs=0.02)
    assert hits["between"] / rounds >= 0.92
