"""Two ranks, and four, against one process: gradients in float64, queue, statistics, clusters,
features, weights, checkpoints."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import parallel
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from float64 import float64
from tiny import tiny_methods

from pretrain import loop, optim, simclr
from pretrain.augment import loader
from pretrain.recipes import moco, pcl, spcl
from pretrain.recipes.collisions import dial
from protobench import batch_norm, outcomes
from protobench.checkpoints import encoders
from protobench.data import image_list
from protobench.runtime import cli, distributed
from protobench.runtime.errors import Terminated, UserError

ROOT = Path(__file__).parent.parent
BATCH = 32


def _short(recipe, **changes):
    return replace(recipe, train=replace(recipe.train, epochs=2, batch_size=BATCH), **changes)


MOCO = _short(moco.MINI, queue=64)
PCL = _short(pcl.MINI, queue=64, num_prototypes=(5, 70), warmup=0)
SPCL = _short(spcl.MINI, num_prototypes=(8,))
METHODS = tiny_methods() | {
    "moco": MOCO,
    "moco in shuffled groups": replace(MOCO, bn_groups=4),
    "pcl": PCL,
    "pcl with drawn negatives, in groups": replace(PCL, num_negatives=10, bn_groups=4),
    "collisions, permuted": dial(PCL, 0.0, "permuted"),
    "spcl": SPCL,
    "spcl, some weights 0": replace(SPCL, beta=0.0, alpha=0.0),
    "spcl in halves": replace(SPCL, negatives="halves"),
    "spcl, all heads anew": replace(SPCL, reset="all"),
}
IMAGES = 200


class _Views:
    """As many random views as are asked for, in float64; of the whole batch, and a process's
    share."""

    def __len__(self):
        return IMAGES

    def order(self, epoch):
        return loader.order(IMAGES, BATCH, 0, epoch)

    def batches(self, epoch, num_views, chosen, first=0):
        for step, row in enumerate(chosen):
            drawn = torch.Generator().manual_seed(100 * epoch + step)
            yield (
                [
                    distributed.shard_of(
                        torch.randn(BATCH, 3, 32, 32, generator=drawn, dtype=torch.float64)
                    )
                    for _ in range(num_views)
                ],
                torch.from_numpy(row),
            )


def _features(module, **how):
    """What a method clusters; the first process alone has it."""
    drawn = np.random.default_rng(0).normal(size=(IMAGES, 64)).astype(how.get("dtype", np.float32))
    return drawn if distributed.is_main() else drawn[:0]


def _trained(recipe, steps):
    """Loss, gradients and everything else that a method holds, in float64, after so many steps."""
    torch.manual_seed(0)
    labels = torch.arange(IMAGES) % 20
    method = import_module(f"pretrain.{recipe.method}").build(recipe, labels, 20, 0).double()
    training = loop.Training(recipe, method, _Views())
    training.extract = _features
    training.steps = steps
    losses, real = [], loop.update

    def update(*args):
        losses.append(float(distributed.all_reduce_mean(real(*args))))
        return torch.zeros(())

    loop.update = update
    try:
        training.epoch()
    finally:
        loop.update = real
    state = {
        name: value
        for name, value in training.method.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    gradients = {
        name: p.grad for name, p in training.method.named_parameters() if p.grad is not None
    }
    return {
        "losses": losses,
        "state": state,
        "gradients": gradients,
        "clusters": [
            part[-1] if isinstance(part, tuple) else part
            for part in getattr(training.method, "prototypes", [])
        ],
    }


def _all_trained(steps):
    return {name: _trained(recipe, steps) for name, recipe in METHODS.items()}


@pytest.fixture(scope="module")
def alone():
    return {steps: _all_trained(steps) for steps in (1, 3)}


@pytest.fixture(scope="module", params=[2, 4])
def together(request):
    steps = {2: 3, 4: 1}[request.param]
    return {steps: parallel.run(_all_trained, steps, processes=request.param)}


def _difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_those_of_one_process(name, alone, together):
    """And so are losses, weights, the queue, the momentum encoder, BatchNorm's statistics and the
    clusters, in every process."""
    for steps, found in together.items():
        expected = alone[steps][name]
        assert expected["gradients"]
        for process in found:
            assert process[name]["losses"] == pytest.approx(expected["losses"], abs=1e-10)
            assert _difference(process[name]["gradients"], expected["gradients"]) < 1e-10
            assert _difference(process[name]["state"], expected["state"]) < 1e-10
            for ours, theirs in zip(process[name]["clusters"], expected["clusters"], strict=True):
                assert torch.equal(ours, theirs)


def _wrong_gather(x):
    """The common mistake: the own part has a gradient, the others' losses do not reach it."""
    parts = distributed.all_gather(x.detach())
    parts[distributed.rank()] = x
    return torch.cat(parts)


