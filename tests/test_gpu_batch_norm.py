"""BatchNorm over the equal shares of several GPUs: its use of torch's fused operators, which a CPU
lacks and which stand here as their definitions, against BatchNorm of the whole batch."""

import parallel
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from protobench import batch_norm
from protobench.runtime import distributed


def _stats(x, eps):
    others = (0, *range(2, x.ndim))
    return x.mean(others), (x.var(others, correction=0) + eps).rsqrt()


def _gathered(x, mean_WC, deviation_WC, running_mean, running_var, momentum, eps, count_W):
    """Pools means and variances, which stand as 1 / sqrt(variance + eps), and moves the running
    ones."""
    share_W1 = (count_W / count_W.sum())[:, None]
    mean = (share_W1 * mean_WC).sum(0)
    variance = (share_W1 * (deviation_WC**-2 - eps + (mean_WC - mean) ** 2)).sum(0)
    n = count_W.sum()
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * n / (n - 1), momentum)
    return mean, (variance + eps).rsqrt()


def _wide(x, *values):
    return [value.view(1, -1, *[1] * (x.ndim - 2)) for value in values]


def _normalised(x, weight, bias, mean, deviation, eps):
    mean, deviation, weight, bias = _wide(x, mean, deviation, weight, bias)
    return (x - mean) * deviation * weight + bias


def _reduced(gradient, x, mean, deviation, weight, *wanted):
    others = (0, *range(2, x.ndim))
    (wide,) = _wide(x, mean)
    sum_dy, sum_dy_xmu = gradient.sum(others), (gradient * (x - wide)).sum(others)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * deviation, sum_dy


def _of_input(gradient, x, mean, deviation, weight, sum_dy, sum_dy_xmu, count_W):
    n = count_W.sum()
    mean, deviation, weight, sum_dy, sum_dy_xmu = _wide(
        x, mean, deviation, weight, sum_dy, sum_dy_xmu
    )
    return (gradient - sum_dy / n - (x - mean) * deviation**2 * sum_dy_xmu / n) * deviation * weight


FUSED = {
    "batch_norm_stats": _stats,
    "batch_norm_gather_stats_with_counts": _gathered,
    "batch_norm_elemt": _normalised,
    "batch_norm_backward_reduce": _reduced,
    "batch_norm_backward_elemt": _of_input,
}


class _Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function.overloadpacket))
        return function(*args, **kwargs or {})


def _network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(36))
    with torch.no_grad():
        network[1].weight.uniform_(), network[1].bias.normal_()
    network[3].bias.requires_grad_(False)
    return network.double()


def _data():
    return torch.randn(12, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _synchronised():
    """Two steps on this process's share, and one in evaluation mode: outputs, gradients, statistics
    and the operators called."""
    for name, definition in FUSED.items():
        setattr(torch, name, definition)
    network = batch_norm._replaced(
        _network(), lambda norm: batch_norm._of(norm, batch_norm._SyncBatchNormGPU)
    )
    found = []
    for training in (True, True, False):
        mine = distributed.shard_of(_data()).clone().requires_grad_()
        with _Called() as called:
            output = network.train(training)(mine)
            output.sin().sum().backward()
        found.append((output.detach(), mine.grad))
    gradients = {
        name: distributed.all_reduce_sum(p.grad)
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    return found, gradients, network.state_dict(), called.names


@pytest.mark.parametrize("processes", [2, 3])
def test_equal_shares_are_normalised_as_the_whole_batch(processes):
    network, expected = _network(), []
    for training in (True, True, False):
        whole = _data().requires_grad_()
        output = network.train(training)(whole)
        output.sin().sum().backward()
        expected.append((output.detach(), whole.grad))
    answers = parallel.run(_synchronised, processes=processes)
    for step, pair in enumerate(expected):
        for place, value in enumerate(pair):
            whole = torch.cat([found[step][place] for found, *_ in answers])
            torch.testing.assert_close(whole, value, rtol=1e-9, atol=1e-9)
    for _, gradients, state, _ in answers:
        assert gradients.keys() == {n for n, p in network.named_parameters() if p.requires_grad}
        for name, value in gradients.items():
            torch.testing.assert_close(
                value, network.get_parameter(name).grad, rtol=1e-9, atol=1e-9
            )
        for name, value in network.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)


def _waits():
    for name, definition in FUSED.items():
        setattr(torch, name, definition)
    norm = batch_norm._of(nn.BatchNorm2d(3), batch_norm._SyncBatchNormGPU)
    with _Called() as called:
        norm(torch.randn(2, 3, 2, 2)).sum().backward()
    return called.names


def test_no_process_reads_a_result_of_its_gpu():
    """torch's own drops empty shares by a mask: an index whose size the host has to wait for."""
    for names in parallel.run(_waits):
        assert any("all_gather" in name or "allgather" in name for name in names), names
        assert not names & {"aten.index", "aten.nonzero", "aten._local_scalar_dense", "aten.item"}


def test_gpus_get_the_fused_one_unless_shares_may_differ(monkeypatch):
    """By a parameter that says that it is on a GPU."""
    module = nn.Sequential(nn.BatchNorm2d(3))
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    kinds = [
        type(batch_norm.synchronise(nn.Sequential(nn.BatchNorm2d(3)), equal_shares=equal)[0])
        for equal in (True, False)
    ]
    assert kinds == [batch_norm._SyncBatchNormGPU, nn.SyncBatchNorm]
    monkeypatch.undo()
    kinds = {type(batch_norm.synchronise(module, equal_shares=equal)[0]) for equal in (True, False)}
    assert kinds == {batch_norm._SyncBatchNormCPU}
