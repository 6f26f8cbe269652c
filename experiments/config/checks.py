"""Rejects configurations that would fail, or be ignored, only after minutes of work."""

from dataclasses import asdict
from typing import Any

from experiments.config.experiment import Experiment
from experiments.config.values import flatten
from lightning_modules.losses import ADVERSARIAL_LOSSES, PERCEPTUAL_NETWORKS
from lightning_modules.losses.perceptual import LPIPS_URLS
from lightning_modules.metrics import EXTRACTORS, MetricsConfig
from lightning_modules.networks import BackboneConfig, DiscriminatorConfig
from lightning_modules.tokenizer import TokenizerConfig
from lightning_modules.vim import VIMConfig

AT_LEAST_ONE = {
    "data": ("image_size", "batch_size", "val_batch_size"),
    "trainer": ("max_steps", "checkpoint_every", "log_every"),
}


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check(experiment: Experiment, origin: str) -> None:
    """Raises ValueError that names `origin`, the key and the value at fault."""
    try:
        check_numbers(experiment)
        check_run(experiment)
        if isinstance(experiment.model, TokenizerConfig):
            check_tokenizer(experiment.model)
        else:
            check_downstream(experiment)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def check_numbers(experiment: Experiment) -> None:
    """What the types let pass: infinite numbers, whole ones that no tensor holds, and lists in lists."""
    own = {key: asdict(getattr(experiment, key)) for key in ("data", "model", "trainer", "runtime")}
    for key, value in flatten({"seed": experiment.seed} | own).items():
        for item in value if isinstance(value, list) else [value]:
            require(item is None or isinstance(item, (str, int, float)), f"{key}={value}: must be a list of numbers")
            is_number = isinstance(item, (int, float))
            require(not is_number or abs(item) < 2**63, f"{key}={value} is not a number to compute with")


def check_run(experiment: Experiment) -> None:
    trainer = experiment.trainer
    require(
        trainer.precision in ("32-true", "bf16-mixed"),
        f"trainer.precision='{trainer.precision}' is none of 32-true, bf16-mixed",
    )
    require(0 <= trainer.weight_ema < 1, f"trainer.weight_ema={trainer.weight_ema} must be in [0, 1)")
    require(experiment.seed >= 0, f"seed={experiment.seed} must not be negative")
    for part, names in AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(experiment, part), name)
            require(value >= 1, f"{part}.{name}={value} must be at least 1")
    val_size = experiment.data.val_size
    require(val_size is None or val_size >= 2, f"data.val_size={val_size} must be null (all) or at least 2")
    require(trainer.validate_every >= 0, f"trainer.validate_every={trainer.validate_every} must be 0 (off) or more")
    try:
        experiment.model.optimizer.check()
    except ValueError as error:
        raise ValueError(f"model.optimizer.{error}") from None


def check_downstream(experiment: Any) -> None:
    """Its own options, what it may stand on, and that its images and those of the model below agree."""
    data, model, upstream = experiment.data, experiment.model, experiment.upstream
    model.check()
    model.check_upstream(upstream.model)
    require(
        data.image_size == upstream.data.image_size,
        f"data.image_size={data.image_size}, but upstream.data.image_size={upstream.data.image_size}: the models share "
        "their images",
    )
    on_the_fly = not isinstance(model, VIMConfig) or model.encode_on_the_fly
    require(
        on_the_fly or not getattr(data, "random_crop", False),
        "data.random_crop needs model.encode_on_the_fly=true: tokens that are made once are of whole images",
    )


def not_negative(part: str, config: object) -> None:
    for name, value in vars(config).items():
        ok = not isinstance(value, (int, float)) or value >= 0
        require(ok, f"model.{part}.{name}={value} must not be negative")


def check_part(part: str, config: BackboneConfig | DiscriminatorConfig) -> None:
    """Sizes of networks are at least 1; `head_dim` 0 and lists of dims that are empty leave it to the size."""
    for name, value in vars(config).items():
        key = f"model.{part}.{name}"
        for item in value if isinstance(value, list) else [value]:
            is_size = isinstance(item, int) and not isinstance(item, bool) and not (name == "head_dim" and item == 0)
            require(not is_size or item >= 1, f"{key}={value} must be at least 1")
        require(name != "channel_multipliers" or value, f"{key}={value} must hold a number for each resolution")
        require(name != "dropout" or 0 <= value < 1, f"{key}={value} must be in [0, 1)")


def check_metrics(metrics: MetricsConfig, codebook_size: int) -> None:
    """What would fail at the evaluation, after the training: FID takes two images, precision and recall four."""
    not_negative("metrics", metrics)
    lpips = ("auto", *LPIPS_URLS, "none")
    for name, value, known in (("extractor", metrics.extractor, EXTRACTORS), ("lpips", metrics.lpips, lpips)):
        require(value in known, f"model.metrics.{name}='{value}' is none of {', '.join(known)}")
    fewest = 4 if metrics.precision_recall else 2
    require(
        metrics.num_images == 0 or metrics.num_images >= fewest,
        f"model.metrics.num_images={metrics.num_images} must be 0 (all) or at least {fewest}",
    )
    require(
        all(1 <= rank <= codebook_size for rank in metrics.code_ranks),
        f"model.metrics.code_ranks={metrics.code_ranks} must lie between 1 and model.codebook_size={codebook_size}",
    )


def check_tokenizer(model: TokenizerConfig) -> None:
    require(model.codebook_size >= 1, f"model.codebook_size={model.codebook_size} must be at least 1")
    require(model.code_dim >= 1, f"model.code_dim={model.code_dim} must be at least 1")
    model.quantizer.check(model.codebook_size, model.code_dim)
    check_part("backbone", model.backbone)
    check_part("discriminator", model.discriminator)
    not_negative("loss", model.loss)
    not_negative("quantizer", model.quantizer)
    check_metrics(model.metrics, model.codebook_size)
    loss = model.loss
    require(
        loss.perceptual_network in PERCEPTUAL_NETWORKS,
        f"model.loss.perceptual_network='{loss.perceptual_network}' is none of {', '.join(PERCEPTUAL_NETWORKS)}",
    )
    require(
        loss.adversarial_loss in ADVERSARIAL_LOSSES,
        f"model.loss.adversarial_loss='{loss.adversarial_loss}' is none of {', '.join(ADVERSARIAL_LOSSES)}",
    )
    require(loss.r1_every >= 1, f"model.loss.r1_every={loss.r1_every} must be at least 1")
    require(
        loss.adversarial == 0 or loss.adversarial_start >= loss.discriminator_start,
        f"model.loss.adversarial_start={loss.adversarial_start} is before discriminator_start="
        f"{loss.discriminator_start}: an untrained discriminator would steer the generator",
    )
