"""``protobench cache``: what it shows, and that it trims what it says and nothing else."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protobench import __main__ as protobench_command
from protobench import cache, features
from protobench.checkpoints import encoders
from protobench.data import crop_cache, decoding, raw_pictures, voc
from protobench.data.synthetic import bundled
from protobench.runtime import cache_use, files
from protobench.runtime.errors import UserError

DAY = 24 * 3600
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(folder, command) -> Callable[..., tuple[int, str, str]]:
    return lambda *args: command(protobench_command.main, "cache", *args)


def entry(folder: Path, stem: str, size: int, days: float, suffix: str = ".npy", **what) -> Path:
    """An entry of whole blocks, last used ``days`` ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}{suffix}"
    path.write_bytes(b"x" * size)
    for other in (".lock", *([".use"] if what else [])):
        (folder / f"{stem}{other}").touch()
    if what:
        (folder / f"{stem}.use").write_text(json.dumps(what))
    for part in folder.glob(f"{stem}*"):
        os.utime(part, (time.time() - days * DAY,) * 2)
    return path


@pytest.fixture
def three(folder) -> list[Path]:
    """Features last used 50, 20 and 1 days ago: 100, 50 and 25 blocks of 4096 bytes."""
    home = folder / "features"
    return [
        entry(home, A, 409_600, 50, checkpoint="moco.pth 1234abcd", data="imagenet-val"),
        entry(home, B, 204_800, 20, checkpoint="moco.pth 1234abcd", data="voc07-test"),
        entry(home, C, 102_400, 1),
    ]


# Showing ------------------------------------------------------------------------------------------


def test_an_empty_cache_and_none_at_all(run, folder):
    assert run() == (0, f"nothing in {folder}\n", "")
    folder.mkdir()
    assert run("--trim", "--older-than", "1d")[:2] == (0, "0 of 0 entries removed, 0 B; 0 B left\n")


def test_entries_are_listed_by_checkpoint_and_data(run, three, folder):
    code, out, _ = run()
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "features moco.pth 1234abcd imagenet-val 1 410 KB 50 d ago" in lines
    assert "features moco.pth 1234abcd voc07-test 1 205 KB 20 d ago" in lines
    assert "features unknown 1 102 KB 24 h ago" in lines
    assert "features: 3 entries, 717 KB" in lines
    assert lines[0].startswith(f"{folder}: 717 KB, ")
    assert [path for path in three if path.exists()] == three


def test_only_the_largest_lines_are_printed(run, folder, monkeypatch):
    monkeypatch.setattr(cache, "SHOWN", 2)
    for number in range(4):
        entry(folder / "raw", f"{number}" * 32, 4096, 1, data=f"list-{number}")
    assert "… and 2 more lines, 8.19 KB: --all prints them" in run()[1]
    assert all(f"list-{number}" in run("--all")[1] for number in range(4))


def test_what_an_evaluation_extracts_is_shown_under_its_names(
    run, folder, encoder_file, world, monkeypatch
):
    encoder = encoders.load(encoder_file)
    test = voc.read(world, "test")
    x_ND = features.extract(encoder, test)
    decoding.check(test, 1)
    out = run()[1]
    for words in (
        (
            f"encoder.safetensors {encoder.report.sha256[:8]} (untrained seed 0)",
            "voc07-test",
            "1 in use",
        ),
        ("readable", "voc07-test"),
    ):
        assert any(all(word in line for word in words) for line in out.splitlines()), out
    assert "in use, kept: features" in run("--trim", "--max-size", "0KB")[1]
    part = x_ND[3:]
    del x_ND
    assert "in use, kept: features" in run("--trim", "--max-size", "0KB")[1], "a view maps it too"
    np.testing.assert_array_equal(part, part.copy())
    del part
    gc.collect()
    code, out, _ = run("--trim", "--max-size", "0KB")
    assert (code, "in use" in out) == (0, False)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".lock"}
    again = features.extract(encoder, test)
    assert again.shape[0] == len(test), "made again"


def test_decoded_images_are_in_use_while_they_are_mapped(run, folder, train_images):
    pictures = raw_pictures.keep(train_images.subset(np.arange(3)), 0)
    assert "1 in use" in run("--kind", "raw")[1]
    assert run("--trim", "--max-size", "0KB")[0] == 3
    assert pictures[2].size > 0
    del pictures
    gc.collect()
    assert run("--trim", "--max-size", "0KB")[0] == 0
    assert not [*folder.glob("raw/*.u8"), *folder.glob("raw/*.npy")]


