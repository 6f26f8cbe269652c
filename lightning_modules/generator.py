"""A prior in use: images by class, through the tokenizer whose tokens or latents it models.

Shapes: B images, T tokens of an image, H x W pixels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lightning_modules.archives import weights_hash
from lightning_modules.base import Module
from lightning_modules.checks import require
from lightning_modules.frozen import freeze
from lightning_modules.pretrained import BELOW, find, load_checkpoint
from lightning_modules.tokenizer import Tokenizer


class Generator(Module):
    """What draws tokens, and the tokenizer that turns them into images; `Prior` trains it.

    The tokenizer is set by `use_tokenizer` and is not part of the module's weights.
    """

    grid_size: tuple[int, int]  # of the tokens: rows, columns
    num_classes: int  # of the labels
    num_conditions: int  # classes that images can be asked of; 0 = unconditional
    image_size: int
    tokenizer: Tokenizer | None = None
    tokenizer_digest: str = ""  # of the tokenizer whose tokens or latents it models; "" until it is set

    # ---- as files

    @classmethod
    def from_pretrained(cls, path: str | Path, tokenizer: str | Path | None = None) -> Self:
        """As of every model; `tokenizer`: the one that it models, by default that exported with it, or of its run."""
        module = super().from_pretrained(path)
        below = find_tokenizer(module) if tokenizer is None else find(tokenizer)
        if below is None:
            raise ValueError(f"{path}: its tokenizer is not in the folders beside it: name it, tokenizer=...")
        is_other = weights_hash(load_checkpoint(below)["state_dict"]) != module.tokenizer_digest.rpartition("-")[2]
        require(not (is_other and module.tokenizer_digest), f"{below}: not the tokenizer that {path} was trained on")
        module.use_tokenizer(Tokenizer.from_pretrained(below), module.tokenizer_digest)
        return module

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes an exported folder, with the tokenizer's in it. Raises ValueError where there is none."""
        require(self.tokenizer is not None, "use_tokenizer comes first: a prior without its tokenizer makes no image")
        super().save_pretrained(folder)
        self.tokenizer.save_pretrained(Path(folder).expanduser() / BELOW)  # type: ignore[union-attr]

    def use_tokenizer(self, tokenizer: Tokenizer, digest: str) -> None:
        """Sets the tokenizer, for generated images. ValueError: `digest` is not that of the training."""
        self.expect_tokenizer(digest)
        object.__setattr__(self, "tokenizer", freeze(tokenizer))  # not a submodule

    def expect_tokenizer(self, digest: str) -> None:
        if self.tokenizer_digest not in ("", digest):
            raise ValueError(
                f"the model was trained on {self.config.inputs} of tokenizer {self.tokenizer_digest}, this one is "
                f"{digest}: name the right checkpoint, or train the model again in a new run"
            )
        self.tokenizer_digest = digest

    # ---- images

    @abstractmethod
    def draw(self, ids: list[int], labels: Tensor | None, sampling: Any, seed: int) -> Tensor:
        """Tokens (B, T) of the images `ids` of `seed`, each a function of its number, whatever else is in the batch."""

    def sample(
        self, ids: list[int], seed: int, labels: Tensor | None = None, sampling: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images `ids` of `seed`: (B, 3, H, W) in [-1, 1], tokens (B, T), labels (B,), by default classes in turn."""
        if labels is None:
            labels = torch.tensor(ids) % max(1, self.num_classes)
        labels = labels.to(self.device)
        given = labels if self.config.class_conditional else None
        tokens = self.draw(ids, given, sampling or self.config.sampling, seed)
        return self.decode(tokens), tokens, labels

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> images (B, 3, H, W) in [-1, 1]."""
        assert self.tokenizer is not None, "use_tokenizer comes first"
        self.tokenizer.to(self.device)
        images = self.tokenizer.decode_indices(tokens.to(self.device).view(len(tokens), *self.grid_size))
        return images.clamp(-1, 1).float()

    @torch.no_grad()
    def generate(
        self, labels: Sequence[int | str] | Tensor | int, seed: int = 0, batch_size: int = 64, **sampling: Any
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of these classes; image i of a seed is the same in every batch.

        Args:
            labels: a class each, (B,), by number or of `class_names`; a number of images of a model without classes.
            seed: other images.
            batch_size: changes only speed and memory.
            sampling: fields of `config.sampling`, such as temperature=0.9; by default the model's own.

        Raises:
            ValueError: a class that the model does not have, or an option out of range.
        """
        config = replace(self.config.sampling, **sampling)
        config.check()
        self.config.check_sampling(config)
        if not isinstance(labels, int | Tensor):
            names = {name: number for number, name in enumerate(self.class_names)}
            if unknown := [label for label in labels if isinstance(label, str) and label not in names]:
                raise ValueError(f"labels: '{unknown[0]}' is none of the classes {', '.join(names)}")
            labels = [names[label] if isinstance(label, str) else label for label in labels]
        asked = torch.zeros(labels, dtype=torch.long) if isinstance(labels, int) else torch.as_tensor(labels)
        classes = self.num_conditions
        require(
            isinstance(labels, int) != bool(classes),
            f"labels={labels}: a model of {classes} classes takes a class an image"
            if classes
            else "a model without classes takes the number of images, such as generate(16)",
        )
        require(
            not classes or bool(((asked >= 0) & (asked < classes)).all()), f"labels must be classes in [0, {classes})"
        )
        numbers = list(range(len(asked)))
        batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
        images = [self.sample(ids, seed, asked[ids], config)[0] for ids in batches]
        return torch.cat(images) if images else torch.zeros(0, 3, self.image_size, self.image_size)


def find_tokenizer(module: Generator) -> Path | None:
    """The exported tokenizer within the folder that `module` was read from, or the one of a run beside its own."""
    assert module.source is not None, "a restored module"
    if (packed := module.source / BELOW).is_dir():
        return packed
    upstream, parents = module.origin["experiment"].get("upstream", {}), module.source.absolute().parents
    name = Path(upstream.get("recipe", "*")).stem
    runs = parents[2] if module.source.is_file() and len(parents) > 2 else module.source
    for file in sorted(runs.glob(f"{name}_*/checkpoints/final.ckpt")):
        if weights_hash(load_checkpoint(file)["state_dict"]) == module.tokenizer_digest.rpartition("-")[2]:
            return file
    return None
