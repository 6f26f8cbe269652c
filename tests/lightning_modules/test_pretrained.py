"""Models as files, from Python: run folders, checkpoints, exported folders, and what does not fit."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from latent_cases import NAMES, build, shaken, tiny_latents
from token_cases import save
from torch import Tensor
from vim_cases import tiny_vim

from experiments.pipeline.build import build_data, build_model, restore
from experiments.pipeline.encode import tokenizer_digest
from lightning_modules import VIM, Prior, Tokenizer, pretrained
from lightning_modules.archives import weights_hash
from lightning_modules.base import Setting
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.vqgan_ema import VQGANEMA

GAN = "model.loss.adversarial=0.1"
ONLY_TRAINING = ("discriminator", "perceptual", "metrics")


def images(count: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def run_dir(tiny: TinyExperiment, tmp_path: Path) -> Path:
    """A run's folder with the record of its evaluation."""
    experiment = tiny("vqgan", GAN)
    folder = tmp_path / "runs/experiments/RUN"
    (folder / "checkpoints").mkdir(parents=True)
    path = save(experiment, folder / "checkpoints/final.ckpt")
    torch.save(torch.load(path) | {"data_id": "shapes", "images": {}}, path)
    record = {"config": experiment.identity(), "metrics": {"psnr": 21.5}, "protocols": {"psnr": "psnr/rgb/n12"}}
    (tmp_path / "runs/records").mkdir()
    (tmp_path / "runs/records/0123.shapes.json").write_text(json.dumps(record))
    return folder


def test_a_run_a_checkpoint_and_an_exported_folder_are_the_same_model(run_dir: Path, tmp_path: Path) -> None:
    state, batch = torch.random.get_rng_state(), images()
    tokenizer = Tokenizer.from_pretrained(run_dir)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody's random numbers are drawn"
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    assert not any(getattr(tokenizer, name, None) for name in ONLY_TRAINING)

    exported = tmp_path / "exported"
    tokenizer.save_pretrained(exported)
    assert {path.name for path in exported.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    ids = tokenizer.encode(batch).indices
    assert ids.shape == (3, 8, 8)
    for path in (run_dir / "checkpoints/final.ckpt", exported):
        again = Tokenizer.from_pretrained(path)
        assert torch.equal(again.encode(batch).indices, ids)
        assert torch.equal(again.decode_indices(ids), tokenizer.decode_indices(ids))
        assert torch.equal(again.reconstruct(batch), tokenizer.decode_indices(ids).clamp(-1, 1))
    assert tokenizer_digest(exported) == tokenizer_digest(run_dir), "the same tokenizer to every command"
    assert restore(exported)[0].identity() == restore(run_dir)[0].identity()
    assert restore(exported)[1].discriminator is not None, "to be measured or trained further"
    card = (exported / "README.md").read_text()
    assert "| parameters | 0.0" in card and "| parameters | 0.00 M" not in card, "counted though frozen"
    assert (exported / "model.safetensors").stat().st_mode == (exported / "config.json").stat().st_mode
    assert "| psnr | 21.5 | `psnr/rgb/n12` |" in card and "| trained on | shapes |" in card

    Tokenizer.from_pretrained(exported).save_pretrained(tmp_path / "twice")
    assert all((tmp_path / "twice" / p.name).read_bytes() == p.read_bytes() for p in exported.iterdir())


def test_encoding_changes_no_codebook(tiny: TinyExperiment, tmp_path: Path) -> None:
    """EMA's codes are moved by every forward in training mode."""
    torch.manual_seed(0)
    module = build_model(tiny("vqgan_ema"))
    module.save_pretrained(tmp_path / "ema")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "ema")
    before, first = tokenizer.quantizer.codebook().clone(), tokenizer.encode(images()).indices
    assert torch.equal(tokenizer.encode(images()).indices, first)
    assert torch.equal(tokenizer.quantizer.codebook(), before)


