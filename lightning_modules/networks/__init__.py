"""Plain PyTorch networks: encoders and decoders, discriminators, pretrained encoders, the networks of stage 2."""

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
from .dit import DiT, DiTConfig
from .encoders import PretrainedEncoder, load_encoder
from .magvit2 import MAGVIT2Config, MAGVIT2Decoder, MAGVIT2Encoder
from .titok import TiTokConfig, TiTokDecoder, TiTokEncoder
from .unet import UNet, UNetConfig
from .vit import VIT_SIZES, ViTConfig, ViTDecoder, ViTEncoder

BACKBONES: dict[str, tuple[type[Encoder], type[Decoder], type[BackboneConfig]]] = {
    "cnn": (CNNEncoder, CNNDecoder, CNNConfig),
    "vit": (ViTEncoder, ViTDecoder, ViTConfig),
    "magvit2": (MAGVIT2Encoder, MAGVIT2Decoder, MAGVIT2Config),
    "titok": (TiTokEncoder, TiTokDecoder, TiTokConfig),
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
    "DiT",
    "DiTConfig",
    "DiscriminatorConfig",
    "Encoder",
    "MAGVIT2Config",
    "MAGVIT2Decoder",
    "MAGVIT2Encoder",
    "PatchGAN",
    "PatchGANConfig",
    "PretrainedEncoder",
    "StyleGANConfig",
    "StyleGANDiscriminator",
    "TiTokConfig",
    "TiTokDecoder",
    "TiTokEncoder",
    "UNet",
    "UNetConfig",
    "ViTConfig",
    "ViTDecoder",
    "ViTEncoder",
    "build_discriminator",
    "load_encoder",
]
