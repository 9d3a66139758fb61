"""torchvision's operators in place of mmcv's, refusals of the others by name, and the errors for
missing or broken packages."""

import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate import detection
from evaluate.mmdet_adapter import operators
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("mmdet")


def overlap(a, b, offset):
    """Return the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inside = max(width, 0) * max(height, 0)

    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    return inside / (area(a) + area(b) - inside)


def greedy(boxes, scores, threshold, offset):
    """Return the boxes kept by non-maximum suppression, straight from its definition."""
    kept = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if all(overlap(boxes[index], boxes[other], offset) <= threshold for other in kept):
            kept.append(index)
    return kept


@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.sampled_from([0, 1]),
    st.sampled_from([0.31, 0.52, 0.73]),
)
@settings(max_examples=60, deadline=None)
def test_nms_is_greedy_suppression(seed, count, offset, threshold):
    from mmcv.ops import nms

    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 20, (count, 2)), rng.integers(1, 15, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32) / count + 0.01
    kept, index = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset=offset)
    assert index.tolist() == greedy(boxes.astype(float), scores, threshold, offset)
    np.testing.assert_array_equal(kept[:, :4].numpy(), boxes[index.numpy()])


def test_roi_align_averages_and_has_the_right_gradient():
    """On a plane the mean over a bin is the value at its centre; the gradient is compared with
    autograd's through torchvision's operator."""
    from mmcv.ops import RoIAlign

    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    plane = (3 * x + 5 * y)[None, None].clone().requires_grad_()
    rois = torch.tensor([[0, 2.0, 3.0, 18.0, 19.0]])
    pooled = RoIAlign(2, spatial_scale=0.5, sampling_ratio=2, aligned=True)(plane, rois)
    centres = torch.tensor([[3 * 2.5 + 5 * 3, 3 * 6.5 + 5 * 3], [3 * 2.5 + 5 * 7, 3 * 6.5 + 5 * 7]])
    torch.testing.assert_close(pooled[0, 0], centres)
    weights = torch.tensor([[[[1.0, 2], [3, 4]]]])
    (pooled * weights).sum().backward()
    other = plane.detach().clone().requires_grad_()
    (torchvision.ops.roi_align(other, rois, 2, 0.5, 2, aligned=True) * weights).sum().backward()
    torch.testing.assert_close(plane.grad, other.grad, rtol=0, atol=0)
    assert plane.grad.sum() == pytest.approx(10)


def test_other_operators_refuse_by_name_when_called():
    from mmcv.ops import DeformConv2d, RoIAlign, sigmoid_focal_loss, soft_nms

    boxes, x = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]]), torch.zeros(1, 1, 8, 8)
    with pytest.raises(NotImplementedError, match="softnms needs a compiled mmcv"):
        soft_nms(boxes, torch.tensor([0.9, 0.8]))
    with pytest.raises(NotImplementedError, match="maximum pooling"):
        RoIAlign(2, pool_mode="max")(x, torch.tensor([[0, 0.0, 0, 4, 4]]))
    with pytest.raises(NotImplementedError, match="deform_conv_forward"):
        DeformConv2d(1, 1, 3)(x, torch.zeros(1, 18, 6, 6))
    with pytest.raises(NotImplementedError, match="sigmoid_focal_loss_forward"):
        sigmoid_focal_loss(
            torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25, None, "mean"
        )


def test_a_compiled_mmcv_takes_precedence(monkeypatch):
    assert operators.provide() == "torchvision"
    monkeypatch.setitem(sys.modules, operators.NAME, types.ModuleType(operators.NAME))
    assert operators.provide.__wrapped__() == "mmcv"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    find = operators.find_spec
    monkeypatch.setattr(
        operators, "find_spec", lambda name: None if name == "mmdet" else find(name)
    )
    for call in (
        operators.check,
        operators.provide.__wrapped__,
        lambda: detection.EVALUATION.load_data(None, "voc07"),
    ):
        with pytest.raises(UserError, match="MMDetection is not installed: no mmdet") as error:
            call()
        assert "[detection]" in error.value.hint


def test_a_broken_package_is_reported(monkeypatch):
    def broken(name):
        raise AssertionError("MMCV==2.2.0 is used but incompatible")

    monkeypatch.setattr(operators.importlib, "import_module", broken)
    with pytest.raises(
        UserError, match=r"installed but broken: AssertionError: MMCV==2\.2\.0 is used"
    ):
        operators.provide.__wrapped__()


@pytest.mark.gpu
def test_operators_give_the_same_on_a_gpu():
    from mmcv.ops import RoIAlign, nms

    rng = np.random.default_rng(0)
    corner = torch.from_numpy(rng.uniform(0, 90, (300, 2)).astype(np.float32))
    size = torch.from_numpy(rng.uniform(1, 40, (300, 2)).astype(np.float32))
    boxes = torch.cat([corner, corner + size], 1)
    scores = torch.from_numpy(rng.permutation(300).astype(np.float32))
    for offset in (0, 1):
        cpu, gpu = (
            nms(boxes.to(device), scores.to(device), 0.5, offset=offset)[1].cpu()
            for device in ("cpu", "cuda")
        )
        torch.testing.assert_close(cpu, gpu)
    values = torch.from_numpy(rng.standard_normal((2, 8, 40, 40)).astype(np.float32))
    results = []
    for device in ("cpu", "cuda"):
        x = values.clone().to(device).requires_grad_()
        rois = torch.cat([torch.arange(300)[:, None] % 2, boxes], 1).to(device)
        out = RoIAlign(7, spatial_scale=0.25, sampling_ratio=0, aligned=True)(x, rois)
        out.square().sum().backward()
        results.append((out.detach().cpu(), x.grad.cpu()))
    on_cpu, on_gpu = results
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)
