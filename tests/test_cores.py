"""How many cores a process may use, and how many image-reading processes go with them."""

import os
import warnings

import pytest
import torch

from protobench.data import loading
from protobench.runtime import cores
from protobench.runtime.errors import UserError
from tables.engine.jobs import work


def _quotas(folder, own, files):
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return sorted(cores._quotas(folder / "cgroup", folder / "own"))


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, [2.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/", {}, []),
        (  # the limits of the groups around count too
            "0::/job/step\n",
            {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"},
            [4.0],
        ),
        # in a container without a namespace of its own the path leads nowhere
        ("0::/docker/4711\n", {"cpu.max": "150000 100000"}, [1.5]),
        (  # version 1; other controllers have no say
            "5:cpu,cpuacct:/box\n4:memory:/box\n",
            {
                "cpu/box/cpu.cfs_quota_us": "300000",
                "cpu/box/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/box/cpu.max": "100000 100000",
            },
            [3.0],
        ),
    ],
)
def test_quotas_of_control_groups(tmp_path, own, files, expected):
    assert _quotas(tmp_path, own, files) == expected


def test_no_control_groups_no_quota(tmp_path):
    assert not list(cores._quotas(tmp_path, tmp_path / "absent"))


def test_affinity_and_quota_both_limit_the_usable_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(cores, "_quotas", lambda: iter(()))
    assert cores.usable() == 12
    monkeypatch.setattr(cores, "_quotas", lambda: iter((7.2, 30.0)))
    assert cores.usable() == 8, "a part of a core is one"
    monkeypatch.setattr(cores, "_quotas", lambda: iter((0.1,)))
    assert cores.usable() == 1


@pytest.mark.parametrize(
    ("share", "expected"), [("5", 5), ("0", 1), ("64", 12), ("", 12), ("x", 12)]
)
def test_a_job_beside_others_has_its_share_of_the_cores(monkeypatch, share, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(cores, "_quotas", lambda: iter(()))
    monkeypatch.setenv(cores.SHARE, share)
    assert cores.usable() == expected


@pytest.mark.parametrize(
    ("usable", "ranks", "expected"), [(16, 1, 16), (16, 8, 2), (2, 8, 1), (192, 1, 32), (20, 3, 6)]
)
def test_ranks_of_a_machine_share_its_cores(monkeypatch, usable, ranks, expected):
    monkeypatch.setattr(cores, "usable", lambda: usable)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert cores.workers(None) == expected


def test_a_job_of_a_table_takes_its_own_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 64)
    assert work.workers_of("paper", None, 8) == 8
    assert work.workers_of("paper", None, None) == 32
    assert work.workers_of("paper", 5, 8) == 5
    assert work.workers_of("mini", None, 8) == 0, "bundled images are held in memory"


def test_more_workers_than_cores_are_cut_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cores, "usable", lambda: 2)
    assert cores.workers(2) == 2
    assert not capsys.readouterr().err
    assert cores.workers(16) == 2
    assert "--workers 16: 2, as this process may use 2 cores" in capsys.readouterr().err
    with pytest.raises(UserError, match="--workers must not be negative"):
        cores.workers(-1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_torch_never_warns_of_too_many_workers():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = list(
                loading.batches(
                    torch.utils.data.TensorDataset(torch.arange(8)),
                    stack=len,
                    workers=16,
                    device="cpu",
                    batch_size=4,
                )
            )
    finally:
        os.sched_setaffinity(0, before)
    assert found == [4, 4]
