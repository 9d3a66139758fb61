"""Looks at a growing table: which rows are trained further, and when it ends. Encoders and scores
are made up, everything else is real."""

import pytest

from pretrain.recipes.common import run_key
from protobench import records
from protobench.data.datasets import DATASETS
from protobench.data.synthetic import bundled
from tables import __main__ as tables_main
from tables.engine.jobs import plan, reproduce

LEVEL = {"random": 20.0, "supervised": 90.0, "moco": 60.0}


class MadeUp:
    """Writes a record for every task, without training: PCL's lead over MoCo is ``lead(seed)``."""

    def __init__(self, results, lead):
        self.results, self.lead, self.runs = results, lead, []

    waits = True

    def run(self, jobs):
        self.runs.append([job.name for job in jobs])
        for job in jobs:
            key = run_key(
                job.recipe, DATASETS["imagenet"].training_images(bundled.ensure()), job.seed
            )
            for task in job.tasks:
                config = plan.eval_config(job, task, data=None, results=self.results)
                evaluation = plan.evaluation(task.evaluation)
                lists = plan.load_data(task.evaluation, task.dataset, bundled.ensure(), 0)
                value = LEVEL.get(job.row.name, LEVEL["moco"] + self.lead(job.seed))
                records.write(
                    self.results / "mini" / "records",
                    evaluation.result_key(key, lists, config),
                    [{"draw": 0, "k": k, "value": value + 0.1 * job.seed} for k in (20, 200)],
                    model=job.model(),
                    metric={"test_images": 10},
                    data=records.data_of(task.dataset, lists) | {"world": job.world},
                    checkpoint={"arch": "resnet10-mini", "untouched": False, "trained": None},
                )
        return []


@pytest.fixture
def run(command, tmp_path, world, monkeypatch):
    """reproduce table4 in the mini tier with made up encoders."""
    monkeypatch.setattr(bundled, "ensure", lambda **_: world)
    monkeypatch.setattr(bundled, "ensure_all", lambda worlds: dict.fromkeys(worlds, world))

    def start(lead, *flags):
        executor = MadeUp(tmp_path, lead)
        monkeypatch.setattr(reproduce, "_executor", lambda *_: executor)
        code, out, err = command(
            tables_main.main,
            "reproduce",
            "table4",
            "--results",
            tmp_path,
            "--runs",
            tmp_path / "runs",
            *flags,
        )
        return code, out, err, executor.runs

    return start


def _clear(seed):
    return 3.0 + 0.05 * (seed % 3)


def _noisy(seed):
    return 0.8 + 4.0 * (-1) ** seed


def test_decided_claims_need_no_further_pretrainings(run):
    code, out, err, runs = run(_clear, "--max-seeds", "12")
    assert code == 0, err
    assert [len(jobs) for jobs in runs] == [16], "four rows, four seeds"
    assert "undecided after" not in out
    assert "4 pretrainings" in out


def test_wide_prints_the_table_as_its_file_has_it(run, tmp_path):
    _, narrow, _, _ = run(_clear)
    _, wide, _, _ = run(_clear, "--wide")
    text = (tmp_path / "mini" / "table4.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    assert [line for line in lines if line not in wide] == []
    assert [line for line in lines if line not in narrow] != []


def test_only_rows_of_undecided_claims_are_trained_further(run):
    code, out, err, runs = run(_noisy, "--max-seeds", "9")
    assert code == 0, err
    assert [len(jobs) for jobs in runs] == [16, 4, 6]
    assert set(runs[1]) == {f"{row} seed {seed}" for row in ("moco", "pcl") for seed in (5, 6)}
    assert "undecided after 4 pretrainings: 2 of the claims\n  PCL > MoCo\n" in out
    assert "so 9 pretrainings of moco, pcl" in out
    assert "9 pretrainings" in out


def test_a_look_that_decides_is_the_last(run):
    """Two odd seeds at first, then a steady lead: decided at the second look."""
    leads = {1: 3.0, 2: 3.6, 3: 1.8, 4: 4.6}
    _, out, _, runs = run(lambda seed: leads.get(seed, 3.2), "--max-seeds", "12")
    assert [len(jobs) for jobs in runs] == [16, 4]
    assert "6 pretrainings" in out


def test_a_stopped_run_continues_at_the_same_look(run):
    _, _, _, first = run(_noisy, "--max-seeds", "6")
    assert [len(jobs) for jobs in first] == [16, 4]
    _, out, _, again = run(_noisy, "--max-seeds", "6")
    assert again == [], "nothing is left to do"
    assert "6 pretrainings" in out
    _, _, _, further = run(_noisy, "--max-seeds", "9")
    assert [len(jobs) for jobs in further] == [6], "the looks before are done"


def test_a_fixed_number_of_seeds_is_no_look(run):
    _, out, _, runs = run(_noisy, "--seeds", "5")
    assert [len(jobs) for jobs in runs] == [20]
    assert "5 pretrainings" in out
    _, out, _, _ = run(_clear, "--seeds", "2")
    assert "nothing is decided before 4" in " ".join(out.split())


def test_rows_that_were_left_out_are_named(run):
    _, out, _, runs = run(_noisy, "--rows", "random", "supervised", "pcl", "--max-seeds", "6")
    assert [len(jobs) for jobs in runs] == [12]
    assert "not run: no runs of MoCo" in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--max-seeds", "3"), "--max-seeds 3 is below the first look at 4 pretrainings"),
        (("--max-seeds", "6", "--seeds", "5"), "--seeds fixes the number of pretrainings"),
        (("--max-seeds", "6", "--tier", "quick"), "--max-seeds belongs to the mini tier"),
        (("--seeds", "0"), "at least 1"),
    ],
)
def test_flags_that_make_no_sense(run, flags, told):
    code, _, err, runs = run(_clear, *flags)
    assert code == 2
    assert told in err
    assert runs == []


def test_the_plan_tells_of_further_looks(run):
    _, out, _, runs = run(_clear, "--plan", "--max-seeds", "9")
    assert "then, only of rows whose claims are undecided: 6 and 9 pretrainings" in out
    assert runs == []
    assert "then, only" not in run(_clear, "--plan", "--seeds", "4")[1]
