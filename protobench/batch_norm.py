"""BatchNorm that does not depend on how many processes share a batch.

Its statistics are either those of the whole batch (``synchronise``: SimCLR's "global BN", and what
a single process does anyway), or those of groups of it (MoCo), of which each rank has some. In that
case ``RunningStatistics`` makes the running statistics what a single process would have, which sees
all groups in turn."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # 1d, 2d, and those already converted

from protobench.runtime import distributed


def synchronise(module: nn.Module) -> nn.Module:
    """Returns the module with BatchNorms that see the batches of all ranks, and the same
    parameters, buffers and names. Torch's own only work on GPUs: on a CPU they are
    ``_SyncBatchNormCPU``."""
    return (
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        if next(module.parameters()).is_cuda
        else _synchronise_on_cpu(module)
    )


def _synchronise_on_cpu(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _SyncBatchNormCPU.of(child))
        else:
            _synchronise_on_cpu(child)
    return module


class _SyncBatchNormCPU(_BatchNorm):
    """In training, normalises x [n, C, …] by mean and variance over all ranks, with gradient."""

    @staticmethod
    def of(norm: _BatchNorm) -> "_SyncBatchNormCPU":
        """Returns a BatchNorm with the parameters and buffers of ``norm``."""
        found = _SyncBatchNormCPU(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        found.weight, found.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(found, name, buffer)
        return found.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Computes BatchNorm of the whole batch."""
        if not self.training:
            return super().forward(x)
        y, count = (
            x.float() if x.dtype == torch.bfloat16 else x,
            x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64),
        )
        n = distributed.all_reduce_sum(count).to(y.dtype)  # shards may differ in size
        others, by_channel = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        mean_C = distributed.all_reduce_sum(y.sum(others)) / n
        centred = y - mean_C.view(by_channel)
        variance_C = distributed.all_reduce_sum(centred.square().sum(others)) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)  # type: ignore[union-attr]
            self.running_var.lerp_((variance_C * n / (n - 1)).to(self.running_var.dtype), share)  # type: ignore[union-attr]
        scale_C = (variance_C + self.eps).rsqrt()
        if not self.affine:
            return (centred * scale_C.view(by_channel)).to(x.dtype)
        scaled = centred * (self.weight * scale_C).view(by_channel) + self.bias.view(by_channel)
        return scaled.to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accepts what BatchNorm1d and BatchNorm2d accept: the converted module had its own."""


class RunningStatistics:
    """The running means and variances of a module whose BatchNorms see ``groups`` groups per step
    on each rank.

    A group g changes statistics r to (1 - m) r + m s_g. P ranks start a step from the same r and
    end it with their own r_p. All groups in the order of ranks would give
    r d^P + sum_p (r_p - d r) d^(P - 1 - p), where d = (1 - m)^groups."""

    def __init__(self, module: nn.Module, groups: int):
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        self.buffers: list[Any] = [
            buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)
        ]
        self.counters: list[Any] = [norm.num_batches_tracked for norm in norms]
        self.decay, self.groups = (1 - (norms[0].momentum or 0.0)) ** groups, groups
        self.start()

    def start(self) -> None:
        """Call this before the first step, and after the buffers were set."""
        self.before = self._flat()

    @torch.no_grad()
    def merge(self) -> None:
        """Call this after each step. Collective."""
        processes = distributed.world_size()
        later = self.before * self.decay**processes
        for number, after in enumerate(distributed.all_gather(self._flat())):
            later += (after - self.decay * self.before) * self.decay ** (processes - 1 - number)
        torch._foreach_copy_(
            self.buffers, list(later.split([len(buffer) for buffer in self.buffers]))
        )
        torch._foreach_add_(self.counters, self.groups * (processes - 1))
        self.before = later

    def _flat(self) -> Tensor:
        return torch.cat(self.buffers)