def _gathered_gradients():
    """Of a loss of all parts: of this process's part, the right way and the wrong."""
    full = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {}
    for name, gather in (
        ("right", distributed.concat_all_gather_with_grad),
        ("wrong", _wrong_gather),
    ):
        part = distributed.shard_of(full).clone().requires_grad_()
        a, b = F.normalize(gather(part), dim=1).chunk(2)
        loss = simclr.nt_xent(a, b, 0.2)
        loss.backward()
        found[name] = (
            float(loss.detach()),
            part.grad / distributed.world_size(),
        )  # as DistributedDataParallel averages
    return found


def test_the_common_mistake_is_seen_in_the_gradient_alone():
    """All processes' losses reach a part; without that the loss is right and the gradient half."""
    ((expected, whole),) = [_gathered_gradients()["right"]]
    together = parallel.run(_gathered_gradients)
    for name, share in (("right", 1.0), ("wrong", 0.5)):
        assert [found[name][0] for found in together] == pytest.approx([expected] * 2, abs=1e-12)
        torch.testing.assert_close(
            torch.cat([found[name][1] for found in together]), share * whole, rtol=0, atol=1e-12
        )


def _odds_and_ends():
    """What the rest of ranks.py does."""
    rank = distributed.rank()
    rows = torch.full((3 - rank, 2), float(rank)) if rank < 2 else None
    at_first = distributed.gather_rows_to_main(rows, [3, 2, 0, 0])
    once = distributed.broadcast_from_main(lambda: {"rank": rank, "rows": np.arange(3)})
    return {
        "share": list(distributed.shard_of(list(range(10)))),
        "highest": distributed.all_reduce_max(rank, -rank, 7),
        "from first": once["rank"],
        "mean": float(distributed.all_reduce_mean(torch.tensor(float(rank)))),
        "rows": at_first,
        "backend": dist.get_backend(),
    }


def test_processes_share_and_agree():
    found = parallel.run(_odds_and_ends, processes=4)
    assert [i for process in found for i in process["share"]] == list(range(10))
    assert all(
        process["highest"] == [3, 0, 7] and process["from first"] == 0 and process["mean"] == 1.5
        for process in found
    )
    assert found[0]["rows"].tolist() == [[0, 0]] * 3 + [[1, 1]] * 2
    assert all(process["rows"] is None for process in found[1:])


