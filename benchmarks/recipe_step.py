"""Training on CIFAR-10 as the recipes stand against the recipes of release 0.1.0: images a second of a whole training.

    python -m benchmarks.recipe_step

VQGAN-LC with 16,384 codes, and ViT-VQGAN; the perceptual loss is on. The steps of a training differ: without the game,
with it, and with it and the adaptive weight computed. Each kind is timed, all kinds of both sides in turn, and an
image's time is their mean, weighted by how many steps of a training are of each kind: the recipes of 0.1.0 played
for half of the steps. The last lines, `recipe_step_lc RATIO` and `recipe_step_vit RATIO`, are how many times more
images a second the recipes train on today.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.steps import made, step
from benchmarks.timing import Side, in_turn, peak_memory, report
from experiments.config.compose import load_experiment

# 0.1.0's settings, where the recipes have others today.
THEN = (
    "data.batch_size=16",
    "trainer={max_steps: 400, precision: 32-true}",
    "model.loss={adaptive_every: 1, discriminator_start: 200, adversarial_start: 200}",
)
THEN_CNN = ("model.backbone={stem: 1, channels: 16, channel_multipliers: [1, 2, 4]}",)
RECIPES = {  # name -> file, overrides of both sides, those of 0.1.0's alone
    "recipe_step_lc": ("experiments/vqgan_lc_cifar10.yaml", ("model.codebook_size=16384",), THEN_CNN),
    "recipe_step_vit": ("experiments/vit_vqgan_cifar10.yaml", (), ()),
}


@dataclass
class Training:
    """One recipe's kinds of steps, and each kind's share of a training."""

    batch_size: int
    steps: list[Callable[[], object]]
    shares: list[float]

    @classmethod
    def of(cls, recipe: str, overrides: tuple[str, ...]) -> "Training":
        experiment = load_experiment(recipe, list(overrides))
        loss, max_steps = experiment.tokenizer.loss, experiment.trainer.max_steps
        module, batch = made(experiment)
        game = 1 - loss.adversarial_start / max_steps
        weighed = game / loss.adaptive_every
        kinds = {0: 1 - game, loss.adversarial_start: weighed, loss.adversarial_start + 1: game - weighed}
        kinds = {at: share for at, share in kinds.items() if share > 0}
        steps = [step(module, batch, experiment.trainer.precision, at) for at in kinds]
        return cls(experiment.data.batch_size, steps, list(kinds.values()))

    def seconds(self, times: list[list[float]]) -> list[float]:
        """Seconds an image, one value a run, from those of each kind's steps."""
        runs = zip(*times, strict=True)
        return [sum(map(float.__mul__, self.shares, kinds)) / self.batch_size for kinds in runs]

    def peak_memory(self) -> int | None:
        peaks = [peak_memory(step) for step in self.steps]
        return None if None in peaks else max(peak for peak in peaks if peak is not None)


def compare(name: str, now: tuple[str, ...], runs: int) -> float:
    recipe, both, then = RECIPES[name]
    sides = Training.of(recipe, both + now), Training.of(recipe, both + THEN + then)
    times = in_turn([step for side in sides for step in side.steps], runs, warmup=2)
    count = len(sides[0].steps)
    print(f"{recipe}, an image of a training, mean of its kinds of steps")
    seconds = [side.seconds(part) for side, part in zip(sides, (times[:count], times[count:]), strict=True)]
    labels = ("this release", "0.1.0")
    for label, side, values in zip(labels, sides, seconds, strict=True):
        kinds = ", ".join(f"{share:.3g}" for share in side.shares)
        print(f"{label}: batch {side.batch_size}, shares {kinds}; {1 / statistics.median(values):.1f} images/s")
    subject, baseline = (
        Side(label, values, side.peak_memory()) for label, side, values in zip(labels, sides, seconds, strict=True)
    )
    return report(name, subject, baseline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over this release's recipes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ratios = {name: compare(name, tuple(arguments.set), arguments.runs) for name in arguments.only}
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3g}")


if __name__ == "__main__":
    main()
