"""The options of the generator's and the discriminator's loss."""

from dataclasses import dataclass

from lightning_modules.checks import at_least_one, not_negative, one_of, require
from lightning_modules.losses.adversarial import ADVERSARIAL_LOSSES
from lightning_modules.losses.perceptual import PERCEPTUAL_NETWORKS
from lightning_modules.options import neutral


@dataclass
class LossConfig:
    """Weights of the generator's loss, one a term; 0 leaves a term out. Each model's file states its paper's.

    `adversarial` is multiplied by taming's gradient-norm ratio when `adaptive_weight`. Steps count generator updates:
    the discriminator is trained from `discriminator_start` on, and the generator feels it from `adversarial_start` on.
    `quantizer` multiplies the two VQ terms together (paper B's code: 0.1). With `logit_laplace` the decoder predicts a
    mean and a scale on the logit axis, and its image is the sigmoid of the mean (paper A).
    """

    l1: float = 0.0
    l2: float = 0.0
    logit_laplace: float = 0.0
    perceptual: float = 0.0
    perceptual_network: str = "lpips-vgg"  # both papers'; or lpips-alex, efficientnet-lite0 (needs no download), none
    quantizer: float = 1.0
    adversarial: float = 0.0
    adversarial_loss: str = "hinge"  # hinge | non_saturating
    adaptive_weight: bool = True
    adaptive_every: int = neutral(1)  # steps between two computations of it; 1 in both papers' code
    discriminator_start: int = 0
    adversarial_start: int = 0
    r1: float = 0.0  # gamma of gamma / 2 * |grad|^2, applied every r1_every-th step and scaled up by it
    r1_every: int = 16

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a name or weight that cannot be."""
        not_negative(self)
        one_of(self, "perceptual_network", PERCEPTUAL_NETWORKS)
        one_of(self, "adversarial_loss", ADVERSARIAL_LOSSES)
        at_least_one(self, "r1_every", "adaptive_every")
        require(
            self.adversarial == 0 or self.adversarial_start >= self.discriminator_start,
            f"adversarial_start={self.adversarial_start} is before discriminator_start={self.discriminator_start}: an "
            "untrained discriminator would steer the generator",
        )
