"""Configuration and records: mistakes are named, digests stay what they are, files are whole or absent."""

import json
import os
from pathlib import Path

import pytest
from conftest import TinyExperiment

from experiments.config import compose as config_module
from experiments.config.compose import compose, load_experiment, parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import resolve_data
from experiments.runtime.files import write_json
from experiments.runtime.records import find_records, read_record, record_path
from lightning_modules.quantizers import QUANTIZERS
from lightning_modules.vit_vqgan import ViTVQGANConfig

TOKENIZERS = [path for path in sorted(config_module.RECIPES.glob("*.yaml")) if "upstream:" not in path.read_text()]
RECIPE = """
data: {name: shapes}
model:
  name: vqgan
  codebook_size: 64
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


# ---- reading


def test_arguments_win_over_the_file_and_the_file_over_defaults(recipe: Path) -> None:
    experiment = load_experiment(recipe, ["model.codebook_size=128", "model.optimizer.betas=[0.5,0.9]", "seed=3"])
    assert experiment.model.codebook_size == 128 and experiment.seed == 3
    assert experiment.model.optimizer.betas == [0.5, 0.9]
    assert load_experiment(recipe).model.codebook_size == 64
    assert experiment.model.code_dim == 256, "the class's default"


def test_a_recipe_extends_another_file(tmp_path: Path) -> None:
    """Key by key, over as many files as there are; a part of another class replaces the extended file's."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/first.yaml").write_text("data: {name: shapes, batch_size: 3}\ntrainer: {max_steps: 5}\n")
    (tmp_path / "below/second.yaml").write_text("extends: first.yaml\nmodel: {name: vqgan, backbone: {channels: 16}}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "extends: below/second.yaml\ndata: {batch_size: 2}\nmodel: {backbone: {name: vit, patch_size: 4}}\n"
    )
    experiment = load_experiment(path, ["trainer.max_steps=7"])
    assert (experiment.data.batch_size, experiment.trainer.max_steps) == (2, 7)
    assert experiment.model.backbone.patch_size == 4  # type: ignore[attr-defined]
    assert load_experiment(path).trainer.max_steps == 5


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("recip.yaml", r"recip\.yaml: no such file; did you mean recipe\.yaml"),
        ("recipe.yaml", r"recipe\.yaml: extends='recipe\.yaml' leads back to itself"),
        ("[1]", r"\[1\]: no such file"),
    ],
)
def test_an_extended_file_must_be_there(recipe: Path, base: str, message: str) -> None:
    recipe.write_text(f"extends: {base}\n{RECIPE}")
    with pytest.raises(ValueError, match=message):
        load_experiment(recipe)


def test_names_pick_the_classes(recipe: Path) -> None:
    experiment = load_experiment(recipe, ["model.name=vit_vqgan", "model.quantizer.name=ema", "model.code_dim=16"])
    assert isinstance(experiment.model, ViTVQGANConfig)
    assert (experiment.model.backbone.name, experiment.model.discriminator.name) == ("vit", "stylegan")
    assert experiment.model.quantizer.commitment_weight == 1.0, "EMA's own default"
    assert not load_experiment(recipe, ["model.name=vqgan_fc"]).model.quantizer.l2_norm  # type: ignore[attr-defined]


