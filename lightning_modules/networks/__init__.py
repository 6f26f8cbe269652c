"""Plain PyTorch networks: backbones (encoder and decoder), discriminators and pretrained encoders."""

from .base import BackboneConfig, Decoder, DiscriminatorConfig, Encoder
from .cnn import CNNConfig, CNNDecoder, CNNEncoder
from .discriminators import (
    DISCRIMINATORS,
    PatchGAN,
    PatchGANConfig,
    StyleGANConfig,
    StyleGANDiscriminator,
    build_discriminator,
)
from .encoders import PretrainedEncoder, load_encoder
from .vit import VIT_SIZES, ViTConfig, ViTDecoder, ViTEncoder

BACKBONES: dict[str, tuple[type[Encoder], type[Decoder], type[BackboneConfig]]] = {
    "cnn": (CNNEncoder, CNNDecoder, CNNConfig),
    "vit": (ViTEncoder, ViTDecoder, ViTConfig),
}

__all__ = [
    "BACKBONES",
    "DISCRIMINATORS",
    "VIT_SIZES",
    "BackboneConfig",
    "CNNConfig",
    "CNNDecoder",
    "CNNEncoder",
    "Decoder",
    "DiscriminatorConfig",
    "Encoder",
    "PatchGAN",
    "PatchGANConfig",
    "PretrainedEncoder",
    "StyleGANConfig",
    "StyleGANDiscriminator",
    "ViTConfig",
    "ViTDecoder",
    "ViTEncoder",
    "build_discriminator",
    "load_encoder",
]
