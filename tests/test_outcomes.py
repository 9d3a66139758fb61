"""Outcomes of images as text."""

import numpy as np
import pytest

from protobench import outcomes
from protobench.runtime.errors import UserError


def test_a_bit_per_image_the_first_in_the_highest():
    assert outcomes.pack(np.array([True, False, False, False, False, False, True, True, True])) == (
        "g4A="
    )  # bytes 10000011 and 1(0000000)
    assert outcomes.unpack("g4A=", 9).tolist() == [True] + 5 * [False] + 3 * [True]


@pytest.mark.parametrize("images", [1, 7, 8, 9, 8000])
def test_what_is_packed_is_read(images):
    right = np.random.default_rng(images).random(images) < 0.6
    assert np.array_equal(outcomes.unpack(outcomes.pack(right), images), right)


def test_eight_thousand_images_are_little_text():
    assert len(outcomes.pack(np.ones(8000, dtype=bool))) == 1336


def test_a_run_without_outcomes_has_none():
    assert outcomes.of_run({"draw": 0, "value": 50.0}, 10) == {}


@pytest.mark.parametrize("text", ["g4A=", "not base64", ""])
def test_outcomes_of_other_images_are_refused(text):
    with pytest.raises(UserError, match="do not belong to 20 test images"):
        outcomes.unpack(text, 20)


def test_outcomes_that_do_not_give_the_accuracy_are_refused():
    right = {"value": outcomes.pack(np.array([True, True, False, False]))}
    assert outcomes.of_run({"value": 50.0, "right": right}, 4)["value"].sum() == 2
    with pytest.raises(UserError, match=r"give 50.00 %, the run says 75.00 %"):
        outcomes.of_run({"value": 75.0, "right": right}, 4)