def test_data_defaults_are_those_of_the_data_set() -> None:
    for values in ({}, {"data": {"name": "shapes"}}):
        experiment = parse({"model": {"name": "vqgan"}} | values, "x")
        assert experiment.data.train_size == 10_000, "shapes has no end and needs a size"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.codebok_size=4", r"unknown key 'model\.codebok_size'; did you mean 'model\.codebook_size'\?"),
        ("model.loss.perceptul=1", r"unknown key 'model\.loss\.perceptul'; did you mean 'model\.loss\.perceptual'\?"),
        ("codebook_size=4", r"unknown key 'codebook_size'; did you mean 'model\.codebook_size'\?"),
        ("trainer.max_stepz=4", r"unknown key 'trainer\.max_stepz'; did you mean 'trainer\.max_steps'\?"),
        ("model.codebook_size=many", r"model\.codebook_size: .*many"),
        ("model.codebook_size=1.5", r"model\.codebook_size: .*1\.5"),
        ("model.optimizer.lr=fast", r"model\.optimizer\.lr: .*fast"),
        ("model.backbone.channel_multipliers=[1,x]", r"model\.backbone\.channel_multipliers: .*x"),
        ("data.flip=perhaps", r"data\.flip: .*perhaps"),
        ("trainer=5", r"'trainer' is a section: set keys in it, such as trainer\.max_steps"),
        ("model.name=vqgann", r"model\.name='vqgann' is none of vqgan, .*did you mean 'vqgan'\?"),
        ("model.quantizer.name=emma", r"model\.quantizer\.name='emma'.*did you mean 'ema'\?"),
        ("model.backbone.name=unet", r"model\.backbone\.name='unet' is none of cnn, vit"),
        ("data.name=cifar", r"data\.name='cifar'.*did you mean 'cifar10'\?"),
        ("model.loss.l2=-1", r"model\.loss\.l2=-1\.0 must not be negative"),
        ("model.loss.adversarial_start=-1", r"model\.loss\.adversarial_start=-1 must not be negative"),
        ("model.quantizer.commitment_weight=-0.5", r"model\.quantizer\.commitment_weight=-0\.5 must not be negative"),
        ("model.loss.adversarial_loss=hing", r"model\.loss\.adversarial_loss='hing' is none of hinge, non_saturating"),
        ("model.loss.r1_every=0", r"r1_every=0 must be at least 1"),
        ("model.optimizer.lr=0", r"model\.optimizer\.lr=0\.0 must be above 0"),
        ("model.optimizer.betas=[0.9]", r"betas=\[0\.9\] must hold two numbers"),
        ("model.optimizer.accumulate=0", r"accumulate=0 must be at least 1"),
        ("model.codebook_size=0", r"codebook_size=0 and code_dim=\d+ must be at least 1"),
        ("trainer.max_steps=0", r"max_steps=0 must be at least 1"),
        ("trainer.precision=16", r"precision='16' is none of 32-true, bf16-mixed, 16-mixed"),
        ("trainer.weight_ema_ramp=true", r"weight_ema_ramp needs trainer\.weight_ema above 0"),
        ("trainer.weight_ema=1.0", r"weight_ema=1\.0 must be in \[0, 1\)"),
        ("data.batch_size=0", r"batch_size=0 must be at least 1"),
        (
            "model.quantizer.name=fsq",
            r"model\.codebook_size=64 is not the product of .* or set model\.quantizer\.levels",
        ),
        ("model.quantizer.name=lfq", r"not 64 and 256: take 64 and 6"),
        ("model.backbone.channels=0", r"model\.backbone\.channels=0 must be at least 1"),
        ("model.backbone.num_res_blocks=-1", r"model\.backbone\.num_res_blocks=-1 must be at least 1"),
        ("model.backbone.latent_channels=0", r"model\.backbone\.latent_channels=0 must be at least 1"),
        ("model.backbone.channel_multipliers=[]", r"channel_multipliers=\[\] must hold a number for each resolution"),
        ("model.backbone.channel_multipliers=[1,0]", r"channel_multipliers=\[1, 0\] must be at least 1"),
        ("model.backbone.dropout=1", r"model\.backbone\.dropout=1\.0 must be in \[0, 1\)"),
        ("model.discriminator.channels=0", r"model\.discriminator\.channels=0 must be at least 1"),
        ("data.val_size=1", r"data\.val_size=1 must be null \(all\) or at least 2"),
        ("model.metrics.num_images=1", r"model\.metrics\.num_images=1 must be 0 \(all\) or at least 2"),
        ("model.metrics.num_images=-1", r"model\.metrics\.num_images=-1 must not be negative"),
        ("model.metrics.extractor_image_size=-1", r"extractor_image_size=-1 must not be negative"),
        ("model.metrics.extractor=inception", r"extractor='inception' is none of auto, inception-v3-compat"),
        ("model.metrics.lpips=squeeze", r"model\.metrics\.lpips='squeeze' is none of auto, vgg, alex, none"),
        ("model.metrics.code_ranks=[1,65]", r"code_ranks=\[1, 65\] must lie between 1 and model\.codebook_size=64"),
        ("model.metrics.code_ranks=[0]", r"code_ranks=\[0\] must lie between 1"),
        ("model.loss.perceptual_network=vgg", r"perceptual_network='vgg' is none of lpips-vgg, lpips-alex"),
    ],
)
def test_a_mistake_is_named_with_the_file(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_experiment(recipe, [override])
    text = str(error.value)
    assert text.startswith(f"{recipe}: ") and "\n" not in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.patch_size=0", r"model\.backbone\.patch_size=0 must be at least 1"),
        ("backbone.head_dim=-1", r"model\.backbone\.head_dim=-1 must be at least 1"),
        ("backbone.encoder_dims=[2,0,64,128]", r"encoder_dims=\[2, 0, 64, 128\] must be at least 1"),
        ("discriminator.max_channels=-1", r"model\.discriminator\.max_channels=-1 must be at least 1"),
    ],
)
def test_sizes_of_a_vit_that_cannot_be(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(recipe, ["model.name=vit_vqgan", f"model.{override}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decay=1", r"quantizer\.decay=1\.0 must be in \[0, 1\)"),
        ("decay=1.5", r"quantizer\.decay=1\.5 must be in \[0, 1\)"),
        ("eps=0", r"quantizer\.eps=0\.0 must be above 0"),
        ("init=uniform", r"quantizer\.init='uniform' is none of random, latents"),
        ("place_at=3", r"quantizer\.place_at=3 needs quantizer\.init=latents"),
        ("dead_code_threshold=2", r"quantizer\.dead_code_threshold=2\.0 is a part of the fair share"),
    ],
)
def test_moving_averages_that_cannot_be(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment(recipe, ["model.quantizer.name=ema", f"model.quantizer.{override}"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["name=ema", "init=latents", "place_at=9"], "place_at=9: the codes would not be placed"),
        (["name=large_codebook", "match_at=9"], "match_at=9: the codes would not be matched"),
    ],
)
def test_codes_that_a_training_would_never_place(recipe: Path, keys: list[str], message: str) -> None:
    keys = [f"model.quantizer.{key}" for key in keys]
    with pytest.raises(ValueError, match=rf"{message} in trainer\.max_steps=9"):
        load_experiment(recipe, [*keys, "trainer.max_steps=9"])
    load_experiment(recipe, [*keys, "trainer.max_steps=10"])


