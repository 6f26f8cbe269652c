"""Public weights through the importer: the public implementations' numbers, and every full-size key accounted for.

Weights, inputs and outputs of small public models and the key lists of the full-size ones are in tests/parity.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from parity_vectors import MANIFESTS, REFUSED, VECTORS, Tensors, assert_close, load_io, load_weights
from safetensors.torch import save_file

from experiments.importers import FAMILIES, Options, family_of
from experiments.importers.convert import convert, import_checkpoint, read_public
from experiments.pipeline.build import build_model, restore
from lightning_modules.networks import ViTEncoder
from lightning_modules.quantizers import LargeCodebook, LargeCodebookConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig

pytestmark = pytest.mark.usefixtures("no_metrics")


def imported(family: str, name: str, folder: Path, *overrides: dict) -> Tokenizer:
    """The module that evaluation would get, by way of an imported file."""
    out = folder / "imported.ckpt"
    weights = VECTORS / name / "weights.safetensors"
    image_size = None if family in ("enhancing", "titok") else Options(image_size=32)  # whose positions tell
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


def channels_last(name: str) -> Tensors:
    return {key: x.movedim(1, -1) if x.ndim == 4 else x for key, x in load_io(name).items()}


@torch.no_grad()
def test_ibq_end_to_end(tmp_path: Path) -> None:
    """The averaged copy where the file has one; the raw weights of a file without."""
    io = channels_last("ibq")
    image = io["image"].movedim(-1, 1)
    raw = {key: x for key, x in load_weights("ibq").items() if not key.startswith("model_ema.")}
    save_file(raw, tmp_path / "raw.safetensors")
    import_checkpoint("ibq", tmp_path / "raw.safetensors", tmp_path / "raw.ckpt", Options(image_size=32))
    for module, suffix in ((imported("ibq", "ibq", tmp_path), ""), (restore(tmp_path / "raw.ckpt")[1].eval(), "_raw")):
        assert_close(module.latents(image), io[f"latents{suffix}"])
        assert torch.equal(module.encode(image).indices, io[f"indices{suffix}"])
        assert_close(module(image).reconstruction.movedim(1, -1), io[f"reconstruction{suffix}"])
    averaged = imported("ibq", "ibq", tmp_path / "again")
    assert_close(averaged.encode(image).loss, io["total_quantiser_loss"])
    assert_close(averaged.decode_indices(io["indices"]).movedim(1, -1), io["reconstruction_from_indices"])
    assert torch.load(tmp_path / "imported.ckpt", weights_only=True)["imported"]["note"].startswith(
        "taken: the averaged"
    )


def test_open_magvit2_end_to_end(tmp_path: Path) -> None:
    io = channels_last("open_magvit2")
    image = io["image"].movedim(-1, 1)
    module = imported("open-magvit2", "open_magvit2", tmp_path)
    with torch.no_grad():
        assert_close(module.latents(image), io["latents"])
        codes = module.encode(image)
        assert torch.equal(codes.indices, io["indices"]) and torch.equal(codes.quantized, io["codebook_entry"])
        adaptive = module.decoder.adaptive[0]
        assert_close(adaptive(io["agn_in"].movedim(-1, 1), codes.quantized).movedim(1, -1), io["agn_out"])
        assert_close(module(image).reconstruction.movedim(1, -1), io["reconstruction"])
        assert_close(module.decode_indices(io["indices"]).movedim(1, -1), io["reconstruction_from_indices"])
    z = io["latents"].clone().requires_grad_()
    output = module.quantizer.train()(z)  # whose loss the public code has in training alone
    of_latents, of_codes = module.quantizer.entropies(z.flatten(0, -2))
    assert_close(of_latents, io["per_sample_entropy_train"])
    assert_close(of_codes, io["codebook_entropy_train"])
    assert_close(output.loss, io["total_quantiser_loss_train"])
    ((output.quantized * io["grad_weight"]).sum() + output.loss).backward()
    assert z.grad is not None
    assert_close(z.grad, io["grad_latents_train"])


def test_the_raw_weights_of_open_magvit2(no_metrics: None) -> None:
    """A file of one's own training may have no averaged copy; the quantizer has no key either way."""
    io = channels_last("open_magvit2")
    raw = {key: x for key, x in load_weights("open_magvit2").items() if not key.startswith("model_ema.")}
    experiment, state = convert("open-magvit2", raw, Options(image_size=32))
    module = build_model(experiment).eval()
    module.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(module.encode(io["image"].movedim(-1, 1)).indices, io["indices_raw"])
        assert_close(module(io["image"].movedim(-1, 1)).reconstruction.movedim(1, -1), io["reconstruction_raw"])


