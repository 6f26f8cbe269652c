"""Two CPU processes (gloo) against one with the same global batch and seed: the files that `cases.py` writes.

Tolerances. Sums over images are added in another order, and kernels round by batch size, so nothing but codes and
counts can be bit-equal: after five steps losses and metrics agree to 1e-4, gradients and weights to 1e-3 of their
largest value. The ranks among themselves are bit-equal.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import lightning as L
import pytest
import torch
from conftest import ENCODER_USERS, load_once
from torch import Tensor

from experiments.pipeline.build import restore
from experiments.pipeline.evaluation import evaluate
from experiments.pipeline.prepare import prepare_evaluation
from experiments.pipeline.upstream import restore_below
from experiments.runtime.records import read_record
from lightning_modules.networks.gpt import GPT
from lightning_modules.quantizers import QUANTIZERS

PROJECT = Path(__file__).parents[2]
VALUES, TENSORS = 1e-4, 1e-3

Results = dict[str, list[dict[str, Any]]]  # case -> rank 0's, rank 1's, the single process'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """Both sides at the same time: the pair in processes of its own, the single one here."""
    folder = tmp_path_factory.mktemp("distributed")
    two, one = folder / "two", folder / "one"
    two.mkdir()
    one.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", cases.__file__, str(two)]
    with open(folder / "log", "w") as log, pytest.MonkeyPatch.context() as patch:
        pair = subprocess.Popen([sys.executable, *command], cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)
        try:
            for module in ENCODER_USERS:
                patch.setattr(module, "load_encoder", load_once)
            with torch.random.fork_rng():
                cases.run(one, list(cases.CASES))
            status = pair.wait()
        finally:
            pair.terminate()
    assert status == 0, (folder / "log").read_text()[-5000:]
    paths = {name: [*(two / f"{name}.{rank}.pt" for rank in (0, 1)), one / f"{name}.0.pt"] for name in cases.CASES}
    yield {name: [torch.load(path, weights_only=False) for path in three] for name, three in paths.items()}


def assert_metrics_close(found: dict[str, float], wanted: dict[str, float]) -> None:
    """FID is a small difference of large numbers, and IS's deviation one of its splits, here of an image or two."""
    assert found.get("ris_std", 0) == pytest.approx(wanted.get("ris_std", 0), abs=VALUES)
    assert found.get("rfid", 0) == pytest.approx(wanted.get("rfid", 0), rel=10 * VALUES)
    loose = {"ris_std", "rfid"}
    assert_close(*({key: run[key] for key in run if key not in loose} for run in (found, wanted)), VALUES)


