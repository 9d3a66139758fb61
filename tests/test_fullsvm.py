"""fullsvm on features whose score is known, against scikit-learn, and from the command line."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from evaluate import fullsvm
from evaluate.svm.average_precision import average_precision
from evaluate.svm.liblinear import normalise
from protobench import records

CLASSES = 4


def _problem(n=240, noise=0.5, seed=0):
    """Return features and labels of multi-label images; the first features are the noisy labels."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((n, CLASSES)) < 0.3, 1, -1)
    x = rng.normal(size=(n, 24)) * noise
    x[:, :CLASSES] += labels
    return x, labels


def test_features_that_are_the_labels_score_100_and_random_ones_chance():
    x, labels = _problem(noise=0.01)
    assert fullsvm.score(x, labels, x, labels, (0.5,))["value"] == pytest.approx(100, abs=0.01)
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(1500, 24)), np.where(rng.random((1500, CLASSES)) < 0.3, 1, -1)
    run = fullsvm.score(x[:700], labels[:700], x[700:], labels[700:], (0.5,))
    assert run["value"] == pytest.approx(31, abs=4)


@pytest.mark.parametrize("drop", [False, True])
def test_scores_equal_scikit_learn_and_difficult_images_follow_the_protocol(drop):
    x, labels = _problem(noise=1.5)
    labels[np.random.default_rng(3).random(labels.shape) < 0.1] = 0
    run = fullsvm.score(x[:160], labels[:160], x[160:], labels[160:], (0.5,), drop_difficult=drop)
    train, test = normalise(x[:160]), normalise(x[160:])
    weights = {1: 2, -1: 1}
    svm = LinearSVC(C=0.5, class_weight=weights, tol=1e-6, max_iter=100_000, random_state=0)
    decisions = [
        svm.fit(train, np.where(labels[:160, c] == 1, 1, -1)).decision_function(test)
        for c in range(CLASSES)
    ]
    scores = np.stack(decisions, axis=1)
    truth = labels[160:]
    expected = 100 * average_precision(scores, truth == 1, truth != 0 if drop else None)
    assert run["per_class"] == pytest.approx(expected, abs=0.3)


def test_several_costs_are_chosen_by_cross_validation_on_training_images_alone():
    x, labels = _problem(noise=1.5)
    grid = (0.001, 0.03, 1.0, 30.0)
    run = fullsvm.score(x[:160], labels[:160], x[160:], labels[160:], grid)
    train = normalise(x[:160])
    for c, cost in enumerate(run["costs"]):
        positive = labels[:160, c] == 1
        theirs = GridSearchCV(
            LinearSVC(class_weight={True: 2, False: 1}, tol=1e-6, max_iter=100_000, random_state=0),
            {"C": list(grid)},
            cv=StratifiedKFold(3),
            scoring=_average_precision,
        ).fit(train, positive)
        means = dict(zip(grid, theirs.cv_results_["mean_test_score"], strict=True))
        assert means[cost] == pytest.approx(max(means.values()), abs=2e-3)
    other = fullsvm.score(x[:160], labels[:160], x[160:], -labels[160:], grid)
    assert other["costs"] == run["costs"], "the test set has no influence"


def _average_precision(model, x, y):
    return average_precision_score(y, model.decision_function(x))


def _args(file, world, out, *more):
    return ("--ckpt", file, "--data", world, "--workers", 0, "--results", out, *more)


@pytest.mark.parametrize("protocol", ["pcl", "goyal"])
def test_a_checkpoint_is_scored_and_recorded(command, encoder_file, world, tmp_path, protocol):
    grid = ("--costs", 0.1, 1) if protocol == "goyal" else ()
    code, out, err = command(
        fullsvm.EVALUATION.main,
        *_args(encoder_file, world, tmp_path, "--protocol", protocol, *grid),
    )
    assert code == 0, err
    assert f"200 images, protocol {protocol}, 120 test images" in out
    assert ("(C=" in out) == (protocol == "goyal")
    (record,) = records.read_all(tmp_path).values()
    assert record["feature"]["dim"] == (512 if protocol == "goyal" else 128)
    assert record["runs"][0]["value"] == pytest.approx(
        np.mean(record["runs"][0]["per_class"]), abs=0.01
    )
    assert len(record["unit"]["params"]["costs"]) == (2 if protocol == "goyal" else 1)


def test_both_rules_of_pcl_s_script(command, encoder_file, world, tmp_path):
    args = _args(encoder_file, world, tmp_path, "--rule-2020-07")
    code, out, err = command(fullsvm.EVALUATION.main, *args)
    assert code == 0, err
    assert "by July 2020's rule" in out
    (record,) = records.read_all(tmp_path).values()
    (run,) = record["runs"]
    alone = []
    for cost in (0.1, 0.5, 1):
        folder = tmp_path / str(cost)
        command(fullsvm.EVALUATION.main, *_args(encoder_file, world, folder, "--costs", cost))
        alone.append(next(iter(records.read_all(folder).values()))["runs"][0]["value"])
    assert run["value"] == alone[1]
    assert run["value_2020_07"] == max(alone)
    assert run["cost_2020_07"] == (0.1, 0.5, 1)[int(np.argmax(alone))]


@pytest.mark.parametrize(
    "flags",
    [
        ("--rule-2020-07", "--protocol", "goyal"),
        ("--rule-2020-07", "--costs", 1),
        ("--costs", 0),
        ("--costs", 1, 1),
        ("--costs", "nan"),
        ("--protocol", "voc"),
    ],
)
def test_invalid_parameters_are_refused(command, encoder_file, world, tmp_path, flags):
    code, _, err = command(fullsvm.EVALUATION.main, *_args(encoder_file, world, tmp_path, *flags))
    assert code == 2
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.json"))


def test_a_class_too_rare_to_cross_validate_is_refused():
    x, labels = _problem()
    labels[:, 2] = -1
    labels[:2, 2] = 1
    with pytest.raises(Exception, match="2 training images cannot be cross-validated"):
        fullsvm.score(x, labels, x, labels, (0.1, 1.0))
