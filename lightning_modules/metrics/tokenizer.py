"""All validation metrics of a tokenizer, under the names that logs, records and tables use.

Letters: B images, H x W pixels, h x w tokens, K codes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lightning_modules.metrics.codebook import BatchUsage, CodebookUsage
from lightning_modules.metrics.fidelity import Fidelity
from lightning_modules.metrics.reconstruction import ReconstructionMetrics


@dataclass
class MetricsConfig:
    """`extractor`: auto | inception-v3-compat | efficientnet-lite0, at `extractor_image_size` pixels (0 = its default).

    `lpips`: auto | vgg | alex | none. auto takes what is on disk and is recorded in the protocol id.
    """

    extractor: str = "auto"
    extractor_image_size: int = 0
    lpips: str = "auto"
    kid: bool = False
    precision_recall: bool = False


class TokenizerMetrics(nn.Module):
    """Update with validation batches, `compute()` all, `reset()`.

    Features of the real images come with each update, or once and for all from `use_reference`: every model of a
    sweep is compared with the same ones.
    """

    def __init__(self, config: MetricsConfig, codebook_size: int, image_size: int) -> None:
        super().__init__()
        self.usage = CodebookUsage(codebook_size)
        self.batch_usage = BatchUsage(codebook_size)
        self.reconstruction = ReconstructionMetrics(image_size, lpips=config.lpips)
        self.fidelity = Fidelity(
            image_size,
            extractor=config.extractor,
            input_size=config.extractor_image_size or None,
            kid=config.kid,
            prc=config.precision_recall,
        )
        self.num_images, self.tokens_per_image = 0, 1
        self.last_counts: Tensor | None = None  # (K,) of the last complete validation, for a histogram
        self.has_reference = False

    def use_reference(self, folder: Path, images: Callable[[], Iterable[Tensor]], key: str) -> None:
        """Takes the real images' features from a file in `folder`, made from all validation `images()` if needed.

        `key` says which images they are; the extractor's id is added to it.
        """
        name = f"{self.fidelity.extractor.id}_{key}".replace("/", "_")
        self.fidelity.load_or_compute_real(folder / f"{name}.pt", key, images())
        self.has_reference = True

    def update(self, image: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Images (B, 3, H, W) in [-1, 1], their reconstructions, and token ids (B, h, w)."""
        self.tokens_per_image = indices[0].numel()
        self.usage.update(indices)
        self.batch_usage.update(indices)
        self.reconstruction.update(reconstruction, image)
        self.fidelity.update(reconstruction, real=False)
        if not self.has_reference:
            self.fidelity.update(image, real=True)

    def compute(self) -> dict[str, Tensor]:
        fidelity = self.fidelity.compute()
        usage = self.usage.compute()
        self.last_counts = self.usage.counts.clone()
        self.num_images = int(self.last_counts.sum()) // self.tokens_per_image  # over all ranks
        values = {f"{name}/val": value.float() for name, value in usage.items()}
        values["usage/batch"] = self.batch_usage.compute()
        values |= self.reconstruction.compute()
        values |= {FIDELITY_NAMES[name]: value.float() for name, value in fidelity.items()}
        return values

    def protocols(self) -> dict[str, str]:
        """How each number of the last `compute` was made."""
        n = f"n{self.num_images}"
        ids = {
            "usage/val": f"usage/once-in-val/{n}",
            "perplexity/val": f"perplexity/val/{n}",
            "dead_codes/val": f"dead-codes/val/{n}",
            "usage/batch": f"usage/mean-over-batches-of-256-val-images/{n}",
        }
        ids |= {name: f"{protocol}/{n}" for name, protocol in self.reconstruction.protocols.items()}
        for name in FIDELITY_NAMES.values():
            ids[name] = self.fidelity.protocol_id(self.num_images, "val-vs-val", name)
        return ids

    def reset(self) -> None:
        for metric in (self.usage, self.batch_usage, self.reconstruction, self.fidelity):
            metric.reset()


FIDELITY_NAMES = {
    "fid": "rfid",
    "isc_mean": "ris",
    "isc_std": "ris_std",
    "kid": "rkid",
    "precision": "precision",
    "recall": "recall",
}
