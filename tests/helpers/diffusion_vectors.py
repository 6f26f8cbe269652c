"""Weights of the public DiT, SiT and latent-diffusion U-Net under the names of `DiT` and `UNet`."""

import re

from parity_vectors import Tensors, load_io, load_meta, load_weights

from lightning_modules.networks import DiT, DiTConfig, UNet, UNetConfig

DIT_RULES = [
    (r"^x_embedder\.proj\.", "patches."),
    (r"^t_embedder\.mlp\.", "time."),
    (r"^y_embedder\.embedding_table\.", "classes."),
    (r"^final_layer\.linear\.", "head."),
    (r"^final_layer\.", ""),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
    (r"adaLN_modulation\.1\.", "modulation."),
]
UNET_RULES = [
    (r"^cond_stage_model\.embedding\.", "classes."),
    (r"^time_embed\.", "time."),
    (r"^input_blocks\.0\.0\.", "stem."),
    (r"^input_blocks\.(\d+)\.0\.op\.", lambda match: f"down.{int(match[1]) - 1}."),
    (r"^input_blocks\.(\d+)\.0\.", lambda match: f"down.{int(match[1]) - 1}.res."),
    (r"^input_blocks\.(\d+)\.1\.", lambda match: f"down.{int(match[1]) - 1}.transformer."),
    (r"^middle_block\.0\.", "middle1.res."),
    (r"^middle_block\.1\.", "middle1.transformer."),
    (r"^middle_block\.2\.", "middle2."),
    (r"^output_blocks\.(\d+)\.\d\.conv\.", r"up.\1.resample.conv."),
    (r"^output_blocks\.(\d+)\.0\.", r"up.\1.res."),
    (r"^output_blocks\.(\d+)\.1\.", r"up.\1.transformer."),
    (r"^out\.0\.", "norm."),
    (r"^out\.2\.", "head."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".shortcut."),
    (r"\.transformer_blocks\.0\.", "."),
    (r"\.attn1\.", ".self_attention."),
    (r"\.attn2\.", ".cross_attention."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.inner."),
    (r"\.ff\.net\.2\.", ".mlp.outer."),
]


def renamed(weights: Tensors, rules: list) -> Tensors:
    """In float32 and without DiT's table of positions, which is no weight here."""
    state = {}
    for name, weight in weights.items():
        if name != "pos_embed":
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            state[name] = weight.float()
    return state


def public_dit(name: str) -> tuple[DiT, Tensors]:
    """The network of the vectors `name`, "dit" or "sit", and its inputs and outputs."""
    public = load_meta(name)["constructor"]
    dims = [public[key] for key in ("depth", "hidden_size", "num_heads")]
    config = DiTConfig(dims=dims, patch_size=public["patch_size"], drop_sigma=name == "sit")
    side = public["input_size"]
    network = DiT(config, public["in_channels"], (side, side), public["num_classes"])
    network.load_state_dict(renamed(load_weights(name), DIT_RULES))
    return network.eval(), load_io(name)


def public_unet() -> tuple[UNet, Tensors]:
    """Latent diffusion's U-Net, and its inputs and outputs."""
    public = load_meta("ldm_unet")["constructor"]
    unet, classes = public["UNetModel"], public["ClassEmbedder"]["n_classes"] - 1
    config = UNetConfig(
        unet["model_channels"],
        unet["channel_mult"],
        unet["num_res_blocks"],
        unet["attention_resolutions"],
        unet["num_head_channels"],
        unet["context_dim"],
    )
    network = UNet(config, unet["in_channels"], (unet["image_size"],) * 2, classes)
    network.load_state_dict(renamed(load_weights("ldm_unet"), UNET_RULES))
    return network.eval(), load_io("ldm_unet")
