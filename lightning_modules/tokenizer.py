"""The one stage-1 training loop: encode, quantize, decode, and the adversarial game around it.

Shapes: B images, H x W pixels, h x w tokens, D backbone width, d code dimension, K codes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_modules import losses
from lightning_modules.base import Setting, count
from lightning_modules.checks import require
from lightning_modules.codec import Codec, TokenizerOutput
from lightning_modules.distributed import all_reduce_sum, average_gradients, leave_out, mean_values, without_exchange
from lightning_modules.finite import check_finite
from lightning_modules.graphs import GraphedPass
from lightning_modules.lightning_fixes import leave_out_of_global_step, logs_now, loss_scale, use_scaler
from lightning_modules.losses import build_perceptual
from lightning_modules.metrics import TokenizerMetrics
from lightning_modules.metrics.codebook import CodebookUsage
from lightning_modules.optimizer import as_list, build_optimizer, build_schedule
from lightning_modules.parts import Part
from lightning_modules.tokenizer_config import TokenizerConfig
from lightning_modules.tokenizer_losses import Terms, critic_terms, detached, generator_terms
from lightning_modules.tokenizer_parts import (
    LAYOUT,
    code_uses,
    hot_calls,
    networks,
    reconstructions,
    rough_loss,
    start_rows,
    tokenizer_parts,
)

STATE = ("epoch_usage", "epoch_tokens", "usage_by_epoch")  # kept in checkpoints, with the adaptive weight
LOGGED = {"weight": "weight/adversarial", "accuracy": "discriminator/accuracy"}  # the others are losses


class Tokenizer(Codec):
    """A `Codec` with a discriminator, losses and metrics.

    Optimization is manual, with one generator forward a step: its detached reconstruction feeds the discriminator
    (public code runs the autoencoder twice). DDP averages the generator's gradients, `update` the discriminator's.
    """

    discriminator: Any
    balance: Tensor
    layout = LAYOUT
    step: int  # generator updates made; drives the loss's start steps. trainer.global_step agrees with it

    def __init__(self, config: TokenizerConfig, image_size: int, for_use: bool = False) -> None:
        """`for_use`: without discriminator, perceptual loss and metrics, which only training and evaluation need."""
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.image_size = image_size
        self.step = 0
        self.epoch_usage: dict[str, float] = {}  # of the last whole training epoch, with the tokens counted in it
        self.epoch_tokens = 0
        self.usage_by_epoch: list[float] = []  # B-Figure 3
        self.graphed: list[GraphedPass] = []  # of the generator and the discriminator, after `capture_steps`
        for name, network in networks(config, image_size, for_use).items():
            setattr(self, name, network)
        leave_out(self, "discriminator")
        self.register_buffer("balance", torch.ones((), device="cpu"), persistent=False)  # the adaptive weight

        loss = config.loss
        has_perceptual = loss.perceptual and not for_use
        self.perceptual = build_perceptual(loss.perceptual_network, image_size) if has_perceptual else None
        self.discriminator_loss, self.adversarial_loss = losses.ADVERSARIAL_LOSSES[loss.adversarial_loss]
        self.train_usage = CodebookUsage(max(1, config.codebook_size))
        if not for_use:
            self.metrics = TokenizerMetrics(config.metrics, config.codebook_size, image_size)

    @classmethod
    def build(cls, config: TokenizerConfig, setting: Setting) -> Self:
        module = cls(config, setting.image_size, setting.for_use)
        if setting.codebook is not None:
            module.quantizer.fill(setting.codebook)
        return module

    @classmethod
    def parts(cls, config: TokenizerConfig, setting: Setting) -> list[Part]:
        return tokenizer_parts(networks(config, setting.image_size), config, setting.image_size)

    # ---- training ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        accumulate, batches = self.config.optimizer.accumulate, self.trainer.num_training_batches
        require(
            batches >= accumulate,
            f"model.optimizer.accumulate={accumulate}: an epoch has {batches} batches, so that no step would ever end",
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image, config = batch["image"], self.config.loss
        if batch_idx % self.config.optimizer.accumulate == 0:
            self.quantizer.start_step(self.config.optimizer.accumulate)
        optimizers: list[Any] = as_list(self.optimizers())
        passes: Any = self.graphed or (self.generator_pass, self.critic_pass)
        num_waited = self.quantizer.num_waited
        with self.update(optimizers[0], batch_idx):
            terms, output = passes[0](image, *self.game())
            self.report(terms, image)
        if self.quantizer.num_waited == num_waited:  # else nothing was quantized
            self.train_usage.update(output.indices)  # after the report, which says what is wrong with latents of NaN
        if self.discriminator is not None and self.step >= config.discriminator_start:
            leave_out_of_global_step(optimizers[1])
            with self.update(optimizers[1], batch_idx, by_ddp=False):
                uses_r1 = config.r1 > 0 and self.step % config.r1_every == 0
                self.report(passes[1](image, output.reconstruction, uses_r1), image)
        if self.is_last_micro_batch(batch_idx):
            for scheduler in as_list(self.lr_schedulers()):
                scheduler.step()
            self.step += 1
        # Not in on_train_epoch_end: a checkpoint made at this batch must hold it.
        ends_first_epoch = not self.epoch_usage and self.step >= self.trainer.max_steps
        if self.trainer.is_last_batch or ends_first_epoch:
            self.take_epoch_usage()

    def game(self) -> tuple[bool, bool]:
        """Whether the generator feels the discriminator at this step, and whether the adaptive weight is computed."""
        config, steps = self.config.loss, self.step - self.config.loss.adversarial_start
        plays = self.discriminator is not None and steps >= 0
        return plays, plays and config.adaptive_weight and steps % config.adaptive_every == 0

    def generator_pass(self, image: Tensor, adversarial: bool, weigh: bool) -> tuple[Terms, TokenizerOutput]:
        """Forward, losses and backward; the gradients are added to those that are there.

        Returns the detached terms of `generator_terms`, and what the tokenizer made of the images, detached as well.
        All of it is work of the device: nothing is logged, checked or decided by a value.
        """
        output = self(image)
        terms = generator_terms(self, image, output, adversarial, weigh, loss_scale(self))
        self.manual_backward(terms["generator"] / self.config.optimizer.accumulate)
        return detached(terms), TokenizerOutput(*(part.detach() for part in output))

    def critic_pass(self, real: Tensor, fake: Tensor, r1: bool) -> Terms:
        """The discriminator's losses and backward, in the same way; see `critic_terms`. `fake` is detached."""
        terms = critic_terms(self, real, fake, r1)
        self.manual_backward(terms.pop("critic") / self.config.optimizer.accumulate)
        return terms

    def capture_steps(self) -> None:
        def state() -> list[Any]:  # while it changes, so may the course of a pass
            return [getattr(self.quantizer, name) for name in self.quantizer.flags]

        runs: Any = (self.generator_pass, self.critic_pass)
        self.graphed = [GraphedPass(*pair, state) for pair in zip(runs, as_list(self.optimizers()), strict=False)]

    def report(self, terms: Terms, image: Tensor) -> None:
        """Logs what a pass returns, of the global batch, if a logger takes it; stops at a value that is not finite."""
        means = mean_values(terms)
        for name, mean in means.items() if logs_now(self) else ():
            self.log(LOGGED.get(name, f"loss/{name}"), mean, prog_bar=name == "generator")
        check_finite(self.step, means, image, self)

    @contextmanager
    def update(self, optimizer: Any, batch_idx: int, by_ddp: bool = True) -> Iterator[None]:
        """Around a pass: the last micro-batch's is followed by a step. `by_ddp`: DDP averages these gradients."""
        use_scaler(self.trainer, 0 if by_ddp else 1)
        config, is_last = self.config.optimizer, self.is_last_micro_batch(batch_idx)
        if batch_idx % config.accumulate == 0:  # here, because the last epoch may have ended between two steps
            optimizer.zero_grad()
        with nullcontext() if is_last and by_ddp else without_exchange(self.trainer.model):
            yield
        if is_last:
            if self.discriminator is not None and not by_ddp:
                average_gradients(self.discriminator.parameters())
            optimizer.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Where the gradients of a scaled loss have their own size again."""
        if clip := self.config.optimizer.gradient_clip:
            self.clip_gradients(optimizer, clip, "norm")

    def is_last_micro_batch(self, batch_idx: int) -> bool:
        return (batch_idx + 1) % self.config.optimizer.accumulate == 0

    def configure_optimizers(self) -> Any:
        discriminator = set() if self.discriminator is None else set(self.discriminator.parameters())
        groups = [[p for p in self.parameters() if p not in discriminator and p.requires_grad]]
        if self.discriminator is not None:
            groups.append(list(self.discriminator.parameters()))
        optimizers = [build_optimizer(group, self.config.optimizer) for group in groups]
        config, steps = self.config.optimizer, self.trainer.max_steps
        return [{"optimizer": o, "lr_scheduler": build_schedule(o, config, steps)} for o in optimizers]

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.epoch_usage)

    def take_epoch_usage(self) -> None:
        if not self.config.codebook_size:  # no quantizer
            return
        self.epoch_usage = {f"{name}/epoch": float(value) for name, value in self.train_usage.compute().items()}
        self.epoch_tokens = int(self.train_usage.counts.sum())
        self.usage_by_epoch.append(self.epoch_usage["usage/epoch"])
        self.train_usage.reset()

    # ---- validation: the same code for training's validation and for experiments.evaluate -------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image, codes = batch["image"], self.encode(batch["image"])
        wanted = self.metrics.num_wanted(len(image))
        if not wanted:
            self.metrics.update(codes.indices, image[:0], image[:0])
            return
        prediction = self.predict(codes.quantized[:wanted])
        logit_laplace = prediction if self.config.loss.logit_laplace else None
        self.metrics.update(codes.indices, image[:wanted], self.to_image(prediction), logit_laplace)

    def on_validation_epoch_end(self) -> None:
        values = self.metrics.compute()
        values |= self.metrics.compute_effective_rank(self.quantizer.lookup)
        with self.trainer.precision_plugin.forward_context():  # Lightning's is that of a batch alone
            values |= self.metrics.compute_ranks(self.decode_ranks)
        self.log_dict(values)
        self.metrics.reset()

    # ---- how it runs, what is shown, and what a record needs

    def hot_calls(self, compiled: bool) -> list[tuple[nn.Module, str]]:
        return hot_calls(self, compiled)

    def start_screen(self) -> dict[str, str]:
        return start_rows(self)

    def rough_loss(self, num_images: int) -> Tensor:
        return rough_loss(self, num_images)

    def pictures(self) -> dict[str, Any]:
        return reconstructions(self, self.shown)

    def figures(self) -> dict[str, Any]:
        return code_uses(self)

    @property
    def num_parameters(self) -> int:
        return count(self) - count(self.discriminator)

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str, device: torch.device) -> None:
        self.metrics.fidelity.to(device)
        self.metrics.use_reference(folder, batches, key)

    @property
    def training_metrics(self) -> dict[str, float]:
        return self.epoch_usage

    @property
    def history(self) -> dict[str, list[float]]:
        return {"usage/epoch": self.usage_by_epoch}

    def protocols(self) -> dict[str, str]:
        """How each metric was measured: name -> protocol id."""
        epoch = {name: f"{name.split('/')[0]}/training-epoch/tokens{self.epoch_tokens}" for name in self.epoch_usage}
        return self.metrics.protocols() | epoch

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["generator_steps"] = self.step
        checkpoint |= {name: getattr(self, name) for name in STATE} | {"balance": self.balance}
        checkpoint["epoch_counts"] = all_reduce_sum(self.train_usage.code_counts.clone())  # of the epoch under way

    def on_restore(self, checkpoint: dict[str, Any], path: str) -> None:
        if not isinstance(checkpoint.get("generator_steps"), int):
            raise ValueError(f"{path}: a checkpoint without generator_steps, its number of training steps")
        self.step = checkpoint["generator_steps"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["generator_steps"]
        for name in STATE:
            setattr(self, name, checkpoint[name])
        self.balance.copy_(checkpoint["balance"])
        if self.global_rank == 0:  # they are those of all ranks
            self.train_usage.code_counts = checkpoint["epoch_counts"].to(self.device)
