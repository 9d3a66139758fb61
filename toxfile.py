"""Tells tox of one environment per table and figure, reproduce-NAME, found where the programs find
them: in the papers' folders. What such an environment does stands in tox.ini under [testenv]."""

import re
from pathlib import Path

from tox.plugin import impl

DECLARATION = re.compile(r'^(?:TABLE|FIGURE) = \w+\(\s+name="([^"]+)"', re.MULTILINE)


def names() -> list[str]:
    """The names of all tables and figures that are declared under tables/."""
    modules = sorted(Path(__file__).parent.glob("tables/*/*.py"))
    return [name for module in modules for name in DECLARATION.findall(module.read_text("utf-8"))]


@impl
def tox_extend_envs() -> list[str]:
    """tox's hook: environments beside those of tox.ini."""
    return [f"reproduce-{name}" for name in names()]
