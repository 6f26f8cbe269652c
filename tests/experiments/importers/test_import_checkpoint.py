"""The importer on small made-up checkpoints: what it takes, and that the result can be measured."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import SIZE, D, K, Tensors, as_llamagen, as_vqgan_lc, taming_state
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import experiments.evaluate
import experiments.import_checkpoint
from experiments.importers import FAMILIES, Options
from experiments.importers.convert import convert, import_checkpoint
from experiments.pipeline.build import restore
from lightning_modules.quantizers import LargeCodebook, VectorQuantizer
from lightning_modules.tokenizer import TokenizerConfig


@pytest.fixture
def taming(no_metrics: None) -> Tensors:
    return taming_state()


def folder_of_images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()


def test_an_imported_checkpoint_is_measured(
    taming: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # with metrics
    source, out = tmp_path / "last.ckpt", tmp_path / "new" / "imported.ckpt"
    torch.save({"state_dict": taming, "epoch": 3, "optimizer_states": []}, source)
    options = ["--image-size", "16", "model.metrics.extractor=efficientnet-lite0", "model.metrics.lpips=none"]
    run(monkeypatch, experiments.import_checkpoint, "--from", "taming", source, out, *options)
    printed = capsys.readouterr().out
    assert "vqgan, 32 codes of 8 dimensions, 16 pixels" in printed
    assert f"imported {len(taming) - 1} keys of state_dict" in printed and "left out: 1 keys loss.*" in printed

    data = ["--data-dir", folder_of_images(tmp_path / "images"), "--output-dir", tmp_path / "runs", "--json"]
    keys = ["model.metrics.extractor_image_size=32", "runtime.accelerator=cpu"]
    run(monkeypatch, experiments.evaluate, out, *data, *keys)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["data_id"].startswith("image_folder-")
    assert result["protocols"]["rfid"] == "rfid/efficientnet-lite0@32px/val-vs-val/n6/uint8"
    assert 0 < result["metrics"]["usage/val"] <= 100


def test_the_file_says_where_it_is_from(taming: Tensors, tmp_path: Path) -> None:
    save_file(taming, tmp_path / "a.safetensors")
    import_checkpoint("taming", tmp_path / "a.safetensors", tmp_path / "out", SIZE)
    checkpoint = torch.load(tmp_path / "out", weights_only=True)
    assert checkpoint["imported"]["family"] == "taming" and checkpoint["imported"]["file"] == "a.safetensors"
    assert checkpoint["imported"]["dropped"] == {"loss.": 1} and len(checkpoint["imported"]["sha256"]) == 64
    numbers = sum(x.numel() for x in taming.values()) - 3
    assert (tmp_path / "out").stat().st_size < 4 * numbers + 100_000, "no weight is written twice"


PREFIXES = {
    "module.": "module.",
    "_orig_mod.": "_orig_mod.",
    "module._orig_mod.": "module.",
    "first_stage_model.": "first",
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_the_keys_is_taken_off(taming: Tensors, tmp_path: Path, prefix: str) -> None:
    wrapped = {prefix + key: tensor for key, tensor in taming.items()}
    if prefix == "first_stage_model.":
        wrapped |= {"model.diffusion_model.out.weight": torch.zeros(1), "cond_stage_model.x": torch.zeros(1)}
    torch.save({"state_dict": wrapped}, tmp_path / "a.ckpt")
    report = import_checkpoint("taming", tmp_path / "a.ckpt", tmp_path / "out", SIZE)
    assert f"taken off the keys: '{PREFIXES[prefix]}" in report
    assert ("2 keys without it are not imported" in report) == (prefix == "first_stage_model.")
    assert torch.equal(restore(tmp_path / "out")[1].quantizer.codes, taming["quantize.embedding.weight"])
    with pytest.raises(ValueError, match=r"not a llamagen checkpoint, its keys look like taming: use --from taming"):
        import_checkpoint("llamagen", tmp_path / "a.ckpt", tmp_path / "other", SIZE)


def test_a_part_that_was_compiled(taming: Tensors, tmp_path: Path) -> None:
    torch.save(
        {key.replace("encoder.", "encoder._orig_mod."): value for key, value in taming.items()}, tmp_path / "a.pt"
    )
    report = import_checkpoint("taming", tmp_path / "a.pt", tmp_path / "out", SIZE)
    assert "taken off the keys: '_orig_mod.', of torch.compile" in report


def test_of_several_tokenizers_none_is_guessed(taming: Tensors, tmp_path: Path) -> None:
    state = {f"{prefix}.{key}": tensor for prefix in ("model", "ema_model") for key, tensor in taming.items()}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: holds taming tokenizers under the prefixes 'ema_model\.', 'model\.'"):
        import_checkpoint("taming", tmp_path / "a.pt", tmp_path / "out", SIZE)


def test_llamagen_is_the_same_network_under_other_names(taming: Tensors) -> None:
    """Taming's map is checked against its own outputs (test_import_parity), so this checks LlamaGen's."""
    one, state = convert("taming", taming, SIZE)
    other, renamed = convert("llamagen", as_llamagen(taming), SIZE)
    assert one.model.backbone == other.model.backbone
    assert state.keys() == renamed.keys() and all(torch.equal(state[key], renamed[key]) for key in state)
    assert vars(other.model.quantizer)["l2_norm"] is True
    assert vars(other.model.backbone)["attention_resolutions"] == [8]
    plain, _ = convert("llamagen", as_llamagen(taming), SIZE, {"model": {"quantizer": {"l2_norm": False}}})
    assert vars(plain.model.quantizer)["l2_norm"] is False


def test_llamagen_prefers_averaged_weights(taming: Tensors, tmp_path: Path) -> None:
    average = as_llamagen(taming)
    torch.save({"model": {k: torch.zeros_like(v) for k, v in average.items()}, "ema": average}, tmp_path / "a.pt")
    report = import_checkpoint("llamagen", tmp_path / "a.pt", tmp_path / "out", SIZE)
    _, module = restore(tmp_path / "out")
    assert torch.equal(module.quantizer.codes, average["quantize.embedding.weight"]) and "keys of ema" in report


@torch.no_grad()
def test_vqgan_lc_keeps_table_and_projector(taming: Tensors, tmp_path: Path) -> None:
    weights = as_vqgan_lc(taming)
    # its training script keeps the command line beside the weights
    torch.save({"model": weights, "epoch": 1, "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    import_checkpoint("vqgan-lc", tmp_path / "a.pth", tmp_path / "out", SIZE)
    _, module = restore(tmp_path / "out")
    assert isinstance(module.quantizer, LargeCodebook)
    projector = weights["codebook_projection.weight"], weights["codebook_projection.bias"]
    module(torch.zeros(1, 3, 16, 16))  # training mode: the first batch must not rescale the projector
    torch.testing.assert_close(module.quantizer.codebook(), F.linear(weights["tok_embeddings.weight"], *projector))


def test_the_baselines_of_vqgan_lc(taming: Tensors) -> None:
    weights = {k: v for k, v in as_vqgan_lc(taming).items() if not k.startswith("codebook_projection.")}
    weights["tok_embeddings.weight"] = torch.randn(K, D)
    experiment, state = convert("vqgan-lc", weights, SIZE)
    assert (experiment.model.name, experiment.model.quantizer.codebook_weight) == ("vqgan", 0.33)
    assert torch.equal(state["quantizer.codes"], weights["tok_embeddings.weight"])
    weights |= {"cluster_size": torch.rand(K), "embed_avg": torch.randn(K, D)}
    experiment, state = convert("vqgan-lc", weights, SIZE)
    assert (experiment.model.name, experiment.model.quantizer.init) == ("vqgan_ema", "random")
    assert torch.equal(state["quantizer.counts"], weights["cluster_size"])
    assert torch.equal(state["quantizer.sums"], weights["embed_avg"])


@pytest.mark.parametrize("zipped", [True, False])
def test_an_old_lightning_checkpoint(taming: Tensors, tmp_path: Path, zipped: bool, monkeypatch: Any) -> None:
    """It names a callback's class, which is not needed, in either of torch's two formats."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    content = {"state_dict": taming, "callbacks": {callback: {"best_model_path": "x"}}}
    with monkeypatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, part, types.ModuleType(part))
        sys.modules[name].ModelCheckpoint = callback  # type: ignore[attr-defined]
        torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    assert name not in sys.modules
    import_checkpoint("taming", tmp_path / "last.ckpt", tmp_path / "out", SIZE)
    _, module = restore(tmp_path / "out")
    assert isinstance(module.quantizer, VectorQuantizer)
    assert torch.equal(module.quantizer.codes, taming["quantize.embedding.weight"])


