"""A tokenizer's networks, how they are counted, and the charts of its scalars."""

import warnings
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import count
from lightning_modules.distributed import world_size
from lightning_modules.figures import reconstruction_grid
from lightning_modules.losses import build_perceptual
from lightning_modules.losses.perceptual import PerceptualLoss
from lightning_modules.networks import BACKBONES, build_discriminator
from lightning_modules.parts import TRAINED, Part
from lightning_modules.quantizers import QUANTIZERS
from lightning_modules.tokenizer_config import TokenizerConfig

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "reconstruction": {
        "Fréchet distance": ["Multiline", ["val/rfid"]],  # the protocol id says by which network
        "PSNR, dB": ["Multiline", ["val/psnr"]],
        "SSIM": ["Multiline", ["val/ssim"]],
        "perceptual distance": ["Multiline", ["val/lpips", "val/feature_distance"]],
    },
    "codebook": {
        "utilisation, % of codes": ["Multiline", ["train/usage", "val/usage", "val/usage/batch"]],
        "perplexity": ["Multiline", ["train/perplexity", "val/perplexity"]],
        "effective rank of the tokens": ["Multiline", ["val/effective_rank"]],
        "dead codes": ["Multiline", ["train/dead_codes", "val/dead_codes"]],
    },
    "training": {
        "loss": [
            "Multiline",
            ["loss/generator", "loss/l1", "loss/l2", "loss/logit_laplace", "loss/perceptual", "loss/quantizer"],
        ],
        "game": [
            "Multiline",
            ["loss/adversarial", "loss/discriminator", "discriminator/accuracy", "weight/adversarial"],
        ],
    },
}
CODE_USES = "val/codes by log10(1 + uses)"


def networks(config: TokenizerConfig, image_size: int, for_use: bool = False) -> dict[str, nn.Module | None]:
    """The networks of a `Tokenizer` under their names there, initialised in this order; `for_use`: no discriminator."""
    encoder_class, decoder_class = BACKBONES[config.backbone.name][:2]
    encoder = encoder_class(config.backbone, image_size)
    decoder = decoder_class(config.backbone, image_size, 6 if config.loss.logit_laplace else 3)
    pre_quant = nn.Linear(encoder.width, config.code_dim)
    nn.init.zeros_(pre_quant.bias)  # else it outweighs the first latents, and all of them share a code
    post_quant = nn.Linear(config.code_dim, decoder.width)
    quantizer = QUANTIZERS[config.quantizer.name][0](config.quantizer, config.codebook_size, config.code_dim)
    is_adversarial = config.loss.adversarial > 0 and not for_use
    return {
        "encoder": encoder,
        "decoder": decoder,
        "pre_quant": pre_quant,
        "post_quant": post_quant,
        "quantizer": quantizer,
        "discriminator": build_discriminator(config.discriminator, image_size) if is_adversarial else None,
    }


def tokenizer_parts(networks: dict[str, Any], config: TokenizerConfig, image_size: int) -> list[Part]:
    """The linear maps to and from the codes are counted with their neighbour's MACs.

    The projector of a large codebook maps all K entries once a step; a search is N * K * d, none where codes are not
    compared; the perceptual loss is of a pair of images, and its backward pass goes to one of them. Once the game has
    begun, an image costs 2 x the discriminator in the generator's step and 6 x in the discriminator's own.
    """
    encoder, decoder, pre_quant, post_quant, quantizer, discriminator = networks.values()
    image = torch.zeros(1, 3, image_size, image_size)
    codes, once = torch.zeros(1, *encoder.grid, config.code_dim), {"generator": 1}
    search = int(quantizer.searches * prod(encoder.grid) * config.codebook_size * config.code_dim)
    parts = [
        Part("encoder", nn.Sequential(encoder, pre_quant), (image,), encoder, kept=once, encodes=True),
        Part("decoder", nn.Sequential(post_quant, decoder), (codes,), decoder, kept=once, decodes=True),
        Part("maps to and from codes", weights=nn.ModuleList([pre_quant, post_quant])),
    ]
    if isinstance(getattr(quantizer, "projector", None), nn.Linear):
        parts.append(Part("projector", quantizer.projector, (quantizer.table,), quantizer, once_a_step=True, kept={}))
    else:
        parts.append(Part("codebook", weights=quantizer))
    parts.append(Part("search", macs=search, passes=((1.0, 0),), is_counted=False, encodes=True))
    if (perceptual := counted_perceptual(config, image_size)) is not None:
        parts.append(perceptual)
    if discriminator is not None:
        start = (2.0 * TRAINED, config.loss.discriminator_start), (2.0, config.loss.adversarial_start)
        kept = {"generator": 1, "critic": 2}
        options: dict[str, Any] = {"frozen_in": "generator", "is_apart": True, "is_counted": False}
        parts.append(Part("discriminator", discriminator, (image,), passes=start, kept=kept, **options))
    return parts


