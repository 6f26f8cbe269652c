"""The importer on small made-up checkpoints: what it takes, what it refuses, and that the result can be measured."""

import argparse
import functools
import json
import os
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import experiments.evaluate
import experiments.import_checkpoint
from experiments.build import restore
from experiments.import_checkpoint import convert, import_checkpoint
from experiments.importers import FAMILIES, Options
from lightning_modules import tokenizer
from lightning_modules.quantizers import LargeCodebook, VectorQuantizer
from lightning_modules.tokenizer import TokenizerConfig

Tensors = dict[str, Tensor]
K, D, SIZE = 32, 8, Options(image_size=16)


def conv(prefix: str, inputs: int, outputs: int, side: int) -> Tensors:
    return {f"{prefix}.weight": torch.randn(outputs, inputs, side, side) / 9, f"{prefix}.bias": torch.randn(outputs)}


def norm(prefix: str, channels: int) -> Tensors:
    return {f"{prefix}.weight": torch.rand(channels) + 0.5, f"{prefix}.bias": torch.randn(channels)}


def block(prefix: str, inputs: int, outputs: int) -> Tensors:
    shortcut = conv(f"{prefix}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {}
    first = norm(f"{prefix}.norm1", inputs) | conv(f"{prefix}.conv1", inputs, outputs, 3)
    return first | norm(f"{prefix}.norm2", outputs) | conv(f"{prefix}.conv2", outputs, outputs, 3) | shortcut


def attention(prefix: str, channels: int) -> Tensors:
    state = norm(f"{prefix}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        state |= conv(f"{prefix}.{part}", channels, channels, 1)
    return state


def middle(part: str) -> Tensors:
    blocks = block(f"{part}.mid.block_1", 16, 16) | block(f"{part}.mid.block_2", 16, 16)
    return blocks | attention(f"{part}.mid.attn_1", 16)


@pytest.fixture
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their networks are in no checkpoint, and take longer to read than a small model takes to import."""
    monkeypatch.setattr(tokenizer, "TokenizerMetrics", lambda *_: nn.Identity())


@pytest.fixture
def taming(no_metrics: None) -> Tensors:
    """What taming's VQModel of 8 channels, multipliers 1 and 2, and attention at the coarser level would save."""
    torch.manual_seed(0)
    state = conv("encoder.conv_in", 3, 8, 3) | block("encoder.down.0.block.0", 8, 8)
    state |= conv("encoder.down.0.downsample.conv", 8, 8, 3)
    state |= block("encoder.down.1.block.0", 8, 16) | attention("encoder.down.1.attn.0", 16)
    state |= middle("encoder") | norm("encoder.norm_out", 16) | conv("encoder.conv_out", 16, 16, 3)
    state |= conv("decoder.conv_in", 16, 16, 3) | middle("decoder")
    for index in (0, 1):
        state |= block(f"decoder.up.1.block.{index}", 16, 16) | attention(f"decoder.up.1.attn.{index}", 16)
        state |= block(f"decoder.up.0.block.{index}", 8 if index else 16, 8)
    state |= (
        conv("decoder.up.1.upsample.conv", 16, 16, 3) | norm("decoder.norm_out", 8) | conv("decoder.conv_out", 8, 3, 3)
    )
    state |= conv("quant_conv", 16, D, 1) | conv("post_quant_conv", D, 16, 1)
    state |= {"quantize.embedding.weight": torch.randn(K, D), "loss.discriminator.main.0.weight": torch.randn(3)}
    return state


def as_llamagen(state: Tensors) -> Tensors:
    """The same network under LlamaGen's names; its decoder's levels are numbered from the coarsest."""
    rules = [
        ("encoder.down.", "encoder.conv_blocks."),
        ("decoder.up.1.", "decoder.conv_blocks.0."),
        ("decoder.up.0.", "decoder.conv_blocks.1."),
        (".block.", ".res."),
        (".mid.block_1.", ".mid.0."),
        (".mid.attn_1.", ".mid.1."),
        (".mid.block_2.", ".mid.2."),
    ]
    renamed = {}
    for key, value in state.items():
        for ours, theirs in rules:
            key = key.replace(ours, theirs)
        renamed[key] = value
    del renamed["loss.discriminator.main.0.weight"]
    return renamed | {"quantize.codebook_used": torch.zeros(65536)}


def as_vqgan_lc(state: Tensors) -> Tensors:
    kept = {key: value for key, value in state.items() if not key.startswith(("quantize.", "loss."))}
    kept |= {"tok_embeddings.weight": torch.randn(K, 20), "perceptual_loss.lin0.model.1.weight": torch.randn(3)}
    return kept | {"codebook_projection.weight": torch.randn(D, 20), "codebook_projection.bias": torch.randn(D)}


def as_enhancing(state: Tensors) -> Tensors:
    return {"encoder.to_patch_embedding.0.weight": torch.zeros(8, 3, 4, 4), "loss.a": torch.zeros(1)}


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


# ---- what is taken


def test_an_imported_checkpoint_is_measured(
    taming: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    assert result["data_id"] == "imagefolder-images"
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
    assert experiment.model.name == "vqgan_ema" and state["quantizer.is_placed"]
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

    def ours(key: str) -> Tensor:
        weight = FAMILIES["enhancing"].weight(key, TokenizerConfig())
        assert weight is not None
        return weight.make(*(weights[theirs] for theirs in weight.keys))

    theirs = list(weights.values())
    x = torch.rand(2, 3, 16, 16).double()  # in [0, 1]
    embedding = F.conv2d(2 * x - 1, ours("encoder.patch_embedding.weight"), ours("encoder.patch_embedding.bias"), patch)
    torch.testing.assert_close(embedding, F.conv2d(x, theirs[0], theirs[1], patch), atol=1e-12, rtol=1e-12)
    y = torch.randn(2, width, 2, 2).double()
    pixels = F.conv_transpose2d(y, ours("decoder.pixels.weight"), ours("decoder.pixels.bias"), patch)
    torch.testing.assert_close((pixels + 1) / 2, F.conv_transpose2d(y, theirs[2], theirs[3], patch), atol=1e-12, rtol=0)


# ---- what is refused


FOREIGN: dict[str, Callable[[Tensors], Tensors]] = {
    "taming": lambda state: state,
    "llamagen": as_llamagen,
    "vqgan-lc": as_vqgan_lc,
    "enhancing": as_enhancing,
}


@pytest.mark.parametrize("right", FOREIGN)
@pytest.mark.parametrize("wrong", FOREIGN)
def test_the_wrong_family_names_the_right_one(taming: Tensors, right: str, wrong: str) -> None:
    if right != wrong:
        with pytest.raises(ValueError, match=f"file: not a {wrong} checkpoint.*use --from {right}$"):
            convert(wrong, FOREIGN[right](taming), origin="file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.mid.attn_1.k.bias": None}, r"lacks 'encoder.mid.attn_1.k.bias'"),
        ({"quantize.embedding.weight": None}, r"no key 'quantize.embedding.weight', which every taming checkpoint has"),
        ({"encoder.conv_in.weight": None}, r"no key 'encoder.conv_in.weight'"),
        ({"discriminator.x": torch.zeros(1)}, r"holds 'discriminator.x', of which --from taming knows nothing"),
        ({"encoder.down.1.attn.1.norm.weight": torch.zeros(16)}, r"holds 'encoder.down.1.attn.1.norm.weight'"),
        (
            {"decoder.conv_out.weight": torch.zeros(3, 8, 5, 5)},
            r"'decoder.conv_out.weight' \(3, 8, 5, 5\) does not fit ",
        ),
        ({"encoder.mid.attn_1.k.bias": torch.zeros(7)}, r"k.bias' \(7,\).* our 'encoder.middle.1.qkv.bias' \(48,\)"),
        ({"encoder.mid.attn_1.k.weight": torch.zeros(9, 9)}, r"k.weight' \(9, 9\).* our 'encoder.middle.1.qkv.weight'"),
        (
            {"quant_conv.weight": torch.zeros(())},
            r"'quant_conv.weight' \(\) does not fit our 'pre_quant.weight' \(8, 16\)",
        ),
        ({"quantize.embedding.weight": torch.zeros(4)}, r"'quantize.embedding.weight' has shape \(4,\), not 2 dim"),
        (
            {"encoder.down.1.block.0.conv1.weight": torch.zeros(9, 8, 3, 3)},
            r"9 channels, no multiple of the first width",
        ),
        ({"quantize.embed.weight": torch.zeros(4)}, r"a Gumbel-softmax tokenizer"),
    ],
)
def test_keys_and_shapes_are_strict(taming: Tensors, change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in (taming | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"^file: .*{message}"):
        convert("taming", state, SIZE, origin="file")


def test_what_ours_has_no_counterpart_for(taming: Tensors) -> None:
    lc = as_vqgan_lc(taming)
    two_layers = {k.replace("projection.", "projection.0."): v for k, v in lc.items()}
    with pytest.raises(ValueError, match="a projector of two layers"):
        convert("vqgan-lc", two_layers, SIZE)
    with pytest.raises(ValueError, match="768-dimensional codes"):
        convert("vqgan-lc", lc | conv("quant_conv", 16, 768, 1), SIZE)
    with pytest.raises(ValueError, match=r"nothing for our 'discriminator.*change the overrides"):
        convert("taming", taming, SIZE, {"model": {"loss": {"adversarial": 0.1}, "discriminator": {"num_layers": 1}}})
    with pytest.raises(ValueError, match="use --image-size"):
        convert("taming", taming, SIZE, {"data": {"image_size": 32}})
    with pytest.raises(ValueError, match="--head-dim is of use to --from enhancing only"):
        convert("taming", taming, Options(head_dim=64))
    with pytest.raises(ValueError, match="image_size 15 is not divisible by 2"):
        convert("taming", taming, Options(image_size=15))


def test_enhancing_tells_its_image_size() -> None:
    keys = {
        "encoder.to_patch_embedding.0.weight": torch.zeros(64, 3, 4, 4),
        "encoder.en_pos_embedding": torch.zeros(1, 64, 64),
        "quantizer.embedding.weight": torch.zeros(K, D),
    }
    for part in ("encoder", "decoder"):
        keys[f"{part}.transformer.layers.0.1.fn.net.0.weight"] = torch.zeros(128, 64)
        keys[f"{part}.transformer.layers.0.0.fn.to_qkv.weight"] = torch.zeros(3 * 128, 64)
    with pytest.raises(ValueError, match="64 positions of 4-pixel patches are 32 pixels"):
        convert("enhancing", keys, Options(image_size=64))
    with pytest.raises(ValueError, match="128 rows a part, no multiple of --head-dim 96"):
        convert("enhancing", keys, Options(head_dim=96))
    with pytest.raises(ValueError, match="60 positions are no square grid"):
        convert("enhancing", keys | {"encoder.en_pos_embedding": torch.zeros(1, 60, 64)})
    with pytest.raises(ValueError, match=re.escape("lacks 'decoder.de_pos_embedding', 'decoder.to_pixel.1.bias'")):
        convert("enhancing", keys)


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def dump(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("save", "what"),
    [
        (torch.save, "it asks for 'posix.mkdir'"),
        (functools.partial(torch.save, _use_new_zipfile_serialization=False), "it asks for 'posix.mkdir'"),
        (functools.partial(torch.save, pickle_protocol=4), "not known to be harmless"),
        (dump, "not known to be harmless"),
    ],
    ids=["zip", "before torch 1.6", "protocol 4", "bare pickle"],
)
def test_code_is_refused_and_not_run(taming: Tensors, tmp_path: Path, save: Callable, what: str) -> None:
    save({"state_dict": taming, "callbacks": Evil(tmp_path / "trace")}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"a.ckpt: refused.*{what}.*container without network.*save_file"):
        import_checkpoint("taming", tmp_path / "a.ckpt", tmp_path / "out", SIZE)
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


def test_the_advice_of_the_refusal_works(taming: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": taming, "callbacks": Evil(tmp_path / "trace")}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="refused") as error:
        import_checkpoint("taming", tmp_path / "a.ckpt", tmp_path / "out", SIZE)
    command = re.search(r'python -c "(.*)"$', str(error.value))
    assert command is not None
    monkeypatch.chdir(tmp_path)
    exec(command[1], {})
    import_checkpoint("taming", tmp_path / "weights.safetensors", tmp_path / "out", SIZE)
    assert (tmp_path / "out").is_file() and (tmp_path / "trace").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.ckpt", None, "no such file"),
        ("folder", "folder", "a folder; give the checkpoint file that is in it"),
        ("truncated.ckpt", "truncated", "not readable as a checkpoint .*truncated"),
        ("truncated.safetensors", "truncated", "not readable as safetensors .*truncated"),
        ("empty.ckpt", b"", "not readable as a checkpoint"),
        ("garbage.pth", b"garbage" * 99, "not readable as a checkpoint"),
        ("list.ckpt", [torch.zeros(1)], "holds no state dict, but list"),
        ("plain.ckpt", {"epoch": 1}, "'epoch' is int, not a tensor: no state dict was found.*under state_dict, model"),
        ("hidden.ckpt", {"state_dict": {}}, "holds no state dict"),
        ("ours.ckpt", {"state_dict": {}, "experiment": {}}, "a checkpoint of this suite already"),
        (
            "other.ckpt",
            {"fc.weight": torch.zeros(1)},
            r"no key 'quantize.embedding.weight'.*1 keys begin with fc.weight",
        ),
    ],
)
def test_files_that_are_no_checkpoint(taming: Tensors, tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        save = save_file if path.suffix == ".safetensors" else torch.save
        save(taming, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        import_checkpoint("taming", path, tmp_path / "out", SIZE)
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept(taming: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "a.ckpt", tmp_path / "out.ckpt"
    torch.save(taming, source)
    out.write_text("precious")
    with pytest.raises(ValueError, match=r"out.ckpt: exists; choose another name, or --force"):
        import_checkpoint("taming", source, out, SIZE)
    with pytest.raises(ValueError, match="is the file to import"):
        import_checkpoint("taming", source, source, SIZE, force=True)
    with pytest.raises(ValueError, match="a folder; give the name of the file to write"):
        import_checkpoint("taming", source, tmp_path, SIZE, force=True)

    def fails(content: Any, path: Path) -> None:
        path.write_text("half of it")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", fails)
        import_checkpoint("taming", source, out, SIZE, force=True)
    assert out.read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "out.ckpt"]
    import_checkpoint("taming", source, out, SIZE, force=True)
    assert restore(out)[0].model.name == "vqgan"


def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["x.ckpt", "out"], ["x.ckpt", "out", "--image-size", "0"], ["x.ckpt", "out", "nonsense"]):
        with pytest.raises(SystemExit) as exit:
            run(monkeypatch, experiments.import_checkpoint, "--from", "taming", *arguments)
        error = capsys.readouterr().err
        assert exit.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
