"""The SVMs of liblinear.py, solved exactly for a whole grid of costs: Newton's method on the Gram
matrix of a few training rows.

The squared hinge is quadratic where it is active, so each step solves one positive definite system
over the rows inside the margin, and the optimum is reached when these no longer change (Keerthi and
DeCoste, JMLR 2005; Chapelle, Neural Computation 2007). From one cost to the next, few rows change.
There is no tolerance and no order of rows to choose; LIBLINEAR converges to the same solution at a
tolerance of 1e-10. The time grows with the cube of the rows, so this suits low-shot training sets
and not all of VOC07.

Shapes: N training rows, M test rows, D features, J costs, W SVMs."""

import numpy as np
from scipy.linalg.lapack import dposv

from evaluate.svm.liblinear import require_finite, signs
from protobench.runtime.errors import UserError

MAX_STEPS = 100


def gram(x_ND: np.ndarray) -> np.ndarray:
    """Return the rows' inner products [N, N], each row extended by a constant 1 for the regularised
    bias. Raises UserError if a feature is not finite."""
    gram_NN: np.ndarray = require_finite(x_ND) @ x_ND.T + 1.0
    return gram_NN


def path(
    gram_NN: np.ndarray,
    positive_N: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float = 1.0,
) -> np.ndarray:
    """Return the dual coefficients b [J, N] of min |w|^2 / 2 + sum_n C_n max(0, 1 - y_n f_n)^2,
    where w = sum_n b_n x_n and f = gram b.

    C_n is the cost, times ``positive_weight`` for a positive row. Raises UserError if there is only
    one class, or if rounding keeps a system from being solved (at costs beyond any published
    grid)."""
    y_N, weight_N = signs(positive_N), np.where(positive_N, positive_weight, 1.0)
    b_JN = np.empty((len(costs), len(y_N)))
    b_N = np.zeros(len(y_N))
    for j in np.argsort(costs):
        b_JN[j] = b_N = _newton(gram_NN, y_N, costs[j] * weight_N, b_N)
    return b_JN


def decision(test_MD: np.ndarray, x_ND: np.ndarray, b_WN: np.ndarray) -> np.ndarray:
    """Return the decision values [M, W] of W SVMs over the same rows, by weights or by inner
    products, whichever is less work."""
    score_MW: np.ndarray = np.linalg.multi_dot([test_MD, x_ND.T, b_WN.T]) + b_WN.sum(1)
    return score_MW


def _newton(
    gram_NN: np.ndarray, y_N: np.ndarray, cost_N: np.ndarray, b_N: np.ndarray
) -> np.ndarray:
    """Return the coefficients at one cost per row, starting from ``b_N``."""
    f_N = gram_NN @ b_N
    active_N = y_N * f_N < 1
    for _ in range(MAX_STEPS):
        rows = np.flatnonzero(active_N)
        step_N = -b_N
        if len(rows):  # with no row inside the margin the weights can only shrink
            system = gram_NN.take(rows, 0).take(rows, 1)
            system.flat[:: len(rows) + 1] += 0.5 / cost_N[rows]
            # transposed: LAPACK expects column-major order
            _, b_rows, info = dposv(system.T, y_N[rows], lower=True, overwrite_a=True)
            if info:
                break
            step_N[rows] += b_rows
        step_f_N = gram_NN @ step_N
        length = _line_search(y_N, cost_N, b_N, f_N, step_N, step_f_N)
        b_N, f_N, before_N = b_N + length * step_N, f_N + length * step_f_N, active_N
        active_N = y_N * f_N < 1
        if length == 1.0 and (active_N == before_N).all():
            return b_N
    raise UserError(
        f"no SVM found at the cost {cost_N.min():g}: the problem is lost in rounding errors",
        hint="leave out the largest costs",
    )


def _line_search(
    y_N: np.ndarray,
    cost_N: np.ndarray,
    b_N: np.ndarray,
    f_N: np.ndarray,
    step_N: np.ndarray,
    step_f_N: np.ndarray,
) -> float:
    """Return the longest step of 1, 1/2, 1/4, … that lowers the objective by at least a
    ten-thousandth of the decrease its slope predicts (Armijo's rule)."""

    def objective(length: float) -> float:
        f = f_N + length * step_f_N
        norm = float((b_N + length * step_N) @ f)
        loss = float(cost_N @ np.square(np.maximum(0.0, 1 - y_N * f)))
        return 0.5 * norm + loss

    now = objective(0.0)
    residual_N = np.maximum(0.0, 1 - y_N * f_N)
    slope = float(b_N @ step_f_N - 2 * (cost_N * y_N * residual_N) @ step_f_N)
    length = 1.0
    while objective(length) > now + 1e-4 * length * slope + 1e-12 * abs(now) and length > 1e-6:
        length /= 2
    return length