def counted_perceptual(config: TokenizerConfig, image_size: int) -> Part | None:
    """The perceptual loss: LPIPS on the meta device, without its files; EfficientNet-Lite0, a small one, as it is."""
    name = config.loss.perceptual_network
    if not config.loss.perceptual or name == "none":
        return None
    device = "meta" if name.startswith("lpips") else "cpu"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device(device):
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        loss: PerceptualLoss = build_perceptual(name, image_size, pretrained=False)
        pair = torch.zeros(1, 3, image_size, image_size, requires_grad=True), torch.zeros(1, 3, image_size, image_size)
    network = loss.to(device).network  # not all of lpips heeds torch.device
    kept = {"generator": 1}
    return Part("perceptual", loss, pair, network, passes=((1.5, 0),), kept=kept, is_counted=False)


def hot_calls(module: Any, compiled: bool) -> list[tuple[nn.Module, str]]:
    """Of a `Tokenizer`. The search stays outside, and the last layer, whose gradients the adaptive weight compares.

    torch.compile has neither second derivatives, as R1 does, nor exchanges between devices.
    """
    calls = [(module.encoder, "forward"), (module.decoder, "features")]
    if module.discriminator is not None and not (compiled and (module.config.loss.r1 or world_size() > 1)):
        calls.append((module.discriminator, "forward"))
    return calls + ([] if module.perceptual is None else [(module.perceptual, "forward")])


def start_rows(module: Any) -> dict[str, str]:
    """Lines of the start screen of a `Tokenizer`."""
    (rows, columns), loss, discriminator = module.encoder.grid, module.perceptual, count(module.discriminator) / 1e6
    return {
        "tokens per image": f"{rows * columns} ({rows} x {columns})",
        "perceptual loss": loss.name if loss is not None else "none",
        "parameters": f"{module.num_parameters / 1e6:.2f} M trained, discriminator {discriminator:.2f} M",
    }


def reconstructions(module: Any, images: Tensor | None) -> dict[str, Any]:
    """Of a `Tokenizer`, for TensorBoard: images (B, 3, H, W) in [-1, 1]."""
    if images is None:
        return {}
    images = images.to(module.device)
    return {"val/reconstructions": reconstruction_grid(images, module(images).reconstruction)}


def code_uses(module: Any) -> dict[str, Any]:
    """Of a `Tokenizer`, after a validation."""
    counts = module.metrics.last_counts
    return {} if counts is None else {CODE_USES: torch.log10(1 + counts.float())}


def rough_loss(module: Any, num_images: int) -> Tensor:
    """Of a `Tokenizer` and its perceptual network."""
    image = torch.zeros(num_images, 3, module.image_size, module.image_size, device=module.device)
    output = module.predict(module.pre_quant(module.encoder(image)))
    loss = output.square().mean()
    return loss if module.perceptual is None else loss + module.perceptual(output[:, :3], image)
