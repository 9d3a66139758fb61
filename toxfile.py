"""Tells tox of one environment per table and figure, reproduce-NAME, found where the programs find
them: in the papers' folders. What such an environment does stands in tox.ini under [testenv]; which
extras it needs is told here, as those that train detectors need one more."""

import re
from pathlib import Path
from typing import Any

from tox.plugin import impl

DECLARATION = re.compile(r'^(?:TABLE|FIGURE) = \w+\(\s+name="([^"]+)"', re.MULTILINE)
DETECTION = re.compile(r'"detection(?:_\w+)?"')
"""An evaluation that trains detectors, as a column or a figure names it."""


def modules() -> dict[str, str]:
    """The text of the module of every table and figure that is declared under tables/, by name."""
    texts = [
        path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("tables/*/*.py"))
    ]
    return {name: text for text in texts for name in DECLARATION.findall(text)}


def names() -> list[str]:
    """The names of all tables and figures."""
    return list(modules())


def extras(env_name: str) -> set[str]:
    """The extras of the environment of a table or a figure; none for any other."""
    text = modules().get(env_name.removeprefix("reproduce-"))
    if text is None:
        return set()
    return {"slurm", "detection"} if DETECTION.search(text) else {"slurm"}


@impl
def tox_extend_envs() -> list[str]:
    """tox's hook: environments beside those of tox.ini."""
    return [f"reproduce-{name}" for name in names()]


@impl
def tox_add_env_config(env_conf: Any, state: Any) -> None:
    """tox's hook: the extras of such an environment."""
    if needed := extras(env_conf.env_name or ""):
        from tox.config.loader.memory import MemoryLoader

        env_conf.loaders.insert(0, MemoryLoader(extras=needed))
