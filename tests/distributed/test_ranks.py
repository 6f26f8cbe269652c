"""How many processes a run has, and what they refuse."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import TinyExperiment
from lightning import seed_everything
from vim_cases import tiny_vim

from experiments.config.experiment import RuntimeConfig
from experiments.runtime.ranks import check_devices, control_group, device_of, leave, num_devices, placement
from lightning_modules import distributed
from lightning_modules.networks import batch_norm
from lightning_modules.networks.batch_norm import BatchNorm2d
from lightning_modules.quantizers.placed import chosen_rows

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "12", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("environment", "found"), [(TORCHRUN, (8, 2)), (SLURM, (4, 3)), ({}, ("auto", 1))])
def test_the_launcher_says_how_many_processes_there_are(
    alone: None, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: tuple[int | str, int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert placement(RuntimeConfig()) == found
    devices, nodes = found
    assert num_devices(RuntimeConfig(accelerator="cpu")) == (1 if devices == "auto" else int(devices) * nodes)


def test_keys_that_contradict_the_launcher_are_an_error(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert placement(RuntimeConfig(devices="8", num_nodes=2)) == (8, 2)
    for runtime in (RuntimeConfig(devices="4"), RuntimeConfig(num_nodes=3)):
        with pytest.raises(ValueError, match=r"8 process\(es\) were started on each of 2 node\(s\)"):
            placement(runtime)


def test_devices_by_number_or_by_name(alone: None) -> None:
    assert num_devices(RuntimeConfig(devices="2", num_nodes=4)) == 8
    assert num_devices(RuntimeConfig(devices="0,3,5")) == 3
    assert num_devices(RuntimeConfig(devices="3,")) == 1, "the fourth GPU"
    assert placement(RuntimeConfig(devices="-1")) == ("auto", 1)


@pytest.mark.parametrize(
    ("devices", "accelerator", "local_rank", "found"),
    [
        ("auto", "auto", "0", "cuda:0"),
        ("2", "gpu", "1", "cuda:1"),
        ("3,", "auto", "0", "cuda:3"),
        ("1,3", "cuda", "1", "cuda:3"),
        ("3,", "cpu", "0", "cpu"),
    ],
)
def test_what_is_made_beside_a_training_is_made_on_its_gpu(
    alone: None, monkeypatch: pytest.MonkeyPatch, devices: str, accelerator: str, local_rank: str, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert str(device_of(RuntimeConfig(devices=devices, accelerator=accelerator))) == found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runtime.devices=3"], "data.batch_size=4 is the global batch .* multiple of 3"),
        (["runtime.strategy=deepspeed"], "runtime.strategy='deepspeed' is none of auto, ddp, fsdp"),
        (["runtime.strategy=fsdp"], "fsdp is not for vqgan, which is not sharded"),
        (["runtime.devices=0"], r"runtime\.devices=0 must be a number from 1 on"),
        (["runtime.devices=-2"], r"runtime\.devices=-2 must be a number from 1 on"),
        (["runtime.devices=foo"], r"runtime\.devices=foo must be a number from 1 on"),
        (["runtime.devices=0;1"], r"runtime\.devices=0;1 must be a number from 1 on"),
        (["runtime.num_nodes=0"], r"runtime\.num_nodes=0 must be at least 1"),
        (["runtime.devices='0,1'"], r"runtime\.devices=0,1, but there are 0 GPUs to use here"),
        (["runtime.accelerator=npu"], r"runtime\.accelerator='npu' is none of auto, cpu, gpu, cuda, mps"),
    ],
)
def test_what_cannot_be_run_is_refused_first(
    alone: None, tiny: TinyExperiment, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_devices(tiny("vqgan", *overrides))


def test_gpus_that_are_not_there_are_refused_first(
    alone: None, tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"runtime\.accelerator=gpu, but torch finds no GPU here"):
        check_devices(tiny("vqgan", "runtime.accelerator=gpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in ("2", "0,1", "1,", "auto"):
        check_devices(tiny("vqgan", "runtime.accelerator=gpu", f"runtime.devices='{devices}'"))
    for devices in ("4", "0,2", "1,1"):
        with pytest.raises(ValueError, match=rf"runtime\.devices={devices}, but there are 2 GPUs to use here"):
            check_devices(tiny("vqgan", "runtime.accelerator=gpu", f"runtime.devices='{devices}'"))
    check_devices(tiny("vqgan", "runtime.devices=4"))  # processes on the CPU


def test_the_model_below_must_be_shared_out_too(alone: None, tiny: TinyExperiment) -> None:
    experiment = tiny_vim(tiny, "runtime.devices=2", upstream=["data.batch_size=5"])
    with pytest.raises(ValueError, match=r"upstream: data\.batch_size=5"):
        check_devices(experiment)
    with pytest.raises(ValueError, match=r"num_samples=3 is less than one image for each of 4 devices"):
        check_devices(tiny_vim(tiny, "runtime.devices=4", "model.generation.num_samples=3"))
    with pytest.raises(ValueError, match="weight_ema"):
        check_devices(tiny_vim(tiny, "runtime.strategy=fsdp", "trainer.weight_ema=0.5"))


def gloo_threads() -> list[str]:
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux names them")
def test_no_thread_of_a_group_outlives_it(tmp_path: Path) -> None:
    """One that did aborted, once in a score of runs, a process that had done its work."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    dist.broadcast_object_list([1], group=control_group())
    assert gloo_threads()
    leave()
    assert not gloo_threads() and not dist.is_initialized()
    leave()  # as where somebody else ended it before


