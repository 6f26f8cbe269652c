"""The sampling command: formats, resuming, classes, acceptance, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from token_cases import save
from torch import Tensor
from vim_cases import tiny_vim

import experiments.pipeline.samples
import experiments.sample
from experiments.pipeline.build import restore_tokenizer
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.samples import in_turn, parse_classes
from lightning_modules.base import Setting
from lightning_modules.metrics.extractors import to_uint8
from lightning_modules.vim import VIM

Run = Any


@pytest.fixture
def run(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("--num", "3", ...) on a VIM that is not trained, whose tokenizer uses all of its codes."""

    def command(*arguments: str, options: tuple[str, ...] = ()) -> VIM:
        experiment = tiny_vim(tiny, *options)
        path, tokenizer = tmp_path / "vim.ckpt", save(experiment.upstream, tmp_path / "tokenizer.ckpt")
        torch.manual_seed(0)
        module = VIM(experiment.model, Setting(16, 10, 32, (8, 8)))
        for layer in (module.gpt.start, module.gpt.head):
            torch.nn.init.normal_(layer.weight)
        module.use_tokenizer(restore_tokenizer(tokenizer)[1], tokenizer_digest(tokenizer))
        content: dict[str, Any] = {"experiment": experiment.identity(), "state_dict": module.state_dict()}
        module.on_save_checkpoint(content)
        torch.save(content, path)
        where = ["--tokenizer", str(tokenizer), "--output-dir", str(tmp_path / "runs"), "runtime.accelerator=cpu"]
        monkeypatch.setattr(sys, "argv", ["sample", str(path), *where, *arguments])
        experiments.sample.main()
        return module.eval()

    return command


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_formats_agree_at_any_batch_size(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, npz, grid = tmp_path / "images", tmp_path / "x.npz", tmp_path / "x.png"
    options = ["--num", "12", "--seed", "3", "--temperature", "0.8"]
    module = run(*options, "--format", "png", "--out", str(folder), "--batch-size", "5")
    run(*options, "--format", "npz", "--out", str(npz), "--batch-size", "12")
    run(*options, "--out", str(grid))
    files = sorted(path.name for path in folder.iterdir())
    assert files == [*(f"{i:06d}-class{i % 10:03d}.png" for i in range(12)), "samples.json"]
    with np.load(npz) as content:
        images, labels = content["arr_0"], content["arr_1"]
    assert images.shape == (12, 16, 16, 3) and images.dtype == np.uint8
    assert labels.tolist() == [i % 10 for i in range(12)] and labels.dtype == np.int64
    assert all(np.array_equal(pixels(folder / files[i]), images[i]) for i in range(12))
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12
    sampling = type(module.config.sampling)(temperature=0.8)
    expected = to_uint8(module.sample(list(range(12)), 3, sampling=sampling)[0]).permute(0, 2, 3, 1)
    assert np.array_equal(images, expected.numpy())
    picture = pixels(grid)
    assert picture.shape == (2 * 18 + 2, 10 * 18 + 2, 3), "a class a column"
    assert np.array_equal(picture[2:18, 2:18], images[0]) and np.array_equal(picture[20:36, 2:18], images[10])
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"

    capsys.readouterr()
    run(*options, "--out", str(grid))
    assert "they are finished, nothing was done" in capsys.readouterr().out


def test_samples_lie_beside_a_checkpoint_or_in_its_run(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--num", "1")
    assert Path(capsys.readouterr().out.split()[-1]).parent == tmp_path / "samples"
    (tmp_path / "RUN/checkpoints").mkdir(parents=True)
    (tmp_path / "vim.ckpt").rename(moved := tmp_path / "RUN/checkpoints/final.ckpt")
    sys.argv[1] = str(moved)
    experiments.sample.main()
    assert Path(capsys.readouterr().out.split()[-1]).parent == tmp_path / "RUN/samples"


def test_a_folder_is_continued_and_grows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sampled = tmp_path / "images", []
    options = ["--format", "png", "--out", str(folder), "--batch-size", "4"]
    run("--num", "9", *options)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for number in (2, 5):
        (folder / f"{number:06d}-class{number:03d}.png").unlink()
    real = VIM.sample
    monkeypatch.setattr(VIM, "sample", lambda self, ids, *a: (sampled.extend(ids), real(self, ids, *a))[1])
    run("--num", "3", *options)
    assert sampled == [2]
    run("--num", "11", *options)
    assert sampled == [2, 5, 9, 10]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before and len(after) == 12


def test_chosen_classes_and_no_classes(run: Run, tmp_path: Path) -> None:
    run("--num", "5", "--classes", "7,2", "--format", "npz", "--out", str(tmp_path / "a.npz"))
    with np.load(tmp_path / "a.npz") as content:
        assert content["arr_1"].tolist() == [7, 2, 7, 2, 7]
    unconditional = ("model.class_conditional=false",)
    run("--num", "3", "--format", "npz", "--out", str(tmp_path / "b.npz"), options=unconditional)
    with np.load(tmp_path / "b.npz") as content:
        assert content.files == ["arr_0"] and len(content["arr_0"]) == 3
    folder = tmp_path / "c"
    run("--num", "2", "--format", "png", "--out", str(folder), options=unconditional)
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000001.png"]


def test_the_best_are_accepted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Brightness:
        id = "brightness"

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.mean((1, 2, 3))

    monkeypatch.setattr(experiments.pipeline.samples, "classifier_for", lambda *_: Brightness())
    options = ["--classes", "1,4", "--seed", "1"]
    run(*options, "--num", "12", "--format", "npz", "--out", str(tmp_path / "all.npz"))
    run(*options, "--num", "6", "--accept", "0.5", "--format", "npz", "--out", str(tmp_path / "best.npz"))
    with np.load(tmp_path / "all.npz") as every, np.load(tmp_path / "best.npz") as best:
        assert best["arr_1"].tolist() == [1, 4, 1, 4, 1, 4]
        for label in (1, 4):
            images = every["arr_0"][every["arr_1"] == label].reshape(6, -1)
            kept = {bytes(image) for image in images[images.mean(1).argsort()[3:]]}
            assert {bytes(image) for image in best["arr_0"][best["arr_1"] == label].reshape(3, -1)} == kept


def test_in_turn() -> None:
    labels = torch.tensor([2, 5, 2, 5, 2, 5])
    assert in_turn(torch.tensor([0, 2, 3, 5]), labels) == [0, 3, 2, 5]


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0"], "--num 0 and --batch-size 64 must be at least 1"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
        (["--accept", "0"], "--accept 0.0: the share of candidates to keep lies in (0, 1]"),
        (["--num", "2000000"], "--num 2000000: a seed has 1,000,003 images"),
        (["--classes", "0,10"], "--classes 0,10: must be different numbers from 0 to 9"),
        (["--classes", "a"], "--classes a: expected numbers such as 0,3 or the word all"),
        (
            ["--guidance", "2"],
            "sampling.guidance_scale=2.0 needs a model that was trained without its label now and then",
        ),
        (["--temperature", "0"], "temperature=0.0 must be above 0"),
        (["--top-p", "1.5"], "top_p=1.5 must be in (0, 1]"),
        (["--format", "npz", "--out", "x.png"], "--out x.png: the name of a npz ends in .npz"),
        (["model.label_dropout=0.1"], "model: the model is trained, only data.* and runtime.* can be changed"),
    ],
)
def test_mistakes_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.setattr(VIM, "sample", lambda *_: pytest.fail("too late"))
    with pytest.raises(SystemExit) as stop:
        run(*options)
    text = capsys.readouterr().err
    assert stop.value.code == 1 and text.startswith(f"error: {message}") and text.count("\n") == 1


