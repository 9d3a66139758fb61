import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from evaluate import lowshot
from evaluate.svm import liblinear, support_sets
from evaluate.svm.average_precision import average_precision
from protobench import records
from protobench.checkpoints import resnet
from protobench.data import voc
from protobench.data.image_list import ImageList
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic

CLASSES = 6


def _list(labels):
    return ImageList(
        "x", None, tuple(map(str, range(len(labels)))), labels, tuple("abcdef"[:CLASSES])
    )


def _multilabel(n=300, seed=0):
    """Return labels [n, CLASSES] with at least one class per image, some of them difficult."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], (n, CLASSES), p=[0.85, 0.05, 0.1])
    labels[np.arange(n), rng.integers(0, CLASSES, n)] = 1
    return labels


def _config(**changes):
    return lowshot.Config(ckpt=None, **({"shots": (1, 2, 4), "draws": 3} | changes))


def _all(images, config):
    return support_sets.all_support_sets(
        images, config.protocol, config.shots, config.draws, config.seed, config.draw_order
    )


# Support sets -------------------------------------------------------------------------------------


def test_pcl_support_sets_hold_k_images_of_each_class_with_all_their_labels():
    labels = _multilabel()
    sets = _all(_list(labels), _config())
    assert [(s.k, s.draw) for s in sets] == [(k, n) for k in (1, 2, 4) for n in range(3)]
    for support in sets:
        pool = support.rows[0]
        assert len(pool) == support.k * CLASSES
        assert all(rows is pool for rows in support.rows)
        for c, positive in enumerate(support.positive):
            np.testing.assert_array_equal(positive, labels[pool, c] == 1)
            chosen = pool[c * support.k : (c + 1) * support.k]
            assert len(set(chosen.tolist())) == support.k, "without replacement within a class"
            assert (labels[chosen, c] == 1).all()
    assert any(positive.sum() > support.k for support in sets for positive in support.positive), (
        "co-occurring classes get more"
    )


def test_a_support_set_is_a_function_of_seed_k_and_draw():
    many = _all(_list(_multilabel()), _config())
    few = _all(_list(_multilabel()), _config(shots=(4,), draws=1))
    assert few[0].subset == next(s for s in many if (s.k, s.draw) == (4, 0)).subset
    other = _all(_list(_multilabel()), _config(shots=(4,), draws=1, seed=1))
    assert other[0].subset != few[0].subset


def test_every_positive_is_equally_likely():
    labels = np.full((12, 1), -1)
    labels[:8] = 1
    counts = Counter()
    for draw in range(4000):
        support = support_sets.pcl_support_set(labels == 1, 2, draw, np.random.default_rng(draw))
        counts.update(support.rows[0].tolist())
    assert set(counts) == set(range(8))
    np.testing.assert_allclose([counts[i] / 8000 for i in range(8)], 1 / 8, atol=0.012)


def _script(labels, costs=1):
    """What the released script draws: it rebuilds each class's list in image order for every draw
    and visits the classes in order, for one draw after another, one cost after another, one k
    after another. ``{(k, cost index, draw): pool}``"""
    random.seed(0)
    pools = {}
    for k in (1, 2, 4, 8, 16):
        for cost in range(costs):
            for draw in range(5):
                pool = []
                for c in range(CLASSES):
                    images = [i for i in range(len(labels)) if labels[i, c] > 0]
                    random.shuffle(images)
                    pool += images[:k]
                pools[k, cost, draw] = pool
    return pools


@pytest.mark.parametrize(("shots", "draws"), [((1, 2, 4, 8, 16), 5), ((16,), 5), ((4, 1), 2)])
def test_released_draws_are_selected_from_the_script_s_sequence(shots, draws):
    labels = _multilabel()
    script = _script(labels)
    sets = _all(_list(labels), _config(draw_order="released", shots=shots, draws=draws))
    found = {(s.k, 0, s.draw): s.rows[0].tolist() for s in sets}
    assert len(sets) == len(found) == len(shots) * draws
    assert found == {key: script[key] for key in found}


def test_july_s_draws_are_fresh_for_each_cost():
    labels = _multilabel()
    script = _script(labels, costs=3)
    by_cost = support_sets.released_support_sets(_list(labels), (2, 8), 4, costs=3)
    assert [len(of_cost) for of_cost in by_cost] == [8, 8, 8]
    for i, of_cost in enumerate(by_cost):
        assert [(s.k, s.draw) for s in of_cost] == [(k, n) for k in (2, 8) for n in range(4)]
        for support in of_cost:
            assert support.rows[0].tolist() == script[support.k, i, support.draw]


def test_july_s_rule_reports_the_best_mean_on_the_test_set():
    """A naive loop over costs, each with draws of its own; per k the best cost's mean."""
    rng = np.random.default_rng(1)
    labels, test_labels = _multilabel(seed=1), _multilabel(seed=2)
    directions = rng.normal(size=(CLASSES, 40))
    train, test = (
        (y == 1) @ directions + rng.normal(size=(300, 40)) for y in (labels, test_labels)
    )
    by_cost = support_sets.released_support_sets(_list(labels), (1, 4), 5, costs=3)
    scored = [
        lowshot.score(train, test, test_labels, of_cost, (cost,))
        for cost, of_cost in zip((0.1, 0.5, 1.0), by_cost, strict=True)
    ]
    today = lowshot.score(
        train,
        test,
        test_labels,
        _all(_list(labels), _config(draw_order="released", shots=(1, 4), draws=5)),
        (0.5,),
    )
    found = lowshot.with_rule_2020_07(today, scored)
    assert [{name: run[name] for name in today[0]} for run in found] == today
    for k in (1, 4):
        means = {
            cost: np.mean([run["value"] for run in runs if run["k"] == k])
            for cost, runs in zip((0.1, 0.5, 1.0), scored, strict=True)
        }
        july = [run["value_2020_07"] for run in found if run["k"] == k]
        assert np.mean(july) == pytest.approx(max(means.values()))
        assert {run["cost_2020_07"] for run in found if run["k"] == k} == {
            max(means, key=means.get)
        }


