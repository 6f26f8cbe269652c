"""A tokenizer as files that other programs run: its encoder, images to token ids, and its decoder, token ids to images.

Shapes: B images, any number; S x S pixels, h x w tokens.
"""

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.arrays import to_unit_range
from datamodules.shapes import render
from lightning_modules.checks import require
from lightning_modules.model_card import model_card
from lightning_modules.quantizers.projected import ProjectedCodebook
from lightning_modules.tokenizer import Tokenizer

NUM_CHECKED = 3  # images on which the files are compared with the model; another number than the traced one
FEWEST_EQUAL, FARTHEST = 0.99, 1e-2  # below this share of equal ids, or beyond this error, the files are wrong
EXTRA = "pip install 'vq-image-modeling[export]'"

Run = Callable[[np.ndarray], np.ndarray]


class Encode(nn.Module):
    """Images (B, 3, S, S) in [-1, 1] -> token ids (B, h, w) int64."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.linear, self.quantizer = tokenizer.encoder, tokenizer.pre_quant, tokenizer.quantizer

    def forward(self, images: Tensor) -> Tensor:
        return self.quantizer(self.linear(self.encoder(images))).indices


class Decode(nn.Module):
    """Token ids (B, h, w) int64 -> images (B, 3, S, S), about [-1, 1]."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.quantizer, self.linear, self.decoder = tokenizer.quantizer, tokenizer.post_quant, tokenizer.decoder
        self.to_image = tokenizer.to_image

    def forward(self, ids: Tensor) -> Tensor:
        return self.to_image(self.decoder(self.linear(self.quantizer.lookup(ids))))


def export(tokenizer: Tokenizer, out: Path, kind: str) -> dict[str, Any]:
    """Writes encoder, decoder, export.json and README.md to `out`, and returns what export.json holds.

    `kind`: a key of `KINDS`. The tokenizer, frozen and on the CPU, is changed: of a projected codebook only the
    projected codes are left. Raises ValueError: the tokenizer has no codes, a library is missing, or what was written
    gives other ids.
    """
    suffix, save, load, code, packages = KINDS[kind]
    tokenizer.config.check_tokens()
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    require(not missing, f"--to {kind} takes {', '.join(missing)}: {EXTRA}")
    content = tokenizer.content(tokenizer.weights())  # before the codebook is folded
    if isinstance(tokenizer.quantizer, ProjectedCodebook):
        tokenizer.quantizer.fold()
    images = to_unit_range(render(np.arange(NUM_CHECKED), "val", tokenizer.image_size))
    with torch.no_grad():
        ids = tokenizer.encode(images).indices
        decoded = tokenizer.decode_indices(ids)
    tokens, batch = ", ".join(map(str, ids.shape[1:])), torch.export.Dim("batch")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary, quiet():
        folder = Path(temporary) / "files"
        folder.mkdir()
        runs: list[Run] = []
        for name, part, example in (("encoder", Encode, images[:2]), ("decoder", Decode, ids[:2])):
            file = folder / f"{name}.{suffix}"
            try:
                save(torch.export.export(part(tokenizer), (example,), dynamic_shapes=({0: batch},)), file)
            except Exception as error:  # of the exporters, many kinds
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"--to {kind}: the {name} of this model cannot be exported ({reason})") from error
            runs.append(load(file))
        made, pixels = runs[0](images.numpy()), runs[1](ids.numpy())
        agreement = {
            "images": NUM_CHECKED,
            "equal ids": float((made == ids.numpy()).mean()),
            "largest difference of decoded images": float(np.abs(pixels - decoded.numpy()).max()),
        }
        is_right = agreement["equal ids"] >= FEWEST_EQUAL
        is_right &= agreement["largest difference of decoded images"] <= FARTHEST
        require(is_right, f"--to {kind}: the files do not give what the model gives ({agreement}); nothing is written")
        side, factor = tokenizer.image_size, tokenizer.image_size // tokenizer.encoder.grid_size
        content |= {
            f"encoder.{suffix}": f"images, float32 (B, 3, {side}, {side}) in [-1, 1] -> ids, int64 (B, {tokens})",
            f"decoder.{suffix}": f"ids -> images, about [-1, 1]; {factor} x {factor} pixels a token",
            "agreement": agreement,
        }
        (folder / "export.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        (folder / "README.md").write_text(model_card(tokenizer, content, "export.json", code))
        os.replace(folder, out)
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' advice to their own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def save_onnx(program: Any, file: Path) -> None:
    """Weights beyond ONNX's limit of 2 GB lie in FILE.data beside it."""
    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    made.save(file)


def load_onnx(file: Path) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda values: np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])


def load_program(file: Path) -> Run:
    network = torch.export.load(file).module()
    return lambda values: network(torch.from_numpy(values)).numpy()


PYTORCH = """import torch

encoder, decoder = (torch.export.load(f"{{name}}.pt2").module() for name in ("encoder", "decoder"))
ids = encoder(images)    # images (B, 3, {size}, {size}) in [-1, 1], float32
images = decoder(ids)    # about [-1, 1]"""
ONNX = """import onnxruntime

encoder, decoder = (onnxruntime.InferenceSession(f"{{name}}.onnx") for name in ("encoder", "decoder"))
(ids,) = encoder.run(None, {{"images": images}})    # images (B, 3, {size}, {size}) in [-1, 1], float32
(images,) = decoder.run(None, {{"ids": ids}})    # about [-1, 1]"""


class Kind(NamedTuple):
    suffix: str
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Run]
    code: str  # Python that uses the files
    packages: tuple[str, ...] = ()


KINDS = {
    "torch.export": Kind("pt2", torch.export.save, load_program, PYTORCH),
    "onnx": Kind("onnx", save_onnx, load_onnx, ONNX, ("onnx", "onnxscript", "onnxruntime")),
}
