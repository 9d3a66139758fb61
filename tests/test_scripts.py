"""Every script as a user calls it: help is quick, and imports resolve to this project."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("pretrain", "evaluate", "protobench", "tables")
    for path in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_opens_with_examples_and_does_not_wait_for_torch(script):
    code = (
        f"import runpy, sys; sys.argv = [{script!r}, '--help']\ntry:\n   "
        f" runpy.run_path({script!r}, run_name='__main__')\nfinally:\n    print('torch imported:',"
        " 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "Example" in done.stdout, done.stderr
    text = done.stdout.partition("\n\n")[2]  # without the line of usage
    assert text.index("Example") < text.index("--")
    assert "torch imported: False" in done.stdout


@pytest.mark.parametrize("package", ["protobench", "pretrain", "evaluate", "tables"])
def test_packages_resolve_here(package):
    """Hugging Face evaluate and PyTables share two of these names."""
    assert Path(importlib.import_module(package).__file__).is_relative_to(ROOT)


def test_a_script_runs_from_any_folder(encoder_file, world, tmp_path):
    words = [
        sys.executable,
        ROOT / "evaluate" / "lowshot.py",
        "--ckpt",
        encoder_file,
        "--data",
        world,
        "--shots",
        "1",
        "--draws",
        "1",
        "--workers",
        "0",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "record: results/scores" in done.stdout


# Pipes --------------------------------------------------------------------------------------------

FIRST_LINE_THEN = """
import os, sys
from protobench.runtime import cli
def main():
    print("first", flush=True)
    sys.stdin.read()  # until the reader has gone
    {then}
cli.run(main)
"""
THEN = {
    "while printing more than a pipe holds": "for _ in range(20_000): print('one more line')",
    "at the flush of a short output": "print('one more line')",
    "at a flush of its own": "print('one more line', flush=True)",
    "at exit": "print('one more line'); sys.exit(0)",
    "in a message": "print('a message', file=sys.stderr)",
}


def _read(lines, *words, unbuffered=False, stderr=subprocess.PIPE):
    """What is read, the exit code and the messages of a command whose reader closes the pipe after
    ``lines``, as head does."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        read = [process.stdout.readline() for _ in range(lines)]
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read() if process.stderr else ""
    return read, process.returncode, said


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("when", THEN)
def test_a_reader_that_has_seen_enough_ends_a_script_quietly(when, unbuffered):
    stderr = subprocess.STDOUT if when == "in a message" else subprocess.PIPE
    ended = _read(
        1, "-c", FIRST_LINE_THEN.format(then=THEN[when]), unbuffered=unbuffered, stderr=stderr
    )
    assert ended == (["first\n"], 141, "")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "words",
    [("evaluate/lowshot.py", "--help"), ("-m", "protobench", "layouts"), ("-m", "tables", "list")],
)
def test_a_real_command_without_a_reader_ends_quietly(words, unbuffered):
    assert _read(0, *words, unbuffered=unbuffered) == ([], 141, "")


@pytest.mark.parametrize("flags", [(), ("--debug",)])
def test_a_broken_pipe_to_another_process_is_told(flags):
    code = (
        "import os; from protobench.runtime import cli\n"
        "def main():\n"
        "    r, w = os.pipe(); os.close(r); print('first')\n"
        "    os.write(w, b'work')\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == "first\n"
    assert "error: a process that this one talks to has died" in done.stderr
    assert ("Traceback" in done.stderr) == bool(flags), "as its hint promises"


def test_a_mistake_keeps_its_exit_code_when_nobody_reads_the_message():
    code = FIRST_LINE_THEN.format(
        then="from protobench.runtime.errors import UserError; raise UserError('wrong')"
    )
    assert _read(1, "-c", code, stderr=subprocess.STDOUT) == (["first\n"], 2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_does_not_fit_on_the_disk_is_told_once():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tables", "list"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: OSError: [Errno 28] No space left on device",
        "  hint: --debug shows where",
    ]


def test_a_closed_output_is_no_mistake():
    code = (
        f"import os; os.close(1); os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'tables',"
        " 'list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
