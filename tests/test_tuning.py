"""The tuning: its grid, its score, its rule, its log, and whether the recipes follow it."""

import contextlib
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny

from pretrain import tuning
from pretrain.tuning import Cell, Outcome
from protobench import features
from protobench.data.image_list import ImageList
from protobench.runtime import processes
from protobench.runtime.errors import UserError

RESULTS = Path(__file__).parent.parent / "results"


# The grid -----------------------------------------------------------------------------------------


def test_every_method_has_the_same_budget_and_rates():
    cells = tuning.grid()
    assert len(cells) == len(set(cells))
    for method in tuning.METHODS:
        own = [cell for cell in cells if cell.method == method]
        temperatures = {cell.temperature for cell in own}
        assert {cell.lr for cell in own} == set(tuning.RATES)
        assert len(own) == len(tuning.RATES) * len(temperatures)
        assert len(temperatures) == (1 if method == "supervised" else 3)


def test_a_cell_changes_rate_and_temperature_and_nothing_else():
    for cell in tuning.grid():
        base = tuning.METHODS[cell.method][0]
        temperature = getattr(base, "temperature", None)
        assert tuning.with_values(cell.recipe, base.train.lr, temperature) == base


def test_the_values_in_use_are_in_the_grid():
    cells = tuning.grid()
    for method, (recipe, _) in tuning.METHODS.items():
        assert Cell(method, recipe) in cells


def test_the_plan_trains_nothing(command, tmp_path):
    code, out, err = command(tuning.main, "--plan", "--results", tmp_path, "--runs", tmp_path)
    assert code == 0, err
    assert "pcl-v2: rate 0.03, temperature 0.07" in out
    assert f"{len(tuning.grid())} trainings" in out
    assert not list(tmp_path.iterdir())


# Data and score -----------------------------------------------------------------------------------


def test_a_quarter_of_each_class_is_held_out():
    labels = np.repeat(np.arange(3), 8)
    paths = tuple(f"{i}.jpg" for i in range(24))
    images = ImageList("x", Path(), paths, labels, ("a", "b", "c"))
    train, held_out = tuning.split(images)
    assert {*train.paths, *held_out.paths} == set(paths)
    assert len(train) + len(held_out) == 24
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    for part in (train, held_out):
        assert part.labels.tolist() == [int(path.split(".")[0]) // 8 for path in part.paths]
    assert tuning.split(images)[1].paths == held_out.paths
    assert (
        len(
            {
                tuple(i % 8 for i in map(int, (p[:-4] for p in held_out.paths[c : c + 2])))
                for c in (0, 2, 4)
            }
        )
        > 1
    ), "every class has a draw of its own"


def test_knn_is_a_majority_by_cosine():
    bank = torch.tensor([[9.0, 0], [0, 1], [0.1, 1], [-1, 0]])
    labels = torch.tensor([0, 1, 1, 2])
    queries = torch.tensor([[1.0, 0.2], [0.3, 1], [-3, 0.1]])

    def accuracy(truth, k):
        return tuning.knn_accuracy(bank, labels, queries, torch.tensor(truth), k)

    assert accuracy([0, 1, 2], k=1) == 100
    assert accuracy([0, 1, 0], k=1) == pytest.approx(66.6667)
    # of three neighbours, two are of class 1 for every query, as long as lengths do not count
    assert accuracy([1, 1, 1], k=3) == 100
    # of two, one each for the first and the last: the nearer one decides
    assert accuracy([0, 1, 2], k=2) == 100


def test_knn_agrees_with_a_naive_loop():
    rng = np.random.default_rng(0)
    bank, query = rng.normal(size=(60, 5)), rng.normal(size=(30, 5))
    bank_labels, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)
    right = 0
    for row, truth in zip(query, labels, strict=True):
        cosines = bank @ row / np.linalg.norm(bank, axis=1) / np.linalg.norm(row)
        nearest = np.argsort(-cosines)[:7]
        votes = [
            (
                int((bank_labels[nearest] == c).sum()),
                cosines[nearest[bank_labels[nearest] == c]].sum(),
            )
            for c in range(4)
        ]
        right += max(range(4), key=votes.__getitem__) == truth
    found = tuning.knn_accuracy(
        *(torch.from_numpy(x) for x in (bank, bank_labels, query, labels)), k=7
    )
    assert found == pytest.approx(100 * right / 30, abs=1e-3)


