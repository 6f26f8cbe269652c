"""What the importer refuses, and that each refusal says what to do: keys, shapes, families, files, code."""

import functools
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from foreign import SIZE, D, K, Tensors, as_enhancing, as_llamagen, as_vqgan_lc, conv, taming_state
from parity_vectors import load_weights
from safetensors.torch import save_file
from torch import Tensor

from experiments.importers import Options
from experiments.importers.convert import convert, import_checkpoint
from experiments.pipeline.build import restore


@pytest.fixture
def taming(no_metrics: None) -> Tensors:
    return taming_state()


FOREIGN: dict[str, Callable[[Tensors], Tensors]] = {
    "taming": lambda state: state,
    "llamagen": as_llamagen,
    "vqgan-lc": as_vqgan_lc,
    "enhancing": as_enhancing,
    "ibq": lambda _: load_weights("ibq"),
    "open-magvit2": lambda _: load_weights("open_magvit2"),
    "titok": lambda _: load_weights("titok"),
    "diffusers": lambda _: load_weights("diffusers_vq"),
}


@pytest.mark.parametrize("right", FOREIGN)
@pytest.mark.parametrize("wrong", FOREIGN)
def test_the_wrong_family_names_the_right_one(taming: Tensors, right: str, wrong: str) -> None:
    if right != wrong and (right, wrong) != ("taming", "ibq"):  # whose keys are the same without an averaged copy
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
    with pytest.raises(ValueError, match="--head-dim is of use to --from enhancing and titok only"):
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


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("ibq", {"encoder.conv_in.bias": None}, r"holds 'model_ema.encoderconv_inbias', averaged copies of no weight"),
    (
        "ibq",
        {"model_ema.encoderconv_inbias": None},
        r"lacks 'model_ema.encoderconv_inbias': not all weights have their",
    ),
    ("ibq", {"model_ema.quantizeembeddingweight": torch.zeros(128, 7)}, r"'quant_conv.weight'.* does not fit"),
    (
        "open-magvit2",
        {"model_ema.decoderadaptive1gammaweight": torch.zeros(3, 3)},
        r"'decoder.adaptive.1.gamma.weight' \(3,",
    ),
    ("open-magvit2", {"model_ema.decoderup1upsampleconv1bias": torch.zeros(7)}, r"conv1.bias' \(7,\) does not fit our"),
    (
        "open-magvit2",
        {"quantize.x": torch.zeros(1), "model_ema.quantizex": torch.zeros(1)},
        r"holds 'quantize.x', of which",
    ),
    ("titok", {"decoder.mask_token": None}, r"lacks 'decoder.mask_token'"),
    (
        "titok",
        {"encoder.text_embedding": torch.zeros(1)},
        r"holds 'encoder.text_embedding', of which --from titok knows",
    ),
    (
        "titok",
        {"decoder.ffn.0.weight": torch.zeros(100, 128, 1, 1)},
        r"'decoder.ffn.0.weight' \(100, 128, 1, 1\) does not fit",
    ),
    ("titok", {"encoder.positional_embedding": torch.zeros(20, 64)}, r"19 positions are no square grid"),
    (
        "diffusers",
        {"encoder.mid_block.attentions.0.to_k.bias": None},
        r"lacks 'encoder.mid_block.attentions.0.to_k.bias'",
    ),
    (
        "diffusers",
        {"encoder.mid_block.attentions.0.to_k.weight": torch.zeros(9, 9)},
        r"to_k.weight' \(9, 9\).* does not fit",
    ),
    (
        "diffusers",
        {"quantize.embedding.weight": None, "quantize.x": torch.zeros(1)},
        r"no key 'quantize.embedding.weight'",
    ),
]


@pytest.mark.parametrize(("family", "change", "message"), CHANGES)
def test_keys_and_shapes_of_the_others_are_strict(family: str, change: dict[str, Any], message: str) -> None:
    state = {key: x for key, x in (FOREIGN[family]({}) | change).items() if x is not None}
    options = None if family == "titok" else Options(image_size=32)
    with pytest.raises(ValueError, match=f"^file: .*{message}"):
        convert(family, state, options, origin="file")


def test_what_stands_beside_the_weights_is_heeded(tmp_path: Path, no_metrics: None) -> None:
    """config.json says what weights do not tell; without it the published models' values hold."""
    titok, config = load_weights("titok"), tmp_path / "config.json"
    options = Options(folder=tmp_path)
    assert vars(convert("titok", titok, options)[0].model.quantizer)["l2_norm"] is False
    config.write_text('{"model": {"vq_model": {"use_l2_norm": true}}}')
    assert vars(convert("titok", titok, options)[0].model.quantizer)["l2_norm"] is True
    config.write_text('{"model": "titok"}')  # another tool's
    assert vars(convert("titok", titok, options)[0].model.quantizer)["l2_norm"] is False
    config.write_text('{"norm_num_groups": 16}')
    with pytest.raises(
        ValueError, match=r"file: a VQModel with norm_num_groups=16; only those with norm_num_groups=32"
    ):
        convert("diffusers", load_weights("diffusers_vq"), Options(folder=tmp_path, image_size=32), origin="file")
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        convert("titok", titok, options)
    with pytest.raises(ValueError, match="16 positions of 8-pixel patches are 32 pixels"):
        convert("titok", titok, Options(image_size=64))
    with pytest.raises(ValueError, match=r"is of width 64, no multiple of --head-dim 48"):
        convert("titok", titok, Options(head_dim=48))


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

    def fails(content: Any, file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", fails)
        import_checkpoint("taming", source, out, SIZE, force=True)
    assert out.read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "out.ckpt"]
    import_checkpoint("taming", source, out, SIZE, force=True)
    assert restore(out)[0].model.name == "vqgan"
