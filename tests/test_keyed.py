import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protobench import keyed


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
    st.integers(1, 8),
    st.integers(0, 2**31),
)
def test_a_row_depends_on_its_own_index_only(indices, count, key):
    together = keyed.uniforms(count, np.array(indices), key, "view")
    alone = np.concatenate([keyed.uniforms(count, np.array([i]), key, "view") for i in indices])
    np.testing.assert_array_equal(together, alone)


def test_uniforms_are_uniform_and_uncorrelated():
    x = keyed.uniforms(4, np.arange(50_000), 7)
    assert x.min() >= 0
    assert x.max() < 1
    np.testing.assert_allclose(np.histogram(x, 10, (0, 1))[0] / x.size, 0.1, atol=0.003)
    np.testing.assert_allclose(np.corrcoef(x.T), np.eye(4), atol=0.02)
    assert abs(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1]) < 0.02


def test_every_part_of_a_key_counts():
    keys = [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2), (1, 2, 0)]
    assert len({keyed.seed(*key) for key in keys}) == len(keys)
    assert not np.array_equal(
        keyed.uniforms(3, np.arange(5), 1, 0), keyed.uniforms(3, np.arange(5), 1, 1)
    )


def test_a_generator_is_a_function_of_its_key():
    assert keyed.generator(3, "x").integers(10**9) == keyed.generator(3, "x").integers(10**9)
