"""The classifier of rejection sampling (paper A, Table 6) for a data set: loaded or its head trained, then measured.

A head and its accuracy are kept in OUTPUT_DIR/classifiers: made once, for all runs on the same images.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import ImageDataModule
from experiments.config.experiment import Experiment
from experiments.runtime.errors import is_main
from experiments.runtime.files import locked, replacing
from experiments.runtime.ranks import device_of
from lightning_modules.archives import check_sums, readable
from lightning_modules.metrics.classifier import DECAY, LabelClassifier, TimmClassifier, fit_head
from lightning_modules.networks.encoders import PretrainedEncoder, load_encoder

PAPER = "timm:resnet101.tv_in1k"  # A says ResNet-101 and no more


def classifier_for(name: str, experiment: Experiment, images: ImageDataModule) -> LabelClassifier:
    """The classifier of the classes of `images` (not augmented), whose accuracy on the validation images is in its id.

    `name`: "timm:NAME", of ImageNet's classes only; "efficientnet-lite0": on ImageNet as it is, elsewhere with a linear
    head that is trained on the training images, with their features (N, 1280) in memory; "auto": the paper's on
    ImageNet, else efficientnet-lite0. Raises ValueError: the name is unknown, or the classifier cannot know these
    classes; FileNotFoundError: its weights are not on disk and cannot be downloaded.
    """
    if images.num_classes < 2:
        raise ValueError(f"{images.data_id}: images without classes cannot be accepted by a classifier")
    device, encoder = device_of(experiment.runtime), encoder_for(name, images)
    needs_head = not is_imagenet(images)
    network, val = f"{encoder.name}@{encoder.input_size}px", f"val{images.config.val_size or ''}"
    key = f"{network}_{images.images_key('train')}_{val}" + (f"_decay{DECAY:g}" if needs_head else "")
    key = key.replace("/", "_").replace(":", "-")
    path = Path(experiment.runtime.output_dir) / "classifiers" / f"{key}.pt"
    with locked(path.with_suffix(".lock"), "is making this classifier"):
        if not path.is_file():
            make(encoder.to(device), images, needs_head, path)
        with readable(path, ": delete it"):
            check_sums(path)
            saved = torch.load(path, map_location="cpu", weights_only=True)
    head = None
    if needs_head:
        head = nn.Linear(saved["weight"].shape[1], saved["weight"].shape[0])
        head.load_state_dict({"weight": saved["weight"], "bias": saved["bias"]})
    classifier = LabelClassifier(encoder, head)
    classifier.set_accuracy(saved["accuracy"])
    if is_main():
        share = f"{saved['accuracy']:.1%} of {saved['num_images']:,} validation images right"
        print(f"classifier {classifier.id}: {share}", flush=True)
    return classifier.to(device)


def is_imagenet(images: ImageDataModule) -> bool:
    """By the names of the class folders; sorted they are in the order of public classifiers' labels."""
    names = getattr(images, "classes", [])
    return len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)


def encoder_for(name: str, images: ImageDataModule) -> PretrainedEncoder:
    if name == "auto":
        name = PAPER if is_imagenet(images) else "efficientnet-lite0"  # not the network that judges what it selects
    if name.startswith("timm:"):
        if not is_imagenet(images):
            raise ValueError(
                f"classifier '{name}' knows ImageNet's 1,000 classes, {images.data_id} has others: "
                "choose efficientnet-lite0, whose head is trained on them"
            )
        return TimmClassifier(name.removeprefix("timm:"))
    size = 64 if images.config.image_size <= 64 else 224  # as for the fidelity metrics' extractors
    return load_encoder(name, size)


def make(encoder: PretrainedEncoder, images: ImageDataModule, needs_head: bool, path: Path) -> None:
    """Trains the head if there is to be one, measures, and writes the file atomically."""
    content: dict[str, Any] = {}
    head = None
    if needs_head:
        print(f"a classifier of {images.data_id}, {encoder.name} with a linear head, is trained", flush=True)
        features, labels = pooled(encoder, images.ordered_train_dataloader())
        head = fit_head(features, labels, images.num_classes)
        content |= {name: value.cpu() for name, value in head.state_dict().items()}
    classifier = LabelClassifier(encoder, head).to(encoder.mean.device)
    right = total = 0
    for batch in images.ordered_val_dataloader():
        logits = classifier.logits(batch["image"].to(encoder.mean.device))
        right += int((logits.argmax(1).cpu() == batch["label"]).sum())
        total += len(logits)
    content |= {"accuracy": right / total, "num_images": total}
    with replacing(path) as file:
        torch.save(content, file)


@torch.no_grad()
def pooled(encoder: PretrainedEncoder, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of all images, on the CPU."""
    features, labels = [], []
    for batch in batches:
        features.append(encoder.pool_and_logits(batch["image"].to(encoder.mean.device))[0].cpu())
        labels.append(batch["label"])
    return torch.cat(features), torch.cat(labels)