def test_precision_and_recall_take_three_neighbours(recipe: Path) -> None:
    load_experiment(recipe, ["model.metrics.num_images=2"])
    with pytest.raises(ValueError, match=r"num_images=2 must be 0 .* at least 4"):
        load_experiment(recipe, ["model.metrics.num_images=2", "model.metrics.precision_recall=true"])


def test_an_untrained_discriminator_may_not_steer(recipe: Path) -> None:
    keys = ["model.loss.adversarial=0.1", "model.loss.discriminator_start=10", "model.loss.adversarial_start=5"]
    with pytest.raises(ValueError, match=r"adversarial_start=5 is before discriminator_start=10"):
        load_experiment(recipe, keys)
    load_experiment(recipe, ["model.loss.adversarial=0", *keys[1:]])  # no game, no order


@pytest.mark.parametrize("argument", ["model.codebook_size", "=5", "", "--steps"])
def test_an_argument_that_is_not_key_value(recipe: Path, argument: str) -> None:
    with pytest.raises(ValueError, match=r"expected key=value, for example trainer\.max_steps=100"):
        load_experiment(recipe, [argument])


def test_an_argument_that_is_not_yaml(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.optimizer\.betas=\[0\.9"):
        load_experiment(recipe, ["model.optimizer.betas=[0.9,"])


def test_a_missing_file_suggests_its_neighbour(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"recip\.yaml: no such file; did you mean recipe\.yaml\?"):
        load_experiment(recipe.with_name("recip.yaml"))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not readable as YAML"), ("- 1\n- 2", "must hold `key: value`")]
)
def test_a_broken_file_is_named(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.yaml: {message}"):
        load_experiment(recipe)


def test_a_file_without_a_model_says_which_there_are(recipe: Path) -> None:
    recipe.write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"model\.name='' is none of vqgan, vqgan_ema"):
        load_experiment(recipe)


def test_merge_goes_key_by_key() -> None:
    layers = {"a": {"b": 1, "c": 2}}, from_dotlist(["a.b=3", "d=[1,2]"])
    assert merge(*layers) == {"a": {"b": 3, "c": 2}, "d": [1, 2]}
    assert layers[0] == {"a": {"b": 1, "c": 2}}


FACTORIZED = {
    "data": {"name": "shapes"},
    "model": {
        "name": "vqgan_fc",  # whose quantizer is factorized; no key says so
        "code_dim": 4,
        "quantizer": {"l2_norm": True, "commitment_weight": 0.5},
        "backbone": {"channels": 16},
        "optimizer": {"lr": 0.5},
    },
}


def test_another_quantizer_replaces_the_keys_of_the_old_one() -> None:
    values = compose(FACTORIZED, from_dotlist(["model.quantizer.name=fsq", "model.codebook_size=625"]),
                     {"model": {"quantizer": {"levels": [5, 5, 5, 5]}}})  # fmt: skip
    assert values["model"]["quantizer"] == {"name": "fsq", "levels": [5, 5, 5, 5]}
    assert values["model"]["backbone"] == {"channels": 16} and values["model"]["optimizer"] == {"lr": 0.5}
    quantizer = parse(values, "x").model.quantizer
    assert (quantizer.name, quantizer.commitment_weight) == ("fsq", 0.0), "the new class's default"
    assert "name" not in FACTORIZED["model"]["quantizer"], "layers are not changed"  # type: ignore[index]


@pytest.mark.parametrize("override", ["model.quantizer.name=factorized", "model.code_dim=8", "model.name=vqgan_fc"])
def test_the_same_quantizer_keeps_its_keys(override: str) -> None:
    values = compose(FACTORIZED, from_dotlist([override]))
    assert values["model"]["quantizer"].items() >= {"l2_norm": True, "commitment_weight": 0.5}.items()


def test_another_model_replaces_the_parts_in_which_it_differs() -> None:
    model = compose(FACTORIZED, {"model": {"name": "vqgan_ema"}})["model"]
    assert "quantizer" not in model and model["backbone"] == {"channels": 16}
    model = compose(FACTORIZED, {"model": {"name": "vit_vqgan"}})["model"]
    assert model["quantizer"]["l2_norm"] and "backbone" not in model


@pytest.mark.parametrize("keys", [["model.quantizer.nam=fsq"], ["model.quantizer.levels=[5,5]"]])
def test_a_wrong_key_is_no_other_quantizer(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"unknown key '{keys[0].split('=')[0]}'"):
        parse(compose(FACTORIZED, from_dotlist(keys)), "x")


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("path", TOKENIZERS, ids=lambda path: path.stem)
def test_every_recipe_takes_every_quantizer(path: Path, name: str) -> None:
    sizes = {"fsq": (1000, 4), "lfq": (1024, 10), "none": (0, 16)}.get(name, (1024, 16))
    experiment = load_experiment(
        path, [f"model.quantizer.name={name}", f"model.codebook_size={sizes[0]}", f"model.code_dim={sizes[1]}"]
    )
    assert isinstance(experiment.model.quantizer, QUANTIZERS[name][1])


# ---- which data


def test_the_word_data_replaces_the_set_and_keeps_sizes(tiny: TinyExperiment) -> None:
    shapes = tiny()
    assert resolve_data(shapes, "shapes") is shapes and resolve_data(shapes, "auto") is shapes
    folder = resolve_data(shapes, "image_folder").data
    assert (folder.name, folder.image_size, folder.batch_size, folder.train_size) == ("image_folder", 16, 4, 16)
    assert shapes.data.name == "shapes"
    with pytest.raises(ValueError, match="DATA=imagenet is none of auto, cifar10, image_folder, shapes"):
        resolve_data(shapes, "imagenet")
    with pytest.raises(ValueError, match=r"DATA=imagefolder is none of .*; did you mean 'image_folder'\?"):
        resolve_data(shapes, "imagefolder")


# ---- digests


def test_digest_names_what_decides_the_numbers(tiny: TinyExperiment) -> None:
    base = tiny("vqgan_fc")
    assert base.digest() == tiny("vqgan_fc").digest() and len(base.digest()) == 12
    same = ["runtime.output_dir=elsewhere", "runtime.devices=8", "runtime.num_workers=3", "runtime.accelerator=gpu"]
    assert tiny("vqgan_fc", *same).digest() == base.digest()
    changes = [
        "seed=1",
        "data.data_seed=1",
        "data.val_size=11",
        "model.codebook_size=33",
        "model.quantizer.l2_norm=true",
        "model.backbone.channels=16",
        "model.loss.l2=0.5",
        "model.metrics.extractor_image_size=48",
        "trainer.precision=bf16-mixed",
    ]
    digests = {tiny("vqgan_fc", change).digest() for change in changes}
    assert len(digests | {base.digest()}) == len(changes) + 1
    assert tiny("vqgan", "model.quantizer.name=factorized", "model.quantizer.l2_norm=false").digest() != base.digest()


def test_identity_survives_json_and_checkpoint(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan_lc")
    again = parse(json.loads(json.dumps(experiment.identity())), "record")
    assert again.identity() == experiment.identity() and again.digest() == experiment.digest()


# ---- records


def save(experiment: Experiment, directory: Path, data_id: str, value: float) -> None:
    record = {
        "format": 1,
        "config": experiment.identity(),
        "data_id": data_id,
        "metrics": {"rfid": value},
        "protocols": {},
    }
    write_json(record_path(directory, experiment, data_id), record)


def test_records_are_found_by_experiment_and_data(tiny: TinyExperiment, tmp_path: Path) -> None:
    mine, published = tmp_path / "mine", tmp_path / "published"
    experiment, other = tiny(), tiny("vqgan", "seed=1")
    save(experiment, published, "shapes", 1.0)
    save(experiment, published, "cifar10-binary", 2.0)
    save(experiment, mine, "shapes", 3.0)
    save(other, mine, "shapes", 4.0)
    found = find_records(experiment, [mine, published])
    assert {data: record["metrics"]["rfid"] for data, record in found.items()} == {"shapes": 3.0, "cifar10-binary": 2.0}
    assert find_records(tiny("vqgan", "seed=2"), [mine, published, tmp_path / "absent"]) == {}


def test_a_record_under_our_digest_of_other_values_is_not_ours(tiny: TinyExperiment, tmp_path: Path) -> None:
    """A default that changed keeps the digest; the full configuration in the record tells."""
    experiment = tiny()
    save(experiment, tmp_path, "shapes", 1.0)
    path = record_path(tmp_path, experiment, "shapes")
    record = read_record(path)
    record["config"]["model"]["optimizer"]["eps"] = 1e-3
    write_json(path, record)
    assert find_records(experiment, [tmp_path]) == {}
    record["config"]["model"]["no_longer"] = 1
    write_json(path, record)
    assert find_records(experiment, [tmp_path]) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "abc.shapes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"abc\.shapes\.json: .*delete it"):
        read_record(path)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"value": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert json.loads(path.read_text()) == {"value": 1}


def test_what_cannot_be_written_as_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "record.json", {"a": 1, "b": {1, 2}})
    assert list(tmp_path.iterdir()) == []
