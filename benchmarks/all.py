"""Runs all stages on one CPU core, each in a process of its own; writes results/benchmarks.md.

Examples:

    tox -e bench                                  # everything, about ten minutes
    python benchmarks/all.py knn augmentation     # some stages, printed only
    python benchmarks/gpu.py                      # the stages of a GPU
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alternate import HEADINGS, Figure, Ratio
from tabulate import tabulate

from protobench import records
from protobench.runtime import files

STAGES = (
    "concentration",
    "negatives",
    "clustering",
    "momentum",
    "pcl",
    "spcl",
    "augmentation",
    "crops",
    "tensor_views",
    "loading",
    "features",
    "lowshot",
    "average_precision",
    "linear",
    "knn",
    "ami",
    "detection",
    "growth",
)
ABOUT = """`tox -e bench` writes this file. The published way and ours are alternated in one
process, on one thread; the table gives medians of CPU time, the ratio of each pair with its range,
and how far the results agree. The limit, given where it is easily counted, is the time that our
way's arithmetic or its unavoidable memory traffic would take at the speed measured on this core.
benchmarks/README.md says what stands behind the rows."""
HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def run(stage: str) -> list[Ratio | Figure]:
    """Runs a stage, which prints its rows as they come, and returns them. Raises CalledProcessError
    if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "rows"
        subprocess.run(
            [sys.executable, HERE / f"{stage}.py", "--rows", kept],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        found = [json.loads(line) for line in kept.read_text().splitlines()]
    kinds = {kind.__name__: kind for kind in HEADINGS}
    return [kinds[row.pop("kind")](**row) for row in found]


def page(title: str, rows: list[Ratio | Figure], about: list[str]) -> str:
    """Returns the page in Markdown: what it was measured on, a table of ratios, and one of the
    rest."""
    parts = [f"# {title}", *about]
    for kind, headings in HEADINGS.items():
        cells = [row.cells() for row in rows if isinstance(row, kind)]
        if cells:
            parts.append(tabulate(cells, headings, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """Describes the processor, the memory and the versions of packages."""
    model = records.processor() or platform.machine()
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if hasattr(os, "sysconf")
        else 0
    )
    found = records.environment()
    packages = (
        "python",
        "torch",
        "torchvision",
        "numpy",
        "scikit-learn",
        "faiss-gpu",
        "pillow",
        "opencv-python-headless",
    )
    versions = ", ".join(f"{name} {found[name]}" for name in packages if found[name])
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; GPU: {found['gpu'] or 'none'}."
        f" {versions}. Code {records.commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    chosen = parser.parse_args().stages
    if unknown := set(chosen) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    records.commit()  # cached before growth.py redraws a picture that git tracks
    started, rows, failed = time.monotonic(), [], []
    for number, stage in enumerate(stages := chosen or STAGES, start=1):
        print(
            f"\n[{number}/{len(stages)}, {(time.monotonic() - started) / 60:.1f} min] {stage}",
            flush=True,
        )
        try:
            rows += run(stage)
        except subprocess.CalledProcessError as failure:
            failed.append(f"{stage} (exit {failure.returncode})")
    minutes = (time.monotonic() - started) / 60
    print(f"\n{minutes:.1f} minutes" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if failed or chosen:
        return 2 if failed else 0
    about = [ABOUT, f"{machine()} {minutes:.1f} minutes."]
    files.write_text(RESULTS / "benchmarks.md", page("Speed beside the published way", rows, about))
    print(RESULTS / "benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
