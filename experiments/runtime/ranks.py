"""One run on several processes: how they are started and joined, and what rank 0 does for all of them.

`torchrun` and SLURM's `srun` start the processes themselves and say how many there are; with `runtime.devices=2` alone
this process starts the others. Either way each of them runs the same command. docs/distributed.md shows all three.
"""

import atexit
import functools
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from experiments.config.experiment import Experiment, RuntimeConfig
from lightning_modules.checks import require
from lightning_modules.distributed import rank, world_size

STRATEGIES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
WAIT = timedelta(days=30)  # for what one rank makes: tokens, a codebook, a model that another job trains


# ---- how many processes


def launched() -> tuple[int, int] | None:
    """Processes of each node and nodes, as torchrun or srun has started them; None where neither has."""
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", environment.world_size()))
        return local, environment.world_size() // local
    if SLURMEnvironment.detect() and (tasks := int(os.environ.get("SLURM_NTASKS", 1))) > 1:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return tasks // nodes, nodes
    return None


def placement(runtime: RuntimeConfig) -> tuple[int | str, int]:
    """`devices` of each node and `num_nodes`, for Lightning: a number, GPUs by number ("0,3" or "3,") or "auto".

    Raises ValueError for other values, and when the launcher says otherwise.
    """
    wanted = "auto" if runtime.devices == "-1" else runtime.devices
    if wanted != "auto" and not re.fullmatch("0*[1-9][0-9]*|([0-9]+,)+[0-9]*", wanted):
        raise ValueError(f"runtime.devices={wanted} must be a number from 1 on, GPUs by number such as 0,3, or auto")
    require(runtime.num_nodes >= 1, f"runtime.num_nodes={runtime.num_nodes} must be at least 1")
    given: int | str = int(wanted) if wanted.isdigit() else wanted
    found = launched()
    if found is None:
        return given, runtime.num_nodes
    devices, nodes = found
    if given not in ("auto", devices) or runtime.num_nodes not in (1, nodes):
        raise ValueError(
            f"runtime.devices={given} on runtime.num_nodes={runtime.num_nodes}, but {devices} process(es) were started "
            f"on each of {nodes} node(s): leave both keys out, or start as many as they say"
        )
    return devices, nodes


def num_devices(runtime: RuntimeConfig) -> int:
    """Devices that a run is spread over: as torchrun, srun or the recipe says, else all GPUs of this machine."""
    devices, nodes = placement(runtime)
    if isinstance(devices, str):
        gpus = 0 if runtime.accelerator == "cpu" else torch.cuda.device_count()
        devices = (gpus or 1) if devices == "auto" else len(devices.strip(",").split(","))
    return devices * nodes


def check_accelerator(runtime: RuntimeConfig) -> None:
    """Raises ValueError for an accelerator that is unknown, or that this machine does not have."""
    name = runtime.accelerator
    require(name in ACCELERATORS, f"runtime.accelerator='{name}' is none of {', '.join(ACCELERATORS)}")
    if name not in ("auto", "cpu") and not torch.accelerator.is_available():
        raise ValueError(f"runtime.accelerator={name}, but torch finds no GPU here: leave it out, or set it to cpu")


def device_of(runtime: RuntimeConfig) -> torch.device:
    """Where this process works beside its training: its GPU, if it has one that `accelerator` allows, else the CPU."""
    if runtime.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return torch.device("cpu")
    (devices, _), number = placement(runtime), int(os.environ.get("LOCAL_RANK", 0))
    numbers = devices.strip(",").split(",") if isinstance(devices, str) and devices != "auto" else []
    return torch.device("cuda", int(numbers[number]) if numbers else number)


def check_gpus(runtime: RuntimeConfig) -> None:
    """Raises ValueError where `devices` are more GPUs, or other ones, than this machine has. A CPU has any number."""
    devices, _ = placement(runtime)
    gpus = 0 if runtime.accelerator == "cpu" else torch.cuda.device_count()
    if isinstance(devices, int):
        is_there = gpus == 0 or devices <= gpus
    else:
        numbers = [] if devices == "auto" else devices.strip(",").split(",")
        is_there = all(int(number) < gpus for number in numbers) and len(set(numbers)) == len(numbers)
    require(is_there, f"runtime.devices={devices}, but there are {gpus} GPUs to use here: take others, or auto")