def test_half_precision_becomes_single(taming: Tensors) -> None:
    _, state = convert("taming", {key: value.half() for key, value in taming.items()}, SIZE)
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_attention_keeps_its_place_at_another_image_size(taming: Tensors) -> None:
    for size, wanted in ((16, [8]), (64, [32])):
        experiment, _ = convert("taming", taming, Options(image_size=size))
        assert vars(experiment.model.backbone)["attention_resolutions"] == wanted


def test_the_folded_pixel_range_is_exact() -> None:
    """Enhancing's pixels in [0, 1]: in double precision, on weights of the published sizes."""
    torch.manual_seed(0)
    width, patch = 512, 8
    weights = {
        "encoder.to_patch_embedding.0.weight": torch.randn(width, 3, patch, patch).double(),
        "encoder.to_patch_embedding.0.bias": torch.randn(width).double(),
        "decoder.to_pixel.1.weight": torch.randn(width, 3, patch, patch).double(),
        "decoder.to_pixel.1.bias": torch.randn(3).double(),
    }

    def converted(key: str) -> Tensor:
        weight = FAMILIES["enhancing"].weight(key, TokenizerConfig())
        assert weight is not None
        return weight.make(*(weights[public] for public in weight.keys))

    public = list(weights.values())
    x = torch.rand(2, 3, 16, 16).double()  # in [0, 1]
    embedding = F.conv2d(
        2 * x - 1, converted("encoder.patch_embedding.weight"), converted("encoder.patch_embedding.bias"), patch
    )
    torch.testing.assert_close(embedding, F.conv2d(x, public[0], public[1], patch), atol=1e-12, rtol=1e-12)
    y = torch.randn(2, width, 2, 2).double()
    pixels = F.conv_transpose2d(y, converted("decoder.pixels.weight"), converted("decoder.pixels.bias"), patch)
    torch.testing.assert_close((pixels + 1) / 2, F.conv_transpose2d(y, public[2], public[3], patch), atol=1e-12, rtol=0)


def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["x.ckpt", "out"], ["x.ckpt", "out", "--image-size", "0"], ["x.ckpt", "out", "nonsense"]):
        with pytest.raises(SystemExit) as exit:
            run(monkeypatch, experiments.import_checkpoint, "--from", "taming", *arguments)
        error = capsys.readouterr().err
        assert exit.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
