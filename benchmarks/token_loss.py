"""The loss of stage 2 at a vocabulary of 100,000: `token_loss` against the logits of all tokens, and against torch's.

    python -m benchmarks.token_loss             # 2,048 tokens of width 512

Loss and both gradients, timed in turn in one process, with the memory each takes beyond its input. torch's own
`linear_cross_entropy` in chunks is compared where the release has it. The last lines are `NAME RATIO`: how many
times faster `token_loss` is; `token_loss_memory` is the memory of the whole logits over its own.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules.losses.tokens import token_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.width, requires_grad=True)
    weight = (0.02 * torch.randn(arguments.vocabulary, arguments.width)).requires_grad_()
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,))

    def run(loss: Loss) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            value = loss(hidden, weight, targets)
            return value.detach(), *torch.autograd.grad(value, (hidden, weight))

        return call

    subject = run(lambda *inputs: token_loss(*inputs).mean)
    others = {"token_loss_vs_whole_logits": run(whole_logits)}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        others["token_loss_vs_torch"] = run(torch_chunked)
    ratios = {}
    for name, baseline in others.items():
        for value, reference in zip(subject(), baseline(), strict=True):  # the warm-up of both
            torch.testing.assert_close(value, reference, atol=1e-5, rtol=1e-4)
        seconds = paired(subject, baseline, arguments.runs, warmup=0)
        label = name.removeprefix("token_loss_vs_").replace("_", " ")
        sides = (Side("token_loss", seconds[0], peak_memory(subject)), Side(label, seconds[1], peak_memory(baseline)))
        ratios[name] = report(name, *sides)
        ours_bytes, theirs_bytes = (side.memory for side in sides)
        if name == "token_loss_vs_whole_logits" and ours_bytes and theirs_bytes:
            ratios["token_loss_memory"] = theirs_bytes / ours_bytes
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3g}")


if __name__ == "__main__":
    main()