def test_kept_crops_are_shown_by_their_description_and_in_use_while_open(
    run, folder, train_images, encoder_file
):
    some, input_ = train_images.subset(np.arange(3)), encoders.load(encoder_file).input
    crops = crop_cache.keep(some, input_)
    (line,) = [line for line in run()[1].splitlines() if line.startswith("crops ")]
    assert "imagenet-train" in line
    assert "1 in use" in line
    assert run("--trim", "--max-size", "0KB")[0] == 3
    assert len(crops) == 3
    del crops
    gc.collect()
    assert run("--trim", "--max-size", "0KB")[0] == 0
    assert [path.suffix for path in (folder / "crops").iterdir()] == [".lock"]


# Trimming -----------------------------------------------------------------------------------------


def test_by_age(run, three):
    code, out, _ = run("--trim", "--older-than", "30d")
    assert code == 0
    assert "removed features moco.pth 1234abcd imagenet-val aaaa" in out
    assert out.endswith("1 of 3 entries removed, 410 KB; 307 KB left\n")
    assert [path.exists() for path in three] == [False, True, True]


def test_by_size_the_least_recently_used_go_first(run, three):
    code, out, _ = run("--trim", "--max-size", "150KB")
    assert (code, [path.exists() for path in three]) == (0, [False, False, True])
    assert "2 of 3 entries removed, 614 KB; 102 KB left" in out


def test_by_age_and_size(run, three):
    run("--trim", "--older-than", "8w", "--max-size", "320KB")
    assert [path.exists() for path in three] == [False, True, True]


def test_a_dry_run_changes_nothing(run, three, folder):
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    code, out, _ = run("--trim", "--max-size", "150KB", "--dry-run")
    assert code == 0
    assert out.count("would remove features") == 2
    assert "2 of 3 entries would be removed, 614 KB; 102 KB left" in out
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_only_the_kinds_named(run, three, folder):
    crops = entry(folder / "crops", "d" * 32, 4096, 90, ".u8")
    code, _, _ = run("--trim", "--older-than", "1d", "--kind", "crops")
    assert (code, crops.exists(), [path.exists() for path in three]) == (0, False, [True] * 3)


