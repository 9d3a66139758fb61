"""BatchNorm that does not depend on how many processes share a batch.

Its statistics are either those of the whole batch (``synchronise``: SimCLR's "global BN", and what
a single process does anyway), or those of groups of it (MoCo), of which each rank has some. In that
case ``RunningStatistics`` makes the running statistics what a single process would have, which sees
all groups in turn."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # 1d, 2d, and those already converted

from protobench.runtime import distributed


def synchronise(module: nn.Module, *, equal_shares: bool) -> nn.Module:
    """Returns the module with BatchNorms that see the batches of all ranks, and the same
    parameters, buffers and names.

    ``equal_shares``: all ranks have the same number of values per channel in every step. torch's
    own SyncBatchNorm, which is taken on GPUs where they may differ, makes the host wait for the GPU
    in every forward pass: it drops empty shares by a mask (pytorch#78549, #78656)."""
    on_gpu = next(module.parameters()).is_cuda
    if on_gpu and not equal_shares:
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronised
    kind = _SyncBatchNormGPU if on_gpu else _SyncBatchNormCPU
    return _replaced(module, lambda norm: _of(norm, kind))


def in_groups(module: nn.Module, groups: int) -> nn.Module:
    """Returns the module with BatchNorms of which each of ``groups`` equal parts of a batch has
    statistics of its own, and the same parameters, buffers and names. Convolutions see the whole
    batch: one part after another would be that many times the kernels, on small shapes."""

    def grouped(norm: _BatchNorm) -> nn.Module:
        found = _of(norm, _GroupedBatchNorm)
        found.groups = groups
        return found

    return _replaced(module, grouped)


N = TypeVar("N", bound=_BatchNorm)


def _replaced(module: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, make(child))
        else:
            _replaced(child, make)
    return module


def _of(norm: _BatchNorm, kind: type[N]) -> N:
    """Returns a BatchNorm of this kind with the parameters and buffers of ``norm``."""
    found = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    found.weight, found.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(found, name, buffer)
    return found.train(norm.training)


class _GroupedBatchNorm(nn.BatchNorm2d):
    """In training, normalises the parts of x [N, C, H, W] as if one came after another."""

    groups: int

    def forward(self, x: Tensor) -> Tensor:
        """Computes BatchNorm of each part."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        normalised = super().forward
        return torch.cat([normalised(part) for part in x.chunk(self.groups)])


class _SyncBatchNorm(_BatchNorm):
    """In training, normalises x [n, C, …] by mean and variance over all ranks, with gradient."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Accepts what BatchNorm1d and BatchNorm2d accept: the converted module had its own."""


class _SyncBatchNormCPU(_SyncBatchNorm):
    """By sums over all ranks, whose shares may differ in size."""

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


class _SyncBatchNormGPU(_SyncBatchNorm):
    """By torch's fused operators, which exist on GPUs only, for shares of equal size: nothing that
    the host would have to read is computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Computes BatchNorm of the whole batch."""
        if not self.training:
            return super().forward(x)
        if self.momentum is None:
            raise ValueError("plain means of statistics are not for shares of equal size")
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        y: Tensor = _WholeBatch.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        return y


class _WholeBatch(torch.autograd.Function):
    """BatchNorm over equal shares of all ranks. DistributedDataParallel averages the gradients of
    scale and shift, which are those of this rank's share."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x)
        own_2C = torch.cat(torch.batch_norm_stats(x, eps))
        mean_WC, deviation_WC = torch.stack(distributed.all_gather(own_2C)).chunk(2, 1)
        count_W = mean_WC.new_full((len(mean_WC),), x.numel() // x.shape[1])
        mean_C, deviation_C = torch.batch_norm_gather_stats_with_counts(
            x,
            mean_WC.contiguous(),
            deviation_WC.contiguous(),
            running_mean_C,
            running_var_C,
            momentum,
            eps,
            count_W,
        )
        ctx.save_for_backward(x, weight_C, mean_C, deviation_C, count_W.int())
        return torch.batch_norm_elemt(x, weight_C, bias_C, mean_C, deviation_C, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, deviation_C, count_W = ctx.saved_tensors
        gradient, needed = _dense(gradient), ctx.needs_input_grad
        of_y_C, of_y_x_C, of_weight_C, of_bias_C = torch.batch_norm_backward_reduce(
            gradient, x, mean_C, deviation_C, weight_C, *needed[:3]
        )
        of_x = None
        if needed[0]:
            sums = distributed.all_reduce_sum(torch.cat([of_y_C, of_y_x_C]))
            of_y_C, of_y_x_C = sums.chunk(2)
            of_x = torch.batch_norm_backward_elemt(
                gradient, x, mean_C, deviation_C, weight_C, of_y_C, of_y_x_C, count_W
            )
        learnt = (of_weight_C if needed[1] else None, of_bias_C if needed[2] else None)
        return of_x, *learnt, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """In a layout that the fused operators take: channels last where it is so already."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


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
