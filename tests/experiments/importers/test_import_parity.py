"""Public weights through the importer: the public implementations' numbers, and every full-size key accounted for.

Weights, inputs and outputs of small public models and the key lists of the full-size ones are in tests/parity.
"""

import json
from pathlib import Path

import pytest
import torch
from parity_vectors import MANIFESTS, VECTORS, Tensors, assert_close, load_io, load_weights

from experiments.importers import FAMILIES, Options
from experiments.importers.convert import convert, import_checkpoint
from experiments.pipeline.build import build_model, restore
from lightning_modules.networks import ViTEncoder
from lightning_modules.quantizers import LargeCodebook, LargeCodebookConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig

pytestmark = pytest.mark.usefixtures("no_metrics")


def imported(family: str, name: str, folder: Path, *overrides: dict) -> Tokenizer:
    """The module that evaluation would get, by way of an imported file."""
    out = folder / "imported.ckpt"
    weights = VECTORS / name / "weights.safetensors"
    image_size = Options(image_size=32) if family == "taming" else None  # enhancing's positions tell
    import_checkpoint(family, weights, out, image_size, *overrides)
    experiment, module = restore(out)
    assert experiment.data.name == "image_folder" and experiment.data.image_size == 32
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("legacy", [True, False])
def test_taming_end_to_end(tmp_path: Path, legacy: bool) -> None:
    fixed = {"model": {"quantizer": {"commitment_weight": 0.25, "codebook_weight": 1.0}}}
    module = imported("taming", "taming_cnn", tmp_path, {} if legacy else fixed)
    io = {name: x.movedim(1, -1) if x.ndim == 4 else x for name, x in load_io("taming_cnn").items()}
    image = io["image"].movedim(-1, 1)
    z = module.encoder(image)
    assert_close(z, io["encoder_out"])
    assert_close(module.pre_quant(z), io["latents"])
    codes = module.encode(image)
    assert torch.equal(codes.indices, io["indices"])
    assert_close(codes.quantized, io["codebook_entry"])
    assert_close(codes.loss, io["codebook_loss_legacy" if legacy else "codebook_loss_fixed"])
    weights = module.quantizer.config.commitment_weight, module.quantizer.config.codebook_weight
    assert weights == ((1.0, 0.25) if legacy else (0.25, 1.0)), "the value of the loss cannot tell, its gradients can"
    assert_close(module(image).reconstruction.movedim(1, -1), io["reconstruction"])
    assert_close(module.decode_indices(io["indices"]).movedim(1, -1), io["reconstruction_from_indices"])


@torch.no_grad()
def test_enhancing_end_to_end(tmp_path: Path) -> None:
    """Pixels in [0, 1] there, in [-1, 1] here."""
    module = imported("enhancing", "enhancing_vit", tmp_path)
    io = load_io("enhancing_vit")
    image = 2 * io["image"] - 1
    z = module.encoder(image)
    assert_close(z.flatten(1, 2), io["encoder_out"])
    assert_close(module.pre_quant(z).flatten(1, 2), io["latents"])
    codes = module.encode(image)
    assert torch.equal(codes.indices.flatten(1), io["indices"])
    assert_close(codes.quantized.flatten(1, 2), io["codebook_entry"])
    assert_close(codes.loss, io["quantiser_loss"])
    assert_close(module.post_quant(codes.quantized).flatten(1, 2), io["post_quant_out"])
    assert_close((module(image).reconstruction + 1) / 2, io["reconstruction"])
    again = module.decode_indices(io["indices"].unflatten(1, (8, 8)))
    assert_close((again + 1) / 2, io["reconstruction_from_indices"])


def test_sincos_positions_equal_enhancing() -> None:
    weights = load_weights("enhancing_vit")
    experiment, _ = convert("enhancing", weights)
    encoder = ViTEncoder(experiment.model.backbone, experiment.data.image_size)  # type: ignore[arg-type]
    assert_close(encoder.transformer.positions, weights["encoder.en_pos_embedding"])


