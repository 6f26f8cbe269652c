"""The training step, one generator forward, against public code's scheme, which runs the autoencoder twice.

    python -m benchmarks.one_forward

Same networks, same losses, adaptive weight on, no perceptual loss. taming-transformers calls the whole autoencoder
once for the generator's loss and once more, without using its gradient, for the discriminator's. The last line,
`one_forward RATIO`, is how many times faster one forward is.

What is saved is a forward of the autoencoder, so the ratio depends on its share of the step. In the ImageNet recipe it
has 73 times the discriminator's multiplications (`experiments.preview`); in the CIFAR-10 recipe, whose autoencoder is
small and whose PatchGAN is full size, under three times. So the PatchGAN is 16 channels wide here; --channels 64 is
the recipe's.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.steps import step, tokenizer
from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.tokenizer_losses import Terms

RECIPE = "experiments/vqgan_cifar10.yaml"


def run_twice(module: Tokenizer) -> None:
    """Makes `module` compute the discriminator's images by a second forward with its graph, as public code does."""
    critic_pass = module.critic_pass

    def with_second_forward(real: Tensor, fake: Tensor, r1: bool) -> Terms:
        return critic_pass(real, module(real).reconstruction.detach(), r1)

    module.critic_pass = with_second_forward  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels", type=int, default=16, help="of the discriminator (default: 16; the recipe: 64)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = ("model.loss.perceptual=0", f"model.discriminator.channels={arguments.channels}")
    (subject, batch), (baseline, _) = (tokenizer(RECIPE, *changes) for _ in range(2))
    run_twice(baseline)
    one, two = step(subject, batch), step(baseline, batch)
    seconds = paired(one, two, arguments.runs, warmup=3)
    report(
        "one_forward",
        Side("one forward", seconds[0], peak_memory(one)),
        Side("two forwards", seconds[1], peak_memory(two)),
    )


if __name__ == "__main__":
    main()