@pytest.mark.parametrize("name", ["vqgan", "vit_vqgan"])
@pytest.mark.parametrize("quantizer", ["vq", "factorized", "fsq", "lfq", "simvq", "ibq"])
def test_every_quantizer_comes_back(tiny: TinyExperiment, tmp_path: Path, name: str, quantizer: str) -> None:
    sizes = {"fsq": ["model.codebook_size=240", "model.code_dim=3"], "lfq": ["model.codebook_size=256"]}
    module = build_model(tiny(name, f"model.quantizer.name={quantizer}", *sizes.get(quantizer, []))).eval()
    module.save_pretrained(tmp_path / "x")
    again = Tokenizer.from_pretrained(tmp_path / "x")
    with torch.no_grad():
        assert torch.equal(again.encode(images()).indices, module.encode(images()).indices)
    assert torch.equal(again.reconstruct(images()), module.reconstruct(images()))


def test_what_does_not_fit_is_an_error(tiny: TinyExperiment) -> None:
    cnn, vit = (build_model(tiny(name)).eval() for name in ("vqgan", "vit_vqgan"))
    assert cnn.encode(images(2, 16, 24)).indices.shape == (2, 8, 12), "a CNN takes what its downsampling divides"
    for module, batch in [
        (cnn, images(2, 17, 16)),
        (vit, images(2, 32, 32)),
        (vit, images(2)[:, :1]),
        (cnn, images()[0]),
    ]:
        with pytest.raises(ValueError, match=r"images of shape .* do not fit: this model takes \(B, 3, H, W\)"):
            module.encode(batch)
    with pytest.raises(ValueError, match=r"images are torch.uint8: .* floats in \[-1, 1\]"):
        cnn.encode(images().byte())
    with pytest.raises(ValueError, match=r"token ids are .* not whole numbers"):
        vit.decode_indices(torch.zeros(2, 4, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"token ids lie in \[0, 32\)"):
        cnn.decode_indices(torch.full((1, 8, 8), 32))


def test_a_prior_brings_its_tokenizer(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny_vim(tiny)
    runs = tmp_path / "runs/experiments"
    for name in ("RUN", "vqgan_cifar10_k32_s0_1234"):
        (runs / name / "checkpoints").mkdir(parents=True)
    tokenizer = save(experiment.upstream, runs / "vqgan_cifar10_k32_s0_1234/checkpoints/final.ckpt")
    torch.manual_seed(0)
    module = VIM(experiment.model, Setting(16, 10, 32, (8, 8)))
    torch.nn.init.normal_(module.gpt.head.weight)
    module.tokenizer_digest = tokenizer_digest(tokenizer)
    content: dict[str, Any] = {"experiment": experiment.identity(), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, runs / "RUN/checkpoints/final.ckpt")

    prior = VIM.from_pretrained(runs / "RUN")
    pictures = prior.generate([3, 1, 3], seed=5, temperature=0.9)
    assert pictures.shape == (3, 3, 16, 16) and pictures.abs().max() <= 1
    torch.testing.assert_close(prior.generate([3, 1], seed=5, batch_size=1, temperature=0.9), pictures[:2])
    prior.save_pretrained(tmp_path / "exported")
    again = VIM.from_pretrained(tmp_path / "exported")
    assert torch.equal(again.generate(torch.tensor([3, 1, 3]), seed=5, temperature=0.9), pictures)
    (line,) = re.findall(r"^images = (model\.generate\(.*?\)) ", (tmp_path / "exported/README.md").read_text(), re.M)
    assert eval(line, {"model": again}).shape == (3, 3, 16, 16), "what the card says can be typed"

    again.origin = {"images": {"classes": ["cat", "dog", "fox", "owl"]}}
    assert torch.equal(again.generate(["owl", "dog", 3], seed=5, temperature=0.9), pictures)
    with pytest.raises(ValueError, match=r"'cow' is none of the classes cat, dog, fox, owl"):
        again.generate(["cow"])

    for labels in (16, [10], [-1]):
        with pytest.raises(ValueError, match="class"):
            prior.generate(labels)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        prior.generate([1], temperature=0)
    with pytest.raises(ValueError, match="holds a 'vim', which is not a Tokenizer"):
        Tokenizer.from_pretrained(runs / "RUN")
    other = save(experiment.upstream, tmp_path / "other.ckpt", first_used=9)
    with pytest.raises(ValueError, match=r"not the tokenizer that .* was trained on"):
        VIM.from_pretrained(runs / "RUN", tokenizer=other)
    tokenizer.unlink()
    with pytest.raises(ValueError, match="its tokenizer is not in the folders beside it"):
        VIM.from_pretrained(runs / "RUN")


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_of_latents_too(tiny: TinyExperiment, tmp_path: Path, name: str) -> None:
    module, tokenizer = build(tiny_latents(tiny, name))
    module.tokenizer_digest = f"untrained-{weights_hash(tokenizer.state_dict())}"
    shaken(module).eval().save_pretrained(tmp_path / "x")
    prior = Prior.from_pretrained(tmp_path / "x")
    assert type(prior) is type(module) and not hasattr(prior, "generation")
    pictures = prior.generate([3, 1, 3], seed=5, steps=2)
    assert pictures.shape == (3, 3, 16, 16) and torch.equal(module.generate([3, 1, 3], seed=5, steps=2), pictures)
    with pytest.raises(ValueError, match="guided_channels=9 is more than the 8"):
        prior.generate([1], guided_channels=9)


def test_lightnings_own_way_gives_a_module_to_train(tiny: TinyExperiment, run_dir: Path) -> None:
    module = Tokenizer.load_from_checkpoint(run_dir / "checkpoints/final.ckpt", map_location="cpu")
    assert module.training and module.discriminator is not None and module.metrics is not None
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = dict.fromkeys(quiet, False)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, **options)
    trainer.fit(module, build_data(tiny("vqgan", GAN)))
    assert module.step == 2


def test_a_model_that_is_trained_further_has_not_the_metrics_of_its_file(
    tiny: TinyExperiment, run_dir: Path, tmp_path: Path
) -> None:
    module = Tokenizer.load_from_checkpoint(run_dir / "checkpoints/final.ckpt")
    module.save_pretrained(tmp_path / "before")
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, **options)
    trainer.fit(module, build_data(tiny("vqgan", GAN)))
    module.save_pretrained(tmp_path / "after")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after"))
    assert before["metrics"] == {"psnr": 21.5} and not {"metrics", "protocols"} & after.keys()
    assert after["generator_steps"] == 2 and after["weights"] != before["weights"]


