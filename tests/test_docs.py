"""Every example of the README and of docs/ works.

A command of a ``sh`` block is parsed by the program that it starts, with that program's own parser;
those in QUICK are run, on tiny bundled data in place of the real one and a tiny encoder in place of
the files named. What ``text`` blocks show is what the programs print."""

import argparse
import configparser
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from origins import ORIGINS
from PIL import Image

from pretrain import loop
from pretrain.recipes import simclr as simclr_recipes
from protobench.runtime import cli
from tables.engine import catalogue

ROOT = Path(__file__).parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "results/README.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    fenced = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", (ROOT / page).read_text(), re.MULTILINE)
    return [Block(page, language, text) for language, text in fenced]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(text: str) -> list[str]:
    """The commands of a shell block, without comments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    parts = [part for line in lines for part in re.sub(r"\s+#.*|^#.*", "", line).split(" && ")]
    return [part.strip() for part in parts if part.strip()]


EXTENDING = "docs/extending.md"
COMMANDS = list(
    dict.fromkeys(
        command
        for block in BLOCKS
        if block.language == "sh" and block.page != EXTENDING
        for command in commands(block.text)
    )
)

QUICK = {
    "python evaluate/lowshot.py --ckpt runs/mini/simclr-seed1-*/encoder.safetensors": (
        "--shots 1 2 3 4 5"
    ),
    "python evaluate/lowshot.py --ckpt moco_v1_200ep_pretrain.pth.tar --data /data/VOCdevkit": (
        "--shots 1 --draws 1"
    ),
    "python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet --lr 1 5 10 30": (
        "--epochs 1 --batch-size 32"
    ),
    "python evaluate/fullsvm.py --ckpt pcl_v2.pth.tar --data /data/VOCdevkit": "--costs 1",
    "python evaluate/knn.py --ckpt pcl_v1.pth.tar --data /data/imagenet --k 20 200": "",
    "python -m protobench inspect FILE": "",
    "python -m protobench layouts": "",
    "python -m protobench fetch": "",
    "python -m protobench export FILE out.pth --layout mmdet": "",
    "python -m tables list": "",
}
"""Commands that are run, with the flags that make them small."""


# What programs a command may start ----------------------------------------------------------------


def environments() -> set[str]:
    """The names of tox's environments, with ``{a,b}`` expanded."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    found = set()
    for section in tox.sections():
        parts = re.split(r"\{([^}]*)\}", section.removeprefix("testenv:"))
        found |= {"".join(chosen) for chosen in product(*(part.split(",") for part in parts))}
    found |= {f"reproduce-{name}" for name in catalogue.exhibits()}  # toxfile.py adds them
    return {name.replace(" ", "").replace("\n", "") for name in found}


def program(command: str) -> list[str]:
    """The script or module and the arguments with which a command starts one of our programs; empty
    for the programs of others. Checks what it names on the way."""
    words = shlex.split(command)
    match words:
        case ["tox", *rest]:
            flags, _, more = " ".join(rest).partition(" -- ")
            (name,) = [word for word in flags.split() if not word.startswith("-")]
            assert name in environments(), f"tox.ini has no environment {name}"
            if name.startswith("reproduce-"):
                return ["tables", "reproduce", name.removeprefix("reproduce-"), *shlex.split(more)]
            return []
        case ["python", "-m", "pip", "install", *rest] | ["uv", "pip", "install", *rest]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
            named = re.findall(r"\[(.*)\]", " ".join(rest))
            assert set(",".join(named).split(",")) - {""} <= set(extras)
            assert "-c" not in rest or (ROOT / rest[rest.index("-c") + 1]).exists()
            return []
        case ["python", benchmark, *stages] if benchmark.startswith("benchmarks/"):
            named = [benchmark, *(f"benchmarks/{stage}.py" for stage in stages)]
            assert all((ROOT / script).exists() for script in named)
            return []
        case ["python", "-m", *rest]:
            return rest
        case ["python", *rest] | ["torchrun", "--nproc_per_node", _, *rest]:
            assert (ROOT / rest[0]).exists()
            return rest
        case ["diff", paper, ours]:
            assert (ROOT / paper).exists()
            assert (ROOT / paper).name == Path(ours).name
            return []
        case ["source", activate]:
            assert activate.split("/")[1] in environments()
            return []
        case ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").exists()
            return []
    raise AssertionError(f"nobody checks {command!r}")


