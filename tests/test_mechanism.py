"""The mechanism's predictions and its figure, on made records whose leads are known."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pretrain.recipes import moco, pcl
from protobench import records
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo, ResultKey
from tables import __main__ as tables_main
from tables.engine import encoders
from tables.engine.pages import pictures
from tables.ours import mechanism
from tables.ours.mechanism import ARMS, FIGURE, RATES, SWEEP, claims, headline

NATURAL = ARMS["MoCo"][1.0].name
TRUE = {
    "moco-w0": 51.0,
    NATURAL: 45.0,
    "moco-w16": 30.0,
    "pcl-w0": 49.0,
    "pcl": 46.5,
    "pcl-w16": 34.0,
    "pcl-permuted": 45.0,
    "pcl-permuted-w16": 30.0,
    "pcl-classes": 57.0,
    "pcl-k20": 46.0,
    "pcl-k100": 46.5,
    "pcl-k400": 45.5,
}
"""Every prediction is true, and PCL goes 1.5 of 12 points of the way."""
SEEDS = (1, 2, 3)


def _noise(row, seed, size):
    drawn = np.random.default_rng([sum(row.encode()), seed]).normal()
    return 4 * seed + size * drawn  # worlds differ by more than arms


def _record(evaluation, data, row, seed, runs):
    return {
        "record_id": f"{evaluation}-{row}-{seed}",
        "unit": {"evaluation": evaluation, "data_name": data},
        "subject": {"row": row, "seed": seed},
        "runs": runs,
    }


def _found(changes=None, seeds=SEEDS, size=0.05):
    """Records of all rows; ``changes`` to the true scores by row."""
    found = {}
    for row, true in (TRUE | (changes or {})).items():
        for seed in seeds:
            value = true + _noise(row, seed, size)
            found.setdefault(row, []).extend(
                [
                    _record("fullsvm", "voc07", row, seed, [{"draw": 0, "value": value}]),
                    _record(
                        "ami", "imagenet", row, seed, [{"draw": 0, "k": 100, "value": value / 100}]
                    ),
                    _record(
                        "knn",
                        "imagenet",
                        row,
                        seed,
                        [
                            {"draw": 0, "k": 20, "value": 20 + value},
                            {"draw": 0, "k": 200, "value": 0.0},
                        ],
                    ),
                ]
            )
    return found


def _verdicts(found):
    return {claim.text: claim.verdict for claim in claims(found)}


# Predictions --------------------------------------------------------------------------------------


def test_what_is_true_is_found_with_three_seeds():
    found = claims(_found())
    assert [claim.verdict for claim in found] == ["holds"] * len(found)
    assert [claim.text[:2] for claim in found[:8]] == [
        "H2",
        "H1",
        "H1",
        "H3",
        "H3",
        "H4",
        "H4",
        "H5",
    ]
    assert [claim.primary for claim in found] == [True] + [False] * (len(found) - 1)


def test_leads_and_contrast_are_those_of_the_records():
    found = _found(size=0.0)
    leads = [mechanism.mean(mechanism.lead(found, dose)) for dose in mechanism.DOSES]
    assert leads == pytest.approx([-2.0, 1.5, 4.0])
    assert "+6.0 [" in claims(found)[0].detail
    assert "PCL goes 12 % of the way" in claims(found)[7].detail
    assert mechanism.mean(mechanism.lead(found, 16.0, "AMI")) == pytest.approx(4.0)
    assert mechanism.mean(mechanism.lead(found, 16.0, "kNN")) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("changes", "text", "verdict"),
    [
        (
            {"pcl-w16": 24.0},
            "H2: PCL's lead over MoCo grows with the rate of collisions",
            "reversed",
        ),
        ({"moco-w0": 43.0}, "H1: MoCo gains when collisions are removed", "reversed"),
        ({"pcl-permuted": 47.5}, "H3: their meaning matters, PCL > PCL permuted", "reversed"),
        ({"pcl-permuted": 48.0}, "H4: PCL permuted equals MoCo within 1 point", "reversed"),
        ({"pcl-permuted": 46.0}, "H4: PCL permuted equals MoCo within 1 point", "undecided"),
        (
            {"pcl-classes": 44.0},
            "H5: prototypes of one class each are better than PCL's",
            "reversed",
        ),
    ],
)
def test_what_is_false_is_not_found(changes, text, verdict):
    assert _verdicts(_found(changes))[text] == verdict


def test_a_mechanism_that_is_not_there_is_not_found():
    """PCL equal to its permuted self, and a flat curve: what would refute it."""
    flat = {"pcl-w0": 51.0, "pcl": 45.0, "pcl-w16": 30.0}
    found = _verdicts(_found(flat, size=0.3))
    assert "holds" not in [verdict for text, verdict in found.items() if text[:2] in ("H2", "H3")]


def test_one_seed_decides_nothing():
    assert set(_verdicts(_found(seeds=(1,))).values()) == {"undecided"}


def test_prototypes_of_one_class_that_bring_nothing_have_no_share():
    assert "bring nothing over MoCo" in claims(_found({"pcl-classes": 40.0}))[7].detail


def test_the_headline_says_what_was_found():
    told = headline(_found(size=0.02))
    assert told.startswith("PCL's lead over MoCo grows from -2.0 to +4.0 points of mAP as")
    assert "as class collisions go from 0 % to 46 % of the negatives" in told
    assert "shrinks" in headline(_found({"pcl-w16": 20.0}))
    assert "goes" in headline(_found(seeds=(1,)))
    assert "(undecided)" in headline(_found(seeds=(1,)))


def test_means_are_of_the_same_worlds_in_all_rows():
    """MoCo and PCL have more seeds than the others, from the papers' tables."""
    few, more = _found(size=0.02), _found(size=0.02, seeds=range(1, 13))
    mixed = few | {row: more[row] for row in (NATURAL, "pcl")}
    assert headline(mixed) == headline(few)
    assert claims(mixed) == claims(few)
    for one, other in zip(
        pictures.draw(FIGURE, "mini", mixed)[0].picture.axes,
        pictures.draw(FIGURE, "mini", few)[0].picture.axes,
        strict=True,
    ):
        for a, b in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(a.get_ydata(), b.get_ydata())


