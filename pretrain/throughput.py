"""How fast a machine pretrains: the rates that a rehearsal measures (measuring.py) and keeps."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from protobench.runtime import files


@dataclass(frozen=True)
class Throughput:
    """Rates in images/s, of all processes together."""

    device: str
    """the GPU's name, or the processor's"""
    on_gpu: bool
    processes: int
    workers: int
    """image-reading processes of each process; as many as there are cores at most"""
    cores: int
    flops: float
    """fp32 FLOP/s of a matrix product, of the main process alone, as k-means needs it"""
    views: float | None = None
    """read, with all the views of a training step; None where images are held in memory"""
    crops: float | None = None
    """read, with their centre crops; None where images are held in memory"""
    embedded: float | None = None
    """passed through the network for their features"""
    trained: float | None = None
    """by steps whose images are there already; None for an encoder that is not trained"""
    batch: int = 0
    """of these steps"""
    peak_gib: float | None = None
    """GPU memory at the peak of these steps, on each GPU; None on a CPU"""
    load: float | None = None
    """of the machine meanwhile, as ``uptime`` tells; None where the system does not"""

    def write(self, path: Path) -> None:
        """Keeps it as JSON."""
        files.write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def read(path: Path) -> Throughput | None:
    """What ``write`` kept; None where there is nothing."""
    if not path.is_file():
        return None
    return Throughput(**json.loads(path.read_text()))
