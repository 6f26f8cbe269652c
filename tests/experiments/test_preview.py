"""The preview: counts by hand, the same networks as in training, the papers' counts, mistakes."""

import io
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyExperiment
from rich.console import Console
from torch import Tensor, nn
from vim_cases import build, tiny_vim

from experiments.config.compose import load_experiment
from experiments.costs import report as module
from experiments.costs.counts import (
    activation_bytes,
    count_cost,
    count_macs,
    memory_bytes,
    parts_of,
    saved_bytes,
    training_hours,
    training_macs,
)
from experiments.costs.papers import PaperCount, paper_counts
from experiments.costs.report import preview
from experiments.pipeline.build import build_model
from experiments.preview import main
from lightning_modules.base import count
from sweeps.grid import load_grid

FOLDER = Path(__file__).parents[2] / "experiments"
PAPER_SCALE = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.stem.endswith(("_imagenet", "_ffhq", "_celebahq")) and "upstream:" not in path.read_text()
]
LC = FOLDER / "vqgan_lc_imagenet.yaml"
MODELS = ["vqgan", "vqgan_ema", "vqgan_fc", "vqgan_lc", "vit_vqgan"]


def test_a_probe_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, str(FOLDER / "probe_vim_imagenet.yaml"))
    assert "costs little beside what it stands on: vim_imagenet.yaml" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["preview", *arguments])
    main()


def text_of(*arguments: object) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(preview(*arguments))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- counting


def test_macs_of_a_convolution() -> None:
    with torch.device("meta"):
        convolution, image = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(1, 3, 16, 16)
    assert count_macs(convolution, image) == 8 * 8 * 8 * 3 * 3 * 3  # positions x filters x weights of each


class SelfAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_macs_of_attention() -> None:
    x = torch.zeros(1, 2, 64, 16, device="meta")  # 2 heads, 64 tokens, 16 dims
    assert count_macs(SelfAttention(), x) == 2 * (64 * 64 * 16 + 64 * 64 * 16)  # scores, and the mean of the values
    assert count_macs(SelfAttention(), x, attention=False) == 0


def test_macs_of_search_and_projector(tiny: TinyExperiment) -> None:
    macs = count_cost(tiny("vqgan_lc")).macs
    assert macs["search"] == 8 * 8 * 32 * 8  # tokens, codes, dimensions
    assert macs["projector"] == 32 * 40 * 8  # codes, features, dimensions
    assert "projector" not in count_cost(tiny("vqgan")).macs
    soft = count_cost(tiny("vqgan", "model.quantizer={name: ibq}")).macs["search"]
    assert soft == 6 * macs["search"], "with all codes, and of all codes, forward and back"
    levels = ["model.quantizer={name: fsq}", "model.codebook_size=240", "model.code_dim=3"]
    assert not count_cost(tiny("vqgan", *levels)).macs["search"], "nothing is compared"


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_are_those_that_are_trained(tiny: TinyExperiment, name: str) -> None:
    experiment = tiny(name, "model.loss.adversarial=0.1", "model.loss.logit_laplace=0.1")
    trained, cost = build_model(experiment), count_cost(experiment)
    for part in ("encoder", "decoder", "discriminator"):
        assert cost.parameters[part] == count(getattr(trained, part))
    assert sum(cost.parameters.values()) == count(trained)
    assert cost.totals["model parameters"] == trained.num_parameters


def test_saved_bytes_by_hand() -> None:
    """The first layer keeps its input (5 x 6), gelu its own (5 x 7), the last layer its input (5 x 7); weights are not
    activations."""
    network = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 8)).to("meta")
    assert saved_bytes(network, torch.zeros(5, 6, device="meta")) == 4 * (5 * 6 + 5 * 7 + 5 * 7)


def test_attention_keeps_no_token_by_token_matrix(tiny: TinyExperiment) -> None:
    """Sixteen times the tokens keep about sixteen times the bytes; the matrices would need 256 times."""
    small, large = (activation_bytes(parts_of(tiny("vit_vqgan", f"data.image_size={size}"))) for size in (16, 64))
    assert large < 20 * small


