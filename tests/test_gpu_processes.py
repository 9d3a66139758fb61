"""Processes and their GPUs, seen by what torch is asked for: no GPU and no NCCL are needed."""

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import parallel
import pytest
import torch
import torch.distributed as dist

from pretrain import loop, monitor
from pretrain.recipes import moco
from protobench.data import loading
from protobench.runtime import distributed


def test_a_numbered_gpu_becomes_the_one_that_torch_means(monkeypatch):
    """So that its name is recorded, its memory measured, and no context opened on the first."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [distributed.init(device) for device in ("cpu", "cuda", "cuda:1")] == [
        "cpu",
        "cuda",
        "cuda:1",
    ]
    assert chosen == ["cuda:1"]


def test_a_step_that_hangs_costs_an_hour_and_the_main_process_s_work_may_take_a_day(monkeypatch):
    asked = []

    def init(backend, *, timeout):
        asked.append((backend, timeout))

    def group(*, backend, timeout):
        asked.append((backend, timeout))
        return "for work"

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "new_group", group)
    monkeypatch.setattr(distributed, "_for_work", None)
    assert distributed.init("cuda") == "cuda"
    hour, day = timedelta(hours=1), timedelta(days=1)
    assert asked == [("cpu:gloo,cuda:nccl", hour), ("gloo", day)]
    waiting = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for name in ("barrier", "broadcast_object_list", "gather", "gather_object"):
        monkeypatch.setattr(
            dist, name, lambda *_, group=None, name=name, **__: waiting.append((name, group))
        )
    monkeypatch.setattr(distributed, "all_reduce_max", lambda *values: list(values))
    distributed.barrier()
    distributed.broadcast_from_main(lambda: 1)
    distributed.gather_rows_to_main(torch.zeros(1, 2), [1, 1])
    distributed.gather_to_main([1])
    with distributed.main_process_first():
        pass
    assert waiting == [
        (name, "for work")
        for name in ("barrier", "broadcast_object_list", "gather", "gather_object", "barrier")
    ]


def _slow_measurement():
    """Whether this process left ``_measure`` before the main one had measured."""
    import time

    recipe = moco.MINI
    training = object.__new__(loop.Training)
    training.recipe, training.device, training.at = recipe, torch.device("cpu"), loop.Position()
    embedding = SimpleNamespace()
    training.method = SimpleNamespace(networks=lambda: SimpleNamespace(embedding=embedding))
    training.extract = lambda module: np.zeros((2, 2))
    measure, ended = monitor.measure, []

    def slow(*_, **__):
        time.sleep(0.5)
        ended.append(time.monotonic())
        return {"epochs": 0}

    monitor.measure = slow
    try:
        training._measure(0, np.zeros(2))
    finally:
        monitor.measure = measure
    return time.monotonic(), ended, training.at.probes


def test_all_processes_wait_while_the_main_one_measures():
    """Here, by gloo: in the next step they would spin on GPUs that k-means needs."""
    (_, ended, of_main), (left, nothing, of_other) = parallel.run(_slow_measurement)
    assert not nothing, "the main process alone measures"
    assert left >= ended[0]
    assert [probe["epochs"] for probe in of_other] == [probe["epochs"] for probe in of_main] == [0]


def test_values_are_sent_from_pinned_memory_without_waiting(monkeypatch):
    sent = []

    class Values(torch.Tensor):
        def pin_memory(self):
            sent.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            sent.append((device, non_blocking))
            return self

    monkeypatch.setattr(
        loading.torch, "from_numpy", lambda values: torch.tensor(values).as_subclass(Values)
    )
    loading.moved(np.arange(3), "cuda:0")
    assert sent == ["pinned", ("cuda:0", True)]
    sent.clear()
    loading.moved(np.arange(3), "cpu")
    assert sent == [("cpu", True)]


@pytest.mark.parametrize("name", ["semisup", "linear"])
def test_no_evaluation_indexes_a_tensor_by_a_list(name, encoder_file, world, tmp_path, monkeypatch):
    """torch makes a tensor of the list and copies it to the GPU, for which the host waits."""
    import importlib

    evaluation = importlib.import_module(f"evaluate.{name}").EVALUATION
    index = torch.Tensor.__getitem__

    def watched(self, key):
        assert not isinstance(key, list), key
        return index(self, key)

    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    few = {"batch_size": 8, "epochs": 1}
    if name == "semisup":
        few |= {"dataset": "imagenet-10pct"}
    config = evaluation.Config(
        encoder_file, data=world, device="cpu", workers=0, results=tmp_path, **few
    )
    assert evaluation.execute(config)
