"""Shared by the tests of the token classifier: a tiny one, on the tokens of a tiny tokenizer, on rendered shapes."""

from typing import Any

from conftest import TinyExperiment

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge

SMALL: dict[str, Any] = {"pretrained": "", "dims": [2, 2, 16], "patch_size": 2}
PLAIN: dict[str, Any] = SMALL | {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "drop_path": 0.0, "label_smoothing": 0.0}


def tiny_classifier(tiny: TinyExperiment, *overrides: str, reads: str = "codes") -> Experiment:
    """Seven steps of ten images: of 8 x 8 codes, of their reconstructions, or of the images without a tokenizer."""
    below = tiny("vqgan")
    images = {"name": "shapes", "image_size": 16, "train_size": 40, "val_size": 12}
    values: dict[str, Any] = {
        "data": images | {"flip": True, "batch_size": 10},
        "model": SMALL | {"name": "token_classifier", "reads": reads, "optimizer": {"warmup_steps": 0}},
        "trainer": {"max_steps": 7, "checkpoint_every": 5, "log_every": 1},
        "runtime": vars(below.runtime),
    }
    if reads != "images":
        values["upstream"] = {"recipe": "vqgan_cifar10.yaml", **below.identity()}
    return parse(merge(values, from_dotlist(overrides)), "classifier.yaml")