def test_goyal_support_sets_hold_k_positives_and_19k_negatives_per_class():
    labels = _multilabel(1500)
    for support in _all(_list(labels), _config(protocol="goyal")):
        for c, (rows, positive) in enumerate(zip(support.rows, support.positive, strict=True)):
            assert positive.sum() == support.k
            assert len(rows) == len(set(rows.tolist())) == 20 * support.k
            np.testing.assert_array_equal(labels[rows, c], np.where(positive, 1, -1))


def test_too_few_images_are_refused():
    labels = _multilabel(300)
    labels[:, 2] = -1
    labels[:3, 2] = 1
    with pytest.raises(UserError, match="class 'c' has 3 images, 4 are to be drawn"):
        _all(_list(labels), _config())
    with pytest.raises(UserError, match="goyal's protocol draws"):
        _all(_list(_multilabel(60)), _config(protocol="goyal", shots=(4,)))


# Scores -------------------------------------------------------------------------------------------


def test_features_that_are_the_labels_score_100():
    labels = _multilabel()
    labels[labels == 0] = -1
    x = (labels == 1).astype(float)
    # from few images with several labels each, a class cannot be told from classes that occur
    # with it; with k = 16 it can
    sets = _all(_list(labels), _config(shots=(16,)))
    assert {run["value"] for run in lowshot.score(x, x, labels, sets, (100.0,))} == {100.0}
    single = np.arange(300) % CLASSES
    runs = lowshot.score(
        np.eye(CLASSES)[single],
        np.eye(CLASSES)[single],
        single,
        _all(_list(single), _config()),
        (0.5,),
        positive_weight=1.0,
    )
    assert {run["value"] for run in runs} == {100.0}


def test_features_without_information_score_chance():
    rng = np.random.default_rng(0)
    single = np.arange(1200) % CLASSES
    x = rng.normal(size=(1200, 20))
    runs = lowshot.score(
        x,
        rng.normal(size=(1200, 20)),
        single,
        _all(_list(single), _config(draws=5)),
        (0.5,),
        positive_weight=1.0,
    )
    assert np.mean([run["value"] for run in runs]) == pytest.approx(100 / CLASSES, abs=1.5)