def test_memory_is_shared_out_over_devices(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan", "data.batch_size=8")
    per_image = activation_bytes(parts_of(experiment))
    assert memory_bytes(experiment, 1) - memory_bytes(experiment, 4) == 6 * per_image > 0
    more = tiny("vqgan", "data.batch_size=8", "model.loss.adversarial=0.1", "model.loss.perceptual=0.1")
    assert activation_bytes(parts_of(more)) > per_image and memory_bytes(more) > memory_bytes(experiment)


def test_counting_draws_no_random_numbers(tiny: TinyExperiment) -> None:
    """It runs between the model's initialisation and the first step, and must not change what is trained."""
    experiment = tiny("vqgan_lc", "model.loss.perceptual=1", "model.loss.adversarial=1")
    before = torch.get_rng_state()
    memory_bytes(experiment)
    count_cost(experiment)
    assert torch.equal(torch.get_rng_state(), before)


def test_hours(tiny: TinyExperiment) -> None:
    keys = ["model.loss.adversarial=1", "trainer.max_steps=10", "data.batch_size=4"]
    late = ["model.loss.discriminator_start=4", "model.loss.adversarial_start=5"]
    experiment = tiny("vqgan_lc", *keys, *late)
    cost = count_cost(experiment)
    macs = cost.macs
    expected = 10 * 4 * (3 * (macs["encoder"] + macs["decoder"]) + macs["search"]) + 10 * 3 * 2 * macs["projector"]
    expected += 4 * (6 * 6 + 2 * 5) * macs["discriminator"]
    assert training_macs(experiment, cost, devices=2) == expected
    assert training_hours(experiment, cost, 2, tflops=0.5) == pytest.approx(2 * expected / (2 * 0.5e12) / 3600)


# ---- the papers' counts


@pytest.mark.parametrize("path", PAPER_SCALE, ids=lambda path: path.stem)
def test_every_paper_scale_recipe(path: Path) -> None:
    experiment = load_experiment(path)
    cost, counts = count_cost(experiment), paper_counts(experiment)
    assert bool(counts) == (path.stem.startswith("vit_") or path.stem in ("vqgan_lc_imagenet", "vqgan_lc_ffhq"))
    text = text_of(experiment, path.stem, 32, 8.0)
    for printed in counts:
        assert printed.is_explained(cost.totals[printed.quantity]), printed
        assert f"{printed.source} " in text and printed.quantity in text
    assert f"{cost.tokens:,}" in text and f"{experiment.model.codebook_size:,} codes" in text


def test_a_count_without_a_reason_must_be_near() -> None:
    near, far = PaperCount("T", "encoder parameters", 100.0), PaperCount("T", "encoder parameters", 90.0)
    assert near.is_explained(104.9) and not near.is_explained(94.9) and not far.is_explained(100.0)
    assert PaperCount("T", "encoder parameters", 90.0, "why").is_explained(100.0)
    assert near.difference(105.0) == pytest.approx(0.05)


@pytest.mark.parametrize("override", ["model.codebook_size=50000", "data.image_size=128", "model.code_dim=4"])
def test_other_networks_are_not_held_against_the_paper(override: str) -> None:
    assert paper_counts(load_experiment(LC, [override])) == []


# ---- stage 2


def test_vim_by_hand(tiny: TinyExperiment) -> None:
    """One block of width 16 with an MLP of 32, 64 tokens of 32 codes, 10 classes, on the tokens of `tiny`."""
    experiment = tiny_vim(tiny, "trainer.max_steps=10", "model.gpt.dropout=0")
    cost, (trained, _) = count_cost(experiment), build(experiment)
    assert sum(cost.parameters.values()) == count(trained)
    linear = 4 * 16 * 16 + 2 * 16 * 32  # queries, keys, values, output; MLP
    assert cost.macs == {"blocks": 64 * linear + 2 * 64 * 64 * 16, "tables and norm": 0, "head": 64 * 16 * 32}
    image = 3 * (cost.macs["blocks"] + cost.macs["head"])
    assert training_hours(experiment, cost, 2, 0.5) == pytest.approx(2 * 10 * 4 * image / (2 * 0.5e12) / 3600)

    encoding = count_cost(tiny_vim(tiny, "model.encode_on_the_fly=true")).macs["tokenizer"]
    below = count_cost(experiment.upstream).macs
    assert encoding == below["encoder"] + below["search"]


def test_memory_of_a_vim(tiny: TinyExperiment) -> None:
    one, two = (tiny_vim(tiny, f"model.gpt.dims=[{blocks},2,16,32]") for blocks in (1, 2))
    share = memory_bytes(one, 1) - memory_bytes(one, 2)
    assert share % (4 * 2 * 64) == 0 and share > 2 * 64 * 4 * (
        4 * 16 + 32
    )  # of two images; at least what the MLP keeps
    assert memory_bytes(two) > memory_bytes(one)
    adafactor = tiny_vim(tiny, "model.optimizer.name=adafactor")
    assert memory_bytes(one) - memory_bytes(adafactor) == 8 * sum(count_cost(one).parameters.values())


@pytest.mark.parametrize(
    ("recipe", "override", "source"),
    [
        ("vim_imagenet", "model.gpt.size=large", "A-Table 2, VIM-Large"),
        ("vim_imagenet", "model.gpt.size=base", "A-Table 2, VIM-Base"),
        ("gpt_vim_imagenet", "seed=0", "B, appendix A"),
        ("dit_imagenet", "seed=0", "B, appendix A"),
        ("sit_imagenet", "seed=0", "B, appendix A"),
    ],
)
def test_transformers_of_the_papers(recipe: str, override: str, source: str) -> None:
    experiment = load_experiment(FOLDER / f"{recipe}.yaml", [override])
    (printed,) = paper_counts(experiment)
    counted = sum(count_cost(experiment).parameters.values())
    assert printed.source == source and printed.is_explained(counted) and abs(printed.difference(counted)) < 0.3


@pytest.mark.parametrize(
    ("recipe", "millions", "macs"),
    [("dit_imagenet", 674.890, 29.04e9), ("ldm_imagenet", 270.266, 22.65e9), ("ldm_f8_imagenet", 394.984, 57.04e9)],
)
def test_generators_of_paper_b(recipe: str, millions: float, macs: float) -> None:
    """Counted of the original code on latents of one image; LDM's without its class table."""
    cost = count_cost(load_experiment(FOLDER / f"{recipe}.yaml"))
    assert cost.parameters["network"] / 1e6 == pytest.approx(millions, rel=1e-3)
    assert cost.macs["network"] == pytest.approx(macs, rel=2e-2)


def test_what_paper_b_trains_on_tokenizers_has_its_costs() -> None:
    """Every row has a cell; parameters, MACs, memory and hours, once for each network."""
    networks = {}
    for sweep, rows in (("table1", 24), ("table4", 17), ("table5", 6), ("section4_2", 7)):
        runs = load_grid(FOLDER.parent / f"sweeps/vqgan_lc/{sweep}.yaml", "paper").runs
        assert len(runs) == rows
        networks |= {str(run.experiment.model.describe()): run.experiment for run in runs if run.experiment.upstream}
    assert len(networks) == 7  # GPT, SiT, DiT, LDM at f16 and f8, ViT on codes and on images
    for experiment in networks.values():
        text = text_of(experiment, "row", 1, 8.0)
        for row in ("model .* [0-9,.]+ M ", "model .* [0-9,.]+ G: all", "GiB: weights", "about [0-9,.]+ h for"):
            assert re.search(row, text), row


# ---- the command


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch, str(LC), "model.codebook_size=16384", "--devices", "32", "--tflops", "100")
    out = capsys.readouterr().out
    assert "model MACs: paper 195.08 G, ours 195.66 G, +0.3%" in out
    assert "8 a device" in out and "on 32 device(s) at 100 TFLOP/s" in out


def test_a_warning_when_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(LC)
    monkeypatch.setattr(module, "machine_memory", lambda: (2**34, "a GPU of 16 GiB"))
    assert "more than the 16.0 GiB of a GPU of 16 GiB" in text_of(experiment, "lc", 1, 8.0)
    monkeypatch.setattr(module, "machine_memory", lambda: (2**40, "a large machine"))
    assert "more than" not in text_of(experiment, "lc", 1, 8.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "3"], r"--devices 3: data\.batch_size=256 is the global batch"),
        (["--devices", "0"], r"--devices 0: "),
        (["--tflops", "0"], r"--tflops 0\.0 must be above 0"),
        (["model.codebok_size=3"], r"did you mean 'model\.codebook_size'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, str(LC), *arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
