"""Held-out training images: class-balanced, the same in every run, never augmented, never trained on."""

from collections.abc import Iterable
from pathlib import Path

import torch
from test_tokens import NUM_IMAGES, loaded, write
from torch.utils.data import Subset

from datamodules import HeldOutDataModule, ShapesConfig, ShapesDataModule
from datamodules.base import Batch
from datamodules.tokens import TokenDataset


def firsts(loader: Iterable[Batch]) -> list[int]:
    """The first token of every image."""
    return [int(tokens[0]) for batch in loader for tokens in batch["tokens"]]


def token_module(folder: Path, seed: int = 0, size: int = 20) -> HeldOutDataModule:
    data = loaded(folder, seed)
    whole = data.train_set
    assert isinstance(whole, TokenDataset)
    return HeldOutDataModule(data, Subset(whole, range(0, len(whole), 2)), whole.labels, size)


def test_held_out_tokens_are_plain_and_not_trained_on(tmp_path: Path) -> None:
    """Token 0 of image i in view v is 1000 i + 10 v."""
    module = token_module(write(tmp_path / "a", views=2))
    heldout, val = module.val_dataloader()
    chosen = firsts(heldout)
    assert all(token % 1000 == 0 for token in chosen), "the plain view"
    numbers = [token // 1000 for token in chosen]
    assert torch.tensor(numbers).remainder(10).bincount().tolist() == [2] * 10, "two of each class"
    labels = torch.cat([batch["label"] for batch in heldout])
    assert labels.tolist() == [number % 10 for number in numbers]

    loader, seen = module.train_dataloader(), set()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        seen |= set(firsts(loader))
    kept = set(range(NUM_IMAGES)) - set(numbers)
    assert seen == {1000 * image + 10 * view for image in kept for view in (0, 1)}
    assert len(firsts(val)) == NUM_IMAGES


def test_the_run_seed_does_not_change_which_images_are_held_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", views=2)
    first, second = (firsts(token_module(folder, seed).val_dataloader()[0]) for seed in (0, 1))
    assert first == second
    more = firsts(token_module(folder, size=30).val_dataloader()[0])
    assert more[:20] == first


def test_held_out_images_are_not_flipped() -> None:
    plain, data = (ShapesDataModule(ShapesConfig(image_size=8, train_size=30, flip=flip)) for flip in (False, True))
    for module in (plain, data):
        module.config.batch_size, module.config.val_size = 4, 10
        module.setup()
    held_out = HeldOutDataModule(data, plain.train_set, plain.train_set.labels, 10)  # type: ignore
    whole, (heldout, val) = plain.train_set, held_out.val_dataloader()
    found = torch.cat([batch["image"] for batch in heldout])
    indices = held_out.heldout.indices
    assert torch.equal(found, torch.stack([whole[i]["image"] for i in indices]))  # type: ignore
    trained = torch.cat([batch["image"] for batch in held_out.train_dataloader()])
    assert len(trained) == 20 and sum(len(batch["label"]) for batch in val) == 10
    either_way = torch.cat([found, found.flip(-1)]).flatten(1)
    assert not any((image == either_way).all(1).any() for image in trained.flatten(1))
