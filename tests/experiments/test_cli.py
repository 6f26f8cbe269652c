"""The one console command, recipes and sweeps by name, and what the wheel carries."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments import cli
from experiments.config.compose import RECIPES, find_recipe, load_experiment
from experiments.runtime import arguments
from sweeps import samples
from sweeps.schema import SWEEPS, find_sweep

PROJECT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vq-image-modeling", *words])
    monkeypatch.setattr(arguments, "PROGRAM", arguments.PROGRAM)
    cli.main()


def test_every_command_is_listed_and_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--help")
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(cli.COMMANDS)
    assert all(len(line.split()) > 3 for line in lines), "each is explained"
    commands = [path.stem for path in (PROJECT / "experiments").glob("*.py") if "def main()" in path.read_text()]
    assert {f"experiments.{name}" for name in commands} - {"experiments.cli"} <= set(cli.COMMANDS.values())
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as status:
            run(monkeypatch, name, "--help")
        assert not status.value.code and "usage: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, "reconstruct", "--help")
    assert capsys.readouterr().out.startswith("usage: vq-image-modeling reconstruct")


def test_help_comes_without_heavy_imports() -> None:
    """Each of them takes a second or more; a help takes a fifth."""
    heavy = ("torch", "lightning", "optuna", "matplotlib", "omegaconf", "PIL", "sqlalchemy")
    script = f"""
import importlib, sys
for module in {list(cli.COMMANDS.values())}:
    sys.argv = ["x", "--help"]
    try:
        importlib.import_module(module).main()
    except SystemExit:
        pass
    found = [name for name in {heavy} if name in sys.modules]
    assert not found, f"{{module}} imports {{found}}"
"""
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)


def test_a_configuration_is_printed_and_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = "model.label_dropout=0.25"
    run(monkeypatch, "train", "vim_cifar10", "--print-config", key, "runtime.output_dir=there")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    again, expected = load_experiment(tmp_path / "printed.yaml"), load_experiment("vim_cifar10", [key])
    assert again.digest() == expected.digest() and again.runtime.output_dir == "there"
    assert again.upstream.identity() == expected.upstream.identity()
    for command in ("preview", "build-codebook"):
        run(monkeypatch, command, "vqgan_lc_cifar10", "--print-config")
        assert "name: vqgan_lc" in capsys.readouterr().out
    run(monkeypatch, "check-data", "--print-config", "--data-dir", "photos")
    assert "data_dir: photos" in capsys.readouterr().out


def test_a_mistyped_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "reconstuct", "x")
    assert capsys.readouterr().err == "error: no command 'reconstuct'; did you mean 'reconstruct'?\n"


def test_an_option_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse would take --out of a command that has none for its --output-dir."""
    with pytest.raises(SystemExit):
        samples.main(["sweeps/vit_vqgan/table6.yaml", "--out", "pictures"])
    assert "unrecognized arguments: --out" in capsys.readouterr().err


def test_recipes_and_sweeps_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = RECIPES / "vqgan_lc_cifar10.yaml"
    for name in ("vqgan_lc_cifar10", "vqgan_lc_cifar10.yaml", "experiments/vqgan_lc_cifar10.yaml"):
        assert find_recipe(name) == ours
    assert load_experiment("vqgan_lc_cifar10").model.name == "vqgan_lc"
    (tmp_path / "mine.yaml").write_text("extends: vqgan_lc_cifar10\nmodel: {codebook_size: 64}\n")
    assert load_experiment("mine.yaml").tokenizer.codebook_size == 64
    (tmp_path / "vqgan_lc_cifar10.yaml").write_text("extends: vqgan_cifar10\n")
    assert load_experiment("vqgan_lc_cifar10.yaml").model.name == "vqgan", "one's own file comes first"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(ValueError, match=r"no such file; did you mean vqgan_lc_cifar10\.yaml\?"):
        load_experiment("vqgan_lc_cifr10")
    for name in ("vit_vqgan/table6", "sweeps/vit_vqgan/table6.yaml"):
        assert find_sweep(name) == SWEEPS / "vit_vqgan/table6.yaml"
    assert find_sweep("elsewhere/x.yaml") == Path("elsewhere/x.yaml")


def test_the_wheel_carries_recipes_sweeps_and_records(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, ignore = tmp_path / "source", shutil.ignore_patterns("__pycache__")
    for name in ("lightning_modules", "datamodules", "experiments", "sweeps"):
        shutil.copytree(PROJECT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    subprocess.run([sys.executable, "-m", *command], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "vq-image-modeling = experiments.cli:main" in archive.read(entry_points).decode()
    for folder in ("experiments", "sweeps"):
        needed = [
            *(PROJECT / folder).rglob("*.yaml"),
            *(PROJECT / folder).rglob("*.json"),
            *(PROJECT / folder).rglob("*.py"),
        ]
        assert {path.relative_to(PROJECT).as_posix() for path in needed} <= names
    assert "lightning_modules/py.typed" in names and not any(name.startswith("tests/") for name in names)
