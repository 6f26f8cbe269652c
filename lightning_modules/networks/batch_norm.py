"""BatchNorm over the global batch: what `nn.BatchNorm` is in one process, whatever the number of ranks.

torch's SyncBatchNorm does not run on CPUs, and its gradient cannot be differentiated again, as R1 does. Each exchange
waits for the slowest rank, so there are few: one in the forward pass and one in the backward pass, also for a batch of
several parts with statistics of their own.

Shapes: B samples of this rank in G parts, C channels, h w a feature map.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.distributed import mean_over_ranks, world_size


class _Global(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """(B, C) or (B, C, h, w), the same B on all ranks.

        `parts`: of equal size, in order; each is normalised, and counted in the running statistics, as a batch of its
        own.
        """
        if not self.training or x.is_meta or world_size() == parts == 1:  # without values there is nothing to exchange
            return super().forward(x)
        self._check_input_dim(x)
        weight = x.new_ones(self.num_features) if self.weight is None else self.weight
        bias = x.new_zeros(self.num_features) if self.bias is None else self.bias
        with torch.autocast(x.device.type, enabled=False):
            out, mean, var = _Normalise.apply(x.float(), weight, bias, self.eps, parts)
            self.track(mean, var, x.numel() // x.shape[1] // parts * world_size())
            return out.to(x.dtype)

    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Running statistics after those of each part, (G, C), of `count` values a channel."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        assert self.momentum is not None
        self.num_batches_tracked.add_(len(mean))
        for part_mean, part_var in zip(mean, var * (count / (count - 1)), strict=True):
            self.running_mean.lerp_(part_mean, self.momentum)
            self.running_var.lerp_(part_var, self.momentum)


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 (B, C, ...) -> the same normalised, and mean and biased variance (G, C); may be differentiated twice."""
    grouped = x.reshape(parts, len(x) // parts, x.shape[1], -1)  # (G, B/G, C, h w)
    local_var, local_mean = torch.var_mean(grouped, (1, 3), correction=0)  # (G, C)
    mean, square = mean_over_ranks(torch.stack([local_mean, local_var + local_mean.square()]))
    var = (square - mean.square()).clamp_min(0)
    scale = torch.rsqrt(var + eps) * weight  # (G, C)
    shift = bias - mean * scale
    out = torch.addcmul(shift[:, None, :, None], grouped, scale[:, None, :, None])
    return out.view(x.shape), mean, var


class _Normalise(torch.autograd.Function):
    """`normalise`, with a backward pass of one exchange. Where that pass has a graph itself, it is autograd's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> Any:
        out, mean, var = normalise(x, weight, bias, eps, parts)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.options = eps, parts
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, mean, var = ctx.saved_tensors
        eps, parts = ctx.options
        if torch.is_grad_enabled():
            inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
            found = iter(
                torch.autograd.grad(normalise(x, weight, bias, eps, parts)[0], inputs, grads[0], create_graph=True)
            )
            return *(next(found) if tensor.requires_grad else None for tensor in (x, weight, bias)), None, None
        grouped = x.reshape(parts, len(x) // parts, x.shape[1], -1)  # (G, B/G, C, h w)
        gradient = grads[0].reshape(grouped.shape)
        invstd = torch.rsqrt(var + eps)  # (G, C)
        total = gradient.sum((1, 3))  # (G, C)
        along = ((gradient * grouped).sum((1, 3)) - mean * total) * invstd  # with the normalised x
        count = grouped.shape[1] * grouped.shape[3]
        total_mean, along_mean = mean_over_ranks(torch.stack([total, along])) / count
        # dx = w invstd (dy - mean(dy) - xhat mean(dy xhat)), with xhat = (x - mean) invstd
        slope = -along_mean * invstd
        shift = -total_mean - slope * mean
        by_channel = [value[:, None, :, None] for value in (invstd * weight, slope, shift)]
        dx = torch.addcmul(gradient + by_channel[2], grouped, by_channel[1]).mul_(by_channel[0])
        return dx.view(x.shape), along.sum(0), total.sum(0), None, None


class BatchNorm1d(_Global, nn.BatchNorm1d):
    """nn.BatchNorm1d over the global batch: (B, C), with the same B on all ranks."""


class BatchNorm2d(_Global, nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch: (B, C, h, w), with the same B on all ranks."""
