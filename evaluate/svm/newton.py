"""The SVMs of svm.py for a whole grid of costs, solved exactly: Newton's method on the Gram matrix
of a few training rows.

The squared hinge is quadratic where it is active, so each step solves one positive definite system
over the rows inside the margin, and the optimum is reached when these no longer change (Keerthi and
DeCoste, JMLR 2005; Chapelle, Neural Computation 2007). From one cost to the next few rows change.
There is no tolerance and no order of rows to choose; LIBLINEAR, told to go on to 1e-10, comes to
the same. Cost grows with the cube of the rows: for low-shot training sets, not for all of VOC07.
Shapes: N training rows, M test rows, D feature, J costs."""

import numpy as np
from scipy.linalg.lapack import dposv

from evaluate.svm.liblinear import finite, signs
from protobench.runtime.errors import UserError

MAX_STEPS = 100


def gram(x_ND: np.ndarray) -> np.ndarray:
    """Inner products [N, N] of the rows, each with a constant 1 for the regularised bias. UserError
    for features not finite."""
    return finite(x_ND) @ x_ND.T + 1.0


def path(
    gram_NN: np.ndarray,
    positive_N: np.ndarray,
    costs: tuple[float, ...],
    positive_weight: float = 1.0,
) -> np.ndarray:
    """Dual coefficients b [J, N] of min |w|^2 / 2 + sum_n C_n max(0, 1 - y_n f_n)^2, where w =
    sum_n b_n x_n and f = gram b.

    C_n is the cost, times ``positive_weight`` for a positive row. Raises UserError for a single
    class, and where rounding keeps the system from being solved (costs beyond any published grid).
    """
    y_N, weight_N = signs(positive_N), np.where(positive_N, positive_weight, 1.0)
    found = np.empty((len(costs), len(y_N)))
    b_N = np.zeros(len(y_N))
    for j in np.argsort(costs):
        found[j] = b_N = _newton(gram_NN, y_N, costs[j] * weight_N, b_N)
    return found


def decision(test_MD: np.ndarray, x_ND: np.ndarray, b_WN: np.ndarray) -> np.ndarray:
    """Decision values [M, W] of any number W of SVMs over the same rows; by weights or inner
    products, whichever is less work."""
    return np.linalg.multi_dot([test_MD, x_ND.T, b_WN.T]) + b_WN.sum(1)


def _newton(
    gram_NN: np.ndarray, y_N: np.ndarray, cost_N: np.ndarray, b_N: np.ndarray
) -> np.ndarray:
    f_N = gram_NN @ b_N
    active_N = y_N * f_N < 1
    for _ in range(MAX_STEPS):
        rows = np.flatnonzero(active_N)
        step_N = -b_N
        if len(rows):  # with none inside the margin the weights can only shrink
            system = gram_NN.take(rows, 0).take(rows, 1)
            system.flat[:: len(rows) + 1] += 0.5 / cost_N[rows]
            _, b_rows, trouble = dposv(
                system.T, y_N[rows], lower=True, overwrite_a=True
            )  # .T: in the order LAPACK wants
            if trouble:
                break
            step_N[rows] += b_rows
        step_f_N = gram_NN @ step_N
        length = _line_search(y_N, cost_N, b_N, f_N, step_N, step_f_N)
        b_N, f_N, before_N = b_N + length * step_N, f_N + length * step_f_N, active_N
        active_N = y_N * f_N < 1
        if length == 1.0 and (active_N == before_N).all():
            return b_N
    raise UserError(
        f"no SVM found at the cost {cost_N.min():g}: rounding hides what it asks for",
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
    """The longest of 1, 1/2, 1/4, … that lowers the objective by a ten-thousandth of what its slope
    promises."""

    def objective(length: float) -> float:
        f = f_N + length * step_f_N
        return 0.5 * float((b_N + length * step_N) @ f) + float(
            cost_N @ np.square(np.maximum(0.0, 1 - y_N * f))
        )

    now = objective(0.0)
    residual_N = np.maximum(0.0, 1 - y_N * f_N)
    slope = float(b_N @ step_f_N - 2 * (cost_N * y_N * residual_N) @ step_f_N)
    length = 1.0
    while objective(length) > now + 1e-4 * length * slope + 1e-12 * abs(now) and length > 1e-6:
        length /= 2
    return length