HOLDING = """
import sys
from pathlib import Path
from protobench.runtime import cache_use, files
path = Path(sys.argv[1])
with {how}:
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "how", ["cache_use.using(path)", "files.exclusive_lock(path.with_suffix('.lock'))"]
)
def test_what_another_process_uses_or_writes_is_kept(run, three, how):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING.format(how=how), three[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "holding\n"
        os.utime(three[0].with_suffix(".use"), (0, 0))
        assert "1 in use" in run()[1]
        for dry in ((), ("--dry-run",)):
            code, out, _ = run("--trim", "--max-size", "1KB", *dry)
            assert code == 3
            assert "in use, kept: features moco.pth 1234abcd imagenet-val" in out
            assert "more than 1 KB is in use: trim again when those runs have ended" in out
        assert [path.exists() for path in three] == [True, False, False]
    finally:
        other.kill()  # the system releases the lock
        other.communicate()
    assert run("--trim", "--max-size", "1KB")[0] == 0
    assert not three[0].exists()


def test_a_world_is_kept_while_its_process_lives(run, folder):
    counts = dict.fromkeys(bundled.SPLITS, 20)
    code = f"from protobench.data.synthetic import bundled; bundled.ensure(counts={counts})"
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; from protobench import cache; from protobench.runtime"
         f" import files; cache.trim(files.cache_dir(), (), older_than=0, max_size=None,"
         f" dry_run=False)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "in use, kept: worlds mini-v" in told.stdout
    (world,) = folder.glob("mini-*/")
    assert "worlds" in run()[1]
    assert run("--trim", "--max-size", "0KB")[0] == 0
    assert not world.exists()
    assert not list(folder.glob(".*.tmp"))


def test_a_trim_that_was_killed_leaves_no_half_world(run, folder, monkeypatch):
    root = folder / "mini-v2-world1-12345678"
    root.mkdir(parents=True)
    (root / "manifest.json").write_bytes(b"x" * 4096)
    root.with_name(f"{root.name}.lock").touch()

    def killed(path, **_):
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", killed)
        assert run("--trim", "--max-size", "0KB")[0] == 130
    assert not root.exists()
    assert "unfinished" in run()[1]
    assert run("--trim", "--max-size", "0KB")[0] == 0
    assert [path.name for path in folder.iterdir()] == [f"{root.name}.lock"]


# What is not an entry, or is broken ---------------------------------------------------------------


def test_foreign_files_are_never_touched(run, three, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"x" * 5000)
    foreign = [
        folder / "notes.txt",
        folder / "features" / "notes.txt",
        folder / "features" / f"{'e' * 64}.npy",  # without a lock or a note: not written by us
        folder / "thesis" / "chapter1.tex",
        folder / "features" / "abc.npy",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        os.utime(path, (0, 0))
    link = folder / "features" / f"{'f' * 64}.npy"
    link.symlink_to(elsewhere)
    link.with_suffix(".lock").touch()
    assert "6 other files or folders, which are never touched" in run()[1]
    assert run("--trim", "--older-than", "1h")[0] == 0
    assert all(path.exists() for path in (*foreign, link, elsewhere))
    assert not any(path.exists() for path in three)


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b"\xff\xfe", b'{"data": 5}'])
def test_a_broken_note_does_no_harm(run, folder, note):
    path = entry(folder / "features", A, 4096, 40, data="x")
    path.with_suffix(".use").write_bytes(note)
    assert run()[0] == 0
    with cache_use.using(path, data="voc07-test"):
        pass
    if note != b'{"data": 5}':
        assert "voc07-test" in run()[1], "the next use writes it again"
    assert run("--trim", "--max-size", "0KB")[0] == 0
    assert not path.exists()


def test_unfinished_and_stray_parts_belong_to_their_entry(run, folder):
    path = entry(folder / "features", A, 4096, 40, ".partial")
    (folder / "features" / f".{A}.npy.123.tmp").write_bytes(b"x" * 4096)
    (folder / "features" / f"{A}.rows").write_text("7 8")
    assert "1 unfinished" in run()[1]
    run("--trim", "--max-size", "0KB")
    assert [path.suffix for path in (folder / "features").iterdir()] == [".lock"], path


def test_a_folder_in_place_of_a_file_is_an_entry_too(run, folder):
    path = entry(folder / "crops", A, 0, 40, data="x")
    path.unlink()
    (path.with_suffix("") / "inner").mkdir(parents=True)
    (path.with_suffix("") / "inner" / "0.jpg").write_bytes(b"x" * 8192)
    assert "8.19 KB" in run()[1]
    run("--trim", "--max-size", "0KB")
    assert not path.with_suffix("").exists()


def test_a_folder_that_cannot_be_written(run, three, monkeypatch):
    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    code, _, told = run("--trim", "--older-than", "30d")
    assert code == 2
    assert "cannot remove an entry of the cache: Permission denied" in told
    assert f"at: {three[0]}" in told
    assert "check permissions" in told
    assert "Traceback" not in told


def test_a_cache_that_is_read_only_can_be_used_and_shown_but_not_trimmed(
    run, three, monkeypatch, folder
):
    real = os.open

    def read_only(path, flags, *rest, **how):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) and str(path).startswith(str(folder)):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *rest, **how)

    monkeypatch.setattr(os, "open", read_only)
    with cache_use.using(three[0]):
        pass
    assert run()[0] == 0
    code, _, told = run("--trim", "--older-than", "30d")
    assert code == 2
    assert "cannot write: Read-only file system" in told
    assert all(path.exists() for path in three)


def test_a_file_in_place_of_the_cache(run, folder):
    folder.write_text("no folder")
    code, _, told = run()
    assert code == 2
    assert "cannot read the cache: Not a directory" in told


def test_a_use_that_waits_for_a_trim_finds_the_entry_gone(folder):
    """A trim may remove the note between its opening and its locking."""
    path = entry(folder / "features", A, 4096, 40, data="x")
    with cache_use.unused(path) as unused:
        assert unused
        path.unlink()
    with cache_use.using(path, data="y"):
        assert cache_use.read(path) == {"data": "y"}
        assert not cache_use.is_unused(path)
    assert cache_use.is_unused(path)
    with files.exclusive_lock(path.with_suffix(".lock")), cache_use.unused(path) as unused:
        assert not unused


# The command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told", "hint"),
    [
        (("--trim",), "--trim needs to know what", "--older-than 30d"),
        (("--older-than", "30d"), "say how to trim", "add --trim"),
        (("--dry-run",), "say how to trim", "add --trim"),
        (("--trim", "--older-than", "30"), "--older-than 30: a time span is expected", "30d"),
        (("--trim", "--older-than", "-3d"), "", ""),
        (("--trim", "--max-size", "50"), "--max-size 50: a size is expected", "50GB"),
        (("--trim", "--max-size", "many GB"), "--max-size many GB: a size is expected", "50GB"),
        (("--kind", "feature"), "the cache holds no feature", "there are features"),
    ],
)
def test_mistakes(run, three, args, told, hint):
    code, _, err = run(*args)
    assert code == 2
    assert told in err
    assert hint in err
    assert "Traceback" not in err
    assert all(path.exists() for path in three)


def test_spans_and_sizes():
    assert cache.seconds("12h") == 12 * 3600
    assert cache.seconds("1.5d") == 1.5 * DAY
    assert cache.seconds("8w") == 56 * DAY
    assert cache.size_of("50GB") == 50e9
    assert cache.size_of("1.5 tb") == 1.5e12
    with pytest.raises(UserError):
        cache.size_of("-1GB")
