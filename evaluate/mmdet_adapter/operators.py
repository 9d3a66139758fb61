"""MMDetection without a compiler: the few compiled operators that its detectors here call, from
torchvision.

MMDetection 3.3 needs mmcv 2.1, whose operators do not build with current torch (C++20). mmcv-lite
has all of mmcv but these; this file puts ``mmcv._ext`` in their place. NMS and RoIAlign are
torchvision's, which gave the same as mmcv's compiled ones on a CPU (80 cases of NMS; RoIAlign
forward and backward, largest difference 0). Every other operator raises NotImplementedError, by
name, when it is called. Where a compiled mmcv is installed, that is used and nothing here is."""

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
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor

from protobench.runtime.errors import UserError

NAME = "mmcv._ext"
INSTALL = "uv pip install -e '.[detection]', or use the environments that tox makes"


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, by falling score. A box is (x2 -
    x1 + offset) wide."""
    if offset:
        boxes_N4 = boxes_N4 + boxes_N4.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes_N4, scores_N, iou_threshold)


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
    """Average-pooled RoIAlign (He et al., ICCV 2017) into ``output_RCHW``."""
    _average_only(pool_mode)
    output_RCHW.copy_(
        torch.ops.torchvision.roi_align(
            input_NCHW,
            rois_R5,
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


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
    """Its gradient into ``grad_input_NCHW``."""
    _average_only(pool_mode)
    grad_input_NCHW.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_RCHW,
            rois_R5,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input_NCHW.shape,
            sampling_ratio,
            aligned,
        )
    )


def _average_only(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("mmcv's RoIAlign with maximum pooling needs a compiled mmcv")


class _Operators(ModuleType):
    """``mmcv._ext``: mmcv.ops asks for about a hundred names when it is imported and calls those
    that a detector needs."""

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
    """UserError where MMDetection or what it stands on is not installed. Imports nothing; whether
    it works, ``provide`` tells."""
    if missing := [
        package
        for package in ("mmdet", "mmengine", "mmcv", "cv2", "pycocotools")
        if find_spec(package) is None
    ]:
        raise UserError(f"MMDetection is not installed: no {', '.join(missing)}", hint=INSTALL)


@cache
def provide() -> Literal["torchvision", "mmcv"]:
    """Makes MMDetection importable and returns whose operators it runs on. UserError where it is
    missing or broken."""
    check()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their dependencies, which are newer than they
        try:
            if NAME not in sys.modules and find_spec(NAME) is None:
                module = _Operators(NAME)
                module.__spec__ = ModuleSpec(
                    NAME, None
                )  # without a loader mmengine counts mmcv as the lite one
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
        except Exception as failure:  # whatever a broken package raises
            raise UserError(
                f"MMDetection is installed but broken: {type(failure).__name__}: {failure}",
                hint=INSTALL,
            ) from failure
    warnings.filterwarnings(
        "ignore", "indexing with dtype torch.uint8"
    )  # as its mask branch does in every step
    return "torchvision" if isinstance(sys.modules[NAME], _Operators) else "mmcv"
