"""The data sets of this suite, found beside this file."""

import re
from importlib import import_module
from pathlib import Path

from protobench.data.dataset import Dataset


def _discovered() -> dict[str, Dataset]:
    """The data sets of all modules that end in ``DATASET = …`` or ``DATASETS = …``. Other modules
    are not imported, because some of them need torch, which is slow to import."""
    found: dict[str, Dataset] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if declared := re.search(r"^(DATASETS?) = ", source, re.MULTILINE):
            value = getattr(import_module(f"protobench.data.{path.stem}"), declared[1])
            found |= {one.name: one for one in (value if isinstance(value, tuple) else (value,))}
    return found


DATASETS: dict[str, Dataset] = _discovered()
"""By name."""
