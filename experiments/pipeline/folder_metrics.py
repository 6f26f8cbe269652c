"""Two folders of images compared, whoever made them: by the metrics, and the protocol ids, of our own models.

Shapes: B images a batch, S x S pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.arrays import to_unit_range
from datamodules.files import ImageFile, png_names, read_framed
from experiments.runtime.progress import progress
from lightning_modules.checks import require
from lightning_modules.metrics import Fidelity, MetricsConfig, ReconstructionMetrics
from lightning_modules.metrics.generation import NAMES
from lightning_modules.metrics.tokenizer import FIDELITY_NAMES

FEWEST = MetricsConfig(precision_recall=True).fewest


def common_side(files: Sequence[ImageFile]) -> int:
    """S of images that all are S x S pixels. Raises ValueError, which names two files, when they are not."""
    first: dict[tuple[int, int], ImageFile] = {}
    for file in files:
        with suppress(Exception), Image.open(file.path) as image:  # reading it names what is wrong
            first.setdefault(image.size, file)
    (width, height), *others = first or {(0, 0): files[0]}
    found = "; ".join(f"{file.path}: {size[0]} x {size[1]} pixels" for size, file in [*first.items()][:2])
    advice = "name the side to which all are brought, such as --image-size 256: shorter side resized, centre cropped"
    require(not others and width == height, f"{found}: not squares of one size; {advice}")
    return width


def require_enough(images: Sequence[ImageFile], reference: Sequence[ImageFile]) -> None:
    """Raises ValueError for fewer images than the metrics take."""
    for files, what in ((images, "--images"), (reference, "--reference")):
        require(len(files) >= FEWEST, f"{what}: {len(files)} images; precision and recall take {FEWEST} a side")


def partners(images: Sequence[ImageFile], reference: Sequence[ImageFile]) -> tuple[list[ImageFile], int]:
    """The reference image of each image, by its name without ending; [] unless all on both sides have one.

    Also the number of those that have.
    """
    by_name = dict(zip(png_names([file.name for file in reference]), reference, strict=True))
    names = png_names([file.name for file in images])
    shared = [by_name[name] for name in names if name in by_name]
    return shared if len(shared) == len(images) == len(reference) else [], len(shared)


def batches_of(files: Sequence[ImageFile], side: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """(B, 3, S, S) in [-1, 1]."""
    with progress("image", len(files)) as show:
        for first in range(0, len(files), batch_size):
            part = files[first : first + batch_size]
            pixels = torch.stack([read_framed(file, side, "crop").pixels for file in part])
            yield to_unit_range(pixels.to(device))
            show(len(part))


def compare(
    images: Sequence[ImageFile],
    reference: Sequence[ImageFile],
    name: str,
    config: MetricsConfig,
    device: torch.device,
    side: int,
    batch_size: int = 64,
    by_name: bool = True,
) -> dict[str, Any]:
    """Metrics and protocols of `images` against `reference`, which ids call `name`, such as val; all S = `side`.

    Where all names pair up, and `by_name`, the images are reconstructions: rfid against the same images, and PSNR,
    SSIM and LPIPS of each pair, rounded as files are; else generated ones.
    """
    pairs, num_shared = partners(images, reference)
    is_paired = bool(pairs) and by_name
    fidelity = Fidelity(side, config.extractor, config.extractor_image_size or None, kid=True, prc=True).to(device)
    measure = ReconstructionMetrics(side, config.lpips, feature_distance=False).to(device)
    with torch.no_grad():
        if is_paired:
            both = zip(*(batches_of(part, side, batch_size, device) for part in (images, pairs)), strict=True)
            for made, original in both:
                measure.update(made, original)
                fidelity.update(made, real=False)
                fidelity.update(original, real=True)
        else:
            for part, is_real in ((reference, True), (images, False)):
                for batch in batches_of(part, side, batch_size, device):
                    fidelity.update(batch, real=is_real)
    metrics, protocols = {}, {}
    names = FIDELITY_NAMES if is_paired else NAMES
    versus = f"{name}-vs-{name}" if is_paired else f"generated-vs-{name}{len(reference)}"
    for key, value in fidelity.compute().items():
        metric = names.get(key, key)
        metrics[metric] = float(value)
        protocols[metric] = fidelity.protocol_id(len(images), versus, metric)
    if is_paired:
        metrics |= {key: float(value) for key, value in measure.compute().items()}
        protocols |= {key: f"{protocol}/uint8/n{len(images)}" for key, protocol in measure.protocols.items()}
    numbers = {"images": len(images), "reference": len(reference), "same_names": num_shared, "image_size": side}
    return {**numbers, "metrics": metrics, "protocols": protocols}