class Parsed(BaseException):
    """Carries what a program has read from its command line."""


def stopping_at(read: Callable[..., Any]) -> Callable[..., Any]:
    """``read``, which then raises Parsed instead of returning."""

    def parse(*args: Any, **kwargs: Any) -> None:
        raise Parsed(read(*args, **kwargs))

    return parse


def start(words: list[str], monkeypatch) -> None:
    """Runs one of our programs in this process, as ``python`` does."""
    name, *arguments = words
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name.endswith(".py"):
        monkeypatch.syspath_prepend(str((ROOT / name).parent))
        runpy.run_path(str(ROOT / name), run_name="__main__")
    else:
        monkeypatch.delitem(sys.modules, f"{name}.__main__", raising=False)  # as it starts anew
        runpy.run_module(name, run_name="__main__", alter_sys=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood_by_the_program_it_names(command, monkeypatch, capsys):
    words = program(command)
    if not words:
        return

    for owner, name in ((cli, "parse"), (argparse.ArgumentParser, "parse_args")):
        monkeypatch.setattr(owner, name, stopping_at(getattr(owner, name)))
    with pytest.raises((Parsed, SystemExit)) as ending:
        start(words, monkeypatch)
    if isinstance(ending.value, Parsed):
        (config,) = ending.value.args
        assert not hasattr(config, "table") or catalogue.load(config.table)
    else:  # a command without flags
        assert ending.value.code == 0, capsys.readouterr().err


# What is run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files_named(once, train_images, world) -> dict[str, Path]:
    """What stands in for the files that examples name."""
    recipe = replace(simclr_recipes.MINI, train=replace(simclr_recipes.MINI.train, epochs=1))
    simclr = once("docs", lambda folder: loop.pretrain(recipe, train_images, folder, seed=0))
    torch.save(torchvision.models.resnet18().state_dict(), simclr.with_name("resnet18.pth"))
    return {"--ckpt": simclr, "FILE": simclr.with_name("resnet18.pth"), "/data": world}


def small(command: str, files: dict[str, Path]) -> list[str]:
    """The words of a command with a tiny encoder and tiny data in place of what it names."""
    words = program(command) + shlex.split(QUICK[command])
    if words[0].startswith("evaluate/") and "--data" not in words:
        words += ["--data", "/data"]
    for n, word in enumerate(words):
        if words[n - 1] == "--ckpt":
            words[n] = str(files["--ckpt"])
        elif word == "FILE" or word.startswith("/data"):
            first, *folders = word.rsplit("/", word.count("/") - 1)
            words[n] = str(files[first].joinpath(*folders))
    return words


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_runs(command, files_named, tmp_path, monkeypatch, capsys):
    assert command in COMMANDS, "no page shows it any more"
    monkeypatch.chdir(tmp_path)
    words = small(command, files_named)
    with pytest.raises(SystemExit) as ending:
        start(words, monkeypatch)
    printed = capsys.readouterr()
    assert ending.value.code == 0, printed.err
    if "simclr-seed1" in command:
        assert_shown(text_blocks("README.md")[1], printed.out, shape)


def shape(line: str) -> str:
    """A line without its numbers, hashes and the spaces between columns."""
    return " ".join(re.sub(r"\b[0-9a-f]{12}\b|\d+(\.\d+)?", "#", line).split())


def assert_shown(text: str, printed: str, form: Callable[[str], str] = str.rstrip) -> None:
    """Every line of a ``text`` block is printed, in this order."""
    lines = iter([form(line) for line in printed.splitlines()])
    for shown in text.splitlines():
        if shown != "[…]":
            assert form(shown) in lines, f"not printed, or not here: {shown!r}\n{printed}"


def text_blocks(page: str) -> list[str]:
    return [block.text for block in BLOCKS if (block.page, block.language) == (page, "text")]


def test_the_readmes_table_is_that_of_the_reference_run(tmp_path, command):
    from tables.__main__ import main

    records = tmp_path / "reference" / "mini" / "records"
    records.mkdir(parents=True)
    for record in (ROOT / "results" / "reference" / "mini" / "records").glob("*-lowshot-*"):
        shutil.copy(record, records)
    code, out, err = command(main, "diff", "table1", "--results", tmp_path / "reference")
    assert code == 0, err
    assert_shown(text_blocks("README.md")[0], out)


def test_what_is_printed_of_a_checkpoint_looks_like_that(tmp_path, command):
    from protobench.__main__ import main

    origin = ORIGINS["MoCo v2 or PCL v2"]
    mine, other = (torchvision.models.resnet18().state_dict() for _ in range(2))
    state = {name: t for name, t in mine.items() if not name.startswith("fc.")}
    path = origin.save(tmp_path / "checkpoint_0199.pth.tar", origin.build(state, other))
    code, out, err = command(main, "inspect", path)
    assert code == 0, err
    assert_shown(text_blocks("docs/checkpoints.md")[0], out, shape)


# The pages themselves -----------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page):
    assert {block.language for block in blocks(page)} <= {"sh", "python", "text", "csv"}
    outside = re.sub(r"^```.*\n(?:.*\n)*?```$", "", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert not re.search(r"^    (?!\s*[-*])\S", outside, re.MULTILINE), "an indented block"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), (
            target
        )


def test_numbers_shown_in_docs_are_those_of_the_reference_run():
    reference = ROOT / "results" / "reference"
    printed = "".join(path.read_text() for path in reference.glob("*/*.md"))
    for page in PAGES:
        for number in re.findall(
            r"\d+\.\d+ ±\d+\.\d+|[+-]\d+\.\d+ \[[^]]+\]", (ROOT / page).read_text()
        ):
            assert number in printed, f"{page}: {number}"


# Extending the suite ------------------------------------------------------------------------------

ONE_AFTER_ANOTHER = """
import runpy, shlex, sys
for line in sys.stdin:
    name, *arguments = shlex.split(line)
    sys.argv = [name, *arguments]
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    try:
        run(name, run_name="__main__")
    except SystemExit as ending:
        print(f"{name}: exit {ending.code}")
"""


@pytest.fixture
def extended(tmp_path) -> Path:
    """A copy of the suite with the files of docs/extending.md in their places."""
    for package in ("protobench", "pretrain", "evaluate", "tables"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    text = (ROOT / EXTENDING).read_text()
    shown = re.findall(r"^`(\S+)`\n\n```\w+\n((?:.*\n)*?)```$", text, re.MULTILINE)
    for name, content in shown:
        assert not (tmp_path / name).exists(), f"{name} is a file of the suite"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert len(shown) == len([block for block in blocks(EXTENDING) if block.language != "sh"])
    return tmp_path


def pets(root: Path) -> None:
    """Eight images of each of two breeds, in train/ and in test/."""
    rng = np.random.default_rng(0)
    for split, breed, number in product(("train", "test"), ("Beagle", "Pug"), range(8)):
        path = root / "pets" / split / breed / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


def test_the_examples_of_extending_the_suite_work(extended, world):
    pets(extended / "root")
    stand_ins = {"FILE": "run/encoder.safetensors", "ROOT": "root"}
    lines = []
    for block in blocks(EXTENDING):
        for command in commands(block.text) if block.language == "sh" else ():
            words = re.sub(r"^python (-m )?", "", command).split()
            words = [stand_ins.get(word, word) for word in words]
            if words[0].startswith("pretrain/"):
                words += ["--out", "run"]
            if words[0].endswith(".py") and "--data" not in words:
                words += ["--data", str(world)]
            lines.append(shlex.join(words))
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER],
        cwd=extended,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.findall(r"^(\S+): exit (.*)$", done.stdout, re.MULTILINE) == [
        ("pretrain/simsiam.py", "0"),
        ("evaluate/class_means.py", "0"),
        ("tables", "0"),
        ("tables", "3"),  # incomplete: nothing was run
        ("protobench", "1"),  # fewer images than published
        ("evaluate/class_means.py", "0"),
    ], done.stdout + done.stderr
    assert "simsiam-table4: Linear classification on ImageNet" in done.stdout
    assert done.stdout.count("nearest class mean, ") == 2
