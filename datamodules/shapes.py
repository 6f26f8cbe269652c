"""Rendered shapes in ten classes: textured, lit, antialiased, at any resolution, with no file needed.

Image i of a split is a function of (seed, split, i) alone: a hash of these, not a generator's state, supplies its
random numbers, so any part of the set can be rendered in any order and comes out the same.

Shapes: n images, S = image_size; a shape lives in a frame where it is about 1 in radius.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayDataset
from datamodules.base import DataConfig, ImageDataModule

CHUNK = 1 << 18  # pixels rendered at a time: fits the processor's cache


@dataclass
class ShapesConfig(DataConfig):
    """Rendered shapes; ``data_seed`` picks the set, class = index mod 10."""

    name: str = "shapes"
    train_size: int | None = 10_000
    val_size: int | None = 2_000


# Signed distances to a shape of radius 1: x, y (n, S, S) -> (n, S, S), negative inside, slope about 1 at the edge.


def disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def polygon(sides: int, apothem: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Regular polygon; apothem = distance of a side from the centre."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        angles = [2 * math.pi * k / sides for k in range(sides)]
        planes = [x * math.cos(angle) + y * math.sin(angle) for angle in angles]
        return torch.stack(planes).amax(0) - apothem

    return distance


def box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.26


def cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(box(x, y, 1.0, 0.32), box(x, y, 0.32, 1.0))


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points at radius 1.1, five notches at 0.48: one edge, folded ten times around."""
    fold, outer, inner = math.pi / 5, 1.1, 0.48
    angle = (torch.remainder(torch.atan2(y, x) + fold, 2 * fold) - fold).abs()  # in [0, pi/5], 0 at a point
    radius = torch.hypot(x, y)
    dx, dy = outer - inner * math.cos(fold), inner * math.sin(fold)
    return (dy * (radius * angle.cos() - outer) + dx * radius * angle.sin()) / math.hypot(dx, dy)


def ellipse(x: Tensor, y: Tensor) -> Tensor:
    """Half axes 1.1 and 0.55; distance to first order: f |p| / |grad f|."""
    level = torch.hypot(x / 1.1, y / 0.55)
    return level * (level - 1) / torch.hypot(x / 1.1**2, y / 0.55**2).clamp(min=1e-6)


def bars(x: Tensor, y: Tensor) -> Tensor:
    """Three parallel bars."""
    return box(x, y - 0.68 * (y / 0.68).round().clamp(-1, 1), 0.95, 0.2)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1, 0.82 - torch.hypot(x - 0.5, y))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": disc,
    "square": polygon(4, 0.82),
    "triangle": polygon(3, 0.6),
    "ring": ring,
    "cross": cross,
    "star": star,
    "ellipse": ellipse,
    "bars": bars,
    "crescent": crescent,
    "hexagon": polygon(6, 0.9),
}

CLASSES = list(SHAPES)


