"""The options of the generator's and the discriminator's loss."""

from dataclasses import dataclass


@dataclass
class LossConfig:
    """Weights of the generator's loss; 0 leaves a term out. Steps count generator updates.

    `adversarial` is multiplied by taming's gradient-norm ratio when `adaptive_weight`. The discriminator is trained
    from `discriminator_start`, and the generator feels it from `adversarial_start`. `quantizer` multiplies the two
    VQ terms together (paper B's code: 0.1). With `logit_laplace` the decoder predicts a mean and a scale on the
    logit axis, and its image is the sigmoid of the mean (paper A).
    """

    l1: float = 0.0
    l2: float = 1.0
    logit_laplace: float = 0.0
    perceptual: float = 0.0
    perceptual_network: str = "lpips-vgg"  # both papers'; or lpips-alex, efficientnet-lite0 (needs no download), none
    quantizer: float = 1.0
    adversarial: float = 0.0
    adversarial_loss: str = "hinge"  # hinge | non_saturating
    adaptive_weight: bool = True
    discriminator_start: int = 0
    adversarial_start: int = 0
    r1: float = 0.0  # gamma of gamma / 2 * |grad|^2, applied every r1_every-th step and scaled up by it
    r1_every: int = 16
