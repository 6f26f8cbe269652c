"""DiT-S/2 on latents of 8 x 16 x 16: its training step against blocks of timm's parts, Heun against a plain loop.

    python -m benchmarks.dit              # a step of 16 images; 64 images by one guided step of Heun

The step (forward, backward, AdamW) is that of SiT; on the other side the blocks are written as in DiT's own code, of
timm's `Attention` and `Mlp`, with the same weights, and give the same output. The loop calls the network for the class
and for "no class" one after the other, and each call makes the condition of every image anew; `flow.sample` calls it
once for both. The last lines are `NAME RATIO`: how many times faster this project is.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules import flow
from lightning_modules.flow import FlowSamplingConfig
from lightning_modules.networks.dit import DiT, DiTBlock, DiTConfig

CHANNELS, GRID, CLASSES = 8, (16, 16), 1000


class TimmBlock(nn.Module):
    """DiT's block of timm's parts, with the weights of one of ours."""

    def __init__(self, ours: DiTBlock) -> None:
        super().__init__()
        width = ours.modulation.in_features
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, num_heads=ours.attention.heads, qkv_bias=True)
        self.mlp = Mlp(width, 4 * width, act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]
        self.modulation = nn.Sequential(nn.Linear(width, 6 * width))
        weights = list(ours.parameters())
        for mine, given in zip(self.parameters(), weights, strict=True):  # the same parts in the same order
            mine.data.copy_(given)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)  # (B, D)
        x = x + gate1[:, None] * self.attention(self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None])
        return x + gate2[:, None] * self.mlp(self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None])


def network(size: str) -> DiT:
    """None of its weights is zero, or its blocks would do nothing."""
    torch.manual_seed(0)
    made = DiT(DiTConfig(size=size, drop_sigma=True), CHANNELS, GRID, CLASSES)
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return made


def of_timm(size: str) -> DiT:
    made = network(size)
    made.blocks = nn.ModuleList(TimmBlock(block) for block in made.blocks)  # type: ignore[arg-type]
    return made


def training_step(model: DiT, latents: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run() -> None:
        times, noise = torch.rand(len(latents)), torch.randn_like(latents)
        optimizer.zero_grad()
        flow.loss(model, latents, labels, times, noise).mean().backward()
        optimizer.step()

    return run


@torch.no_grad()
def heun_loop(model: DiT, config: FlowSamplingConfig, noise: Tensor, labels: Tensor) -> Tensor:
    """As `flow.sample`, of two calls for each velocity."""
    x, size, none = noise, 1 / config.steps, torch.full_like(labels, model.no_class)

    def velocity(t: float, x: Tensor) -> Tensor:
        times = torch.full(x.shape[:1], t)
        base = model(x, times, none)
        return base + config.guidance_scale * (model(x, times, labels) - base)

    for step in range(config.steps):
        first = velocity(step * size, x)
        second = velocity((step + 1) * size, x + size * first)
        x = x + size * (first + second) / 2
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="s", help="a key of DIT_SIZES")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step")
    parser.add_argument("--images", type=int, default=64, help="that are sampled")
    parser.add_argument("--steps", type=int, default=1, help="of Heun, of two calls each")
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours, theirs = network(arguments.size), of_timm(arguments.size)
    noise = torch.randn(arguments.images, CHANNELS, *GRID)
    labels = torch.arange(arguments.images) % CLASSES
    batch = noise[: arguments.batch], labels[: arguments.batch]
    with torch.no_grad():
        outputs = [model(batch[0][:2], torch.tensor([0.1, 0.9]), batch[1][:2]) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    subject, baseline = (training_step(model, *batch) for model in (ours, theirs))
    seconds = paired(subject, baseline, arguments.runs)
    sides = (
        Side("DiT block (ours)", seconds[0], peak_memory(subject)),
        Side("blocks of timm's parts", seconds[1], peak_memory(baseline)),
    )
    report("dit_step_vs_timm", *sides)

    config = FlowSamplingConfig(steps=arguments.steps, guidance_scale=4.0)
    model = ours.eval()

    def sample() -> Tensor:
        return flow.sample(model, config, lambda: noise, labels, model.no_class)

    def loop() -> Tensor:
        return heun_loop(model, config, noise, labels)

    torch.testing.assert_close(sample(), loop(), rtol=1e-3, atol=1e-3)
    seconds = paired(sample, loop, max(2, arguments.runs // 2), warmup=0)
    report("heun_vs_loop", Side("flow.sample", seconds[0]), Side("two calls a velocity", seconds[1]))


if __name__ == "__main__":
    main()