# Trainings ----------------------------------------------------------------------------------------


def _cells(*rates):
    moco = tiny(tuning.METHODS["moco"][0], epochs=1)
    return [Cell("moco", tuning.with_values(moco, lr, 0.2)) for lr in rates]


class Here:
    """A pool of processes that is none: what is submitted is done at once, in this process."""

    def __init__(self):
        self.cells = []

    @contextlib.contextmanager
    def pool(self, count, threads):
        yield self

    def submit(self, function, cell, *rest):
        self.cells.append(cell)
        future = Future()
        try:
            future.set_result(function(cell, *rest))
        except UserError as mistake:
            future.set_exception(mistake)
        return future


@pytest.fixture
def here(monkeypatch):
    pool = Here()
    monkeypatch.setattr(processes, "pool", pool.pool)
    return pool


def test_a_stopped_tuning_trains_only_what_is_left(train_images, tmp_path, here):
    """The second rate is so large that the loss is not finite."""
    train, held_out = tuning.split(train_images)
    cells = _cells(0.06, 1e30)
    tuning.run(cells[1:], train, held_out, tmp_path, jobs=1)
    first = tuning.run(cells, train, held_out, tmp_path, jobs=1)
    assert here.cells == cells[::-1]
    assert [(o.method, o.lr, o.temperature) for o in first] == [
        ("moco", 0.06, 0.2),
        ("moco", 1e30, 0.2),
    ]
    assert (first[1].accuracy, first[1].trouble) == (0, "loss not finite")
    assert (0 < first[0].accuracy <= 100, first[0].trouble) == (True, "")
    assert first[0].seconds > 0
    assert tuning.run(cells, train, held_out, tmp_path, jobs=1) == first
    assert len(here.cells) == 2


def test_processes_of_their_own_give_the_same_outcome(train_images, tmp_path, monkeypatch):
    train, held_out = tuning.split(train_images)
    (apart,) = tuning.run(_cells(0.06), train, held_out, tmp_path / "apart", jobs=2)
    monkeypatch.setattr(processes, "pool", Here().pool)
    (here,) = tuning.run(_cells(0.06), train, held_out, tmp_path / "here", jobs=1)
    assert replace(apart, seconds=0) == replace(here, seconds=0)
    assert "moco" in (next((tmp_path / "apart").rglob("output.log"))).parent.name


def test_a_failure_is_told_once_the_others_are_done(train_images, tmp_path, here):
    train, held_out = tuning.split(train_images)
    good, bad = _cells(0.06, 0.12)
    too_large = Cell("moco", replace(bad.recipe, queue=10**6))
    with pytest.raises(UserError, match=r"1 of 2 trainings failed:\nmoco: rate 0.12, temp") as told:
        tuning.run([too_large, good], train, held_out, tmp_path, jobs=1)
    assert "a queue of 1000000 negatives" in str(told.value)
    assert len(list(tmp_path.rglob("outcome.json"))) == 1


def test_collapsed_features_count_as_zero(encoder_file, train_images, monkeypatch):
    train, held_out = tuning.split(train_images)
    accuracy, trouble = tuning.score(encoder_file, train, held_out)
    assert (accuracy > 0, trouble) == (True, "")
    real = features.Forward.__call__
    for factor, offset, expected in (
        (1e-9, 1.0, "collapsed"),
        (np.nan, 0.0, "features not finite"),
    ):
        monkeypatch.setattr(
            features.Forward, "__call__", lambda *args, f=factor, o=offset: real(*args) * f + o
        )
        assert tuning.score(encoder_file, train, held_out) == (0, expected)


# The choice ---------------------------------------------------------------------------------------

LOG = [
    Outcome("a", 0.1, 0.5, 60.0, 1.5),
    Outcome("a", 0.1, 0.2, 61.0, 1.5),
    Outcome("a", 0.2, 0.1, 61.0, 1.5),
    Outcome("a", 0.1, 0.1, 0.0, 1.0, "collapsed"),
    Outcome("a", 0.2, 0.2, 50.0, 1.5),
    Outcome("a", 0.2, 0.5, 60.5, 1.5),
    Outcome("b", 0.2, None, 30.0, 1.0),
    Outcome("b", 0.1, None, 20.0, 1.0),
    Outcome("b", 0.4, None, 30.0, 1.0),
]