def test_batch_norm_of_one_process_is_torch_s():
    """Ours for the CPU, in training and evaluation, its gradients and its statistics."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.BatchNorm2d(5)).double()
    with torch.no_grad():
        theirs[0].weight.uniform_(), theirs[0].bias.normal_()
    ours = torch.nn.Sequential(torch.nn.BatchNorm2d(5)).double()
    ours.load_state_dict(theirs.state_dict())
    ours = batch_norm.synchronise(ours, equal_shares=False)
    assert type(ours[0]) is not torch.nn.BatchNorm2d
    for training in (True, True, False):
        x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
        outputs = []
        for module in (ours.train(training), theirs.train(training)):
            given = x.clone().requires_grad_()
            module(given).square().sin().sum().backward()
            outputs.append(
                (module(given).detach(), given.grad, module[0].weight.grad, module[0].bias.grad)
            )
        for a, b in zip(*outputs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert _difference(dict(ours.state_dict()), dict(theirs.state_dict())) < 1e-12


def _uneven_batch_norm():
    """Shares of 4, 2 and no images, twice."""
    full = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = batch_norm.synchronise(
        torch.nn.Sequential(torch.nn.BatchNorm2d(3)).double(), equal_shares=False
    )
    mine = full.split([4, 2, 0, 0])[distributed.rank()].clone().requires_grad_()
    output = norm(mine)
    (output.sin().sum() * distributed.world_size()).backward()
    return output.detach(), mine.grad / distributed.world_size(), norm.state_dict()


def test_batch_norm_weighs_unequal_shares():
    found = parallel.run(_uneven_batch_norm, processes=4)
    full = torch.randn(
        6, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).double()
    output = norm(full)
    output.sin().sum().backward()
    torch.testing.assert_close(
        torch.cat([part[0] for part in found]), output.detach(), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        torch.cat([part[1] for part in found]), full.grad, rtol=1e-10, atol=1e-10
    )
    for _, _, state in found:
        assert _difference(dict(state), dict(norm.state_dict())) < 1e-12


# Whole runs ---------------------------------------------------------------------------------------

NEAR = 1e-6
"""Encoders are written in float32, whose neighbours of 4 are 5e-7 away."""


@float64()
def _pretrained(folder, data, name):
    train = image_list.image_folder(data, "imagenet-train")
    path = loop.pretrain(METHODS[name], train, folder, seed=1)
    course = json.loads((path.parent / "course.json").read_text())
    return encoders.load(path).backbone.state_dict(), course


def _all_pretrained(folder, data):
    return {
        name: _pretrained(folder / name, data, name)
        for name in ("moco in shuffled groups", "pcl", "spcl")
    }


def test_a_run_of_two_processes_ends_like_that_of_one(world, tmp_path):
    """But for rounding, of float64; clusters of the first epoch, whose features are the same, are
    equal."""
    data = world / "imagenet" / "train"
    alone, (first, second) = (
        _all_pretrained(tmp_path / "1", data),
        parallel.run(_all_pretrained, tmp_path / "2", data),
    )
    for name, (weights, course) in alone.items():
        assert _difference(first[name][0], weights) < NEAR
        assert _difference(second[name][0], first[name][0]) == 0, (
            "the others return what the first has written"
        )
        theirs = first[name][1]
        for ours, other in zip(course["epochs"], theirs["epochs"], strict=True):
            assert other["loss"] == pytest.approx(ours["loss"], rel=1e-10)
        clusters = {
            key: value for key, value in course["epochs"][0].items() if key.startswith("clusters")
        }
        assert clusters == {key: theirs["epochs"][0][key] for key in clusters}
        assert {**course["probes"][0], "seconds": 0} == {**theirs["probes"][0], "seconds": 0}
        assert len(theirs["probes"]) == len(course["probes"])
    assert not list((tmp_path / "2").rglob("*.tmp"))


@float64()
def _interrupted(folder, data):
    """The second process hears SIGTERM in the fourth step of the second epoch."""
    taken, real = 0, optim.learning_rate

    def signalled(*args):
        nonlocal taken
        taken += 1
        if taken == 10 and distributed.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    optim.learning_rate = signalled
    signal.signal(signal.SIGTERM, cli._terminated)
    try:
        loop.pretrain(
            METHODS["pcl"], image_list.image_folder(data, "imagenet-train"), folder, seed=1
        )
    except Terminated:
        return taken
    finally:
        optim.learning_rate = real
    return None


def test_processes_stop_at_the_same_step_and_one_may_go_on(world, tmp_path):
    data = world / "imagenet" / "train"
    assert parallel.run(_interrupted, tmp_path, data) == [10, 10]
    state = torch.load(max(tmp_path.glob("checkpoint-*")), weights_only=True)["state"]
    assert (len(state["position"]["log"]), state["position"]["step"]) == (1, 4)
    weights, course = _pretrained(tmp_path, data, "pcl")
    expected, whole = _pretrained(tmp_path / "whole", data, "pcl")
    assert _difference(weights, expected) < NEAR
    assert [line["loss"] for line in course["epochs"]] == pytest.approx(
        [line["loss"] for line in whole["epochs"]], rel=1e-10
    )


def _refusals():
    said = []
    for recipe in (
        replace(MOCO, train=replace(MOCO.train, batch_size=30), queue=60),
        replace(MOCO, train=replace(MOCO.train, batch_size=48), queue=96, bn_groups=6),
    ):
        train = image_list.ImageList(
            "x", Path("/nowhere"), ("a",) * 64, np.zeros(64, np.int64), ("a",), ""
        )
        method = import_module("pretrain.moco").build(recipe, torch.empty(0), 0, 0)
        try:
            loop.Training(recipe, method, train)
        except UserError as mistake:
            said.append(str(mistake))
    return said


def test_batches_that_cannot_be_shared_are_refused():
    for batch, groups in parallel.run(_refusals, processes=4):
        assert "moco: a batch of 30 images does not split over 4 processes" in batch
        assert "its 6 BatchNorm groups do not split over 4 processes" in groups


def _torchrun(*words, processes=2):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def test_torchrun_trains_with_the_same_command(world, tmp_path):
    done = _torchrun(
        "pretrain/pcl.py",
        "mini",
        "--data",
        world,
        "--epochs",
        1,
        "--batch-size",
        40,
        "--queue",
        80,
        "--warmup",
        0,
        "--num-prototypes",
        5,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score it:") == 1
    assert encoders.load(tmp_path / "encoder.safetensors").report.trained["method"] == "pcl"


def test_an_unreadable_image_of_another_process_is_named(world, tmp_path):
    """It is met in the probe before the first epoch, between what processes exchange."""
    data = shutil.copytree(world / "imagenet", tmp_path / "imagenet")
    broken = sorted((data / "train").glob("*/*"))[-1]
    broken.write_bytes(broken.read_bytes()[:200])
    done = _torchrun(
        "pretrain/moco.py",
        "mini",
        "--data",
        tmp_path,
        "--batch-size",
        40,
        "--queue",
        80,
        "--device",
        "cpu",
        "--workers",
        0,
        "--out",
        tmp_path / "run",
    )
    assert done.returncode != 0
    assert broken.name in done.stderr
    assert "EnforceNotMet" not in done.stderr


def test_torchrun_tells_a_mistake_once(world, tmp_path):
    done = _torchrun(
        "pretrain/moco.py",
        "mini",
        "--data",
        tmp_path / "absent",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: no such folder") == 1


# Evaluations --------------------------------------------------------------------------------------


def evaluated(folder, ckpt, world, scene_data, device="cpu"):
    """Every evaluation, with sizes that two processes cannot share evenly."""
    from evaluate import ami, detection, fullsvm, gallery, knn, linear, lowshot, semisup, tsne

    how = {"device": device, "workers": 0, "results": folder}
    configs = {
        lowshot: {"data": world, "shots": (1, 2), "draws": 3},
        fullsvm: {"data": world},
        knn: {"data": world, "k": (5, 150)},
        ami: {"data": world, "num_clusters": (7,)},
        tsne: {"data": world, "classes": 3, "per_class": 10, "perplexity": 5},
        gallery: {"data": world, "fine": 20, "coarse": 5},
        linear: {"data": world, "lr": (0.1, 1.0), "epochs": 2, "batch_size": 25},
        semisup: {
            "data": world,
            "dataset": "imagenet-10pct",
            "epochs": 2,
            "batch_size": 4,
            "draws": 1,
            "backbone_lr": 1e-4,
            "head_lr": 1e-2,
        },
        detection: {"data": scene_data, "iterations": 3, "batch_size": 3, "draws": 1},
    }
    found = {}
    for module, config in configs.items():
        path = module.EVALUATION.execute(module.Config(ckpt, **config, **how))
        found[module.__name__.rpartition(".")[2]] = path and json.loads(path.read_text())
    return found


def test_evaluations_of_two_processes_give_what_one_gives(
    moco_file, world, scene_data, tmp_path, monkeypatch, mmdet
):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "one"))
    alone = evaluated(tmp_path / "alone", moco_file, world, scene_data)
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "two"))
    first, second = parallel.run(evaluated, tmp_path / "together", moco_file, world, scene_data)
    assert set(second.values()) == {None}, "the first process writes"
    assert len(list((tmp_path / "together").glob("*.json"))) == len(alone) == 9
    assert not list((tmp_path / "together").glob(".*.pt"))
    for name in ("lowshot", "fullsvm", "knn", "ami", "tsne", "gallery", "linear"):
        assert first[name]["unit"] == alone[name]["unit"]
    for name in (
        "lowshot",
        "fullsvm",
        "ami",
        "tsne",
        "gallery",
    ):  # by the first process alone, on features equal bit by bit
        assert first[name]["runs"] == alone[name]["runs"], name
    for name in ("knn", "linear", "semisup"):
        for ours, theirs in zip(first[name]["runs"], alone[name]["runs"], strict=True):
            a, b = outcomes.of_run(ours, 40), outcomes.of_run(theirs, 40)
            assert a.keys() == b.keys()
            for what in a:
                assert (a[what] != b[what]).sum() <= 2, "two of 40 images may change sides"
            del ours["right"], theirs["right"]
    for name, part in (
        ("knn", "runs"),
        ("linear", "sweep"),
    ):  # by parts of the bank, and of batches
        for ours, theirs in zip(first[name][part], alone[name][part], strict=True):
            assert ours == pytest.approx(theirs, abs=5), (
                "one of 40 images, or of 20 held out, may change sides"
            )
    (ours,), (theirs,) = first["semisup"]["runs"], alone["semisup"]["runs"]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=2e-4)
    assert ours["top1"] == pytest.approx(theirs["top1"], abs=2.5), (
        "one of 40 images may change sides"
    )
    (ours,), (theirs,) = first["detection"]["runs"], alone["detection"]["runs"]
    assert ours["steps"] == theirs["steps"] == 3
    assert ours["losses"] != theirs["losses"], "each process draws regions of its own"
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.2)
    features = [sorted((tmp_path / name / "features").glob("*.npy")) for name in ("one", "two")]
    assert [path.name for path in features[0]] == [path.name for path in features[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*features, strict=True)), (
        "bit by bit"
    )
