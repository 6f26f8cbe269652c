"""Machines of other people: the home folder in paths, no home, folders that a group shares."""

import argparse
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from safetensors.torch import save_file

import experiments.train
from datamodules import cache
from datamodules.cifar10 import find_cifar10
from experiments.config.compose import load_experiment
from experiments.config.experiment import RuntimeConfig
from experiments.pipeline.codebooks.build import open_codebook, save_codebook
from experiments.runtime import arguments
from experiments.runtime.files import locked, write_json
from lightning_modules.archives import readable
from lightning_modules.checks import home_expanded
from sweeps.arguments import parser_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user whose number has no name."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(unknown))


# ---- ~


def test_home_is_meant_in_every_path_of_a_recipe(home: Path) -> None:
    Path("recipe.yaml").write_text("model: {name: vqgan}\nruntime: {data_dir: ~/data, output_dir: ~/runs}\n")
    runtime = load_experiment("recipe.yaml").runtime
    assert (runtime.data_dir, runtime.output_dir) == (f"{home}/data", f"{home}/runs")
    assert load_experiment("recipe.yaml", ["runtime.output_dir=~/other"]).runtime.output_dir == f"{home}/other"
    save_file({"codebook": torch.ones(2, 3)}, home / "table.safetensors")
    assert open_codebook(Path("~/table.safetensors"))[0].shape == (2, 3)
    (home / "data/cifar10/train").mkdir(parents=True)
    (home / "data/cifar10/test").mkdir()
    assert find_cifar10("~/data") == "export"


def test_home_is_meant_in_every_argument(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments.of_checkpoint("evaluate", "").parse_intermixed_args(
        ["~/a.ckpt", "data.val_size=~", "--data-dir=~/data", "--output-dir", "~/runs"]
    )
    assert (given.checkpoint, given.data_dir, given.output_dir) == tuple(
        f"{home}/{n}" for n in ("a.ckpt", "data", "runs")
    )
    assert given.overrides == ["data.val_size=~"], "YAML's word for null"
    words = ["~/s.yaml", "--output-dir=~", "--data-dir", "a~/b"]
    with monkeypatch.context() as patch:  # from Python 3.12.8 on intermixed arguments do not come that way
        patch.setattr(arguments.Parser, "parse_known_args", argparse.ArgumentParser.parse_known_args)
        options = parser_of("run", "file").parse_intermixed_args(words)
    assert (options.file, options.output_dir, options.data_dir) == (f"{home}/s.yaml", str(home), "a~/b")


def test_a_training_writes_to_the_home_folder(
    home: Path, tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny().identity() | {"runtime": {"accelerator": "cpu", "output_dir": "~/runs"}}
    write_json(Path("recipe.yaml"), config)
    monkeypatch.setattr(sys, "argv", ["train", "recipe.yaml"])
    experiments.train.main()
    assert len(list((home / "runs/records").iterdir())) == 1 and os.listdir() == ["recipe.yaml"]


def test_without_a_home_only_paths_in_it_are_an_error(homeless: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert RuntimeConfig().output_dir == "runs" and home_expanded("a/~/b") == "a/~/b"
    with pytest.raises(ValueError, match=r"~/runs: no home folder is known here \(HOME is not set\)"):
        RuntimeConfig(output_dir="~/runs")
    with pytest.raises(SystemExit):
        arguments.of_checkpoint("evaluate", "").parse_intermixed_args(["~/a.ckpt"])
    assert "~/a.ckpt: no home folder" in capsys.readouterr().err


def test_without_a_home_caches_are_temporary(homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "data").write_text("a file where the folder would be")
    for _ in range(2):
        arrays = cache.cached(tmp_path / "data", "x.npz", "key", lambda: {"a": np.arange(3)})
        assert arrays["a"].tolist() == [0, 1, 2]
    assert len(list((tmp_path / f"tmp/vq-image-modeling-{os.getuid()}").rglob("x.npz"))) == 1


# ---- a group's folder


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        save_codebook(tmp_path / "codebook.safetensors", torch.zeros(2, 3), {}, "x", 2, {})
        write_json(tmp_path / "record.json", {})
        cache.write(tmp_path, "x.npz", {"a": np.zeros(1)})
        with locked(tmp_path / ".lock", "works"):
            pass
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("codebook.safetensors", "record.json", "x.npz", ".lock"), expected
    )


def test_an_unreadable_file_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "codebook.safetensors").write_bytes(b"of another user")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"codebook\.safetensors: may not be read: ask its owner"):
        open_codebook(tmp_path / "codebook.safetensors")
    with pytest.raises(ValueError, match="not readable"), readable(tmp_path / "missing"):
        raise OSError("no such file")


def test_a_lock_of_another_user_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with (
        pytest.raises(PermissionError, match=r"\.lock: may not be written: .*chmod -R g\+rwX"),
        locked(tmp_path / ".lock", "works"),
    ):
        pass