def test_titok_end_to_end(tmp_path: Path) -> None:
    """Pixels in [0, 1] there; a row of tokens, no grid."""
    io = channels_last("titok")  # latents (B, 1, L, d)
    image = 2 * io["image"].movedim(-1, 1) - 1
    module = imported("titok", "titok", tmp_path)
    with torch.no_grad():
        assert_close(module.latents(image), io["latents"])
        codes = module.encode(image)
        assert torch.equal(codes.indices, io["indices"]) and codes.indices.shape == (4, 1, 8)
        assert_close(codes.quantized, io["codebook_entry"])
        assert_close(codes.loss, io["quantizer_loss"])
        assert_close((module(image).reconstruction.movedim(1, -1) + 1) / 2, io["reconstruction"])
        again = module.decode_indices(io["indices"])
        assert_close((again.movedim(1, -1) + 1) / 2, io["reconstruction_from_indices"])
    z = io["latents"].clone().requires_grad_()
    output = module.quantizer(z)
    ((output.quantized * io["grad_weight"]).sum() + output.loss).backward()
    assert z.grad is not None
    assert_close(z.grad, io["grad_latents"])
    assert_close(module.quantizer.codes.grad, io["grad_codebook"])
    with pytest.raises(ValueError, match="on the model's grid of 1 x 8"):
        module.decode_indices(torch.zeros(4, 2, 4, dtype=torch.int64))


def test_diffusers_end_to_end(tmp_path: Path) -> None:
    io = channels_last("diffusers_vq")
    image = io["image"].movedim(-1, 1)
    module = imported("diffusers", "diffusers_vq", tmp_path)
    with torch.no_grad():
        assert_close(module.encoder(image), io["encoder_out"])
        assert_close(module.latents(image), io["latents"])
        codes = module.encode(image)
        assert torch.equal(codes.indices, io["indices"])
        assert_close(codes.quantized, io["codebook_entry"])
        assert_close(codes.loss, io["commit_loss"])
        assert_close(module.post_quant(codes.quantized), io["post_quant_out"])
        assert_close(module(image).reconstruction.movedim(1, -1), io["reconstruction"])
        assert_close(module.decode_indices(io["indices"]).movedim(1, -1), io["reconstruction_from_indices"])
    z = io["latents"].clone().requires_grad_()
    output = module.quantizer(z)
    ((output.quantized * io["grad_weight"]).sum() + output.loss).backward()
    assert z.grad is not None
    assert_close(z.grad, io["grad_latents"])
    assert_close(module.quantizer.codes.grad, io["grad_codebook"])


