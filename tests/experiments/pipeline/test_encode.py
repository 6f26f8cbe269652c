"""The name of a tokenizer, and encoding at every step instead of once."""

from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from token_cases import SIZES, arguments, folder_of, run, save, served
from torch import Tensor, nn

from experiments.config.compose import parse
from experiments.pipeline.build import build_data, build_model, restore
from experiments.pipeline.encode import EncodedImages, encode_batch, tokenizer_digest

# ---- the digest


def test_the_digest_is_of_configuration_and_weights(tiny: TinyExperiment, tmp_path: Path) -> None:
    def digest(change: str = "", *overrides: str) -> str:
        path = save(tiny("vqgan", "model.loss.adversarial=0.1", *overrides), tmp_path / "x.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        if change:
            checkpoint["state_dict"][change].flatten()[0] += 1e-3
        torch.save(checkpoint, path)
        return tokenizer_digest(path)

    first = digest()
    assert digest() == first
    parts = ["encoder.conv_in.weight", "decoder.conv_in.weight", "quantizer.codes", "pre_quant.bias"]
    assert len({first, *map(digest, parts)}) == 5
    module = build_model(tiny("vqgan", "model.loss.adversarial=0.1"))
    assert module.discriminator is not None
    name = next(name for name, _ in module.discriminator.named_parameters())
    assert digest(f"discriminator.{name}") == first, "it is no part of the tokenizer"
    other = digest("", "seed=1")
    assert other.split("-")[1] == first.split("-")[1] and other.split("-")[0] != first.split("-")[0]
    experiment = parse(tiny("vqgan", "model.loss.adversarial=0.1").identity(), "x")
    assert first.startswith(f"{experiment.digest()}-")


# ---- at every step


class Consumer(L.LightningModule):
    """Trains an embedding of tokens, and notes all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 1)
        self.seen: dict[str, list[Tensor]] = {"train": [], "train_label": [], "val": []}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        self.seen["train"].append(batch["tokens"])
        self.seen["train_label"].append(batch["label"])
        return self.embedding(batch["tokens"]).sum()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.seen["val"].append(batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["vqgan", "vqgan_ema"])
def test_encoding_at_every_step_gives_the_same_batches(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment = tiny(name, *SIZES)
    checkpoint = tmp_path / "final.ckpt"
    if name == "vqgan":
        save(experiment, checkpoint)
    else:
        module = build_model(experiment)
        content = {"experiment": experiment.identity(), "state_dict": module.state_dict(), "generator_steps": 0}
        torch.save(content, checkpoint)
    run(monkeypatch, *arguments(experiment, checkpoint))
    tokenizer = restore(checkpoint)[1]
    assert tokenizer.training
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    encoded = EncodedImages(build_data(experiment), tokenizer)
    cached = served(folder_of(experiment))

    seen = []
    for data in (cached, encoded):
        module = Consumer()
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
        seen.append({key: torch.cat(value) for key, value in module.seen.items()})
        assert set(module.state_dict()) == {"embedding.weight"}, "the tokenizer is no part of it"
    assert seen[0]["train"].shape == (40, 64)
    for key in seen[0]:
        assert torch.equal(seen[0][key], seen[1][key]), key
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


def test_a_tokenizer_in_training_mode_is_refused(tiny: TinyExperiment) -> None:
    with pytest.raises(AssertionError, match="freeze"):
        encode_batch(build_model(tiny()), {"image": torch.zeros(1, 3, 16, 16)})