def test_the_best_is_chosen_and_of_equal_ones_the_smaller_rate_then_the_smaller_temperature():
    for log in (LOG, LOG[::-1]):
        chosen = tuning.choose(log)
        assert {name: (o.lr, o.temperature) for name, o in chosen.items()} == {
            "a": (0.1, 0.2),
            "b": (0.2, None),
        }
    tied = [Outcome("a", 0.1, t, 60.0, 1.0) for t in (0.5, 0.1, 0.2)]
    assert tuning.choose(tied)["a"].temperature == 0.1


def test_values_on_the_edge_are_named():
    a, b = tuning.choose(LOG).values()
    assert tuning.on_edge(a, LOG) == ["rate"]
    assert tuning.on_edge(b, LOG) == []
    corner = Outcome("c", 0.1, 0.5, 1.0, 1.0)
    assert tuning.on_edge(corner, [corner, Outcome("c", 0.2, 0.1, 0.5, 1.0)]) == [
        "rate",
        "temperature",
    ]


def test_a_method_of_which_nothing_counts_is_an_error():
    with pytest.raises(UserError, match="no training of a counts"):
        tuning.choose([Outcome("a", 0.1, 0.2, 0.0, 1.0, "collapsed")])


# The log ------------------------------------------------------------------------------------------


def test_the_log_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "tuning.csv"
    path.write_text(tuning.to_csv(LOG))
    assert path.read_text().splitlines()[:3] == [
        "method,lr,temperature,accuracy,seconds,trouble",
        "a,0.1,0.1,0.0,1.0,collapsed",
        "a,0.1,0.2,61.0,1.5,",
    ]
    assert sorted(tuning.read_csv(path), key=LOG.index) == LOG
    path.write_text("method,lr\na,x\n")
    with pytest.raises(UserError, match="not a log of the tuning"):
        tuning.read_csv(path)


def test_the_page_marks_what_is_chosen_and_what_went_wrong():
    page = tuning.to_markdown(LOG, "Made here.")
    lines = [line.replace(" ", "") for line in page.splitlines()]
    assert "|rate|temperature0.1|temperature0.2|temperature0.5|" in lines
    assert "|0.1|0(collapsed)|**61.0**|60.0|" in lines
    assert "|0.2|61.0|50.0|60.5|" in lines
    assert "|0.2|**30.0**|" in lines
    assert "Chosen: rate 0.1, temperature 0.2 (on the edge of the grid: rate)." in page
    assert "Chosen: rate 0.2.\n" in page
    assert "Made here." in page


def test_the_choice_is_made_once(command, tmp_path):
    (tmp_path / "tuning.csv").write_text(tuning.to_csv(LOG))
    code, _, err = command(tuning.main, "--results", tmp_path, "--runs", tmp_path / "runs")
    assert code == 2
    assert "the choice is made, and not revisited" in err
    code, _, err = command(tuning.main, "--jobs", 0, "--results", tmp_path / "other")
    assert code == 2
    assert "--jobs 0" in err


def test_the_command_writes_log_and_page(command, tmp_path, monkeypatch, train_images, here):
    monkeypatch.setattr(tuning, "_images", lambda: train_images)
    monkeypatch.setattr(tuning, "grid", lambda: _cells(0.06))
    words = ("--results", tmp_path / "results", "--runs", tmp_path / "runs", "--jobs", 1)
    code, out, err = command(tuning.main, *words)
    assert code == 0, err
    page = (tmp_path / "results" / "tuning.md").read_text()
    assert page in out
    assert "World 0, seed 0; 1 trainings" in page
    assert len(tuning.read_csv(tmp_path / "results" / "tuning.csv")) == 1


def test_the_recipes_have_the_values_that_the_log_chose():
    path = RESULTS / "tuning.csv"
    if not path.exists():
        pytest.skip("the tuning has not been run: results/tuning.csv does not exist")
    log = tuning.read_csv(path)
    assert sorted((o.method, o.lr, o.temperature or 0) for o in log) == sorted(
        (cell.method, cell.lr, cell.temperature or 0) for cell in tuning.grid()
    )
    for method, chosen in tuning.choose(log).items():
        recipe = tuning.METHODS[method][0]
        assert tuning.with_values(recipe, chosen.lr, chosen.temperature) == recipe, method
    assert (
        tuning.to_markdown(log, "").split("## ", 1)[1]
        == ((RESULTS / "tuning.md").read_text().split("## ", 1)[1])
    )
