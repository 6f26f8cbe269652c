"""One worker of a shared sweep, in a process of its own: the real command on real, tiny cells.

Each training step is written to a file, so that tests can tell who trained what, and a worker can be made to die or to
wait right after a step.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_sweep import sweep_of

RECIPE = """
data: {name: shapes, image_size: 16, batch_size: 4, train_size: 16, val_size: 12}
model:
  name: vqgan
  code_dim: 8
  backbone:
    {channels: 8, channel_multipliers: [1, 2], num_res_blocks: 1, attention_resolutions: [], latent_channels: 16}
  discriminator: {channels: 8, num_layers: 1}
  optimizer: {lr: 3.0e-3, warmup_steps: 0}
  loss: {l1: 0.0, l2: 1.0, perceptual: 0.0, quantizer: 1.0, adversarial: 0.0}
  metrics: {extractor: efficientnet-lite0, extractor_image_size: 32, lpips: none}
trainer: {max_steps: 6, checkpoint_every: 2, log_every: 1}
runtime: {accelerator: cpu}
"""


def write_sweep(folder: Path, sizes: list[int]) -> Path:
    """A sweep over codebook sizes and its recipe."""
    (folder / "vqgan_cifar10.yaml").write_text(RECIPE)
    (folder / "sweep.yaml").write_text(sweep_of(*sizes))
    return folder / "sweep.yaml"


def work(
    sweep: Path, output_dir: Path, log: Path, environment: dict[str, str], settings: dict[str, Any], *extra: str
) -> None:
    """`settings`: `die_at`, `wait_at`: after that step of its first cell; `machine`: another place than the others;
    `heartbeat`, `grace`: seconds."""
    import torch

    from experiments.runtime.progress import Throughput
    from sweeps import grid, queue, run, storage

    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    os.environ.update(environment)
    grid.EXPERIMENTS = sweep.parent
    queue.POLL_SECONDS, storage.RETRY_SECONDS = 0.2, 0.2
    storage.HEARTBEAT_SECONDS = settings.get("heartbeat", storage.HEARTBEAT_SECONDS)
    storage.GRACE_SECONDS = settings.get("grace", storage.GRACE_SECONDS)
    if "machine" in settings:
        queue.BOOT_ID = log.with_suffix(".boot_id")
        queue.BOOT_ID.write_text(settings["machine"])
    Throughput.on_train_batch_end = after_step(  # type: ignore[method-assign]
        Throughput.on_train_batch_end, sweep.parent / "steps", settings
    )
    arguments = [
        str(sweep),
        "--scale",
        "reduced",
        "--seeds",
        "1",
        "--data",
        "shapes",
        "--output-dir",
        str(output_dir),
        *extra,
    ]
    raise SystemExit(run.main(arguments))


def after_step(original: Callable[..., None], steps: Path, settings: dict[str, Any]) -> Callable[..., None]:
    def on_train_batch_end(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        original(self, trainer, module, *rest)
        with open(steps, "a") as file:  # one short line: whole, whoever else writes
            file.write(f"{os.getpid()} {module.config.codebook_size} {module.step}\n")
        if module.step == settings.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if module.step == settings.get("wait_at"):
            while not (steps.parent / "go").exists():
                time.sleep(0.05)

    return on_train_batch_end
