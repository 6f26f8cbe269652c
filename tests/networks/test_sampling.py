"""Sampling: what the options cut off, guidance, seeds, prompts, errors, and the distribution itself."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_modules.networks import sampling
from lightning_modules.networks.few_rows import Linear
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import Noise, SamplingConfig, filter_logits, generate

VOCABULARY, CLASSES = 40, 3


@pytest.fixture(scope="module")
def model() -> GPT:
    """Two blocks over 3 x 3 tokens, in training mode with dropout, which sampling must switch off."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(dims=[2, 2, 16, 32], dropout=0.5), VOCABULARY, (3, 3), CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def labels_of(image_ids: range) -> Tensor:
    return torch.tensor(image_ids) % CLASSES


def sample(model: GPT, image_ids: range, **options: float) -> Tensor:
    return generate(model, image_ids, labels_of(image_ids), SamplingConfig(**options))  # type: ignore[arg-type]


def greedy_without_cache(model: GPT, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Argmax of the guided logits, from whole sequences."""
    model.eval()
    tokens = torch.empty(len(labels), 0, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(model.num_tokens):
            conditional, unconditional = (model.logits(model(tokens, kind)[:, -1]) for kind in (labels, None))
            logits = unconditional + scale * (conditional - unconditional)
            tokens = torch.cat([tokens, logits.argmax(1, keepdim=True)], dim=1)
    model.train()
    return tokens


# ---- seeds


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0, "top_k": 12, "top_p": 0.9, "temperature": 1.2}])
def test_same_images_at_any_batch_size(model: GPT, options: dict) -> None:
    """13 rows and more take other matrix products than one does."""
    together = sample(model, range(13), **options)
    assert together.shape == (13, 9) and together.dtype == torch.long
    assert model.training
    for size in (1, 4):
        parts = [sample(model, range(13)[first : first + size], **options) for first in range(0, 13, size)]
        assert torch.equal(torch.cat(parts), together)
    assert len(together.unique(dim=0)) == 13


def test_seed_and_image_change_the_noise(model: GPT) -> None:
    def noise(seed: int, image: int) -> Tensor:
        return Noise(seed, [image], 100, torch.device("cpu")).draw()[0].clone()

    assert torch.equal(noise(3, 7), noise(3, 7))
    others = [noise(3, 8), noise(4, 7), noise(4, 6)]
    assert all((noise(3, 7) - other).abs().min() > 0 for other in others)
    assert not torch.equal(generate(model, range(4), seed=0), generate(model, range(4), seed=1))


def test_samples_follow_the_distribution() -> None:
    """20,000 draws of one token against its softmax, by the chi-squared statistic (14 degrees of freedom)."""
    torch.manual_seed(0)
    logits = torch.randn(15)
    noise = Noise(0, range(20_000), 15, torch.device("cpu"))
    tokens = sampling._choose(logits.expand(20_000, -1), SamplingConfig(temperature=0.7), noise.draw())
    drawn = tokens.bincount(minlength=15)
    expected = 20_000 * (logits / 0.7).softmax(0)
    assert ((drawn - expected).square() / expected).sum() < 36.1  # exceeded by one in a thousand


def test_impossible_tokens_are_not_drawn() -> None:
    """Also where the likeliest have the smallest numbers that there are, and the impossible the largest."""
    logits = torch.tensor([[0.0, -torch.inf, -1.0, -torch.inf]])
    noise = torch.tensor([[-40.0, -1e-16, -40.0, -torch.inf]], dtype=torch.float64)
    assert sampling._choose(logits, SamplingConfig(), noise).item() == 0


@pytest.mark.parametrize("vocabulary", [100, 2**14])
def test_numbers_drawn_ahead_are_the_images_own(vocabulary: int) -> None:
    """As on a GPU: several tokens' numbers at once, fewer of a large vocabulary, whatever the batch."""
    device = torch.device("cpu")
    one_by_one = Noise(1, [4], vocabulary, device)
    together = Noise(1, range(6), vocabulary, device)
    ahead = min(16, 2**17 // vocabulary)
    together.drawn, together.used = torch.empty(6, ahead, vocabulary, dtype=torch.float64), ahead
    for _ in range(20):
        assert torch.equal(together.draw()[4], one_by_one.draw()[0])


# ---- a step of fixed shapes, and bf16


def test_step_at_a_slot_on_the_device_equals_the_plain_step(model: GPT) -> None:
    """What a CUDA graph repeats: over whole buffers, with a mask, from a slot that is a tensor."""
    model.eval()
    tokens, labels = torch.randint(VOCABULARY, (5, 9)), labels_of(range(5))
    plain, fixed = model.new_cache(5), model.new_cache(5)
    with torch.inference_mode():
        for cache in (plain, fixed):
            hidden = model.prefill(tokens[:, :2], labels, cache)
        slot = fixed[0].next_slot()
        sampling.at_slot(fixed, slot)
        for t in range(2, 8):  # the last token is never an input
            for _ in range(2):  # a repeated step changes nothing
                repeated = model.step(tokens[:, t], fixed)
            hidden = model.step(tokens[:, t], plain)
            torch.testing.assert_close(repeated, hidden, atol=1e-5, rtol=1e-5)
            slot.add_(1)
    assert fixed[0].length == 3 and plain[0].length == 9
    model.train()


def test_without_a_cuda_graph_sampling_goes_on(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    cache = model.new_cache(2)

    def advance(token: Tensor) -> Tensor:
        return token + 1

    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        assert sampling.as_graph(advance, torch.zeros(2), cache) is advance
    assert cache[0].slot is None


def test_autocast_samples_in_bf16(model: GPT) -> None:
    """The weights and the cache are cast once, and the model is left as it was."""
    dtypes = []
    handle = model.blocks[0].mlp[0].register_forward_hook(lambda _, __, y: dtypes.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = sample(model, range(5))
        assert torch.equal(sample(model, range(2)), tokens[:2])
    handle.remove()
    assert set(dtypes) == {torch.bfloat16}
    assert all(layer.copy is None for layer in model.modules() if isinstance(layer, Linear))
    assert float((tokens == sample(model, range(5))).float().mean()) > 0.5


# ---- greedy and cut-offs


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_one_candidate_is_argmax(model: GPT, options: dict) -> None:
    images = range(6)
    tokens = sample(model, images, **options)
    assert torch.equal(tokens, greedy_without_cache(model, labels_of(images)))
    assert torch.equal(tokens, generate(model, images, labels_of(images), SamplingConfig(**options), seed=5))


def test_top_k_keeps_k_also_of_equal_logits() -> None:
    kept = filter_logits(torch.tensor([[0.0, 3, 1, 2], [1, 1, 1, 1]]), top_k=2).isfinite()
    assert kept[0].tolist() == [False, True, False, True]
    assert kept[1].sum() == 2
    logits = torch.randn(2, 4)
    assert filter_logits(logits, top_k=4) is logits and filter_logits(logits, top_k=9) is logits


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [1, 2, 3]), (0.999, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    filtered = filter_logits(logits, top_p=top_p)
    assert filtered.isfinite()[0].nonzero().flatten().tolist() == kept
    assert torch.equal(filtered[0, kept], logits[0, kept])


def test_top_p_1_changes_nothing_and_follows_top_k() -> None:
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    assert filter_logits(logits, top_p=1.0) is logits
    # of the best two, 0.5 and 0.3, the first has 62 %
    assert filter_logits(logits, top_k=2, top_p=0.6).isfinite()[0].tolist() == [False, True, False, False]
    assert filter_logits(logits, top_k=2, top_p=0.7).isfinite()[0].tolist() == [False, True, False, True]


# ---- guidance


def test_guidance_scale_1_is_none(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda token, cache: (rows.append(len(token)), step(token, cache))[1])
    images = range(5)
    plain = generate(model, images, labels_of(images))
    assert torch.equal(sample(model, images, guidance_scale=1.0), plain)
    assert set(rows) == {5}
    rows.clear()
    sample(model, images, guidance_scale=1.5)
    assert set(rows) == {10}


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guided_logits(model: GPT, scale: float) -> None:
    images = range(4)
    tokens = sample(model, images, guidance_scale=scale, top_k=1)
    assert torch.equal(tokens, greedy_without_cache(model, labels_of(images), scale))
    if scale == 0:
        assert torch.equal(tokens, generate(model, images, None, SamplingConfig(top_k=1)))


# ---- prompts


@pytest.mark.parametrize("given", [1, 4, 8])
def test_prompt_is_kept_and_continued(model: GPT, given: int) -> None:
    images = range(4)
    labels, config = labels_of(images), SamplingConfig(top_k=1)
    whole = generate(model, images, labels, config)
    assert torch.equal(generate(model, images, labels, config, prompt=whole[:, :given]), whole)
    other = (whole[:, :given] + 1) % VOCABULARY
    tokens = generate(model, images, labels, config, prompt=other)
    assert torch.equal(tokens[:, :given], other)
    assert not torch.equal(tokens[:, given:], whole[:, given:])


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan must be above 0"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must be in \(0, 1\]"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options).check()


def test_bad_input(model: GPT) -> None:
    guided = SamplingConfig(guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\], got 0 to 4"):
        generate(model, range(2), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"labels must be \(3,\)"):
        generate(model, range(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"s in \[0, 8\], got \(2, 9\)"):
        generate(model, range(2), prompt=torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"prompt must be in \[0, 39\]"):
        generate(model, range(2), prompt=torch.full((2, 1), 40))
    with pytest.raises(ValueError, match="guidance_scale other than 1"):
        generate(model, range(2), config=guided)
    with pytest.raises(ValueError, match="guidance_scale other than 1"):
        generate(GPT(model.config, VOCABULARY, (3, 3)), range(2), torch.zeros(2, dtype=torch.long), guided)
