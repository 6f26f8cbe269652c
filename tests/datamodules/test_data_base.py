"""Subsets, order and batches, on a small set of numbered images."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import Tensor

from datamodules import DATAMODULES, DataConfig, ImageDataModule, stratified_subset
from datamodules.arrays import ArrayDataset, to_unit_range
from lightning_modules import distributed

NUM_IMAGES = 50


class Numbered(ImageDataModule):
    """Image i is filled with the value i and has label i."""

    num_classes = NUM_IMAGES
    data_id = "numbered"

    def load(self, split: str) -> ArrayDataset:
        values = torch.arange(NUM_IMAGES)
        images = values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
        index = self.subset(values, split)
        return ArrayDataset(images[index], values[index], flip=self.config.flip and split == "train")


def numbered(seed: int = 0, **options: int | bool | None) -> Numbered:
    data = Numbered(DataConfig(**{"batch_size": 8, "val_batch_size": 8, **options}), "", seed=seed)  # type: ignore[arg-type]
    data.setup()
    return data


def labels_of_epoch(data: ImageDataModule, epoch: int) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return torch.cat([batch["label"] for batch in loader]).tolist()


def attach_trainer(data: ImageDataModule, world_size: int, rank: int = 0) -> None:
    """What the data module asks of a trainer on one of several devices."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, strategy=strategy)  # type: ignore[assignment]


@pytest.mark.parametrize("size", [1, 9, 10, 37, 60])
def test_subset_has_equal_classes(size: int):
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    counts = labels[stratified_subset(labels, size)].bincount(minlength=10)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_subset_takes_all_of_a_class_that_runs_out():
    labels = torch.tensor([0] * 90 + [1] * 5 + [2] * 5)
    counts = labels[stratified_subset(labels, 40)].bincount()
    assert counts.tolist() == [30, 5, 5]


def test_larger_subset_contains_the_smaller():
    labels = torch.randint(7, (300,), generator=torch.Generator().manual_seed(2))
    subsets = [set(stratified_subset(labels, size, seed=3).tolist()) for size in (5, 80, 81, 300)]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3] == set(range(300))


