"""The benchmark of true sizes runs on a tiny one, and what it found stays mended: a list's paths
are no objects that worker processes would copy."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from protobench.data import coco, imagenet, places, voc, voc_boxes
from protobench.data.image_list import ImageList, Paths

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("a/1.jpg", "", "b/ä\U0001f600.png", "b/bad\udcff.jpg", "b/\ud83d\ude00.jpg", "c/3.jpg")
"""An empty one, one beyond Latin, one of a file system's undecodable bytes, and two halves of a
character that a JSON file may hold."""


def test_paths_are_the_texts_they_were_made_of():
    paths = Paths(NAMES)
    assert tuple(paths) == NAMES
    assert [paths[i] for i in range(len(paths))] == [*NAMES]
    assert [paths[-1], paths[np.int64(2)]] == [NAMES[-1], NAMES[2]]
    assert paths[1:4] == NAMES[1:4]
    assert paths[::-2] == NAMES[::-2]
    assert paths == NAMES
    assert paths == Paths(NAMES)
    assert paths != NAMES[1:]
    assert paths != Paths([*NAMES[:-1], "c/4.jpg"])
    assert NAMES[3] in paths
    assert pickle.loads(pickle.dumps(paths)) == NAMES
    assert not Paths([])
    for outside in (len(NAMES), -len(NAMES) - 1):
        with pytest.raises(IndexError):
            paths[outside]


def test_a_list_keeps_no_text_as_an_object():
    images = ImageList("x", Path("/x"), NAMES, np.zeros(len(NAMES), np.int64), ("c",))
    assert isinstance(images.paths, Paths)
    part = images.subset(np.array([4, 0]))
    assert isinstance(part.paths, Paths)
    assert part.paths == (NAMES[4], NAMES[0])
    assert len(pickle.dumps(images.paths)) < 8 * len(NAMES) + sum(map(len, NAMES)) + 400


class _Own(Dataset):
    """A path of every image, and the private memory of the process."""

    def __init__(self, paths):
        self.paths = paths

    def __getitem__(self, index):
        assert len(self.paths[index]) == 30
        lines = (
            Path("/proc/self/smaps_rollup").read_text().splitlines() if index % 100_000 == 0 else []
        )
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_a_forked_worker_does_not_copy_the_paths_that_it_reads():
    """400 000 texts would be 35 MB of objects, which a worker copies as it counts references; what
    else it writes to, in a process after many tests, takes some megabytes."""
    paths = Paths(f"n{c:08d}/n{c:08d}_{i:06d}.JPEG"[:30] for c in range(400) for i in range(1000))
    loader = DataLoader(
        _Own(paths), sampler=range(len(paths)), batch_size=1000, num_workers=1,
        multiprocessing_context="fork",
    )  # fmt: skip
    kilobytes = np.concatenate([batch.numpy() for batch in loader])
    own = kilobytes[kilobytes > 0]
    assert len(own) == 4
    assert own[-1] - own[0] < 12_000, own


@pytest.fixture
def links(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import hard_links

    return hard_links, hard_links.Pictures(tmp_path / "pictures", 5)


def test_the_readers_find_what_was_linked(links, tmp_path):
    hard_links, pictures = links
    counts = hard_links.TINY
    for make in (hard_links.imagenet, hard_links.places, hard_links.voc, hard_links.coco):
        make(tmp_path, pictures, counts)
    found = {
        "train": imagenet.read(tmp_path, "train"),
        "val": imagenet.read(tmp_path, "val"),
        "places_train": places.read(tmp_path, "train"),
        "places_val": places.read(tmp_path, "val"),
        "voc07_trainval": voc.read(tmp_path, "trainval"),
        "voc07_test": voc.read(tmp_path, "test"),
        "voc12_trainval": voc_boxes.read(tmp_path, 2012, "trainval"),
        "coco_train": coco.read(tmp_path, "train"),
        "coco_val": coco.read(tmp_path, "val"),
    }
    assert {name: len(images) for name, images in found.items()} == {
        name: getattr(counts, name) for name in found
    }
    assert len(found["train"].classes) == counts.classes
    for images in found.values():
        assert images.read(len(images) - 1).size == (hard_links.WIDTH, hard_links.HEIGHT)
    assert sum(map(len, found["coco_train"].objects)) == round(counts.coco_train * counts.objects)
    first = found["coco_train"].root / found["coco_train"].paths[0]
    assert first.stat().st_nlink > 2, "a link, not a copy"


def test_content_is_of_the_size_asked_for(links, tmp_path):
    paths = list(links[0].content(tmp_path / "content", 3, 1000))
    assert [path.stat().st_size for path in paths] == [1000] * 3
    assert len({path.read_bytes() for path in paths}) == 3


STAGES = ("lists", "checks", "workers", "annotations", "many_records", "prototypes", "neighbours",
          "mapped_features", "hashing", "locks")  # fmt: skip


def test_the_stages_run_on_a_tiny_size(links, tmp_path, monkeypatch):
    """In one process here; the plans, which start one for each table, are left out."""
    import scale

    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    hard_links, pictures = links
    place = scale.Place(tmp_path, hard_links.TINY)
    for name in ("imagenet", "places", "voc", "coco"):
        getattr(hard_links, name)(tmp_path, pictures, hard_links.TINY)
    assert {*STAGES, "first_batch", "plans"} == scale.STAGES.keys()
    rows = [row for stage in STAGES for row in scale.STAGES[stage][0](place)]
    assert len({row.step for row in rows}) == len(rows), "a row is found by its step"
    assert all(row.size for row in rows)
    assert all(row.wall or row.memory is not None for row in rows)


def test_the_page_puts_an_earlier_run_beside(links):
    import scale

    rows = [scale.Row("a", "1.28 M", 2.0, 1.5, 3e6, "note"), scale.Row("b", "2", 0.05)]
    before = [scale.Row("a", "1.28 M", 9.0, 8.0, 2e9)]
    lines = scale.table(rows, before).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == [*scale.HEADINGS, "CPU before", "memory before", "remarks"]
    assert cells[2] == ["a", "1.28 M", "2 s", "1.5 s", "3 MB", "8 s", "2 GB", "note"]
    assert cells[3] == ["b", "2", "50 ms", "", "", "", "", ""]
    assert "before" not in scale.table(rows, [])


def test_a_stage_by_command_line_cleans_up(tmp_path):
    """And keeps its rows where it was told to."""
    work, kept = tmp_path / "work", tmp_path / "rows.json"
    work.mkdir()
    command = [sys.executable, BENCHMARKS / "scale.py", "locks", "--tiny", "--folder", work]
    done = subprocess.run([*command, "--keep", kept], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in json.loads(kept.read_text())] == [
        "locks taken and released",
        "small files written to survive a power cut",
    ]
    assert not list(work.iterdir())
