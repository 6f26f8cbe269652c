"""A generator step of the papers' networks in bf16 against float32: ViT-Small at 256 px, the f16 CNN at 128 px.

    python -m benchmarks.paper_size_bf16

Forward and backward pass through encoder, quantizer and decoder with a pixel loss, without perceptual loss and game,
all kinds in turn. Each last line `paper_size_bf16_... RATIO` is how many times faster than float32 a kind is. Whether
bf16 pays on a CPU depends on its instructions (AMX, AVX512-BF16), which are printed.
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from benchmarks.steps import made
from benchmarks.timing import Side, in_turn, peak_memory, report
from experiments.config.compose import load_experiment

WITHOUT = ("model.loss={perceptual: 0, adversarial: 0}", "model.metrics={extractor: efficientnet-lite0, lpips: none}")
SMALL = "model.backbone={encoder_size: small, decoder_size: small}"
NETWORKS = {  # name -> recipe, overrides, whether channels_last is tried
    "vit": ("experiments/vit_vqgan_imagenet.yaml", ("data.image_size=256", SMALL), False),
    "cnn": ("experiments/vqgan_imagenet.yaml", ("data.image_size=128",), True),
}
KINDS = {  # label -> bf16, channels_last
    "float32": (False, False),
    "bf16": (True, False),
    "bf16_channels_last": (True, True),
}


def generator_step(recipe: str, overrides: tuple[str, ...], kind: str) -> Callable[[], object]:
    is_bf16, is_channels_last = KINDS[kind]
    module, batch = made(load_experiment(recipe, [*WITHOUT, *overrides]))
    image = batch["image"]
    if is_channels_last:
        module, image = module.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)

    def step() -> None:
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            output = module(image)
        ((output.reconstruction.float() - image).square().mean() + output.quantizer_loss).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4, help="timed steps of each kind")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"CPU capability: {torch.backends.cpu.get_cpu_capability()}")
    ratios = {}
    for network in arguments.only:
        recipe, overrides, tries_channels_last = NETWORKS[network]
        kinds = [kind for kind in KINDS if tries_channels_last or not KINDS[kind][1]]
        steps = [generator_step(recipe, (*overrides, f"data.batch_size={arguments.batch}"), kind) for kind in kinds]
        times = in_turn(steps, arguments.runs)
        peaks = [peak_memory(step) for step in steps]
        sides = [Side(*part) for part in zip(kinds, times, peaks, strict=True)]
        images = (f"{side.label} {arguments.batch / statistics.median(side.seconds):.2f}" for side in sides)
        print(f"{recipe}, batch {arguments.batch}; images/s: {', '.join(images)}")
        for side in sides[1:]:
            name = f"paper_size_{side.label.replace('bf16', f'bf16_{network}')}"
            ratios[name] = report(name, side, sides[0])
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3g}")


if __name__ == "__main__":
    main()
