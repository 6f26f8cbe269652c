"""All validation metrics of a tokenizer, under the names that logs, records and tables use.

Shapes: B images, H x W pixels, h x w tokens, K codes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric

from lightning_modules import distributed
from lightning_modules.checks import not_negative, one_of, require
from lightning_modules.losses.perceptual import LPIPS_URLS
from lightning_modules.losses.reconstruction import logit_laplace_loss
from lightning_modules.metrics.codebook import BatchUsage, CodebookUsage, effective_rank
from lightning_modules.metrics.extractors import EXTRACTORS
from lightning_modules.metrics.fidelity import Fidelity, first_images
from lightning_modules.metrics.reconstruction import ReconstructionMetrics, per_image_psnr, to_unit

RANKED_IMAGES = 1000  # the first ones, for `code_ranks`


@dataclass
class MetricsConfig:
    """`extractor`: auto (Inception where its file is, else EfficientNet-Lite2) | inception-v3-compat |
    efficientnet-lite0, 1, 2, at `extractor_image_size` pixels (0 = its default) | another one of torch-fidelity:
    dinov2-vit-s-14 (b, l, g), clip-vit-l-14 and the like, vgg16, which are downloaded and give no IS.

    `lpips`: auto | vgg | alex | none. auto takes what is on disk and is recorded in the protocol id. `num_images`:
    code usage is counted over all validation images, the metrics of reconstructions over the first this many
    (the data modules deal the classes out in turn, so they are class-balanced), 0 = all. `code_ranks`: also
    PSNR of the first 1,000 with every token replaced by its M-th nearest code, for each M (B-Figure 5), of all codes
    and of those that the validation images use.
    """

    extractor: str = "auto"
    extractor_image_size: int = 0
    lpips: str = "auto"
    kid: bool = False
    precision_recall: bool = False
    num_images: int = 0
    code_ranks: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Raises ValueError for what would fail at the evaluation."""
        not_negative(self)
        one_of(self, "extractor", EXTRACTORS)
        one_of(self, "lpips", ("auto", *LPIPS_URLS, "none"))
        require(
            self.num_images == 0 or self.num_images >= self.fewest,
            f"num_images={self.num_images} must be 0 (all) or at least {self.fewest}",
        )

    @property
    def fewest(self) -> int:
        """Images that FID takes at least, or precision and recall."""
        return 4 if self.precision_recall else 2


