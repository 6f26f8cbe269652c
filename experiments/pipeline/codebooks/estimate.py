"""What a codebook will cost in time, disk and memory: measured on a small sample, extrapolated.

    python -m experiments.build_codebook experiments/vqgan_lc_cifar10.yaml --estimate --images 1281167

Shapes: N features of C channels in all, K codes.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.config.experiment import Experiment
from experiments.pipeline.codebooks.extraction import feature_maps, large_codebook, plain_data
from experiments.pipeline.codebooks.kmeans import CHUNK
from experiments.runtime.files import GB
from experiments.runtime.ranks import device_of
from lightning_modules.quantizers import nearest_code

SAMPLE_IMAGES = 256
SAMPLE_FEATURES = 2048


@dataclass
class Estimate:
    """Bytes and seconds of a whole build."""

    images: int
    features: int  # N
    dims: int  # C
    codebook_size: int  # K
    images_per_second: float
    pass_seconds: float  # one k-means pass over all features
    passes: int  # at most
    parts: int  # clusterings: one, or one a class
    free_bytes: int
    device: str

    @property
    def features_bytes(self) -> int:
        return self.features * (4 * self.dims + 8)  # with the labels

    @property
    def codebook_bytes(self) -> int:
        return self.codebook_size * self.dims * 4

    @property
    def memory_bytes(self) -> int:
        """Centres, sums, the finished table and its copy while it is saved; two chunks; row numbers."""
        return 4 * self.codebook_bytes + 4 * CHUNK * self.dims * 4 + 24 * self.features

    def __str__(self) -> str:
        extraction, clustering = self.images / self.images_per_second, self.passes * self.pass_seconds
        needed = self.features_bytes + 4 * self.codebook_bytes
        verdict = "enough" if needed <= self.free_bytes else "NOT ENOUGH"
        each = f"{self.passes} passes of {words(self.pass_seconds)} at most" if self.passes else "no passes"
        return "\n".join(
            (
                f"features     {self.features:,} x {self.dims} float32 of {self.images:,} images",
                f"extraction   {words(extraction)}, measured {self.images_per_second:.1f} images/s on {self.device}",
                f"clustering   {words(clustering)}: {each}, {self.codebook_size:,} codes in {self.parts:,} part(s)",
                f"reading      {self.features_bytes / GB:.2f} GB a pass, from memory if it fits in the file cache",
                f"disk         {needed / GB:.2f} GB ({needed:,} bytes), {self.free_bytes / GB:.2f} GB free: {verdict}",
                f"memory       {self.memory_bytes / GB:.2f} GB, besides libraries, encoder and list of images",
            )
        )


def words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def estimate(experiment: Experiment, num_images: int | None = None) -> Estimate:
    """Measures the encoder on up to 256 training images, decoding included, and a pass on 2,048 of their features.

    `num_images`: extrapolate to so many (default: those that the recipe asks for).
    """
    source, K = large_codebook(experiment).source, experiment.tokenizer.codebook_size
    device, data, encode = device_of(experiment.runtime), plain_data(experiment), feature_maps(experiment)
    size = data.config.image_size
    h, w, C = encode(torch.zeros(1, 3, size, size)).shape[1:]  # and warms up

    maps, start = [], time.perf_counter()
    for batch in data.ordered_train_dataloader():
        maps.append(encode(batch["image"]).cpu())  # (B, h, w, C)
        if sum(map(len, maps)) >= SAMPLE_IMAGES:
            break
    images_per_second = sum(map(len, maps)) / (time.perf_counter() - start)

    images = num_images or len(data.train_set)  # type: ignore[arg-type]
    parts = data.num_classes if source.per_class and 1 < data.num_classes <= K else 1
    is_kmeans = source.method == "kmeans"
    z = torch.cat(maps).flatten(0, 2)  # (n, C)
    seconds = pass_seconds(z.to(device), -(-K // parts)) if is_kmeans else 0.0
    folder = Path(experiment.runtime.output_dir).resolve()
    while not folder.exists():
        folder = folder.parent
    return Estimate(
        images=images,
        features=images * h * w,
        dims=C,
        codebook_size=K,
        images_per_second=images_per_second,
        pass_seconds=seconds * images * h * w,
        passes=source.iterations if is_kmeans else 0,
        parts=parts,
        free_bytes=shutil.disk_usage(folder).free,
        device=device.type,
    )


def pass_seconds(z: Tensor, k: int) -> float:
    """Seconds a feature of a k-means pass with k codes, on features like z (n, C)."""
    generator = torch.Generator(z.device).manual_seed(0)

    def like(n: int) -> Tensor:
        rows = torch.randint(len(z), (n,), generator=generator, device=z.device)
        noise = torch.randn(n, z.shape[1], generator=generator, device=z.device)
        return noise.mul_(z.std(0)).add_(z[rows])

    tokens, codes = like(SAMPLE_FEATURES), like(k)
    best = float("inf")
    for part in (tokens[:256], tokens, tokens):  # the first warms up
        start = time.perf_counter()
        indices = nearest_code(part, codes)
        sums = torch.zeros_like(codes).index_add_(0, indices, part)
        float((part - codes[indices]).square_().sum(dtype=torch.float64)) + float(sums[0, 0])  # waits for the device
        best = min(best, (time.perf_counter() - start) / len(part)) if len(part) > 256 else best
    return best