def check_devices(experiment: Experiment) -> None:
    """Raises ValueError for devices that are not there and for what does not go together with them, before any work."""
    check_accelerator(experiment.runtime)
    check_gpus(experiment.runtime)
    devices, strategy, model = num_devices(experiment.runtime), experiment.runtime.strategy, experiment.model
    require(strategy in STRATEGIES, f"runtime.strategy='{strategy}' is none of {', '.join(STRATEGIES)}")
    if strategy == "fsdp":
        require(model.can_shard, f"runtime.strategy=fsdp is not for {model.name}, which is not sharded")
        averages = experiment.trainer.weight_ema > 0
        require(not averages, "runtime.strategy=fsdp cannot average weights: set trainer.weight_ema=0")
    level: Experiment | None = experiment
    while level is not None:
        if level.data.batch_size % devices:
            where = "upstream: " if level is not experiment else ""
            raise ValueError(
                f"{where}data.batch_size={level.data.batch_size} is the global batch and cannot be shared out evenly "
                f"over {devices} devices: make it a multiple of {devices}"
            )
        level = level.upstream
    if 0 < (wanted := experiment.model.num_generated) < devices:
        raise ValueError(f"model.generation.num_samples={wanted} is less than one image for each of {devices} devices")


def spread(experiment: Experiment) -> dict[str, Any]:
    """Over which devices, as arguments of `L.Trainer`."""
    devices, num_nodes = placement(experiment.runtime)
    return {"devices": devices, "num_nodes": num_nodes, "strategy": build_strategy(experiment)}


def build_strategy(experiment: Experiment) -> Strategy | str:
    """How gradients are exchanged.

    DDP broadcasts no buffers: an EMA codebook is kept equal by its own exchange, and a validation's sums are a rank's
    own. FSDP (of VIM alone) writes one file a checkpoint, which any number of processes can load.
    """
    devices, runtime = num_devices(experiment.runtime), experiment.runtime
    if devices == 1:
        return "auto"
    if runtime.strategy == "fsdp":
        return ModelParallelStrategy(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


# ---- joining them


def join(experiment: Experiment) -> None:
    """Starts the other processes unless torchrun or srun has, and waits until all are there. Alone it does nothing.

    Raises ValueError for a configuration that this number of devices cannot run.
    """
    check_devices(experiment)
    runtime, (devices, nodes) = experiment.runtime, placement(experiment.runtime)
    if num_devices(runtime) == 1 or dist.is_initialized():
        return
    trainer = silent_trainer(runtime, devices=devices, num_nodes=nodes, strategy=DDPStrategy())
    assert trainer.strategy.launcher is not None
    trainer.strategy.launcher.launch(trainer.strategy.setup_environment)
    atexit.register(leave)


def leave() -> None:
    """Ends the process groups and their threads while Python is still whole; join() calls it when the process ends.

    Lightning does so for NCCL alone. A thread of gloo that lets go of a tensor while Python shuts down aborts the
    process (pytorch/pytorch#179291), and a run that was complete would count as failed.
    """
    control_group.cache_clear()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def silent_trainer(runtime: RuntimeConfig, **options: Any) -> L.Trainer:
    """Writes no file and shows nothing."""
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator=runtime.accelerator, **options)


@functools.cache
def control_group() -> Any:
    """For short messages between CPUs, with time to wait for them: NCCL's own limit is ten minutes."""
    return dist.new_group(backend="gloo", timeout=WAIT)


def from_main(value: Any) -> Any:
    """Rank 0's value, on all ranks; the others wait for it."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=control_group())
    return box[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the body first; then the others, which find what it has made.

    When rank 0 fails the others end without a message of their own. The body must not exchange anything.
    """
    if world_size() == 1:
        yield
    elif rank() > 0:
        if not from_main(None):
            sys.exit(1)
        yield
    else:
        is_done = False
        try:
            yield
            is_done = True
        finally:
            from_main(is_done)


class SameStart(Callback):
    """All ranks begin with rank 0's weights, buffers and random numbers, which are those of a process alone.

    Make it right before `fit`: joining the processes seeds them anew.
    """

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if world_size() == 1:
            return
        cpu, cuda = from_main((self.cpu, self.cuda))
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        if isinstance(trainer.strategy, DDPStrategy):
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)
