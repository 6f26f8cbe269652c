"""Token folders: order, views and subsets on numbered tokens, and every file that does not fit."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from datamodules import DATAMODULES, TokensConfig, TokensDataModule
from datamodules.base import Batch, BatchDataModule, DataConfig, ImageDataModule
from datamodules.token_files import DTYPE, SPLITS, TokenMeta, check_values, labels_path, values_path

NUM_IMAGES, NUM_CODES = 50, 100_000


class Numbered(ImageDataModule):
    """Fifty images in ten classes; only order matters."""

    num_classes, data_id = 10, "numbered"

    def load(self, split: str) -> Any:
        index = self.subset(torch.arange(NUM_IMAGES) % 10, split)
        return [{"image": torch.zeros(1), "label": i % 10, "index": i} for i in index.tolist()]


def write(folder: Path, views: int = 1, **changes: Any) -> Path:
    """The six tokens of image i in view v are 1000 i + 10 v + (0, ..., 5); the label is i modulo 10."""
    names = ["plain", "mirrored", "crop", "crop"][:views]
    values: dict[str, Any] = {
        "tokenizer_digest": "abc-def",
        "model": "vqgan",
        "precision": "32-true",
        "codebook_size": NUM_CODES,
        "grid_size": [2, 3],
        "data_id": "numbered",
        "data": {"data_seed": 0},
        "num_classes": 10,
        "num_images": dict.fromkeys(SPLITS, NUM_IMAGES),
        "views": {"train": names, "val": ["plain"]},
        "labels_sha256": dict.fromkeys(SPLITS, ""),
    }
    meta = TokenMeta(**(values | changes))
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        n, v, t = np.ogrid[:NUM_IMAGES, : len(meta.views[split]), :6]
        values_path(folder, split).write_bytes((1000 * n + 10 * v + t).astype(DTYPE).tobytes())
        np.save(labels_path(folder, split), np.arange(NUM_IMAGES) % 10)
    (folder / "meta.json").write_text(json.dumps(asdict(meta)))
    return folder


def loaded(folder: Path, seed: int = 0, **options: Any) -> TokensDataModule:
    config = TokensConfig(path=str(folder), **{"batch_size": 8, "val_batch_size": 8, **options})
    data = TokensDataModule(config, seed=seed)
    data.setup()
    return data


def attach_trainer(data: BatchDataModule, world_size: int, rank: int) -> None:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, strategy=strategy)  # type: ignore[assignment]


def epoch(data: TokensDataModule, number: int) -> list[Tensor]:
    """The first token of each image of each batch, (B,)."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [batch["tokens"][:, 0] for batch in loader]


# ---- what is served


def test_batches(tmp_path: Path) -> None:
    data = loaded(write(tmp_path))
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"tokens", "label"}
    assert batch["tokens"].shape == (8, 6) and batch["tokens"].dtype == batch["label"].dtype == torch.int64
    image = batch["tokens"][:, 0] // 1000
    assert torch.equal(batch["tokens"], 1000 * image[:, None] + torch.arange(6)), "raster order"
    assert torch.equal(batch["label"], image % 10)
    validation = torch.cat([b["tokens"][:, 0] for b in data.val_dataloader()])
    assert torch.equal(validation, 1000 * torch.arange(NUM_IMAGES)), "all, in order"
    assert (data.num_classes, data.data_id, data.codebook_size) == (10, "numbered", NUM_CODES)
    assert (data.grid_size, data.tokenizer_digest) == ((2, 3), "abc-def")
    assert torch.equal(data.train_set[3]["tokens"], 3000 + torch.arange(6))  # type: ignore[index]