@torch.no_grad()
@pytest.mark.parametrize("middle", [True, False])
def test_a_model_of_the_installed_diffusers(tmp_path: Path, middle: bool) -> None:
    """Three levels, attention in two of them, in its own folder and under its own old names."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    down, attended = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
    public = diffusers.VQModel(
        down_block_types=(down, attended, attended),
        up_block_types=("AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=6,
        num_vq_embeddings=50,
        vq_embed_dim=5,
        mid_block_add_attention=middle,
    ).eval()
    public.save_pretrained(tmp_path / "vqvae")
    image = torch.randn(2, 3, 32, 32)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {
        re.sub(r"(to_[qkv]|to_out\.0)", lambda match: new[match[1]], key): x for key, x in public.state_dict().items()
    }
    torch.save(old, tmp_path / "old.bin")
    for number, path in enumerate((tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors", tmp_path / "old.bin")):
        assert read_public("", path, Options(image_size=32))[0]["imported"]["family"] == "diffusers"
        import_checkpoint("diffusers", path, tmp_path / f"{number}.ckpt", Options(image_size=32))
        module = restore(tmp_path / f"{number}.ckpt")[1].eval()
        assert_close(module.latents(image), public.encode(image).latents.movedim(1, -1))
        assert_close(module(image).reconstruction, public(image).sample)


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


def family_at(path: Path) -> str:
    return next(family for family in FAMILIES if path.stem.startswith(family.replace("-", "_")))


def manifest(path: Path) -> Tensors:
    keys = json.loads(path.read_text())["keys"]
    return {k: torch.empty(v["shape"], dtype=getattr(torch, v["dtype"]), device="meta") for k, v in keys.items()}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_key_of_a_published_model_is_accounted_for(path: Path) -> None:
    family, tensors = family_at(path), manifest(path)
    experiment, state = convert(family, tensors)
    with torch.device("meta"):
        own = build_model(experiment).state_dict()
    assert {k: x.shape for k, x in state.items()} == {k: x.shape for k, x in own.items()}

    assert family_of(tensors) == family
    tensors = FAMILIES[family].adapt(tensors, "")[0]
    used, constant = set(), set()
    for key in own:
        weight = FAMILIES[family].weight(key, experiment.model)
        assert weight is not None
        used |= set(weight.keys)
        constant |= set() if weight.keys else {key}
    left = {key for key in tensors if key not in used}
    assert all(key.startswith(tuple(FAMILIES[family].dropped)) for key in left)
    assert not any(key.startswith(("encoder.", "decoder.")) for key in left)
    assert sum(x.numel() for k, x in state.items() if k not in constant) == sum(tensors[k].numel() for k in used)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_published_model_is_inferred(path: Path) -> None:
    public = json.loads(path.read_text())["constructor"]
    family = family_at(path)
    model = convert(family, manifest(path))[0].model
    backbone = vars(model.backbone)
    if family == "titok":
        options = public["model"]["vq_model"]
        sizes = {"small": [8, 8, 512, 2048], "base": [12, 12, 768, 3072], "large": [24, 16, 1024, 4096]}
        for part in ("encoder", "decoder"):
            assert backbone[f"{part}_dims"] == sizes[options[f"vit_{part[:3]}_model_size"]]
        assert (backbone["patch_size"], backbone["num_latents"]) == (16, options["num_latent_tokens"])
        assert (model.codebook_size, model.code_dim) == (options["codebook_size"], options["token_size"])
        return
    if family == "diffusers":
        widths = [backbone["channels"] * multiplier for multiplier in backbone["channel_multipliers"]]
        assert widths == public["block_out_channels"] and backbone["attention_resolutions"] == []
        assert backbone["middle_attention"] == public.get("mid_block_add_attention", True)
        wanted = public["num_vq_embeddings"], public["latent_channels"], public["layers_per_block"]
        assert (model.codebook_size, model.code_dim, backbone["num_res_blocks"]) == wanted
        return
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
    if family == "open-magvit2":
        assert (model.codebook_size, model.code_dim) == (public["n_embed"], public["embed_dim"])
        return
    reached = [256 >> level for level in range(len(dd["ch_mult"]))]
    assert backbone["attention_resolutions"] == [size for size in reached if size in dd["attn_resolutions"]]
    size, dim = public.get("n_embed"), public["embed_dim"]
    if family == "vqgan-lc":
        size, dim = public["args"]["n_vision_words"], public["args"]["embed_dim"]
    assert (model.codebook_size, model.code_dim) == (size, dim)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("titok_b64", r"a TiTok of two stages \('decoder.ffn.2"),
        ("diffusers_vq_kandinsky22_movq", "a VQModel with norm_type=spatial"),
    ],
)
def test_published_models_that_have_no_counterpart(name: str, message: str) -> None:
    path = next(path for path in REFUSED if path.stem == name)
    with pytest.raises(ValueError, match=f"^file: {message}"):
        convert(family_at(path), manifest(path), origin="file")
