"""export: the files run without this project, and give the model's ids and images."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TinyExperiment
from token_cases import save
from torch import Tensor
from vim_cases import build, tiny_vim

from experiments import export
from experiments.pipeline import exporting
from experiments.pipeline.build import build_model
from lightning_modules import Prior, Tokenizer
from lightning_modules.archives import weights_hash
from lightning_modules.frozen import freeze
from lightning_modules.quantizers import QUANTIZERS

SIZES = {"fsq": (240, 3), "lfq": (256, 8)}
LARGE = ["model.quantizer.feature_dim=40", "model.quantizer.source.encoder=efficientnet-lite0"]


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1


def tokenizer_of(tiny: TinyExperiment, name: str, quantizer: str) -> Tokenizer:
    """Of random weights; its codes lie among the latents, so that many are in use."""
    codes, dims = SIZES.get(quantizer, (32, 8))
    keys = [f"model.quantizer.name={quantizer}", f"model.codebook_size={codes}", f"model.code_dim={dims}"]
    torch.manual_seed(0)
    tokenizer = build_model(tiny(name, *keys, *(LARGE if quantizer == "large_codebook" else [])))
    if quantizer == "large_codebook":
        tokenizer.quantizer.fill(torch.randn(codes, 40))
    freeze(tokenizer)
    latents = tokenizer.latents(images(8)).flatten(0, 2)
    if hasattr(tokenizer.quantizer, "match_scale"):
        tokenizer.quantizer.match_scale(latents)
    if hasattr(tokenizer.quantizer, "codes"):
        tokenizer.quantizer.codes.copy_(latents[torch.randperm(len(latents))[:codes]])
    return tokenizer


def run_onnx(folder: Path, name: str, values: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {("images" if name == "encoder" else "ids"): values.numpy()})[0]


@pytest.mark.parametrize("quantizer", [name for name in QUANTIZERS if name != "none"])
def test_onnx_runtime_gives_the_ids_and_images_of_every_quantizer(
    tiny: TinyExperiment, tmp_path: Path, no_metrics: None, quantizer: str
) -> None:
    check_onnx(tokenizer_of(tiny, "vit_vqgan", quantizer), tmp_path / "out")


def test_onnx_runtime_gives_the_ids_and_images_of_a_cnn(tiny: TinyExperiment, tmp_path: Path, no_metrics: None) -> None:
    check_onnx(tokenizer_of(tiny, "vqgan", "factorized"), tmp_path / "out")


def check_onnx(tokenizer: Tokenizer, out: Path) -> None:
    batches = [images(count) for count in (1, 2, 7)]  # the programs are traced with two
    ids = [tokenizer.encode(batch).indices for batch in batches]
    decoded = [tokenizer.decode_indices(tokens) for tokens in ids]
    assert len(torch.cat(ids).unique()) > 4
    content = exporting.export(tokenizer, out, "onnx")
    for batch, tokens, expected in zip(batches, ids, decoded, strict=True):
        assert np.array_equal(run_onnx(out, "encoder", batch), tokens.numpy())
        assert np.abs(run_onnx(out, "decoder", tokens) - expected.numpy()).max() <= 1e-5
    assert content["agreement"]["equal ids"] == 1 and json.loads((out / "export.json").read_text()) == content
    assert content["encoder.onnx"] == "images, float32 (B, 3, 16, 16) in [-1, 1] -> ids, int64 (B, 8, 8)"


@pytest.mark.parametrize("quantizer", ["large_codebook", "simvq", "lfq"])
def test_programs_without_what_only_training_needs(
    tiny: TinyExperiment, tmp_path: Path, no_metrics: None, quantizer: str
) -> None:
    tokenizer = tokenizer_of(tiny, "vit_vqgan", quantizer)
    codes, weights = tokenizer.quantizer.codebook(), tokenizer.content(tokenizer.weights())["weights"]
    content = exporting.export(tokenizer, tmp_path / "out", "torch.export")
    assert content["agreement"]["equal ids"] == 1
    assert torch.equal(tokenizer.quantizer.codebook(), codes) and content["weights"] == weights
    assert not hasattr(tokenizer.quantizer, "table") or torch.equal(tokenizer.quantizer.table, codes), "folded"


# ---- the command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["export", *map(str, arguments)])
        export.main()


def test_torch_export_and_safetensors_by_the_command(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, batch = save(tiny("vqgan"), tmp_path / "final.ckpt"), images(3)
    tokenizer = Tokenizer.from_pretrained(model)
    call(monkeypatch, model, "--to", "torch.export", "--out", tmp_path / "pt2")
    assert "equal ids 1, largest difference of decoded images 0" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("pt2/*")} == {"encoder.pt2", "decoder.pt2", "export.json", "README.md"}
    encoder, decoder = (torch.export.load(tmp_path / f"pt2/{name}.pt2").module() for name in ("encoder", "decoder"))
    assert torch.equal(encoder(batch), tokenizer.encode(batch).indices)
    assert torch.equal(decoder(encoder(batch)), tokenizer.decode_indices(encoder(batch)))
    card = (tmp_path / "pt2/README.md").read_text()
    example = card.partition("```python\n")[2].partition("```")[0].replace('f"{name}', f'f"{tmp_path}/pt2/{{name}}')
    names: dict[str, Any] = {"images": batch}
    exec(example, names)
    assert torch.equal(names["ids"], encoder(batch)), "what the page tells to do"
    call(monkeypatch, model, "--out", tmp_path / "folder")
    assert torch.equal(Tokenizer.from_pretrained(tmp_path / "folder").encode(batch).indices, encoder(batch))


def test_a_prior_is_exported_with_its_tokenizer(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, tokenizer = build(tiny_vim(tiny))
    prior.tokenizer_digest = f"x-{weights_hash(tokenizer.state_dict())}"
    prior.save_pretrained(tmp_path / "prior")
    call(monkeypatch, tmp_path / "prior", "--out", tmp_path / "again")
    assert Prior.from_pretrained(tmp_path / "again").tokenizer is not None
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path / "prior", "--to", "onnx", "--out", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save(tiny("vqgan"), tmp_path / "final.ckpt"), tmp_path / "deep/out"

    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments, "--out", out)
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return capsys.readouterr().err

    assert "no such checkpoint" in refused(tmp_path / "nowhere.ckpt", "--to", "onnx")
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert "--to onnx takes onnx, onnxscript, onnxruntime: pip install" in refused(model, "--to", "onnx")
    wrong = exporting.KINDS["torch.export"]._replace(load=lambda file: lambda values: np.zeros(1))
    monkeypatch.setitem(exporting.KINDS, "torch.export", wrong)
    assert "the files do not give what the model gives" in refused(model, "--to", "torch.export")
    monkeypatch.setattr(exporting.Encode, "forward", lambda self, images: 1 / 0)
    assert "the encoder of this model cannot be exported (" in refused(model, "--to", "torch.export")
    out.mkdir(parents=True)
    (out / "mine.txt").touch()
    with pytest.raises(SystemExit):
        call(monkeypatch, model, "--out", out)
    assert "is there already" in capsys.readouterr().err
    without = freeze(build_model(tiny("vqgan", "model.quantizer.name=none", "model.codebook_size=0")))
    with pytest.raises(ValueError, match="has no codes"):
        exporting.export(without, tmp_path / "none", "onnx")
