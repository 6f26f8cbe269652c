"""Our training step, one generator forward, against public code's scheme, which runs the autoencoder twice.

    python -m benchmarks.one_forward

Same networks, same losses, adaptive weight on, no perceptual loss. taming-transformers calls the whole autoencoder
once for the generator's loss and once more, without using its gradient, for the discriminator's. The last line,
`one_forward RATIO`, is how many times faster ours is.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.steps import step, tokenizer
from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules.tokenizer import Tokenizer

RECIPE = "experiments/vqgan_cifar10.yaml"


def run_twice(module: Tokenizer) -> None:
    """Makes `module` compute the discriminator's images by a second forward with its graph, as public code does."""
    critic_loss = module.critic_loss

    def with_second_forward(real: Tensor, fake: Tensor) -> Tensor:
        return critic_loss(real, module(real).reconstruction.detach())

    module.critic_loss = with_second_forward  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (ours, batch), (theirs, _) = (tokenizer(RECIPE, "model.loss.perceptual=0") for _ in range(2))
    run_twice(theirs)
    one, two = step(ours, batch), step(theirs, batch)
    seconds = paired(one, two, arguments.runs, warmup=3)
    report(
        "one_forward",
        Side("one forward (ours)", seconds[0], peak_memory(one)),
        Side("two forwards", seconds[1], peak_memory(two)),
    )


if __name__ == "__main__":
    main()
