"""How many cores this process may use, and how many processes that read images go with them.

The machine's own count is not the answer: a scheduler or ``taskset`` gives a process some of its
cores (affinity), a container a share of their time (cgroup quota), and what runs jobs side by side
gives each a share (``SHARE``)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

SHARE = "PROTOBENCH_CORES"
"""Environment variable: how many cores a job may use that shares the machine with others."""
MOST_WORKERS = 32
"""Not more by default: each holds two batches in /dev/shm, 150 MB of 256 pairs of views. One H100
is fed by 11 to 18."""


def usable() -> int:
    """Returns the number of cores that this process may use, at least 1."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = os.environ.get(SHARE, "")
    shares = [max(int(share), 1)] if share.isdigit() else []
    return min([allowed, *shares, *map(math.ceil, _quotas())])


def default_workers(cores: int | None = None) -> int:
    """Returns how many image-reading processes go with ``cores``, at least 1. By default those are
    this process's share of the usable ones: torchrun's ranks on this machine have equal shares."""
    if cores is None:
        cores = usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores, 1), MOST_WORKERS)


def workers(requested: int | None) -> int:
    """Returns the requested number of image-reading processes, or the default for None. More than
    there are usable cores are cut to those, with a notice. UserError for a negative number."""
    if requested is None:
        return default_workers()
    if requested < 0:
        raise UserError("--workers must not be negative", hint="0 reads images in the process")
    if requested > (most := usable()):
        notice(f"--workers {requested}: {most}, as this process may use {most} cores")
    return min(requested, most)


def _quotas(
    cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[float]:
    """Cores' worth of time that the process's control groups, and those around them, allow."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroup / "cpu" if controllers else cgroup  # version 1 has a folder per controller
        for group in [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]:
            if group == cgroup.parent:
                break
            try:
                if controllers:
                    quota = (group / "cpu.cfs_quota_us").read_text()
                    period = (group / "cpu.cfs_period_us").read_text()
                else:
                    quota, period = (group / "cpu.max").read_text().split()
                share = float(quota) / float(period)
            except (OSError, ValueError):  # no limit is "max", in version 1 it is -1
                continue
            if share > 0:
                yield share
