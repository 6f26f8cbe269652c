"""Latents that are kept: what is served, in which numbers, and what does not fit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import LatentsDataModule, TokensConfig, TokensDataModule
from datamodules.token_files import SPLITS, LatentMeta, labels_path, values_path

NUM_IMAGES = 20


def write(folder: Path, stored: str = "float32", changes: dict[str, Any] | None = None) -> Path:
    """Latents (2, 2, 3) of image i in view v are i + v / 4 + (0, ..., 11) / 64; the label is i modulo 10."""
    meta = LatentMeta(
        tokenizer_digest="abc-def",
        model="vqgan",
        precision="32-true",
        grid_size=[2, 3],
        data_id="numbered",
        data={"data_seed": 0},
        num_classes=10,
        num_images=dict.fromkeys(SPLITS, NUM_IMAGES),
        views={"train": ["plain", "mirrored"], "val": ["plain"]},
        labels_sha256=dict.fromkeys(SPLITS, ""),
        code_dim=2,
        stored=stored,
    )
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        n, v, t = np.ogrid[:NUM_IMAGES, : len(meta.views[split]), :12]
        values_path(folder, split).write_bytes((n + v / 4 + t / 64).astype(meta.dtype).tobytes())
        np.save(labels_path(folder, split), np.arange(NUM_IMAGES) % 10)
    (folder / "meta.json").write_text(json.dumps(asdict(meta) | (changes or {})))
    return folder


def loaded(folder: Path, cls: type[TokensDataModule] = LatentsDataModule) -> TokensDataModule:
    data = cls(TokensConfig(path=str(folder), batch_size=8, val_batch_size=8))
    data.setup()
    return data


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_batches(tmp_path: Path, stored: str) -> None:
    data = loaded(write(tmp_path, stored))
    assert values_path(tmp_path, "val").stat().st_size == NUM_IMAGES * 12 * (4 if stored == "float32" else 2)
    batch = next(iter(data.train_dataloader()))
    latents, expected = batch["latents"], (torch.arange(12) / 64).view(2, 2, 3)
    assert set(batch) == {"latents", "label"}
    assert latents.shape == (8, 2, 2, 3) and latents.dtype == torch.float32
    first = latents[:, 0, 0, 0]
    torch.testing.assert_close(latents, first[:, None, None, None] + expected, rtol=2e-3, atol=0)
    assert set((4 * first.frac()).tolist()) == {0.0, 1.0}, "both views"
    assert torch.equal(batch["label"], first.long() % 10)
    validation = torch.cat([b["latents"][:, 0, 0, 0] for b in data.val_dataloader()])
    assert torch.equal(validation, torch.arange(NUM_IMAGES).float()), "all, in order"


def damaged(folder: Path) -> None:
    with open(values_path(folder, "train"), "r+b") as file:
        file.seek((7 * 2 + 1) * 12 * 4)
        file.write(np.array(np.inf, "<f4").tobytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged, r"train\.bin: a latent of image 7 is not finite; delete the folder"),
        (lambda f: (f / "meta.json").unlink(), r"no meta\.json, there are no latents"),
        (lambda f: write(f, changes={"stored": "float64"}), r"meta\.json: damaged, an entry is not what it should be"),
        (
            lambda f: write(f, changes={"code_dim": 3}),
            r"train\.bin: 1,920 bytes, but meta\.json asks for 2,880: it is cut",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_one_error(tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_latents_are_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="entries missing or unknown: code_dim, codebook_size, stored"):
        loaded(write(tmp_path), TokensDataModule)
