"""Keys that decide numbers make another run, other keys the same one; a refusal names the keys and both values."""

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from conftest import TinyExperiment

from experiments.config import experiment as experiment_module
from experiments.config.experiment import Experiment
from experiments.config.identity import differences, digest, identity
from experiments.runtime.records import same_experiment
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.options import neutral, no_identity
from lightning_modules.vqgan import VQGANConfig


@dataclass
class Part:
    lr: float = 0.1
    batch_size: int = no_identity(4)
    places: Any = no_identity(list)


@dataclass
class Whole:
    seed: int = 0
    part: Part = field(default_factory=Part)
    newer: bool = neutral(False)
    upstream: Any = None


def test_identity_is_of_all_keys_but_those_that_change_no_number() -> None:
    assert identity(Whole()) == {"seed": 0, "part.lr": 0.1}
    assert identity(Whole(newer=True, part=Part(batch_size=8))) == {"seed": 0, "part.lr": 0.1, "newer": True}
    assert identity(Whole(upstream=Whole(seed=3))) == identity(Whole()) | {"upstream.seed": 3, "upstream.part.lr": 0.1}


def test_digest_is_of_the_identity_and_of_what_is_below() -> None:
    base = digest(Whole())
    assert len(base) == 12 and digest(Whole(part=Part(batch_size=8, places=["a"]))) == base
    others = [
        Whole(seed=1),
        Whole(newer=True),
        Whole(part=Part(lr=0.2)),
        Whole(upstream=Whole()),
        Whole(upstream=Whole(seed=1)),
        Whole(upstream=Whole(upstream=Whole())),
    ]
    assert len({base, *map(digest, others)}) == 7
    assert digest(Whole(upstream=Whole(part=Part(batch_size=8)))) == digest(Whole(upstream=Whole()))


def test_differences_name_the_key_and_both_values() -> None:
    def differ(before: Any, here: Any) -> list[str]:
        return differences(json.loads(json.dumps(asdict(before))), here, asdict(here))

    assert differ(Whole(part=Part(batch_size=1)), Whole()) == []
    assert differ(Whole(seed=2, part=Part(lr=0.2)), Whole()) == ["seed=2, here 0", "part.lr=0.2, here 0.1"]
    assert differ(Whole(newer=True), Whole()) == ["newer=True, here False"]
    older = {"seed": 0, "part": {"lr": 0.1}, "gone": 3}
    assert differences(older, Whole(), asdict(Whole())) == ["gone=3, here not set"]
    assert differences({"part": {"lr": 0.1}}, Whole(newer=True), asdict(Whole())) == [
        "seed not set, here 0",
        "newer=False, here True",
    ]


HARMLESS = [
    ("data.val_batch_size=7",),
    ("trainer.log_every=3", "trainer.checkpoint_every=4"),
    ("runtime.output_dir=elsewhere", "runtime.data_dir=elsewhere", "runtime.devices=8", "runtime.num_workers=3"),
]


@pytest.mark.parametrize("keys", HARMLESS)
def test_keys_that_change_no_number(tiny: TinyExperiment, keys: tuple[str, ...]) -> None:
    before, after = tiny(), tiny("vqgan", *keys)
    assert after.digest() == before.digest() and after.differences(before.identity()) == []


def test_places_are_no_identity(tiny: TinyExperiment) -> None:
    """Folders count by what they hold; the name of a data set or of a codebook file tells rows of a table apart."""
    splits = ["data.train_folder=b", "data.val_folder=c"]
    plain, moved = (tiny("vqgan", "data.name=image_folder", *keys) for keys in ([], splits))
    assert plain.digest() == moved.digest()
    for model, key in (("vqgan", "data.dataset"), ("vqgan_lc", "model.quantizer.source.path")):
        options = ["data.name=image_folder"] if model == "vqgan" else []
        none, here, there, other = (
            tiny(model, *options, f"{key}={place}") for place in ("''", "a/one", "b/c/one", "a/two")
        )
        assert here.digest() == there.digest() and here.differences(there.identity()) == []
        assert len({none.digest(), here.digest(), other.digest()}) == 3
        assert here.differences(other.identity()) == [f"{key}=two, here one"]
    cifar10, offline = (tiny("vqgan", "data.name=cifar10", f"data.download={value}") for value in ("true", "false"))
    assert cifar10.digest() == offline.digest()


@dataclass
class NewerOptimizerConfig(OptimizerConfig):
    nesterov: bool = neutral(False)


@dataclass
class NewerConfig(VQGANConfig):
    optimizer: NewerOptimizerConfig = field(default_factory=NewerOptimizerConfig)


def test_an_option_that_is_added_keeps_finished_runs(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny()
    record = {"config": before.identity()}
    modules = experiment_module.MODULES
    monkeypatch.setitem(modules, "vqgan", (modules["vqgan"][0], NewerConfig))
    after = tiny()
    assert "nesterov" in str(after.identity())
    assert after.digest() == before.digest() and same_experiment(record, after)
    changed = tiny("vqgan", "model.optimizer.nesterov=true")
    assert changed.digest() != before.digest() and not same_experiment(record, changed)


def test_a_default_that_moves_renames_nothing(tiny: TinyExperiment) -> None:
    @dataclass
    class Moved(Experiment):
        seed: int = 5

    before = tiny()
    values = {entry.name: getattr(before, entry.name) for entry in dataclasses.fields(before)}
    assert Moved(**values).digest() == before.digest()
