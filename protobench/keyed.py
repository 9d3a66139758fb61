"""Randomness as a function of a key, such as (seed, epoch, sample index, view).

Nothing here has a state, so a result does not depend on the process, the number of workers, the
composition of batches, or whether a run was resumed."""

import hashlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def seed(*key: int | str) -> int:
    """Returns a 63-bit seed that depends on every part of the key and on their order."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str) -> np.random.Generator:
    """Returns a NumPy generator for this key (PCG64: the same stream on every platform)."""
    return np.random.Generator(np.random.PCG64(seed(*key)))


def uniforms(count: int, index_N: np.ndarray, *key: int | str) -> np.ndarray:
    """Returns ``count`` uniform numbers in [0, 1) for each sample, float64 [N, count]; row n
    depends only on (key, index_N[n]).

    SplitMix64 (Steele et al., OOPSLA 2014) over counters: one vectorised pass instead of N
    generators."""
    with np.errstate(over="ignore"):
        start_N1 = _mix(
            np.uint64(seed(*key)) + _GAMMA * (index_N.astype(np.uint64)[:, None] + np.uint64(1))
        )
        bits_NC = _mix(start_N1 + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))
    uniform_NC: np.ndarray = (bits_NC >> np.uint64(11)) * 2.0**-53
    return uniform_NC


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
