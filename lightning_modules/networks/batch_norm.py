"""BatchNorm over the global batch: what `nn.BatchNorm` is in one process, whatever the number of ranks.

torch's SyncBatchNorm does not run on CPUs, and its gradient cannot be differentiated again, as R1 does.

Shapes: B samples of this rank, C channels, h w a feature map.
"""

import torch
from torch import Tensor, nn

from lightning_modules.distributed import mean_over_ranks, world_size


class _Global(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:  # (B, C) or (B, C, h, w), the same B on all ranks
        if not self.training or world_size() == 1 or x.is_meta:  # without values there is nothing to exchange
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.normalise(x.float()).to(x.dtype)

    def normalise(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        local_var, local_mean = torch.var_mean(x, dims, correction=0)  # (C,)
        mean, square = mean_over_ranks(torch.stack([local_mean, local_var + local_mean.square()]))
        var = (square - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                assert self.momentum is not None
                count = x.numel() // x.shape[1] * world_size()
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = torch.rsqrt(var + self.eps) * (1 if self.weight is None else self.weight)  # (C,)
        shift = -mean * scale + (0 if self.bias is None else self.bias)
        return torch.addcmul(shift.view(shape), x, scale.view(shape))


class BatchNorm1d(_Global, nn.BatchNorm1d):
    """nn.BatchNorm1d over the global batch: (B, C), with the same B on all ranks."""


class BatchNorm2d(_Global, nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch: (B, C, h, w), with the same B on all ranks."""