@pytest.mark.parametrize("drop_difficult", [False, True])
def test_scores_equal_scikit_learns_svm_with_the_paper_s_settings(drop_difficult):
    rng = np.random.default_rng(1)
    labels, test_labels = _multilabel(seed=1), _multilabel(seed=2)
    directions = rng.normal(size=(CLASSES, 40))
    train, test = (
        (y == 1) @ directions + rng.normal(size=(300, 40)) for y in (labels, test_labels)
    )
    sets = _all(_list(labels), _config(shots=(4,)))
    ours = lowshot.score(train, test, test_labels, sets, (0.5,), drop_difficult=drop_difficult)
    train_n = train / (np.linalg.norm(train, axis=1) + 1e-5)[:, None]
    test_n = test / (np.linalg.norm(test, axis=1) + 1e-5)[:, None]
    for support, run in zip(sets, ours, strict=True):
        scores = np.stack(
            [
                LinearSVC(
                    C=0.5,
                    class_weight={1: 2, -1: 1},
                    tol=1e-4,
                    dual=True,
                    max_iter=2000,
                    random_state=0,
                )
                .fit(train_n[support.rows[c]], np.where(support.positive[c], 1, -1))
                .decision_function(test_n)
                for c in range(CLASSES)
            ],
            axis=1,
        )
        counted = test_labels != 0 if drop_difficult else None
        expected = 100 * average_precision(scores, test_labels == 1, counted).mean()
        assert run["value"] == pytest.approx(expected, abs=0.05)


def test_several_costs_report_the_best_on_the_test_set_per_k():
    runs = [
        {"k": 1, "draw": d, "cost": c, "value": v}
        for d in (0, 1)
        for c, v in ((0.5, 40.0 + d), (1.0, 42.0 - d))
    ]
    runs += [{"k": 2, "draw": 0, "cost": c, "value": v} for c, v in ((0.5, 50.0), (1.0, 49.0))]
    assert lowshot.best_cost(runs) == {1: 1.0, 2: 0.5}


def test_goyal_s_grid_has_its_26_costs():
    assert len(liblinear.GOYAL_COSTS) == 26
    assert liblinear.GOYAL_COSTS[-1] == 100
    assert 0.5**4 in liblinear.GOYAL_COSTS


# The command line ---------------------------------------------------------------------------------


def _args(encoder_file, world, tmp_path, *more):
    return (
        "--ckpt",
        encoder_file,
        "--data",
        world,
        "--shots",
        1,
        2,
        "--draws",
        2,
        "--workers",
        0,
        "--results",
        tmp_path,
        *more,
    )


@pytest.mark.parametrize(("dataset", "metric"), [("voc07", "mAP"), ("places205", "top-1")])
def test_a_checkpoint_is_scored_and_recorded(
    command, encoder_file, world, tmp_path, dataset, metric
):
    code, out, err = command(
        lowshot.EVALUATION.main, *_args(encoder_file, world, tmp_path, "--dataset", dataset)
    )
    assert code == 0, err
    assert "72/72 backbone tensors" in out
    assert metric in out
    (path,) = tmp_path.glob("*.json")
    record = records.read(path)
    assert [(run["k"], run["draw"]) for run in record["runs"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert record["checkpoint"]["matched"] == 72
    again = tmp_path / "again"
    command(lowshot.EVALUATION.main, *_args(encoder_file, world, again, "--dataset", dataset))
    assert [r["runs"] for r in records.read_all(again).values()] == [record["runs"]], (
        "same seed, same record"
    )


def test_the_other_protocol_and_aliases(command, encoder_file, world, tmp_path):
    code, out, err = command(
        lowshot.EVALUATION.main,
        *_args(
            encoder_file, world, tmp_path, "--protocol", "goyal", "--costs", 0.1, 1, "--shots", 1
        ),
    )
    assert code == 0, err
    assert "best on the test set" in out
    code, out, _ = command(
        lowshot.EVALUATION.main,
        "--pretrained",
        encoder_file,
        "--data",
        world,
        "--shots",
        1,
        "--draws",
        1,
        "--workers",
        0,
        "--draw-order",
        "released",
        "--results",
        tmp_path,
    )
    assert code == 0
    assert "\nstd " not in out, "one draw has no spread"


def test_both_rules_of_pcl_s_script(command, encoder_file, world, tmp_path):
    both = ("--draw-order", "released", "--rule-2020-07")
    code, out, err = command(lowshot.EVALUATION.main, *_args(encoder_file, world, tmp_path, *both))
    assert code == 0, err
    assert "by July 2020's rule" in out
    (record,) = records.read_all(tmp_path).values()
    assert record["unit"]["params"]["rule_2020_07"] is True
    assert {run["cost"] for run in record["runs"]} == {0.5}
    for k in (1, 2):
        runs = [run for run in record["runs"] if run["k"] == k]
        assert len({run["cost_2020_07"] for run in runs}) == 1
        assert all(0 < run["value_2020_07"] < 100 for run in runs)


def _refused(command, *args):
    code, out, err = command(lowshot.EVALUATION.main, *args)
    assert code == 2, out
    assert "Traceback" not in err
    return err


def test_bad_checkpoints_never_give_a_number(command, encoder_file, world, tmp_path):
    torch.manual_seed(0)
    state = resnet.build("resnet18").state_dict()
    torch.save(
        {"state_dict": {f"module.encoder.{k}": v for k, v in state.items()}},
        tmp_path / "prefix.pth",
    )
    for path, complaint in (
        (tmp_path / "absent.pth", "no such checkpoint"),
        (tmp_path / "prefix.pth", "no known layout"),
    ):
        err = _refused(command, *_args(path, world, tmp_path))
        assert complaint in err
        assert str(path) in err
        assert "hint:" in err
    assert not list(tmp_path.glob("*.json"))


def test_bad_data_never_gives_a_number(command, encoder_file, world, tmp_path):
    assert "no such folder" in _refused(
        command, *_args(encoder_file, tmp_path / "absent", tmp_path)
    )
    (tmp_path / "empty").mkdir()
    assert "no VOCdevkit" in _refused(command, *_args(encoder_file, tmp_path / "empty", tmp_path))
    assert "has" in _refused(command, *_args(encoder_file, world, tmp_path, "--shots", 64))
    goyal_on_places = ("--dataset", "places205", "--protocol", "goyal")
    assert "defined for voc07" in _refused(
        command, *_args(encoder_file, world, tmp_path, *goyal_on_places)
    )
    broken = tmp_path / "broken"
    shutil.copytree(world / "VOCdevkit", broken / "VOCdevkit")
    victim = broken / "VOCdevkit" / "VOC2007" / voc.read(broken, "test").paths[7]
    victim.write_bytes(victim.read_bytes()[:400])
    assert str(victim) in _refused(command, *_args(encoder_file, broken, tmp_path, "--workers", 2))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--shots", -1, 2),
        ("--shots", 1, 1),
        ("--shots", 0),
        ("--draws", 0),
        ("--costs", 0),
        ("--costs", 0.5, 0.5),
        ("--costs", "nan"),
        ("--device", "gpu"),
        ("--rule-2020-07",),
        ("--rule-2020-07", "--draw-order", "released", "--costs", 0.1),
        ("--draw-order", "released", "--draws", 6),
        ("--draw-order", "released", "--shots", 1, 3),
    ],
)
def test_senseless_parameters_are_refused(command, encoder_file, world, tmp_path, flags):
    _refused(command, *_args(encoder_file, world, tmp_path, *flags))
    assert not list(tmp_path.glob("*.json"))