@pytest.mark.parametrize(("seed", "size"), [(0, None), (5, 30)])
def test_the_images_and_their_order_are_those_of_the_image_datamodule(tmp_path: Path, seed: int, size: int) -> None:
    """The subset too: the folder holds all images in the order in which `stratified_subset` deals them."""
    images = Numbered(DataConfig(batch_size=8), "", seed=seed)
    images.setup()
    stored = [item["index"] for item in images.train_set]  # type: ignore[union-attr]
    images = Numbered(DataConfig(batch_size=8, train_size=size), "", seed=seed)
    images.setup()
    tokens = loaded(write(tmp_path), seed=seed, train_size=size)
    loader = images.train_dataloader()
    loader.collate_fn = lambda items: items  # type: ignore[assignment]
    for number in range(2):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        expected = [[item["index"] for item in batch] for batch in loader]  # type: ignore[attr-defined]
        assert [[stored[i // 1000] for i in batch.tolist()] for batch in epoch(tokens, number)] == expected


def test_another_seed_picks_another_balanced_subset(tmp_path: Path) -> None:
    folder = write(tmp_path)
    same, other = (loaded(folder, train_size=20, val_size=10, data_seed=seed) for seed in (0, 1))
    first = {i for batch in epoch(same, 0) for i in batch.tolist()}
    assert first <= set(range(0, 20_000, 1000)) and len(same.val_set) == 10  # type: ignore[arg-type]
    assert sorted(other.train_set.labels.tolist()) == sorted([*range(10)] * 2)  # type: ignore[union-attr]
    assert sorted(other.train_set.index) != list(range(20))  # type: ignore[union-attr]
    assert len(loaded(folder, train_size=51).train_set.index) == 50, "all that there are"  # type: ignore[union-attr]


def test_each_epoch_draws_a_view_of_every_image(tmp_path: Path) -> None:
    folder = write(tmp_path, views=3)
    data = loaded(folder, batch_size=10)
    epochs = [dict(divmod(i, 1000) for i in torch.cat(epoch(data, number)).tolist()) for number in range(30)]
    assert all(sorted(images) == list(range(NUM_IMAGES)) for images in epochs), "every image once an epoch"
    counts = np.bincount([view // 10 for images in epochs for view in images.values()], minlength=3)
    assert (abs(counts - 500) < 75).all(), counts
    assert all({images[i] for images in epochs} == {0, 10, 20} for i in range(NUM_IMAGES))
    torch.manual_seed(99)
    again = loaded(folder, batch_size=10)
    assert torch.equal(torch.cat(epoch(again, 7)), torch.cat(epoch(data, 7))), "by seed and epoch alone"
    assert not torch.equal(torch.cat(epoch(loaded(folder, 1, batch_size=10), 7)), torch.cat(epoch(data, 7)))


@pytest.mark.parametrize("views", [1, 2])
def test_a_global_batch_is_the_same_on_one_device_and_on_two(tmp_path: Path, views: int) -> None:
    folder = write(tmp_path, views)
    whole = [sorted(batch.tolist()) for batch in epoch(loaded(folder), 3)]
    parts = []
    for rank in range(2):
        data = loaded(folder)
        attach_trainer(data, 2, rank)
        parts.append(epoch(data, 3))
    assert [sorted(torch.cat(pair).tolist()) for pair in zip(*parts, strict=True)] == whole


def test_worker_processes_open_the_file_themselves(tmp_path: Path) -> None:
    data, parallel = (loaded(write(tmp_path, views=2)) for _ in range(2))
    parallel.num_workers = 2
    assert torch.equal(torch.cat(epoch(parallel, 1)), torch.cat(epoch(data, 1)))
    train_set = data.train_set
    assert "values" in vars(train_set) and b"memmap" not in pickle.dumps(train_set)


class Recorder(lightning.LightningModule):
    """Notes the tokens of every training batch, and trains an embedding of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_CODES, 1)
        self.seen: list[Tensor] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append(batch["tokens"][:, 0])
        return self.embedding(batch["tokens"]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_stopped_in_mid_epoch_sees_the_batches_it_would_have_seen(tmp_path: Path) -> None:
    folder = write(tmp_path / "tokens", views=2)

    def run(steps: int, checkpoint: str | None = None) -> list[Tensor]:
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            callbacks=[ModelCheckpoint(tmp_path, save_top_k=0, save_last=True, every_n_train_steps=8)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Recorder()
        trainer.fit(module, datamodule=loaded(folder, seed=3), ckpt_path=checkpoint, weights_only=True)
        return module.seen

    begun = run(8)  # 6 steps an epoch
    rest = run(15, str(tmp_path / "last.ckpt"))
    whole = run(15)
    assert torch.equal(torch.stack(begun + rest), torch.stack(whole))


# ---- what does not fit


def change_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_id(folder: Path, image: int, value: int) -> None:
    with open(values_path(folder, "train"), "r+b") as file:
        file.seek(image * 6 * 4 + 8)
        file.write(np.array(value, DTYPE).tobytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "meta.json").unlink(), r"no meta\.json, there are no tokens: let `python -m experiments.tok"),
        (lambda f: (f / "meta.json").rename(f / "state.json"), r"no meta\.json, its tokens are half written: let"),
        (lambda f: (f / "meta.json").write_text("{"), r"meta\.json: not readable"),
        (lambda f: change_meta(f, format=2), r"meta\.json: format version 2, this version reads 1"),
        (lambda f: change_meta(f, more=2), r"meta\.json: entries missing or unknown: more"),
        (lambda f: values_path(f, "val").unlink(), r"val\.bin: missing"),
        (lambda f: values_path(f, "val").write_bytes(b"1" * 1196), r"val\.bin: 1,196 bytes.*1,200: it is cut off"),
        (lambda f: values_path(f, "val").write_bytes(b"1" * 1204), r"val\.bin: 1,204 bytes.*1,200: it is too long"),
        (lambda f: change_id(f, 7, NUM_CODES), r"train\.bin: id 100000 in image 7 is outside the codebook of 100000"),
        (lambda f: change_id(f, 49, -1), r"train\.bin: id -1 in image 49 is outside"),
        (lambda f: labels_path(f, "train").unlink(), r"train_labels\.npy: not readable"),
        (lambda f: labels_path(f, "train").write_bytes(b"x"), r"train_labels\.npy: not readable"),
        (lambda f: np.save(labels_path(f, "val"), np.arange(49)), r"val_labels\.npy: int64 \(49,\), not int64 \(50,\)"),
        (lambda f: np.save(labels_path(f, "val"), np.arange(50)), r"val_labels\.npy: labels from 0 to 49.*10 classes"),
        (lambda f: np.save(labels_path(f, "val"), np.arange(50) - 45), r"val_labels\.npy: labels from -45 to 4"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_error(tmp_path: Path, damage: Any, message: str) -> None:
    damage(write(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_every_block_of_a_long_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.token_files.CHECKED", 6 * 8)  # blocks of eight images
    folder = write(tmp_path)
    meta = loaded(folder).meta
    for image in (0, 7, 8, 31, 48, 49):
        write(tmp_path)
        change_id(folder, image, NUM_CODES)
        with pytest.raises(ValueError, match=f"in image {image} is"):
            check_values(folder, meta, "train")


def test_files_are_checked_once_and_not_for_every_stage(tmp_path: Path) -> None:
    data = loaded(write(tmp_path))
    change_id(tmp_path, 0, NUM_CODES)
    data.setup("fit")


def test_mistakes_in_the_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path is empty"):
        TokensDataModule(TokensConfig()).setup()
    with pytest.raises(ValueError, match=r"data\.batch_size=0"):
        TokensDataModule(TokensConfig(path=str(tmp_path), batch_size=0))
    with pytest.raises(ValueError, match=r"7 training images.*batch_size=8"):
        loaded(write(tmp_path, views=2), train_size=7).train_dataloader()


def test_no_tokenizer_can_be_trained_on_tokens() -> None:
    assert TokensConfig().name not in DATAMODULES
