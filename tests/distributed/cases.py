"""The runs that the tests of this folder compare: by one process, called in the test's own, or by two of torchrun.

    torchrun --standalone --nproc-per-node 2 tests/distributed/cases.py FOLDER [CASE ...]

Every case trains through the real trainer and leaves FOLDER/CASE.RANK.pt.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor

sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "helpers")]
from classifier_cases import tiny_classifier
from conftest import ENCODER_USERS, load_once, tiny_experiment
from latent_cases import tiny_latents
from vim_cases import tiny_vim

import experiments.pipeline.training as train_module
from experiments.config.experiment import Experiment
from experiments.pipeline import token_writer
from experiments.pipeline.evaluation import evaluate
from experiments.pipeline.prepare import prepare
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.ranks import join, main_first
from experiments.runtime.trainer import build_trainer, quiet
from lightning_modules.distributed import all_reduce_sum, rank, world_size
from lightning_modules.prior import Prior
from lightning_modules.quantizers.ema import EMAQuantizer
from lightning_modules.sharding import full
from lightning_modules.token_classifier import TokenClassifier
from lightning_modules.tokenizer import Tokenizer

Result = dict[str, Any]

# Adam divides a gradient that is rounding alone by its size, unless eps is larger. 24 images in batches of 8: an epoch
# is three steps. Of 17 validation images rank 0 has three batches, rank 1 two.
SIZES = ("model.optimizer.eps=1e-3", "data.batch_size=8", "data.train_size=24", "data.flip=true", "trainer.max_steps=5")
UNEVEN = ("data.val_size=17", "data.val_batch_size=4")
GAME = ("model.loss.adversarial=0.5",)
LARGE = ("model.quantizer={name: large_codebook, feature_dim: 40, source: {method: normal}}", "model.codebook_size=300")
REVIVING = ("model.codebook_size=100", "model.quantizer={init: latents, dead_code_threshold: 0.6, decay: 0.7}")
MICRO = ("data.batch_size=4", "model.optimizer.accumulate=2", "trainer.max_steps=3")
NO_PICKS = ("model.quantizer.decay=0.7",)
# name -> model and overrides
TOKENIZERS: dict[str, tuple[str, ...]] = {
    "vq": ("vqgan", *UNEVEN, *GAME, "model.metrics={precision_recall: true, code_ranks: [1, 3]}"),
    "factorized": ("vqgan_fc", *UNEVEN, "model.quantizer.l2_norm=true", "model.metrics.num_images=9"),
    "ema": ("vqgan_ema", *UNEVEN, *REVIVING),
    "large_codebook": ("vqgan_lc", *UNEVEN, *LARGE, *GAME),
    "simvq": ("vqgan", "model.quantizer={name: simvq}"),  # 12 validation images
    "rotation": ("vqgan", "model.quantizer={name: rotation}", "data.val_size=11"),
    "fsq": ("vqgan", *UNEVEN, "model.quantizer={name: fsq}", "model.codebook_size=240", "model.code_dim=3"),
    # at the temperature 0.01 its loss turns differences of 1e-7 into 1e-3 within three steps
    "lfq": (
        "vqgan",
        *UNEVEN,
        "model.quantizer={name: lfq, temperature: 1}",
        "model.codebook_size=64",
        "model.code_dim=6",
    ),
    "ibq": ("vqgan", *UNEVEN, "model.quantizer={name: ibq, temperature: 1}"),
    "vit": (
        "vit_vqgan",
        *UNEVEN,
        *GAME,
        "model.loss={r1: 10, r1_every: 2, logit_laplace: 0.1, adaptive_weight: false}",
    ),
    "accumulated": ("vqgan", *UNEVEN, *MICRO),
    "accumulated_not": ("vqgan", *UNEVEN, "trainer.max_steps=3"),
    "accumulated_ema": ("vqgan_ema", *NO_PICKS, *MICRO),
    "accumulated_ema_not": ("vqgan_ema", *NO_PICKS, "trainer.max_steps=3"),
}


LOGGED = ("loss/", "weight/", "discriminator/", "bits_per_token/train")


class Notes(Callback):
    """Losses and codes of every step, gradients of the first and last, and how many codes were put anew."""

    def __init__(self, kind: type | tuple[type, ...] = Tokenizer) -> None:
        self.kind = kind
        self.losses: list[dict[str, float]] = []
        self.codes: list[Tensor] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.revived = 0
        self.before: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if isinstance(module, Tokenizer) and isinstance(module.quantizer, EMAQuantizer):
            self.before = module.quantizer.counts.clone()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not isinstance(module, self.kind):
            return
        logged = trainer.callback_metrics
        self.losses.append({name: float(value) for name, value in logged.items() if name.startswith(LOGGED)})
        if (batch_idx + 1) % module.config.optimizer.accumulate == 0:  # before, a rank has its own
            self.gradients.append({n: full(p.grad).clone() for n, p in module.named_parameters() if p.grad is not None})
        if isinstance(module, Tokenizer):
            self.codes.append(all_reduce_sum(module.train_usage.code_counts.clone()))
            if self.before is not None and isinstance(module.quantizer, EMAQuantizer):
                counts, decayed = module.quantizer.counts, self.before * module.quantizer.config.decay
                share = torch.tensor(8 * module.encoder.grid_size**2 / len(counts))  # of the latents of eight images
                self.revived += int(((counts == share) & (decayed < 0.6 * share)).sum())


def tokenizer(folder: Path, name: str) -> Result:
    """A few steps of a tokenizer, and its validation metrics."""
    model, *overrides = TOKENIZERS[name]
    experiment = tiny_experiment(folder / name, model, *SIZES, *overrides)
    seed_everything(experiment.seed, workers=True, verbose=False)  # as `train` does; joining seeds again
    module, data, images = prepare(experiment)
    notes = Notes()
    trainer = build_trainer(experiment, module, folder / name, notes)
    trainer.fit(module, data)
    metrics = evaluate(trainer, module, data, images, folder / name)
    return result(notes, module) | {
        "metrics": metrics | module.training_metrics,
        "protocols": module.protocols(),
        "history": module.history,
    }


def result(notes: Notes, module: Any) -> Result:
    kept = {key: getattr(notes, key) for key in ("losses", "codes", "gradients", "revived")}
    return kept | {"weights": {name: full(value) for name, value in module.state_dict().items()}}


def chain(folder: Path, name: str) -> Result:
    """A tokenizer, its tokens or latents, and a prior on them, by `train`; what was made on this rank, how often."""
    downstream = {
        "vim": ("model.label_dropout=0.5", "model.keep_tokens=0.8", "data.flip=true", "data.val_size=13"),
        "vim_fsdp": ("runtime.strategy=fsdp", "data.val_size=13", "trainer.validate_every=2"),
        "sit": (
            "model.optimizer.eps=1e-3",
            "model.label_dropout=0.5",
            "model.scale_latents=true",
            "data.flip=true",
            "data.val_size=13",
        ),
        "vim_adafactor": ("runtime.strategy=fsdp", "data.val_size=13", "model.optimizer.name=adafactor"),
    }
    plain = "model={drop_path: 0, mixup: 0, cutmix: 0, erasing: 0, optimizer: {eps: 1e-3, lr: 1e-3}}"
    strategy = f"runtime.strategy={'fsdp' if world_size() > 1 and 'vim_' in name else 'auto'}"
    tiny = functools.partial(tiny_experiment, folder / "chain")
    experiment: Experiment
    if name == "classifier":
        experiment = tiny_classifier(tiny, plain, "data.val_size=13", "model.encode_on_the_fly=false")
    elif name == "sit":
        experiment = tiny_latents(tiny, name, *downstream[name])
    else:
        experiment = tiny_vim(tiny, "model.gpt={dims: [2, 2, 16, 32], dropout: 0.0}", *downstream[name], strategy)
    notes, calls = Notes((Prior, TokenClassifier)), []
    write, make = token_writer.encode_split, train_module.build_trainer
    token_writer.encode_split = lambda *a: (calls.append("tokens"), write(*a))  # type: ignore[assignment,func-returns-value]
    train_module.build_trainer = lambda *a, **options: make(*a, notes, **options)  # type: ignore[assignment]
    try:
        folder_of_run = run_dir(experiment, name)
        record = train(experiment, name, folder_of_run)
    finally:
        token_writer.encode_split, train_module.build_trainer = write, make
    weights = torch.load(folder_of_run / "checkpoints/final.ckpt", weights_only=True)["state_dict"]
    kept = {"losses": notes.losses, "gradients": notes.gradients, "resumed": resume(experiment, folder_of_run)}
    return kept | {"record": record, "calls": calls, "weights": weights, "folder": str(folder_of_run)}


def resume(experiment: Experiment, folder: Path) -> dict[str, Tensor]:
    """The weights that a new trainer, of as many processes, takes from the final checkpoint."""
    module, data, _ = prepare(experiment)
    trainer = build_trainer(experiment, module, folder)
    trainer.fit(module, data, ckpt_path=folder / "checkpoints/final.ckpt", weights_only=True)
    assert trainer.global_step == experiment.trainer.max_steps
    return {name: full(value).clone() for name, value in module.state_dict().items()}


def later(folder: Path, name: str) -> Result:
    """Weights that are kept by one run and measured by the next."""
    keys = ("vqgan", *SIZES, *UNEVEN, "model.metrics.precision_recall=true")
    trains = tiny_experiment(folder / name, *keys, "runtime.evaluate_later=true")
    train(trains, name, run_dir(trains, name))
    measures = tiny_experiment(folder / name, *keys)
    return train(measures, name, run_dir(measures, name))


def failure(folder: Path, name: str) -> Result:
    """A loss that is not a number on one rank alone stops all of them, at the same step."""
    experiment = tiny_experiment(folder / name, "vqgan", *SIZES)
    module, data, _ = prepare(experiment)
    if rank() == world_size() - 1:
        step = module.training_step

        def poisoned(batch: dict[str, Tensor], batch_idx: int) -> None:
            step({"image": batch["image"] * (torch.nan if batch_idx == 1 else 1)}, batch_idx)

        module.training_step = poisoned
    try:
        build_trainer(experiment, module, folder / name).fit(module, data)
    except FloatingPointError as error:
        return {"error": str(error)}
    return {"error": ""}


def lead(folder: Path, name: str) -> Result:
    """Rank 0 makes a file while the others wait; where it cannot, they end as well."""
    path, found = folder / f"made.{world_size()}", []
    with main_first():
        found.append(path.exists())
        path.touch()
    try:
        with main_first():
            found.append(True)
            if rank() == 0:
                raise ValueError("the disk")
    except (ValueError, SystemExit) as error:
        return {"found": found, "error": repr(error)}
    return {"found": found, "error": ""}


CASES: dict[str, Callable[[Path, str], Result]] = {
    **dict.fromkeys(TOKENIZERS, tokenizer),
    **dict.fromkeys(("vim", "vim_fsdp", "vim_adafactor", "sit", "classifier"), chain),
    "later": later,
    "failure": failure,
    "lead": lead,
}


def run(folder: Path, names: list[str]) -> None:
    for name in names:
        torch.save(CASES[name](folder, name), folder / f"{name}.{rank()}.pt")


def main() -> None:
    folder, *names = sys.argv[1:]
    quiet()
    torch.set_num_threads(1)
    for module in ENCODER_USERS:
        module.load_encoder = load_once  # type: ignore[attr-defined]
    experiment: Experiment = tiny_experiment(Path(folder), "vqgan", "data.batch_size=8")
    join(experiment)
    assert dist.get_world_size() == 2
    run(Path(folder), names or list(CASES))


if __name__ == "__main__":
    main()