def uniform(key: np.ndarray, count: int, start: int = 0) -> Tensor:
    """Random numbers ``start`` to ``start + count`` of each key: (n,) uint64 -> (n, count) float32 in [0, 1).

    The splitmix64 generator (Steele, Lea and Flood, 2014), which can be entered at any counter.
    """
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = key[:, None] + counter  # (n, count), modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def image_keys(indices: np.ndarray, split: str, seed: int) -> np.ndarray:
    """One 64-bit key an image: (n,) int -> (n,) uint64, from numpy's stable seed hash of (seed, split)."""
    base = np.random.SeedSequence([seed, ("train", "val").index(split)]).generate_state(1, np.uint64)
    key = base + indices.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    key = (key ^ (key >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return key ^ (key >> np.uint64(32))


def colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1], each (n,), to RGB (n, 3, 1, 1) in [0, 1]."""
    thirds = torch.tensor([0.0, 1 / 3, 2 / 3])
    pure = 0.5 + 0.5 * torch.cos(2 * math.pi * (hue[:, None] - thirds))  # (n, 3)
    rgb = value[:, None] * (1 - saturation[:, None] * (1 - pure))
    return rgb[:, :, None, None]


def waves(x: Tensor, y: Tensor, u: Tensor, lowest: float, highest: float) -> Tensor:
    """A plane wave in [-1, 1] at a random angle, frequency (cycles a unit) and phase; u (n, 3), x, y (n, S, S)."""
    angle, phase = 2 * math.pi * u[:, 0], 2 * math.pi * u[:, 2]
    frequency = 2 * math.pi * (lowest + (highest - lowest) * u[:, 1])
    kx, ky = (frequency * angle.cos())[:, None, None], (frequency * angle.sin())[:, None, None]
    return torch.sin(kx * x + ky * y + phase[:, None, None])


def render(indices: np.ndarray, split: str, size: int, seed: int = 0) -> Tensor:
    """Render images of a split, shape = index mod 10.

    Args:
        indices: (n,) int.
        split: "train" or "val".
        size: side in pixels.
        seed: of the set.

    Returns:
        (n, 3, size, size) uint8.
    """
    per_chunk = max(10, CHUNK // size**2)
    parts = [indices[i : i + per_chunk] for i in range(0, len(indices), per_chunk)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: where cores are shared, two threads took ten times as long
    try:
        return torch.cat([_render(part, split, size, seed) for part in parts])
    finally:
        torch.set_num_threads(threads)


def _render(indices: np.ndarray, split: str, size: int, seed: int) -> Tensor:
    key = image_keys(indices, split, seed)
    u = uniform(key, 40)  # (n, 40): what the scene is made of
    one = u[:, :, None, None]  # (n, 40, 1, 1): u for use on pixels

    axis = (torch.arange(size) + 0.5) / size * 2 - 1  # (S,) pixel centres, the image spans [-1, 1]
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (S, S)

    # The shape's own frame: moved, turned, scaled.
    scale = 0.42 + 0.28 * one[:, 0]  # (n, 1, 1) radius in image units
    room = 0.9 - scale
    dx, dy = x - room * (2 * one[:, 1] - 1), y - room * (2 * one[:, 2] - 1)  # (n, S, S)
    turn = 2 * math.pi * one[:, 3]
    px = (turn.cos() * dx + turn.sin() * dy) / scale
    py = (turn.cos() * dy - turn.sin() * dx) / scale
    light = 2 * math.pi * u[:, 4]  # (n,) where the light comes from
    lx, ly = light.cos()[:, None, None], light.sin()[:, None, None]

    # Distances to the shape, and to its shadow, which is cast away from the light.
    shift = 0.16
    sx = px + shift * (turn.cos() * lx + turn.sin() * ly)
    sy = py + shift * (turn.cos() * ly - turn.sin() * lx)
    distance, shadow = torch.empty_like(px), torch.empty_like(px)  # (n, S, S)
    labels = torch.from_numpy(indices % len(SHAPES))
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(px[chosen], py[chosen])
        shadow[chosen] = shape(sx[chosen], sy[chosen])
    cover = (0.5 - distance * scale * size / 2).clamp(0, 1)  # (n, S, S) share of the pixel inside: antialiasing
    shade = 0.45 * (0.5 - shadow / 0.3).clamp(0, 1)  # soft

    # Relief: the rim is rounded off, the rest flat; its slope against the light brightens or darkens.
    depth = (-distance / 0.4).clamp(0, 1)
    height = torch.sqrt(1 - (1 - depth) ** 2 + 1e-4) * 0.3 * scale
    slope_y, slope_x = torch.gradient(height, spacing=2 / size, dim=(1, 2))
    normal = torch.rsqrt(1 + slope_x**2 + slope_y**2)  # z of the unit normal
    facing = (-(slope_x * lx + slope_y * ly) * 0.75 + 0.66) * normal  # cosine to a light 41 degrees up
    gloss = facing.clamp(0, 1) ** 12 * (0.5 * one[:, 5])
    glow = 0.85 + 0.25 * (dx * lx + dy * ly)  # light falls off across the scene

    # Texture of the shape: plain, stripes, checks or blotches.
    first = waves(px, py, u[:, 6:9], 0.9, 1.8)
    second = waves(px, py, torch.stack([u[:, 6] + 0.25, u[:, 7], u[:, 9]], 1), 0.9, 1.8)
    patterns = torch.stack([0 * first, first * 3, first * second * 5, (first + second) * 0.8])  # (4, n, S, S)
    kind = (u[:, 10] * len(patterns)).long()
    pattern = patterns[kind, torch.arange(len(kind))].clamp(-1, 1) * 0.5 + 0.5  # (n, S, S) in [0, 1]

    # Colours: two on the shape, two on the ground, hues and brightness of the two well apart.
    hue, dark = u[:, 11], (u[:, 12] < 0.5).float()
    ground_value = 0.30 + 0.50 * (1 - dark) + 0.2 * u[:, 13]
    shape_value = 0.45 + 0.45 * dark + 0.1 * u[:, 14]
    away = hue + 0.25 + 0.5 * u[:, 15]
    paint = colour(away, 0.5 + 0.5 * u[:, 16], shape_value)
    paint_2 = colour(away + 0.3 * (u[:, 17] - 0.5), u[:, 18], shape_value * (0.55 + 0.3 * u[:, 19]))
    ground = colour(hue, 0.15 + 0.6 * u[:, 20], ground_value)
    ground_2 = colour(hue + 0.2 * (u[:, 21] - 0.5), 0.15 + 0.6 * u[:, 22], ground_value * (0.5 + 0.4 * u[:, 23]))

    ramp = waves(x, y, torch.stack([u[:, 24], 0 * u[:, 25], u[:, 25]], 1), 0.2, 0.2)  # less than half a cycle
    ripple = waves(x, y, u[:, 26:29], 0.8, 2.0) * waves(x, y, u[:, 29:32], 0.8, 2.0)
    mix = (0.5 + 0.4 * ramp + 0.25 * one[:, 32] * ripple).clamp(0, 1)[:, None]  # (n, 1, S, S)
    back = torch.lerp(ground, ground_2, mix) * (1 - shade[:, None])  # (n, 3, S, S)
    front = torch.lerp(paint, paint_2, pattern[:, None]) * (0.35 + 0.85 * facing.clamp(min=0))[:, None]
    image = torch.lerp(back * glow[:, None], front * glow[:, None] + gloss[:, None], cover[:, None])

    grain = uniform(key, 2 * size**2, start=64).view(-1, 2, size, size)  # two uniforms make a triangle
    noise = (grain[:, :1] - grain[:, 1:]) * 0.06 * one[:, 33:34]  # (n, 1, S, S) grey, per-image strength
    return ((image + noise).clamp(0, 1) * 255).round().to(torch.uint8)


class ShapesDataModule(ImageDataModule):
    """Ten classes of rendered shapes, rendered once and held in memory; ``data_dir`` is not used."""

    num_classes = len(SHAPES)
    classes = CLASSES
    data_id = "shapes"
    config: ShapesConfig

    def __init__(self, config: ShapesConfig, data_dir: str = "", num_workers: int = 0, seed: int = 0):
        for key in ("train_size", "val_size"):
            size = getattr(config, key)
            if size is None or size < 1:
                raise ValueError(f"data.{key}={size}: shapes has no end, say how many images to render (at least 1)")
        super().__init__(config, data_dir, num_workers, seed)

    def load(self, split: str) -> ArrayDataset:
        size = self.config.train_size if split == "train" else self.config.val_size
        assert size is not None  # __init__ checked
        indices = np.arange(size)
        images = render(indices, split, self.config.image_size, self.config.data_seed)
        return ArrayDataset(images, torch.from_numpy(indices % len(SHAPES)), flip=self.config.flip and split == "train")