def test_subset_follows_its_seed():
    labels = torch.arange(10).repeat(20)
    first, again, other = (stratified_subset(labels, 50, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)


@pytest.mark.parametrize("size", [0, -1, 21])
def test_subset_of_impossible_size_is_an_error(size: int):
    with pytest.raises(ValueError, match=f"{size} images was asked of the 20"):
        stratified_subset(torch.zeros(20, dtype=torch.int64), size)


def test_pixels_are_scaled_to_the_unit_range():
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    batch = ArrayDataset(images, torch.zeros(1, dtype=torch.int64)).__getitems__([0])
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() == -1
    assert batch["image"].max() == 1
    assert torch.equal(batch["image"], to_unit_range(images))  # what images from files get
    assert torch.equal(((batch["image"] + 1) * 127.5).round().to(torch.uint8), images)


def test_flip_mirrors_half_of_the_images_and_leaves_the_stored_ones_alone():
    images = torch.arange(4, dtype=torch.uint8).expand(400, 3, 2, 4).contiguous()
    before = images.clone()
    dataset = ArrayDataset(images, torch.zeros(400, dtype=torch.int64), flip=True)
    torch.manual_seed(0)
    out = dataset.__getitems__(list(range(400)))["image"]
    torch.manual_seed(0)
    assert torch.equal(out, dataset.__getitems__(list(range(400)))["image"])  # torch's generator governs it
    plain = to_unit_range(before)
    flipped = (out == plain.flip(-1)).flatten(1).all(1)
    assert ((out == plain).flatten(1).all(1) ^ flipped).all()
    assert 150 < flipped.sum() < 250
    assert torch.equal(images, before)


def test_only_training_images_are_flipped():
    data = numbered(flip=True)
    assert data.train_set.flip  # type: ignore[union-attr]
    assert not data.val_set.flip  # type: ignore[union-attr]


def test_batches_are_dicts_of_images_and_labels():
    batch = next(iter(numbered().train_dataloader()))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (8, 3, 4, 4)
    assert batch["label"].dtype == torch.int64
    assert torch.equal(batch["image"][:, 0, 0, 0], to_unit_range(batch["label"]))


def test_training_drops_the_incomplete_batch_and_validation_keeps_it():
    data = numbered()
    assert len(set(labels_of_epoch(data, 0))) == 48
    validation = [batch["label"] for batch in data.val_dataloader()]
    assert sorted(torch.cat(validation).tolist()) == list(range(50))
    assert len(validation[-1]) == 2
    assert all(torch.equal(a, b["label"]) for a, b in zip(validation, data.val_dataloader(), strict=True))


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = [labels_of_epoch(numbered(seed=5), epoch) for epoch in range(3)]
    torch.manual_seed(2)
    assert labels_of_epoch(numbered(seed=5), 2) == first[2]
    assert first[0] != first[1] != first[2]
    assert labels_of_epoch(numbered(seed=6), 0) not in first  # torch alone would seed with 5 + 1 too


def test_a_global_batch_is_the_same_on_one_device_and_on_two():
    alone = numbered()
    whole = [sorted(batch["label"].tolist()) for batch in alone.train_dataloader()]
    parts = []
    for rank in range(2):
        data = numbered()
        attach_trainer(data, 2, rank)
        parts.append([batch["label"].tolist() for batch in data.train_dataloader()])
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == whole


def test_batch_that_does_not_divide_is_an_error():
    data = numbered()
    attach_trainer(data, 3)
    with pytest.raises(ValueError, match=r"data\.batch_size=8.*3 devices"):
        data.train_dataloader()


def test_validation_that_does_not_divide_is_shared_out_without_repeating_an_image():
    parts = []
    for rank in range(3):
        data = numbered(val_size=49)
        attach_trainer(data, 3, rank)
        parts.append(torch.cat([batch["label"] for batch in data.val_dataloader()]).tolist())
        assert len(torch.cat([batch["label"] for batch in data.ordered_val_dataloader()])) == 49
    assert [len(part) for part in parts] == [17, 16, 16]
    whole = torch.cat([batch["label"] for batch in numbered(val_size=49).val_dataloader()]).tolist()
    assert [whole[rank::3] for rank in range(3)] == parts


def test_fewer_validation_images_than_devices_are_an_error():
    data = numbered(val_size=2)
    attach_trainer(data, 4)
    with pytest.raises(ValueError, match=r"2 validation images for 4 devices: raise data\.val_size"):
        data.val_dataloader()


def test_a_rank_takes_its_rows_of_the_flips_of_the_global_batch(monkeypatch: pytest.MonkeyPatch):
    data = numbered(flip=True)
    images = torch.arange(4, dtype=torch.uint8).expand(16, 3, 2, 4).contiguous()
    data.train_set = ArrayDataset(images, torch.arange(16), flip=True)
    torch.manual_seed(0)
    whole = data.train_set.__getitems__(list(range(16)))["image"]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        assert torch.equal(data.train_set.__getitems__(list(range(rank, 16, 2)))["image"], whole[rank::2])


def test_too_few_images_for_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"7 training images.*batch_size=8"):
        numbered(train_size=7).train_dataloader()


@pytest.mark.parametrize("key", ["image_size", "batch_size", "val_batch_size"])
def test_options_below_one_are_errors(key: str):
    with pytest.raises(ValueError, match=rf"data\.{key}=0"):
        numbered(**{key: 0})


def test_worker_processes_serve_the_same_batches():
    data, parallel = numbered(), numbered()
    parallel.num_workers = 2
    assert labels_of_epoch(data, 1) == labels_of_epoch(parallel, 1)


def test_every_dataset_has_its_name_in_its_config():
    for name, (_, config) in DATAMODULES.items():
        assert config().name == name


class Recorder(lightning.LightningModule):
    """Notes the labels of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        self.seen.append(batch["label"].tolist())
        return self.layer(batch["image"].mean()[None]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_resumed_run_sees_the_batches_it_would_have_seen(tmp_path):
    def run(epochs: int, checkpoint: str | None = None) -> tuple[lightning.Trainer, list[list[int]]]:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Recorder()
        trainer.fit(module, datamodule=numbered(seed=3), ckpt_path=checkpoint)
        return trainer, module.seen

    _, whole = run(4)
    trainer, begun = run(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = run(4, str(tmp_path / "half.ckpt"))
    assert begun + rest == whole
    assert len(whole) == 4 * 6
    assert whole[:6] != whole[6:12]


def test_a_negative_number_of_loader_processes_is_named() -> None:
    with pytest.raises(ValueError, match=r"runtime\.num_workers=-2: must be -1"):
        Numbered(DataConfig(), "", num_workers=-2)
