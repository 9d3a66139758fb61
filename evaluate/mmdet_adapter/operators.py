"""MMDetection without a compiler: torchvision's operators in place of mmcv's compiled ones.

MMDetection 3.3 needs mmcv 2.1, whose operators do not build with current torch (C++20). mmcv-lite
is mmcv without them; this module supplies the missing ``mmcv._ext``. NMS and RoIAlign, the only
operators that our detectors call, are torchvision's, which gave the same results as mmcv's compiled
ones on a CPU (80 cases of NMS; RoIAlign forward and backward, largest difference 0). Every other
operator raises NotImplementedError with its name when it is called. A compiled mmcv, where one is
installed, takes precedence."""

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
import torchvision  # noqa: F401 (importing it registers torch.ops.torchvision)
from torch import Tensor

from protobench.runtime.errors import UserError

NAME = "mmcv._ext"
INSTALL = "uv pip install -e '.[detection]', or use the environments that tox makes"


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes kept by greedy non-maximum suppression, highest score first.
    A box is (x2 - x1 + offset) wide."""
    if offset:
        boxes_N4 = boxes_N4 + boxes_N4.new_tensor([0, 0, offset, offset])
    kept: Tensor = torch.ops.torchvision.nms(boxes_N4, scores_N, iou_threshold)
    return kept


def roi_align_forward(
    input_NCHW: Tensor,
    rois_R5: Tensor,
    output_RCHW: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write average-pooled RoIAlign (He et al., ICCV 2017) into ``output_RCHW``."""
    _average_only(pool_mode)
    size = (aligned_height, aligned_width)
    pooled = torch.ops.torchvision.roi_align(
        input_NCHW, rois_R5, spatial_scale, *size, sampling_ratio, aligned
    )
    output_RCHW.copy_(pooled)


def roi_align_backward(
    grad_RCHW: Tensor,
    rois_R5: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input_NCHW: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of ``roi_align_forward`` into ``grad_input_NCHW``."""
    _average_only(pool_mode)
    sizes = (aligned_height, aligned_width, *grad_input_NCHW.shape)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_RCHW, rois_R5, spatial_scale, *sizes, sampling_ratio, aligned
    )
    grad_input_NCHW.copy_(gradient)


def _average_only(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("mmcv's RoIAlign with maximum pooling needs a compiled mmcv")


class _Operators(ModuleType):
    """The module ``mmcv._ext``. On import mmcv.ops looks up about a hundred operators in it; it
    calls only those that a detector needs."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} needs a compiled mmcv")

        return refuse


def check() -> None:
    """Raise UserError if MMDetection or one of its requirements is not installed. Nothing is
    imported: whether they work is for ``provide`` to find out."""
    packages = ("mmdet", "mmengine", "mmcv", "cv2", "pycocotools")
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(f"MMDetection is not installed: no {', '.join(missing)}", hint=INSTALL)


@cache
def provide() -> Literal["torchvision", "mmcv"]:
    """Make MMDetection importable and return whose operators it runs on. Raises UserError if it is
    missing or broken."""
    check()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their dependencies are newer than they are
        try:
            if NAME not in sys.modules and find_spec(NAME) is None:
                module = _Operators(NAME)
                # without a loader mmengine takes mmcv for the lite one
                module.__spec__ = ModuleSpec(NAME, None)
                sys.modules[NAME] = module
            for package in (
                "mmcv.ops",
                "mmdet.models",
                "mmdet.datasets.transforms",
                "mmdet.evaluation.functional",
            ):
                importlib.import_module(package)
            from mmengine.registry import DefaultScope

            DefaultScope.get_instance("protobench", scope_name="mmdet")
        except Exception as failure:  # a broken package may raise anything
            raise UserError(
                f"MMDetection is installed but broken: {type(failure).__name__}: {failure}",
                hint=INSTALL,
            ) from failure
    # the mask branch indexes this way in every step
    warnings.filterwarnings("ignore", "indexing with dtype torch.uint8")
    return "torchvision" if isinstance(sys.modules[NAME], _Operators) else "mmcv"