def test_batch_norm_of_one_process_is_torchs() -> None:
    torch.manual_seed(0)
    layer, reference, x = BatchNorm2d(3), torch.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    assert torch.equal(layer(x), reference(x)) and torch.equal(layer.running_var, reference.running_var)  # type: ignore[arg-type]
    assert torch.equal(layer.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("parts", [1, 2])
def test_batch_norm_by_hand_is_torchs(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """What several processes use, on whole batches, one after the other or at once; also differentiated twice."""
    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)  # whose exchange is the identity here
    torch.manual_seed(0)
    layer, reference = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(4 * parts, 3, 5, 5, requires_grad=True)
    results = []
    for norm, y in ((layer, layer(x, parts)), (reference, torch.cat([reference(part) for part in x.chunk(parts)]))):
        inputs = (x, norm.weight, norm.bias)
        once = torch.autograd.grad(y.pow(3).sum(), inputs, retain_graph=True)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs[:2])
        results.append((y, *once, *first, *second, norm.running_mean, norm.num_batches_tracked))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_rows_of_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank r of two has images r, r + 2, ...; three tokens each."""
    import lightning_modules.quantizers.placed as placed

    whole = torch.randn(8 * 3, 2)
    picks = torch.tensor([0, 4, 23, 11, 4])
    monkeypatch.setattr(placed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(placed, "rank", lambda rank=rank: rank)
        mine = whole.view(8, 3, 2)[rank::2].reshape(-1, 2)
        parts.append(chosen_rows(mine, picks, 3))
    assert torch.equal(parts[0] + parts[1], whole[picks])


def test_counting_costs_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 alone prints the summary, which runs the networks on the meta device: it must not wait for others."""
    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "mean_over_ranks", lambda *_: pytest.fail("an exchange"))
    norm = batch_norm.BatchNorm2d(3, device="meta").train()
    assert norm(torch.zeros(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)


def test_each_rank_draws_numbers_of_its_own_from_all_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's erasing draws from Python's, its mixup from numpy's; afterwards all ranks go on together."""

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    within, after = [], []
    for number in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        seed_everything(3, verbose=False)
        with distributed.own_random_numbers(torch.device("cpu")):
            within.append(draw())
        after.append(draw())
    assert all(a != b for a, b in zip(*within, strict=True)) and after[0] == after[1]
