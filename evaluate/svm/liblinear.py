"""Linear SVMs by LIBLINEAR (Fan et al., JMLR 2008), the solver the papers name.

The dual of the L2-regularised squared hinge loss, with a regularised bias and tolerance 1e-4:
scikit-learn's ``LinearSVC`` calls the same library with the same options. The rows are converted
once, for all one-vs-rest problems over them."""

import ctypes
import os

import numpy as np
from liblinear.liblinear import feature_node, liblinear, parameter
from liblinear.liblinear import problem as Nodes

from protobench.runtime.errors import UserError

GOYAL_COSTS = tuple(sorted([10.0**e for e in range(-7, 3)] + [0.5**e for e in range(4, 20)]))
"""The 26 values of C that Goyal et al. (ICCV 2019) try."""

PCL_COST = 0.5
"""The value of C in PCL's released script since 2020-08-09 (its commit 5c8b722)."""
PCL_COSTS_2020_07 = (0.1, 0.5, 1.0)
"""Those of its first release, 2020-07-15 (af7287d), which reports the best on the test set."""

LARGEST_COST = 1e3
"""The largest C accepted: beyond it LIBLINEAR's limit of 1000 passes may end a fit before its
optimum. Against newton.py, on seven sets of 320 to 2000 random correlated rows in 512 or 2048
dimensions, its objective was too high by at most 0.0002 % at C = 100, 0.013 % at 1000, 0.17 % at
3000, 1 % at 1e4 and 24 % at 1e5. Published grids end at 100."""

_LIBC = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt  # type: ignore[attr-defined,unused-ignore]


class Problem:
    """Training rows x [N, D] for any number of binary problems.

    Raises UserError if a feature is not finite: LIBLINEAR would silently train on NaN."""

    def __init__(self, x_ND: np.ndarray):
        n, d = require_finite(x_ND).shape
        # each row: D values, the bias, the end marker
        self.nodes = np.empty((n, d + 2), dtype=feature_node)
        self.nodes["index"][:, :d], self.nodes["value"][:, :d] = np.arange(1, d + 1), x_ND
        self.nodes["index"][:, d], self.nodes["value"][:, d] = d + 1, 1.0
        self.nodes["index"][:, d + 1] = -1
        offset_N = np.arange(n, dtype=np.uint64) * np.uint64(self.nodes.strides[0])
        self.pointers = np.ascontiguousarray(self.nodes.ctypes.data + offset_N)

    def fit(self, positive_N: np.ndarray, cost: float, positive_weight: float = 1.0) -> np.ndarray:
        """Return weights [D + 1], the bias last; decision values are positive for ``positive_N``
        (bool [N]). Raises UserError if there is only one class, which LIBLINEAR would accept."""
        y_N = signs(positive_N)
        nodes = Nodes.__new__(Nodes)  # its constructor converts row by row in Python
        nodes.l, nodes.n, nodes.bias = len(y_N), self.nodes.shape[1] - 1, 1.0
        nodes.y = y_N.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        nodes.x = ctypes.cast(
            self.pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(feature_node))
        )
        options = parameter(f"-s 1 -c {cost:.17g} -e 1e-4 -B 1 -w1 {positive_weight:g} -w-1 1 -q")
        # LIBLINEAR permutes rows by the C library's rand; a fit must not depend on earlier ones
        _LIBC.srand(1)
        model = liblinear.train(ctypes.byref(nodes), ctypes.byref(options))
        w: np.ndarray = np.ctypeslib.as_array(model.contents.w, (nodes.n,)).copy()
        # LIBLINEAR takes the first label it meets as the positive one
        sign = 1.0 if model.contents.label[0] == 1 else -1.0
        liblinear.free_and_destroy_model(ctypes.byref(ctypes.pointer(model.contents)))
        w *= sign
        return w


def decision(x_ND: np.ndarray, w_CD: np.ndarray) -> np.ndarray:
    """Return decision values [N, C] of weights [C, D + 1]."""
    score_NC: np.ndarray = x_ND @ w_CD[:, :-1].T + w_CD[:, -1]
    return score_NC


def normalise(x_ND: np.ndarray) -> np.ndarray:
    """Return each row divided by its norm + 1e-5, in double precision, as the papers' SVM scripts
    do. Raises UserError if a value is not finite."""
    x_ND = require_finite(np.asarray(x_ND, dtype=np.float64))
    normalised_ND: np.ndarray = x_ND / (np.linalg.norm(x_ND, axis=1, keepdims=True) + 1e-5)
    return normalised_ND


def check_costs(costs: tuple[float, ...]) -> None:
    """Raise UserError if a cost is beyond what LIBLINEAR can solve, or given twice."""
    if not all(0 < cost <= LARGEST_COST for cost in costs) or len(set(costs)) < len(costs):
        raise UserError(
            f"--costs must be different positive numbers of at most {LARGEST_COST:g}, not {costs}",
            hint="beyond it LIBLINEAR stops before its optimum; published grids end at 100",
        )


def require_finite(x_ND: np.ndarray) -> np.ndarray:
    """Return ``x_ND``. Raises UserError if a value is not finite: NaN would silently be trained on
    or ranked."""
    if not np.isfinite(x_ND).all():
        raise UserError(
            "features contain NaN or infinity",
            hint="the encoder has diverged or its weights are damaged",
        )
    return x_ND


def signs(positive_N: np.ndarray) -> np.ndarray:
    """Return 1.0 for positive and -1.0 for negative rows. Raises UserError if there is only one
    class."""
    if positive_N.all() or not positive_N.any():
        raise UserError(
            f"an SVM needs two classes; all {len(positive_N)} training images are "
            f"{'positive' if positive_N.all() else 'negative'}",
            hint="draw more images per class",
        )
    return np.where(positive_N, 1.0, -1.0)