def test_other_content_is_left_alone(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            run("--num", "2", *options)
        return capsys.readouterr().err

    folder = tmp_path / "images"
    run("--num", "2", "--format", "png", "--out", str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "holds other samples (seed 0, not 1): choose another --out" in refused(
        "--seed", "1", "--format", "png", "--out", str(folder)
    )
    assert "is a folder" in refused("--format", "npz", "--out", str(folder.rename(tmp_path / "images.npz")))
    assert {path.name: path.read_bytes() for path in (tmp_path / "images.npz").iterdir()} == before
    (tmp_path / "mine.png").write_bytes(b"precious")
    assert "mine.png: is there already, and not made by this command" in refused("--out", str(tmp_path / "mine.png"))
    assert (tmp_path / "mine.png").read_bytes() == b"precious"
    assert json.loads((tmp_path / "images.npz/samples.json").read_text())["seed"] == 0


def test_guidance_of_a_model_that_was_trained_for_it(run: Run, tmp_path: Path) -> None:
    options = ("model.label_dropout=0.1",)
    out = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    run("--num", "2", "--format", "npz", "--out", out[0], options=options)
    run("--num", "2", "--format", "npz", "--out", out[1], "--guidance", "3", options=options)
    with np.load(out[0]) as plain, np.load(out[1]) as guided:
        assert not np.array_equal(plain["arr_0"], guided["arr_0"])


def test_a_tokenizer_generates_nothing(
    run: Run, tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tiny(), tmp_path / "alone.ckpt")
    monkeypatch.setattr(sys, "argv", ["sample", str(checkpoint)])
    with pytest.raises(SystemExit):
        experiments.sample.main()
    assert "alone.ckpt: holds a 'vqgan', which generates no images" in capsys.readouterr().err


def test_classes() -> None:
    assert parse_classes("all", 3) == parse_classes(None, 3) == [0, 1, 2]
    assert parse_classes(None, 0) == []
    with pytest.raises(ValueError, match="the model was trained without classes"):
        parse_classes("1", 0)
    with pytest.raises(ValueError, match="must be different numbers"):
        parse_classes("1,1", 3)


def test_classes_by_name() -> None:
    names = ["cat", "dog", "3"]
    assert parse_classes("dog,0", 3, names) == [1, 0]
    assert parse_classes("3", 3, names) == [2], "the folder of that name, not a number beyond the last"
    with pytest.raises(ValueError, match="expected numbers such as 0,3 or the word all, or names: cat, dog, 3"):
        parse_classes("cow", 3, names)
    with pytest.raises(ValueError, match="must be different numbers"):
        parse_classes("cat,0", 3, names)


def test_names_of_classes_are_kept_with_the_model_and_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = VIM.on_save_checkpoint

    def with_names(module: VIM, content: dict[str, Any]) -> None:
        own(module, content)
        content["images"] = {"classes": [f"kind{number}" for number in range(10)]}

    monkeypatch.setattr(VIM, "on_save_checkpoint", with_names)
    run("--num", "2", "--classes", "kind7,2", "--format", "npz", "--out", str(tmp_path / "a.npz"))
    assert "classes: 7 kind7, 2 kind2\n" in capsys.readouterr().err
    note = json.loads((tmp_path / "a.npz.json").read_text())
    assert note["classes"] == [7, 2] and note["class_names"] == ["kind7", "kind2"]
