"""A part of what ``python tests/survival.py`` does: trainings that die, at some operations on files
and at some moments."""

import pytest
import survival

from protobench.data.synthetic import bundled


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return bundled.ensure(tmp_path_factory.mktemp("small") / "data", survival.IMAGES)


@pytest.mark.parametrize("name", survival.METHODS)
def test_a_training_that_dies_at_an_operation_on_a_file_goes_on(name, small, tmp_path):
    count, deaths = survival.operations(name, small, tmp_path, every=13)
    assert count > 60
    assert deaths == -(-count // 13)


@pytest.mark.parametrize("name", survival.METHODS)
def test_a_killed_training_goes_on(name, small, tmp_path):
    hits, _ = survival.kills(name, small, tmp_path, 2)
    assert hits >= 2


def test_a_record_is_there_or_it_is_not(tmp_path):
    count, deaths = survival.record_operations(tmp_path)
    assert count == deaths >= 4
