"""Loading a ResNet-50 in MoCo's layout beside torch.load alone, each in a fresh process, as a user
meets it.

The file holds both encoders, the queue and the optimiser's momentum (341 MB). Ours hashes the whole
file, checks its zip checksums, recognises it, and takes out and checks one backbone."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alternate import Figure, middle, show

PUBLISHED = "torch.load(path, map_location='cpu', weights_only=True)"
OURS = "encoders.load(path)"
MEASURE = """
import json, resource, sys, threading, time
from pathlib import Path
import torch
from protobench.checkpoints import encoders
path = Path(sys.argv[1])
torch.ones(1).sum()

def private():  # MiB of this process alone; pages mapped from the file are the file's
    rollup = Path("/proc/self/smaps_rollup").read_text()
    words = dict(line.split(":") for line in rollup.splitlines()[1:])
    return int(words["Private_Dirty"].split()[0]) / 1024

before, peak, done = private(), 0.0, False
def watch():
    global peak
    while not done:
        peak = max(peak, private() - before)
        time.sleep(0.005)
if sys.argv[2] == "memory":
    threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
kept = {what}
seconds = time.perf_counter() - started
peak, done = max(peak, private() - before), True
print(json.dumps([seconds, peak]))
"""


def write(path: Path, legacy: bool) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet50()
    net.bn1.running_mean += 0.1
    state = {
        f"module.encoder_{copy}.{name}": t.clone()
        for copy in "qk"
        for name, t in net.state_dict().items()
    }
    momentum = {i: {"momentum_buffer": t.detach().clone()} for i, t in enumerate(net.parameters())}
    torch.save(
        {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": state | {"module.queue": torch.randn(128, 65536)},
            "optimizer": {"state": momentum},
        },
        path,
        _use_new_zipfile_serialization=not legacy,
    )


def once(what: str, path: Path, measure: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("{what}", what), path, measure],
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(done.stdout))


def rows() -> Iterator[Figure]:
    """Files of either format, wall time of each process's load."""
    with tempfile.TemporaryDirectory() as folder:
        for name, legacy in (("torch ≥ 1.6", False), ("before torch 1.6", True)):
            path = Path(folder) / "moco.pth.tar"
            write(path, legacy)
            times = [
                (once(PUBLISHED, path, "time")[0], once(OURS, path, "time")[0]) for _ in range(2)
            ]
            memory = [once(what, path, "memory")[1] for what in (PUBLISHED, OURS)]
            yield Figure(
                f"loading a 341 MB MoCo file ({name}), of torch.load alone",
                f"{middle(ours / theirs for theirs, ours in times)}× its time; memory beyond the"
                f" file's pages {memory[1]:.0f} MiB, torch.load {memory[0]:.0f}",
            )


if __name__ == "__main__":
    show(rows())