def test_rows_without_a_seed_in_common_are_no_result():
    found = _found() | {"pcl-w16": _found(seeds=(7,))["pcl-w16"]}
    assert headline(found) == ""
    assert _verdicts(found)["H2: PCL's lead over MoCo grows with the rate of collisions"] == (
        "not-run"
    )


# Rows ---------------------------------------------------------------------------------------------


def test_the_rates():
    assert pytest.approx((0, 0.05, 16 / 35)) == RATES
    assert len(bundled.TITLES) == mechanism.BUNDLED.classes


def test_rows_differ_in_what_they_are_named_after_alone():
    assert ARMS["PCL"][1.0] is encoders.PCL
    for name, rows in ARMS.items():
        for dose, row in rows.items():
            recipe = vars(row.mini)
            assert recipe.get("weight", 1.0) == dose
            base = vars(mechanism.BARE if name == "MoCo" else pcl.MINI)
            assert {field: recipe[field] for field in base} == base
            assert bool(recipe.get("num_prototypes")) == (name != "MoCo")
    for k, row in SWEEP.items():
        assert row.mini == replace(pcl.MINI, num_prototypes=(k,))


def test_moco_has_all_of_pcl_but_prototypes(monkeypatch):
    assert all(value == getattr(pcl.MINI, field) for field, value in vars(mechanism.BARE).items())
    natural = ARMS["MoCo"][1.0]
    assert natural.mini == mechanism.BARE
    assert (natural is encoders.MOCO) == (moco.MINI == mechanism.BARE)
    assert (natural.name == "moco") == (natural is encoders.MOCO)
    for same in (True, False):
        mini = mechanism.BARE if same else replace(mechanism.BARE, temperature=0.5)
        monkeypatch.setattr(moco, "MINI", mini)
        row = mechanism._moco(1.0)
        assert (row is encoders.MOCO) == same
        assert (row.name == "moco") == same, "records are found by name"


# The picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [SEEDS, (1,)])
def test_the_picture_shows_leads_scores_and_sweep(seeds, tmp_path):
    found = _found(seeds=seeds)
    drawing, png, _ = pictures.draw(FIGURE, "mini", found)
    left, middle, right = drawing.picture.axes
    line = next(line for line in left.lines if line.get_marker() == "o")
    assert list(line.get_ydata()) == pytest.approx([-2, 1.5, 4], abs=0.3)
    labels = [text.get_text() for text in middle.get_legend().get_texts()]
    assert labels == list(mechanism.WORDS.values())
    assert [text.get_text() for text in right.get_xticklabels()] == ["20", "100", "400"]
    assert {len(line) for line in drawing.data} == {len(drawing.header)}
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1500


def test_it_is_of_bundled_data_alone(command, tmp_path):
    code, _, err = command(
        tables_main.main, "reproduce", "mechanism", "--tier", "paper", "--data", tmp_path
    )
    assert code == 2
    assert "bundled synthetic data alone: the dial is set for 20" in err


def test_the_page_starts_with_it(command, tmp_path):
    for row, values in _found().items():
        for record in values:
            unit, subject = record["unit"], record["subject"]
            model = ModelInfo(row, subject["seed"], "retrained", row)
            key = ResultKey(
                unit["evaluation"], unit["data_name"], 1, f"{row}-{subject['seed']}", (), {}
            )
            records.write(
                tmp_path / "mini" / "records",
                key,
                record["runs"],
                model=model,
                checkpoint={"sha256": "x", "trained": {"seconds": 1}},
                data={"classes": 20, "embedded": True},
                metric={"test_images": 40},
            )
    code, out, err = command(tables_main.main, "diff", "mechanism", "--results", tmp_path)
    assert code == 0, err
    assert "PCL's lead over MoCo grows from" in out
    text = (tmp_path / "index.html").read_text()
    headline = text.index("PCL's lead over MoCo grows from".replace("'", "&#39;"))
    assert text.index('class="stamp"') < headline < text.index('class="tiles"')
    assert "**PCL's lead over MoCo grows" in (tmp_path / "mini" / "README.md").read_text()