@pytest.mark.parametrize("damage", ["weights", "config", "format", "missing"])
def test_a_damaged_exported_folder_is_one_error(run_dir: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "exported"
    Tokenizer.from_pretrained(run_dir).save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "weights":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "config":
        config.write_text(config.read_text()[:100])
    elif damage == "format":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    else:
        weights.unlink()
    with pytest.raises(ValueError, match=str(folder)):
        Tokenizer.from_pretrained(folder)


def test_what_is_no_model(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run's folder with a checkpoint nor an exported model"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no such checkpoint"):
        Tokenizer.from_pretrained(tmp_path / "absent.ckpt")
    with pytest.raises(ValueError, match="holds a 'vqgan', which is not a VQGANEMA"):
        VQGANEMA.from_pretrained(run_dir)
    with pytest.raises(ValueError, match="is a file"):
        Tokenizer.from_pretrained(run_dir).save_pretrained(run_dir / "checkpoints/final.ckpt")


def test_a_hub_id(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    Tokenizer.from_pretrained(run_dir).save_pretrained(tmp_path / "cache")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name: asked.append(name) or str(tmp_path / "cache")
    )
    assert Tokenizer.from_pretrained("someone/a-tokenizer").config.name == "vqgan"
    assert set(asked) == {"someone/a-tokenizer"}

    def offline(name: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"someone/other: no such checkpoint here, and none .* hub \(no network\)"):
        load_checkpoint("someone/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        pretrained.find("someone/other")


def test_use_takes_few_packages_and_nothing_else_of_the_suite(run_dir: Path) -> None:
    """In a process of its own, where the others are neither to be imported nor, to importlib.metadata, installed."""
    code = f"""
import importlib.metadata as metadata, sys
absent = ("optuna sqlalchemy matplotlib tensorboard torch_fidelity lpips timm scipy transformers "
          "efficientnet_lite_pytorch experiments sweeps datamodules").split()
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name, name=name)
def installed(name, found=metadata.Distribution.from_name):
    if name.replace("-", "_").lower() in absent:
        raise metadata.PackageNotFoundError(name)
    return found(name)
sys.meta_path.insert(0, Absent())
metadata.Distribution.from_name = installed
import torch
from lightning_modules import Tokenizer
tokenizer = Tokenizer.from_pretrained({str(run_dir)!r})
tokenizer.reconstruct(torch.zeros(1, 3, 16, 16))
tokenizer.save_pretrained({str(run_dir.parent / "saved")!r})
print([name for name in absent if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
