"""Pictures that modules show in TensorBoard."""

from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_tensor
from torchvision.utils import make_grid

MIN_PIXELS = 64  # of an image's side in a grid with names


def sample_grid(module: Any, num_images: int, seed: int = 0) -> Tensor:
    """Images 0, 1, ... of `seed`, a class a column: (3, height, width) in [0, 1]."""
    images, _, _ = module.sample(list(range(num_images)), seed)
    return make_grid((images.cpu() + 1) / 2, nrow=num_columns(module.num_conditions), padding=2)


def num_columns(num_classes: int) -> int:
    """Of a grid of images whose classes come in turn: eight or more, and a class keeps to its columns."""
    return max(1, 8 // num_classes) * num_classes if 1 < num_classes <= 16 else 8


def reconstruction_grid(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Inputs, reconstructions and absolute errors, a row each with its name: (3, height, width) in [0, 1]."""
    reconstruction = reconstruction.clamp(-1, 1).float()
    error = (reconstruction - images).abs() - 1  # [0, 2] -> [-1, 1]
    factor = -(-MIN_PIXELS // images.shape[-1])  # small images are enlarged, so that names fit beside them
    rows = []
    for name, part in (("input", images), ("reconstruction", reconstruction), ("error", error)):
        part = ((part.cpu() + 1) / 2).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        rows.append(torch.cat([name_strip(name, part.shape[-2]), make_grid(part, len(part), 2)[:, 2:-2]], -1))
    return torch.cat(rows, -2)


def name_strip(text: str, height: int) -> Tensor:
    """`text` in white on black: (3, height, 150) in [0, 1]."""
    strip = Image.new("L", (150, height))
    ImageDraw.Draw(strip).text((4, height // 2), text, fill=255, font=ImageFont.load_default(20), anchor="lm")
    return to_tensor(strip).expand(3, -1, -1)


def bits_figure(bits_by_position: Tensor) -> Any:
    """Bits per token (T,) along the raster."""
    from matplotlib.figure import Figure

    axes = (figure := Figure((6, 3), layout="constrained")).subplots()
    axes.plot(range(len(bits_by_position)), bits_by_position)
    axes.set(xlabel="token, raster order", ylabel="bits")
    return figure


def accuracy_figure(module: Any) -> Any:
    """Held-out and test accuracy of a probe by block, the chosen block marked (A-Figure 3)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    blocks, (heldout, val) = module.features.blocks, module.by_block
    axes = (figure := Figure((6, 3.5), layout="constrained")).subplots()
    axes.plot(blocks, heldout, "o--", label=f"held-out training images, {module.num_seen[0]:,}")
    axes.plot(blocks, val, "o-", label=f"test images, {module.num_seen[1]:,}")
    axes.axvline(module.best_block, color="grey", linestyle=":", label=f"chosen: block {module.best_block}")
    axes.set(xlabel="block", ylabel="top-1 accuracy, %", title=f"linear probe of {module.features.name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure
