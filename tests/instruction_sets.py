"""The tests whose answers come out of floating-point arithmetic, under other instruction sets than
this processor's best.

    python tests/instruction_sets.py            # both; flags are pytest's

Sums are rounded in another order there, as on another kind of processor: what holds by luck of
rounding fails here."""

import os
import subprocess
import sys
from pathlib import Path

SETS = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "SSE4.1": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}
FLAGS = ["-m", "arithmetic", "-q", "-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]


def main() -> int:
    """Runs the marked tests under each set; the first failure's exit code, or 0."""
    codes = []
    for name, variables in SETS.items():
        print(
            f"{name}: {' '.join(f'{key}={value}' for key, value in variables.items())}", flush=True
        )
        words = [sys.executable, "-m", "pytest", *FLAGS, *sys.argv[1:]]
        codes.append(
            subprocess.run(
                words, cwd=Path(__file__).parent.parent, env=os.environ | variables
            ).returncode
        )
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
