"""The process of a job that has its own GPUs (one_per_gpu.py), started with the job's folder. With
several GPUs it is torchrun's agent, which starts this again as each of its ranks."""

import os
import pickle
import sys
import traceback
from pathlib import Path

from protobench.runtime import cli, distributed, processes
from protobench.runtime.errors import UserError
from tables.engine.jobs.one_per_gpu import FAILURE, PART


def main() -> int:
    """The command line."""
    processes.end_with_parent()
    folder = Path(sys.argv[1])
    try:
        part, context = pickle.loads((folder / PART).read_bytes())
        if part.gpus > 1 and "LOCAL_RANK" not in os.environ:
            _torchrun(part.gpus, folder)
            return cli.SAME
        part.run(context)
        distributed.shutdown()
    except Exception as failure:
        if not isinstance(failure, UserError):
            traceback.print_exc()
        file = folder / FAILURE.format(rank=os.environ.get("RANK", "agent"))
        file.write_text(str(processes.explained(failure)))
        raise
    return cli.SAME


def _torchrun(count: int, folder: Path) -> None:
    from torch.distributed import run

    run.main(["--standalone", f"--nproc-per-node={count}", "-m", __spec__.name, str(folder)])


if __name__ == "__main__":
    cli.run(main)