def test_train_and_test_must_have_the_same_classes(command, encoder_file, world, tmp_path):
    shutil.copytree(world / "VOCdevkit", tmp_path / "VOCdevkit")
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "arrow_test.txt").rename(main / "zebra_test.txt")
    assert "different classes: arrow, zebra" in _refused(
        command, *_args(encoder_file, tmp_path, tmp_path / "results")
    )


def test_a_class_without_a_test_image_is_refused_before_the_work(
    command, encoder_file, world, tmp_path
):
    shutil.copytree(world / "VOCdevkit", tmp_path / "VOCdevkit")
    path = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "heart_test.txt"
    path.write_text(path.read_text().replace(" 1\n", "-1\n"))
    assert "no image of heart" in _refused(
        command, *_args(encoder_file, tmp_path, tmp_path / "results")
    )


def test_a_subset_keeps_its_name_when_other_draws_change(command, encoder_file, world, tmp_path):
    """Places205 reads only what is drawn, so rows are renumbered; the hash is of the images."""
    subsets = []
    for shots in ((1, 2), (2, 4)):
        out = tmp_path / str(shots)
        command(
            lowshot.EVALUATION.main,
            "--ckpt",
            encoder_file,
            "--data",
            world,
            "--dataset",
            "places205",
            "--shots",
            *shots,
            "--draws",
            1,
            "--workers",
            0,
            "--results",
            out,
        )
        (record,) = records.read_all(out).values()
        subsets.append({run["k"]: run["subset"] for run in record["runs"]})
    assert subsets[0][2] == subsets[1][2]


def test_unknown_flags_get_a_suggestion(command):
    code, _, err = command(lowshot.EVALUATION.main, "--ckpt", "x", "--protocl", "pcl")
    assert code == 2
    assert "--protocol" in err


def test_debug_shows_the_traceback(command, tmp_path):
    code, _, err = command(lowshot.EVALUATION.main, "--ckpt", tmp_path / "absent", "--debug")
    assert code == 2
    assert "Traceback" in err
