"""Networks in double precision, in which what differs by rounding stays as near: no ReLU, maximum
or cluster goes another way.

In float32 they do now and then, on some processors and not on others, and then a training differs
by far more than a rounding."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """While this lasts, or in a function that it decorates, all that is made without a type is
    float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
