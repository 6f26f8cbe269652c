"""Rejects configurations that would fail, or be ignored, only after minutes of work."""

from typing import TYPE_CHECKING, Any

from lightning_modules.losses import ADVERSARIAL_LOSSES
from lightning_modules.tokenizer import TokenizerConfig
from lightning_modules.vim import VIMConfig

if TYPE_CHECKING:
    from experiments.config import Experiment


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check(experiment: "Experiment", origin: str) -> None:
    """Raises ValueError that names `origin`, the key and the value at fault."""
    try:
        check_run(experiment)
        if isinstance(experiment.model, TokenizerConfig):
            check_tokenizer(experiment.model)
        else:
            check_downstream(experiment)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def check_run(experiment: "Experiment") -> None:
    trainer, data, optimizer = experiment.trainer, experiment.data, experiment.model.optimizer
    require(trainer.max_steps >= 1, f"trainer.max_steps={trainer.max_steps} must be at least 1")
    require(
        trainer.precision in ("32-true", "bf16-mixed"),
        f"trainer.precision='{trainer.precision}' is none of 32-true, bf16-mixed",
    )
    require(0 <= trainer.weight_ema < 1, f"trainer.weight_ema={trainer.weight_ema} must be in [0, 1)")
    require(data.batch_size >= 1, f"data.batch_size={data.batch_size} must be at least 1")
    require(len(optimizer.betas) == 2, f"model.optimizer.betas={optimizer.betas} must hold two numbers")
    require(optimizer.lr > 0, f"model.optimizer.lr={optimizer.lr} must be above 0")
    require(optimizer.accumulate >= 1, f"model.optimizer.accumulate={optimizer.accumulate} must be >= 1")
    not_negative("optimizer", optimizer)


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


def check_tokenizer(model: TokenizerConfig) -> None:
    require(model.codebook_size >= 1, f"model.codebook_size={model.codebook_size} must be at least 1")
    require(model.code_dim >= 1, f"model.code_dim={model.code_dim} must be at least 1")
    model.quantizer.check(model.codebook_size, model.code_dim)
    not_negative("loss", model.loss)
    not_negative("quantizer", model.quantizer)
    loss = model.loss
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