class TokenizerMetrics(nn.Module):
    """Update with validation batches, `compute()` all, `reset()`.

    Features of the real images come with each update, or once and for all from `use_reference`: every model of a
    sweep is compared with the same ones. With `codebook_size` 0, of a tokenizer without quantizer, no code is counted.
    """

    def __init__(self, config: MetricsConfig, codebook_size: int, image_size: int) -> None:
        super().__init__()
        self.usage = CodebookUsage(codebook_size) if codebook_size else None
        self.batch_usage = BatchUsage(codebook_size) if codebook_size else None
        self.num_images = SumMetric(nan_strategy="disable")
        self.reconstruction = ReconstructionMetrics(image_size, lpips=config.lpips)
        # "disable": a look for NaN would make the host wait for a GPU
        self.logit_laplace = MeanMetric(nan_strategy="disable")  # only of models that predict it (A-Tables 1 and 4)
        self.ranks = config.code_ranks
        self.ranked: list[Tensor] = []  # this process's share of the first images
        self.fidelity = Fidelity(
            image_size,
            extractor=config.extractor,
            input_size=config.extractor_image_size or None,
            kid=config.kid,
            prc=config.precision_recall,
        )
        self.limit = config.num_images
        self.num_seen = 0  # by this process
        self.num_counted = self.num_measured = 0  # by all processes, for their tokens and for their reconstructions
        self.last_counts: Tensor | None = None  # (K,) of the last complete validation, for a histogram
        self.names: list[str] = []  # of the last compute
        self.has_reference = False

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str) -> None:
        """Takes the real images' features from a file in `folder`, made from the validation `batches` if needed.

        `key` says which images they are; the extractor's id and the number of images are added to it.
        """
        key = f"{key}/n{self.limit or 'all'}"
        path = folder / f"{self.fidelity.extractor.id}_{key}.pt".replace("/", "_")
        self.fidelity.load_or_compute_real(path, key, first_images(batches, self.limit))
        self.has_reference = True

    def num_wanted(self, batch_size: int) -> int:
        """How many images of the next batch are to be reconstructed; tokens are counted over all of its images."""
        return self.of_first(self.limit, batch_size) if self.limit else batch_size

    def of_first(self, number: int, batch_size: int) -> int:
        """How many images of the next batch are among the first `number` of all processes."""
        wanted = len(range(distributed.rank(), number, distributed.world_size()))
        return max(0, min(batch_size, wanted - self.num_seen))

    def update(
        self, indices: Tensor, image: Tensor, reconstruction: Tensor, logit_laplace: Tensor | None = None
    ) -> None:
        """Token ids of a batch (B, h, w), and its first `num_wanted(B)` images (b, 3, H, W) in [-1, 1], reconstructed.

        Images and reconstructions may be empty. `logit_laplace`: (b, 6, H, W), the prediction of a model that has one.
        """
        if self.ranks and (number := self.of_first(RANKED_IMAGES, len(image))):
            self.ranked.append(image[:number])
        self.num_seen += len(indices)
        self.num_images.update(len(indices))
        for counter in (self.usage, self.batch_usage):
            if counter is not None:
                counter.update(indices)
        if len(image):
            self.reconstruction.update(reconstruction, image)
            if logit_laplace is not None:
                self.logit_laplace.update(logit_laplace_loss(logit_laplace, image), weight=len(image))
            self.fidelity.update(reconstruction, real=False)
            if not self.has_reference:
                self.fidelity.update(image, real=True)

    def compute(self) -> dict[str, Tensor]:
        fidelity = self.fidelity.compute()
        self.num_counted = int(self.num_images.compute())
        self.num_measured = min(self.limit or self.num_counted, self.num_counted)
        values: dict[str, Tensor] = {}
        if self.usage is not None and self.batch_usage is not None:
            values |= {f"{name}/val": value.float() for name, value in self.usage.compute().items()}
            values |= {f"{name}/batch": value for name, value in self.batch_usage.compute().items()}
            self.last_counts = self.usage.counts.clone()
        values |= self.reconstruction.compute()
        if self.logit_laplace.update_called:
            values["logit_laplace"] = self.logit_laplace.compute()
        values |= {FIDELITY_NAMES[name]: value.float() for name, value in fidelity.items()}
        self.names = list(values)
        return values

    def compute_effective_rank(self, lookup: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """After `compute`: how many dimensions the validation tokens fill. `lookup`: indices (n,) -> codes (n, d)."""
        if self.last_counts is None:
            return {}
        used = self.last_counts.nonzero().flatten()  # (n,)
        values = {"effective_rank/val": effective_rank(lookup(used), self.last_counts[used]).float()}
        self.names += values
        return values

    def compute_ranks(self, decode_ranks: Callable[..., dict[int, Tensor]]) -> dict[str, Tensor]:
        """After `compute`: PSNR with each token's M-th nearest code, of all codes and of those in use, where there are
        as many. `decode_ranks` is that of a `Codec`."""
        values: dict[str, Tensor] = {}
        if not self.ranks or self.last_counts is None:
            return values
        used = self.last_counts.nonzero().flatten()  # (n,)
        for name, among in (("psnr/rank", None), ("psnr/used_rank", used)):
            ranks = [rank for rank in self.ranks if among is None or rank <= len(among)]
            psnr = {rank: MeanMetric(nan_strategy="disable").to(used.device) for rank in ranks}
            for image in self.ranked if ranks else []:
                for rank, reconstruction in decode_ranks(image, ranks, among).items():
                    psnr[rank].update(per_image_psnr(to_unit(reconstruction), to_unit(image)))
            values |= {f"{name}{rank}": metric.compute() for rank, metric in psnr.items()}
        self.names += values
        return values

    def protocols(self) -> dict[str, str]:
        """How each number of the last `compute` was measured: name -> protocol id."""
        n, measured = f"n{self.num_counted}", f"n{self.num_measured}"
        ids = {
            "usage/val": f"usage/once-in-val/{n}",
            "reachable/val": f"reachable/once-in-val/{n}",
            "perplexity/val": f"perplexity/val/{n}",
            "dead_codes/val": f"dead-codes/val/{n}",
            "effective_rank/val": f"effective-rank/centred-val-tokens/{n}",
            "logit_laplace": f"logit-laplace/nats-per-channel-value-eps0.1/{measured}",
        }
        if self.batch_usage is not None:
            how = f"mean-over-batches-of-{self.batch_usage.tokens_of_group}-val-tokens/{n}"
            ids |= {f"{name}/batch": f"{name}/{how}" for name in ("usage", "reachable")}
        ids |= {name: f"{protocol}/{measured}" for name, protocol in self.reconstruction.protocols.items()}
        of_first = f"n{min(self.num_measured, RANKED_IMAGES)}"
        for rank in self.ranks:
            ids[f"psnr/rank{rank}"] = f"psnr/rgb-range1-per-image/code-rank{rank}/{of_first}"
            ids[f"psnr/used_rank{rank}"] = f"psnr/rgb-range1-per-image/code-rank{rank}-of-used-in-val/{of_first}"
        for name in FIDELITY_NAMES.values():
            ids[name] = self.fidelity.protocol_id(self.num_measured, "val-vs-val", name)
        return {name: ids[name] for name in self.names}

    def reset(self) -> None:
        self.num_seen, self.ranked = 0, []
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


FIDELITY_NAMES = {
    "fid": "rfid",
    "isc_mean": "ris",
    "isc_std": "ris_std",
    "kid": "rkid",
    "precision": "precision",
    "recall": "recall",
}
