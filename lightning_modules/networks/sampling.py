"""Images out of a `GPT`, token by token.

On a GPU each token is one launch of a CUDA graph. Under autocast all products are in its type.

Shapes: B batch, R rows of the network (B, or 2 B with guidance), T tokens of an image, V vocabulary.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.checks import one_of
from lightning_modules.options import neutral

from .few_rows import packed
from .gpt import GPT, KVCache

SEED_STRIDE = 1_000_003  # images of one seed have streams of their own up to here
# On a GPU, where each image's draw is a launch: so many tokens' numbers at once, but at most so many numbers.
DRAWN_STEPS, DRAWN_NUMBERS = 16, 2**17
GRAPH_STEPS = 16  # fewer tokens are not worth a CUDA graph


@dataclass(kw_only=True)
class PrecisionConfig:
    """Of the network while images are drawn. In bf16 rounding may depend on the batch, and so may an image."""

    precision: str = neutral("32")  # or "bf16": products in bfloat16, by autocast

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a name that is none."""
        one_of(self, "precision", ("32", "bf16"))

    @property
    def precision_id(self) -> str:
        """For protocol ids."""
        return "" if self.precision == "32" else f"-{self.precision}"

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """For the calls of the network."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


@dataclass
class SamplingConfig(PrecisionConfig):
    """The defaults are paper A's: temperature 1, nothing cut off, no guidance. B takes top_k = 10 % of V."""

    temperature: float = 1.0
    top_k: int = 0  # only the k most likely tokens; 0: all
    top_p: float = 1.0  # only the fewest tokens that have this much probability together; 1: all
    guidance_scale: float = 1.0  # s in logits_u + s * (logits_c - logits_u); 1: none. Needs training with `no_class`

    @property
    def id(self) -> str:
        """For protocol ids: how images were sampled."""
        parts = [f"t{self.temperature:g}"]
        parts += [f"top-k{self.top_k}"] if self.top_k else []
        parts += [f"top-p{self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"guidance{self.guidance_scale:g}"] if self.guidance_scale != 1 else []
        return "-".join(parts) + self.precision_id

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a number out of range."""
        super().check()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0; for the most likely token set top_k=1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (B, V) with -inf at the tokens that are cut off: first by `top_k`, then by `top_p` of what is left.

    At least one token stays, and exactly k by `top_k`, also where logits are equal.
    """
    cut = torch.full_like(logits, -torch.inf)
    if 0 < top_k < logits.shape[1]:
        values, index = logits.topk(top_k)  # (B, k), largest first
    elif top_p < 1:
        values, index = logits.sort(descending=True)
    else:
        return logits
    if top_p < 1:
        probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # probability of all tokens that are more likely
        beyond = before >= top_p
        beyond[:, 0] = False
        values = values.masked_fill(beyond, -torch.inf)
    return cut.scatter_(1, index, values)


def image_generators(seed: int, image_ids: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """A stream of random numbers for each image, which depends on `seed` and the image's id alone."""
    # A CPU generator takes the lower 32 bits of a seed only.
    return [torch.Generator(device).manual_seed((seed * SEED_STRIDE + image) % 2**32) for image in image_ids]


class Noise:
    """Exponential numbers for each image from a generator of its own, so that its batch does not matter.

    A token is the argmax of its probability over its number (the Gumbel-max trick) rather than a place among the
    cumulated probabilities: their V boundaries all move with the rounding of the logits, which depends on the batch
    size. The uniform numbers are float64, of 53 bits: the 24 bits of float32 end where a token is e^16.6 times less
    likely than another, and `exponential_` takes three times as long.
    """

    def __init__(self, seed: int, image_ids: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.generators = image_generators(seed, image_ids, device)
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        steps = 1 if device.type == "cpu" else max(1, min(DRAWN_STEPS, DRAWN_NUMBERS // vocab_size))
        self.drawn = torch.empty(len(image_ids), steps, vocab_size, dtype=dtype, device=device)
        self.negative = torch.empty(len(image_ids), vocab_size, dtype=dtype, device=device)
        self.used = steps

    def draw(self) -> Tensor:
        """The next numbers with their sign changed, log u of uniform u: `negative` (B, V), always the same memory."""
        if self.used == self.drawn.shape[1]:
            for image, generator in zip(self.drawn, self.generators, strict=True):
                image.uniform_(generator=generator)
            self.drawn.log_()
            self.used = 0
        self.used += 1
        return self.negative.copy_(self.drawn[:, self.used - 1])


def _check_ids(name: str, ids: Tensor, count: int) -> None:
    """Raises ValueError for an id outside [0, count)."""
    if not ids.numel():
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must be in [0, {count - 1}], got {low} to {high}")


def _labels(model: GPT, batch: int, labels: Tensor | None, guided: bool, device: torch.device) -> Tensor:
    """Labels of the rows (R,): of the images, then, for guidance, as many `no_class`."""
    no_class = torch.full((batch,), model.no_class, device=device)
    if labels is not None and labels.shape != (batch,):
        raise ValueError(f"labels must be ({batch},), one an image, got {tuple(labels.shape)}")
    if guided and (labels is None or not model.num_classes):
        raise ValueError("guidance_scale other than 1 needs a model with classes, and labels")
    if labels is not None:
        _check_ids("labels", labels, model.num_classes + 1)
    rows = no_class if labels is None else labels.to(device)
    return torch.cat([rows, no_class]) if guided else rows


@torch.inference_mode()
def generate(
    model: GPT,
    image_ids: Sequence[int],
    labels: Tensor | None = None,
    config: SamplingConfig | None = None,
    seed: int = 0,
    prompt: Tensor | None = None,
) -> Tensor:
    """Tokens (B, T) int64 of one image for each of `image_ids`, on the model's device and without dropout.

    An image is a function of the model, its label, `seed` and its id, whatever else is in the batch (but for a
    choice between two tokens that rounding decides, about one in a million). Each class in turn: `labels = image_ids
    % num_classes`. `prompt` (B, s) holds the first tokens of each image, which are kept.

    Raises:
        ValueError: a label or token is out of range, `prompt` fills the image, or guidance has no labels.
    """
    config = config or SamplingConfig()
    device = model.tokens.weight.device
    batch, guided = len(image_ids), config.guidance_scale != 1
    if prompt is None:
        prompt = torch.empty(batch, 0, dtype=torch.long)
    if prompt.ndim != 2 or len(prompt) != batch or prompt.shape[1] >= model.num_tokens:
        raise ValueError(
            f"prompt must be ({batch}, s), one row an image, with s in [0, {model.num_tokens - 1}], "
            f"got {tuple(prompt.shape)}"
        )
    _check_ids("prompt", prompt, model.vocab_size)
    row_labels = _labels(model, batch, labels, guided, device)
    given = prompt.shape[1]
    tokens = torch.empty(batch, model.num_tokens, dtype=torch.long, device=device)
    tokens[:, :given] = prompt
    noise = Noise(seed, image_ids, model.vocab_size, device)
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.tokens.weight.dtype
    training = model.training
    model.eval()
    try:
        # Not by autocast, which would cast the weights at every token
        with torch.autocast(device.type, enabled=False), packed(model, dtype, len(row_labels)):
            cache = model.new_cache(len(row_labels), dtype)

            def choose(hidden: Tensor) -> Tensor:
                return _choose(model.logits(hidden), config, noise.negative)

            def advance(token: Tensor) -> Tensor:
                return choose(model.step(token.repeat(2) if guided else token, cache))

            hidden = model.prefill(tokens[:, :given].repeat(2 if guided else 1, 1), row_labels, cache)  # (R, D)
            noise.draw()
            tokens[:, given] = token = choose(hidden)  # (B,)
            worth_a_graph = device.type == "cuda" and model.num_tokens - given > GRAPH_STEPS
            following = as_graph(advance, token, cache) if worth_a_graph else advance
            for t in range(given + 1, model.num_tokens):
                noise.draw()
                tokens[:, t] = token = following(token)
    finally:
        model.train(training)
    return tokens


def _choose(logits: Tensor, config: SamplingConfig, negative: Tensor) -> Tensor:
    """One token (B,) out of the logits (R, V) of a step and the numbers (B, V) of a `Noise`, which are overwritten."""
    logits = logits.float()
    if config.guidance_scale != 1:
        conditional, unconditional = logits.chunk(2)
        logits = unconditional + config.guidance_scale * (conditional - unconditional)
    if config.temperature != 1:
        logits = logits / config.temperature
    logits = filter_logits(logits, config.top_k, config.top_p)
    return torch.div(logits.softmax(1), negative, out=negative).argmin(1)


Advance = Callable[[Tensor], Tensor]  # the tokens (B,) chosen last -> the next


def at_slot(cache: Sequence[KVCache], slot: Tensor | None) -> None:
    """Lets the steps take place at `slot` (1,), a number on the device; None: after the last one."""
    for block_cache in cache:
        block_cache.slot = slot


def as_graph(advance: Advance, token: Tensor, cache: Sequence[KVCache]) -> Advance:
    """`advance` as a CUDA graph, a single launch a token; `advance` itself, with a warning, where it cannot be one."""
    slot, given = cache[0].next_slot(), token.clone()
    at_slot(cache, slot)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries set themselves up; what these write into the cache is written again
                advance(given)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            chosen = advance(given)
    except RuntimeError as error:
        warnings.warn(f"sampling runs without a CUDA graph: {error}", stacklevel=2)
        at_slot(cache, None)
        return advance

    def replay(token: Tensor) -> Tensor:
        given.copy_(token)
        graph.replay()
        slot.add_(1)
        return chosen

    return replay