@torch.no_grad()
def test_vqgan_lc_quantizer() -> None:
    """Its vectors hold no encoder, so its weights go through the family's map, not through a file."""
    weights, io = load_weights("vqgan_lc_quantizer"), load_io("vqgan_lc_quantizer")
    codebook_size, feature_dim = weights["tok_embeddings.weight"].shape
    quantizer = LargeCodebook(LargeCodebookConfig(feature_dim=feature_dim), codebook_size, io["latents"].shape[1])
    state = {}
    for key in quantizer.state_dict():
        weight = FAMILIES["vqgan-lc"].weight(f"quantizer.{key}", TokenizerConfig())
        assert weight is not None
        state[key] = weight.make(*(weights.pop(public) for public in weight.keys))
    assert not weights
    quantizer.load_state_dict(state)
    output = quantizer(io["latents"].movedim(1, -1))  # in training mode: imported, it must not be rescaled
    assert_close(quantizer.codebook(), io["projected_codebook"])
    assert torch.equal(output.indices, io["indices"])
    assert_close(output.quantized, io["codebook_entry"].movedim(1, -1))
    assert_close(output.loss, io["loss"])
    dense = torch.cdist(io["latents"].movedim(1, -1).flatten(0, -2), quantizer.codebook()).square()
    torch.testing.assert_close(dense, io["distances"], atol=1e-4, rtol=1e-4)


# ---- full size, on the meta device


def family_of(path: Path) -> str:
    return next(family for family in FAMILIES if path.stem.startswith(family.replace("-", "_")))


def manifest(path: Path) -> Tensors:
    keys = json.loads(path.read_text())["keys"]
    dtype = {"float32": torch.float32, "int64": torch.int64}
    return {k: torch.empty(v["shape"], dtype=dtype[v["dtype"]], device="meta") for k, v in keys.items()}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_key_of_a_published_model_is_accounted_for(path: Path) -> None:
    family, tensors = family_of(path), manifest(path)
    experiment, state = convert(family, tensors)
    with torch.device("meta"):
        own = build_model(experiment).state_dict()
    assert {k: x.shape for k, x in state.items()} == {k: x.shape for k, x in own.items()}

    used = set()
    for key in own:
        weight = FAMILIES[family].weight(key, experiment.model)
        assert weight is not None
        used |= set(weight.keys)
    left = {key for key in tensors if key not in used}
    assert all(key.startswith(tuple(FAMILIES[family].dropped)) for key in left)
    assert not any(key.startswith(("encoder.", "decoder.")) for key in left)
    flags = {"quantizer.is_filled", "quantizer.is_matched"}
    assert sum(x.numel() for k, x in state.items() if k not in flags) == sum(tensors[k].numel() for k in used)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_published_model_is_inferred(path: Path) -> None:
    public = json.loads(path.read_text())["constructor"]
    family = family_of(path)
    model = convert(family, manifest(path))[0].model
    backbone = vars(model.backbone)
    if family == "enhancing":
        for part in ("encoder", "decoder"):
            wanted = [public[part][name] for name in ("depth", "heads", "dim", "mlp_dim")]
            assert backbone[f"{part}_dims"] == wanted
        assert backbone["patch_size"] == public["patch_size"]
        assert (model.codebook_size, model.code_dim) == (8192, public["quantizer"]["embed_dim"])
        return
    if family == "llamagen":
        assert backbone["channel_multipliers"] == public["encoder_ch_mult"]
        assert backbone["attention_resolutions"] == [256 >> (len(public["encoder_ch_mult"]) - 1)]
        assert (model.codebook_size, model.code_dim) == (16384, 8)
        return
    dd = public["ddconfig"]
    names = {"channels": "ch", "channel_multipliers": "ch_mult", "num_res_blocks": "num_res_blocks"}
    assert all(backbone[own] == dd[name] for own, name in names.items())
    assert backbone["latent_channels"] == dd["z_channels"]
    reached = [256 >> level for level in range(len(dd["ch_mult"]))]
    assert backbone["attention_resolutions"] == [size for size in reached if size in dd["attn_resolutions"]]
    size, dim = public.get("n_embed"), public["embed_dim"]
    if family == "vqgan-lc":
        size, dim = public["args"]["n_vision_words"], public["args"]["embed_dim"]
    assert (model.codebook_size, model.code_dim) == (size, dim)
