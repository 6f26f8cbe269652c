"""Two processes of one thread each against one of two threads: the same recipe, global batch and seed, on the CPU.

    python -m benchmarks.ddp                                              # ViT-VQGAN
    python -m benchmarks.ddp --recipe experiments/vqgan_ema_cifar10.yaml  # a codebook and BatchNorm to exchange as well

Each run is a whole `experiments.train` of its own, on rendered shapes, and its images a second are those of its record:
all steps but the first, loading included. The runs alternate. The last line, `ddp RATIO`, is the speed of two processes
over that of one, so 0.87 is a loss of 13 %; they pay for exchanging gradients, logged losses and statistics of the
global batch. Those of PatchGAN's BatchNorm are eight short exchanges a step, each of which waits for the slower one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHANGES = (
    "data={name: shapes, train_size: 640, val_size: 8}",
    "model.codebook_size=1024",
    "model.loss={perceptual: 0, discriminator_start: 0, adversarial_start: 0}",
    "model.metrics={num_images: 8}",
)


def images_per_second(recipe: str, processes: int, threads: int, steps: int, batch: int) -> float:
    """Images a second of one run in a folder of its own. Raises RuntimeError when the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"devices": processes, "accelerator": "cpu", "output_dir": folder}
        keys = [*(f"runtime.{key}={value}" for key, value in where.items()), f"trainer.max_steps={steps}"]
        command = ["-m", "experiments.train", recipe, *CHANGES, f"data.batch_size={batch}", *keys]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr[-2000:]}")
        (record,) = Path(folder).glob("records/*.json")
        return json.loads(record.read_text())["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="experiments/vit_vqgan_cifar10.yaml", help="of a tokenizer")
    parser.add_argument("--name", default="ddp", help="printed before the ratio")
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="global")
    arguments = parser.parse_args()
    print(f"{arguments.recipe}, {arguments.steps} steps of {arguments.batch} images")
    sides: dict[tuple[int, int], list[float]] = {(2, 1): [], (1, 2): []}
    for _ in range(arguments.runs):
        for side, speeds in sides.items():
            speeds.append(images_per_second(arguments.recipe, *side, arguments.steps, arguments.batch))
    for (processes, threads), speeds in sides.items():
        name = f"{processes} process(es) x {threads} thread(s)"
        print(
            f"{name:32} median {statistics.median(speeds):8.1f} images/s, min {min(speeds):.1f}, max {max(speeds):.1f}"
        )
    two, one = (statistics.median(speeds) for speeds in sides.values())
    print(f"{arguments.name} {two / one:.3g}", flush=True)


if __name__ == "__main__":
    main()
