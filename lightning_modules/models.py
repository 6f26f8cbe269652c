"""All models by name, and the configuration that plain values describe. A new model is one line here."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_modules.base import Module, ModuleConfig
from lightning_modules.flow_matching import SiT, SiTConfig
from lightning_modules.latent_diffusion import LDM, DiTDiffusion, DiTDiffusionConfig, LDMConfig
from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.networks import BACKBONES, DISCRIMINATORS
from lightning_modules.quantizers import QUANTIZERS
from lightning_modules.token_classifier import TokenClassifier, TokenClassifierConfig
from lightning_modules.vim import VIM, VIMConfig
from lightning_modules.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from lightning_modules.vqgan import VQGAN, VQGANConfig
from lightning_modules.vqgan_ema import VQGANEMA, VQGANEMAConfig
from lightning_modules.vqgan_fc import VQGANFC, VQGANFCConfig
from lightning_modules.vqgan_lc import VQGANLC, VQGANLCConfig

MODULES: dict[str, tuple[type[Module], type[ModuleConfig]]] = {
    "vqgan": (VQGAN, VQGANConfig),
    "vqgan_ema": (VQGANEMA, VQGANEMAConfig),
    "vqgan_fc": (VQGANFC, VQGANFCConfig),
    "vqgan_lc": (VQGANLC, VQGANLCConfig),
    "vit_vqgan": (ViTVQGAN, ViTVQGANConfig),
    "vim": (VIM, VIMConfig),
    "ldm": (LDM, LDMConfig),
    "dit": (DiTDiffusion, DiTDiffusionConfig),
    "sit": (SiT, SiTConfig),
    "linear_probe": (LinearProbe, LinearProbeConfig),
    "token_classifier": (TokenClassifier, TokenClassifierConfig),
}
# Sections of a model whose `name` picks a class, and the table that holds its configuration (the last element).
PARTS: dict[str, Mapping[str, tuple]] = {
    "backbone": BACKBONES,
    "quantizer": QUANTIZERS,
    "discriminator": DISCRIMINATORS,
}


def config_of(values: dict[str, Any], plugins: str = "") -> ModuleConfig:
    """The configuration that a checkpoint's or a record's section `model` holds. Raises ValueError for any other.

    `plugins`: the modules of its classes that are not this suite's, which the error then names.
    """
    try:
        config: Any = MODULES[values["name"]][1]()
        for part, table in PARTS.items():
            if hasattr(config, part):
                setattr(config, part, table[values[part]["name"]][-1]())
        typed = OmegaConf.structured(config)
        typed.merge_with(values)
        made = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        hint = f"; first import what it is made of (commands: --import): {plugins}" if plugins else ""
        raise ValueError(f"no model of this version: {' '.join(str(error).split())}{hint}") from None
    assert isinstance(made, ModuleConfig)
    return made
