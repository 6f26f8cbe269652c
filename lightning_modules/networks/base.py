"""Base dataclasses of the network configurations."""

from dataclasses import dataclass


@dataclass
class BackboneConfig:
    """An encoder and decoder pair; `name` is a key of `networks.BACKBONES`."""

    name: str = ""


@dataclass
class DiscriminatorConfig:
    """A discriminator; `name` is a key of `networks.DISCRIMINATORS`."""

    name: str = ""