def assert_close(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        a, b = torch.as_tensor(found[name]).double(), torch.as_tensor(value).double()
        scale = max(float(b.abs().max()), 1e-4) if b.numel() else 1.0
        assert float((a - b).abs().max()) <= tolerance * scale, (name, a, b)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_every_quantizer_is_among_the_cases() -> None:
    assert QUANTIZERS.keys() <= {*cases.TOKENIZERS, "vq", "none"}


@pytest.mark.parametrize("name", cases.TOKENIZERS)
def test_two_processes_train_the_tokenizer_that_one_trains(results: Results, name: str) -> None:
    first, second, alone = results[name]
    assert_equal(second["weights"], first["weights"])
    assert first["losses"] == second["losses"], "what is logged is of the global batch"
    assert len(first["losses"]) == len(alone["losses"]) >= 3
    for actual, expected in zip(first["losses"], alone["losses"], strict=True):
        assert_close(actual, expected, VALUES)
    for actual, expected in zip(first["codes"], alone["codes"], strict=True):
        assert torch.equal(actual, expected), "the same codes as often"
    for actual, expected in zip(first["gradients"], alone["gradients"], strict=True):
        assert_close(actual, expected, TENSORS)
    assert_close(first["weights"], alone["weights"], TENSORS)
    assert first["metrics"] == second["metrics"]
    assert_metrics_close(first["metrics"], alone["metrics"])
    assert first["protocols"] == alone["protocols"] and first["history"] == alone["history"]


def test_weights_that_were_kept_are_measured_on_every_image_once(results: Results) -> None:
    first, second, alone = results["later"]
    assert first == second and first["protocols"] == alone["protocols"] and "/n17/" in alone["protocols"]["rfid"]
    assert_metrics_close(first["metrics"], alone["metrics"])


def test_dead_codes_get_the_latents_that_one_process_would_give_them(results: Results) -> None:
    first, _, alone = results["ema"]
    assert first["revived"] == alone["revived"] > 5
    codebook = [run["weights"]["quantizer.codes"] for run in (first, alone)]
    torch.testing.assert_close(*codebook, rtol=1e-4, atol=1e-5)


def test_uneven_validation_counts_every_image_once(results: Results) -> None:
    for name, num_images in {"vq": 17, "simvq": 12, "rotation": 11}.items():
        protocols = results[name][0]["protocols"]
        assert protocols["psnr"].endswith(f"/n{num_images}") and protocols["usage/val"].endswith(f"/n{num_images}")
    limited = results["factorized"][0]["protocols"]
    assert limited["psnr"].endswith("/n9") and limited["usage/val"].endswith("/n17")


@pytest.mark.parametrize("name", ["accumulated", "accumulated_ema"])
def test_accumulation_equals_the_larger_batch(results: Results, name: str) -> None:
    """Both micro-batches of a step against one batch of both; EMA's counts and sums are of the step as well.

    Not with what is a statistic of a micro-batch: BatchNorm, adaptive weight, entropy of codes (LFQ), StyleGAN's
    groups, the first scale of a large codebook, the first and the revived codes of EMA.
    """
    first, _, alone = results[name]
    whole = results[f"{name}_not"][2]
    for run in (first, alone):
        for actual, expected in zip(run["gradients"], whole["gradients"], strict=True):
            assert_close(actual, expected, TENSORS)
        assert_close(run["weights"], whole["weights"], TENSORS)
        assert_metrics_close(run["metrics"], whole["metrics"])


@pytest.mark.parametrize("name", ["vim", "vim_fsdp", "vim_adafactor", "sit", "classifier"])
def test_two_processes_train_the_transformer_that_one_trains(results: Results, name: str) -> None:
    first, second, alone = results[name]
    assert first["losses"] == second["losses"]
    for actual, expected in zip(first["losses"], alone["losses"], strict=True):
        assert_close(actual, expected, VALUES)
    for actual, expected in zip(first["gradients"], alone["gradients"], strict=True):
        assert_close(actual, expected, TENSORS)
    assert_close(first["weights"], alone["weights"], TENSORS)
    assert first["record"]["metrics"] == second["record"]["metrics"]
    assert_close(first["record"]["metrics"], alone["record"]["metrics"], 1e-2)
    assert first["record"]["protocols"] == alone["record"]["protocols"]
    assert first["record"]["digest"] == alone["record"]["digest"], "the same cell on any number of devices"


def test_one_rank_makes_what_all_need(results: Results) -> None:
    first, second, alone = results["vim"]
    assert first["calls"] == alone["calls"] == ["tokens"] * 2, "training and validation images"
    assert second["calls"] == []
    for run in (first, alone):
        (path,) = (Path(run["folder"]).parents[1] / "records").glob(f"{run['record']['digest']}.*")
        assert read_record(path)["num_devices"] == (1 if run is alone else 2)


def test_a_checkpoint_of_fsdp_is_one_file_that_one_process_samples(results: Results) -> None:
    first = results["vim_fsdp"][0]
    folder = Path(first["folder"])
    where = {"runtime": {"output_dir": str(folder.parents[1]), "accelerator": "cpu"}}
    experiment, module = restore(folder / "checkpoints/final.ckpt", where)
    assert type(module.gpt) is GPT
    for name, value in first["resumed"].items():
        assert torch.equal(value, first["weights"][name]), "as many processes go on from it"
    below = restore_below(experiment)
    assert below is not None
    module.use_tokenizer(below.tokenizer, module.tokenizer_digest)
    images, tokens, _ = module.eval().sample([0, 1], seed=0)
    assert images.shape == (2, 3, 16, 16) and tokens.shape == (2, 64)
    prepared = prepare_evaluation(experiment, module)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    metrics = evaluate(trainer, module, prepared.data, prepared.images, Path(experiment.runtime.output_dir))
    assert_close(metrics, first["record"]["metrics"], 1e-3)


def test_the_others_wait_for_rank_0_and_end_when_it_fails(results: Results) -> None:
    first, second, _ = results["lead"]
    assert first["found"] == [False, True] and second["found"] == [True], "nothing of the body is run after a failure"
    assert first["error"] == "ValueError('the disk')" and second["error"] == "SystemExit(1)"


def test_a_loss_that_is_not_a_number_on_one_rank_stops_all(results: Results) -> None:
    """At the same step and term; only the rank that had the images can blame them."""
    _, second, alone = results["failure"]
    for result in results["failure"]:
        assert result["error"].startswith("step 1: the l2 loss is nan")
    assert "look at the data" in second["error"] and "look at the data" in alone["error"]
