"""Gradients, losses, averages and look-up of every quantizer, against formulas written out here.

Shapes: N latents of d dimensions, K codes, C feature dimensions.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity_vectors import load_io, load_weights
from torch import Tensor

from lightning_modules.quantizers import (
    QUANTIZERS,
    EMAConfig,
    EMAQuantizer,
    FactorizedConfig,
    FactorizedQuantizer,
    LargeCodebook,
    LargeCodebookConfig,
    Quantizer,
    SimVQ,
    VectorQuantizer,
    VQConfig,
)
from lightning_modules.quantizers.search import dense

K, D, C = 40, 6, 10
PROJECT = Path(__file__).parents[2]

TRAINED_CODES = ["vq", "rotation", "factorized", "factorized_l2", "large_codebook", "simvq"]  # by gradient
WITH_LOSS = [*TRAINED_CODES, "ema", "lfq"]
KINDS = [*WITH_LOSS, "fsq"]
LEVELS = [5, 4, 3, 2, 7, 8]  # of FSQ: odd and even
SIZES = {"lfq": 2**D, "fsq": math.prod(LEVELS)}  # K of those that cannot have any


def make(kind: str, code_dim: int = D, **options: Any) -> Quantizer:
    """A quantizer whose codes lie among the latents of `latents()`, so that many of them are used."""
    torch.manual_seed(1)
    codebook_size = SIZES.get(kind, K)
    name = kind.removesuffix("_l2")
    cls, config_cls = QUANTIZERS[name]
    if name == "factorized":
        options["l2_norm"] = kind == "factorized_l2"
    if name == "large_codebook":
        options = {"feature_dim": C} | options
    if name == "lfq":  # its own loss has tests of its own
        options = {"entropy_weight": 0.0} | options
    if name == "fsq":
        options = {"levels": LEVELS} | options
    quantizer = cls(config_cls(**options), codebook_size, code_dim)
    if isinstance(quantizer, LargeCodebook):
        quantizer.fill(torch.randn(codebook_size, options["feature_dim"]))
        quantizer.is_matched = True  # as after the first batch
    elif isinstance(quantizer, EMAQuantizer):
        quantizer.place(torch.randn(codebook_size, code_dim), 1.0)
        quantizer.is_placed = True
    elif isinstance(quantizer, SimVQ):
        torch.nn.init.normal_(quantizer.projector.weight)
    elif hasattr(quantizer, "codes"):
        torch.nn.init.normal_(quantizer.codes)  # type: ignore[arg-type]
    return quantizer


def latents(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, D, requires_grad=True)


def trained_parameter(quantizer: Quantizer) -> Tensor:
    """Where the codebook term's gradient must arrive."""
    is_projected = isinstance(quantizer, (LargeCodebook, SimVQ))
    return quantizer.projector.weight if is_projected else quantizer.codes  # type: ignore[return-value]


# ---- what holds for all of them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_lookup_of_the_indices_is_the_quantized_latent_bit_for_bit(kind: str, training: bool) -> None:
    quantizer = make(kind).train(training)
    codebook = quantizer.codebook().detach().clone()  # before EMA's update
    output = quantizer(latents(2, 3, 4) * 1e3)
    assert output.quantized.shape == (2, 3, 4, D) and output.indices.shape == (2, 3, 4)
    assert output.indices.dtype == torch.int64 and output.loss.ndim == 0
    assert torch.equal(output.quantized, codebook[output.indices])
    if not (kind == "ema" and training):
        assert torch.equal(output.quantized, quantizer.lookup(output.indices))


@pytest.mark.parametrize("kind", KINDS)
def test_indices_are_those_of_a_dense_search(kind: str) -> None:
    quantizer, z = make(kind).eval(), latents(200)
    distances = torch.cdist(seen_by(kind, z).double(), quantizer.codebook().double())  # (N, K)
    indices = quantizer(z).indices
    assert torch.equal(indices, distances.argmin(1))
    assert len(indices.unique()) > min(len(z), quantizer.codebook_size) // 3, "the case is too easy"


def seen_by(kind: str, z: Tensor) -> Tensor:
    """The latents that are compared with the codes."""
    if kind == "fsq":
        return grid_position(z)
    return F.normalize(z, dim=-1) if kind == "factorized_l2" else z


def grid_position(z: Tensor) -> Tensor:
    """FSQ's bounded latents in the codes' unit, one dimension at a time (arXiv 2309.15505, appendix A.1)."""
    columns = []
    for x, level in zip(z.unbind(-1), LEVELS, strict=True):
        reach, offset = (level - 1) * 0.999 / 2, 0.5 if level % 2 == 0 else 0.0
        columns.append((torch.tanh(x + math.tan(offset / reach)) * reach - offset) / (level // 2))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rotation"])
def test_straight_through_gradient(kind: str) -> None:
    """The upstream gradient arrives unchanged; with l2-norm or FSQ's bound, through their Jacobian."""
    quantizer, z = make(kind), latents(5, 7)
    upstream = torch.randn(5, 7, D)
    (quantizer(z).quantized * upstream).sum().backward()
    expected = upstream
    if kind == "factorized_l2":
        norm = z.detach().norm(dim=-1, keepdim=True)
        unit = z.detach() / norm
        expected = (upstream - unit * (unit * upstream).sum(-1, keepdim=True)) / norm  # (I - u u^T) g / |z|
        torch.testing.assert_close(z.grad, expected)
    elif kind == "fsq":
        x, step = z.detach().double(), 1e-6
        slope = (grid_position(x + step) - grid_position(x - step)) / (2 * step)  # each dimension is on its own
        torch.testing.assert_close(z.grad.double(), upstream * slope, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(z.grad, expected)
    for parameter in quantizer.parameters():
        assert parameter.grad is None or not parameter.grad.any(), "quantized latents must not move the codes"


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_loss_is_the_formula(kind: str) -> None:
    codebook_weight = 0.7 if kind in TRAINED_CODES else 0.0
    quantizer = make(kind, commitment_weight=0.3, codebook_weight=codebook_weight).eval()
    z = latents(50)
    output = quantizer(z)
    squared = (seen_by(kind, z) - quantizer.codebook()[output.indices]).square().mean()
    torch.testing.assert_close(output.loss, (0.3 + codebook_weight) * squared)


@pytest.mark.parametrize("kind", WITH_LOSS)
def test_commitment_weight_reaches_the_latents_alone(kind: str) -> None:
    quantizer = make(kind, commitment_weight=0.25, codebook_weight=0.0)
    z, codes = latents(50), quantizer.codebook().detach().clone()
    output = quantizer(z)
    output.loss.backward()
    x = z.detach().requires_grad_()
    (0.25 * F.mse_loss(seen_by(kind, x), codes[output.indices])).backward()
    torch.testing.assert_close(z.grad, x.grad)
    assert z.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in quantizer.parameters())


@pytest.mark.parametrize("kind", TRAINED_CODES)
def test_codebook_weight_reaches_the_codes_alone(kind: str) -> None:
    quantizer = make(kind, commitment_weight=0.0, codebook_weight=0.5)
    z = latents(50)
    output = quantizer(z)
    output.loss.backward()
    assert not z.grad.any()
    parameter = trained_parameter(quantizer)
    actual = parameter.grad.clone()
    quantizer.zero_grad()
    (0.5 * F.mse_loss(quantizer.codebook()[output.indices], seen_by(kind, z).detach())).backward()
    torch.testing.assert_close(actual, parameter.grad)
    assert actual.any()


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str) -> None:
    first, z = make(kind), latents(64)
    first(z)  # EMA moves
    second = make(kind)
    for value in second.state_dict().values():
        value.zero_()
    second.load_state_dict(first.state_dict())
    a, b = first.eval()(z), second.eval()(z)
    assert torch.equal(a.indices, b.indices) and torch.equal(a.quantized, b.quantized)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_latents_are_searched_in_float32(kind: str) -> None:
    options = {"entropy_weight": 0.1, "temperature": 4.0} if kind == "lfq" else {}
    quantizer, z = make(kind, **options).eval(), latents(100).detach().bfloat16()
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        looked_up = quantizer.lookup(output.indices)
    assert output.quantized.dtype == torch.float32
    assert torch.equal(output.indices, expected.indices) and torch.equal(output.loss, expected.loss)
    assert torch.equal(output.quantized, expected.quantized) and torch.equal(output.quantized, looked_up)


@pytest.mark.parametrize("kind", ["ema", "fsq", "lfq"])
def test_a_codebook_weight_without_trained_codes_is_an_error(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"codebook_weight=0\.5.*'{kind}'"):
        make(kind, codebook_weight=0.5)


def test_no_codes_is_an_error() -> None:
    with pytest.raises(ValueError, match="codebook_size=0"):
        VectorQuantizer(VQConfig(), 0, 4)


def test_l2_norm_puts_codes_and_quantized_latents_on_the_sphere() -> None:
    quantizer = make("factorized_l2")
    torch.testing.assert_close(quantizer.codebook().norm(dim=1), torch.ones(K))
    torch.testing.assert_close(quantizer(latents(9)).quantized.norm(dim=1), torch.ones(9))
    assert FactorizedConfig().l2_norm, "paper A's choice is the default"


# ---- moving averages


def assigned(z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """n (K,) and the sums of latents (K, d) of each code."""
    one_hot = F.one_hot(indices.flatten(), K).to(z.dtype)  # (N, K)
    return one_hot.sum(0), one_hot.T @ z.flatten(0, -2)


def test_ema_equals_the_closed_form() -> None:
    """After T steps: N = g^T N_0 + (1 - g) sum_t g^(T - t) n_t, and the same of the sums."""
    decay, eps, steps = 0.8, 1e-3, 4
    quantizer = make("ema", decay=decay, eps=eps)
    assert isinstance(quantizer, EMAQuantizer)
    counts, sums = torch.ones(K), quantizer.codes.clone()
    terms = []
    for step in range(steps):
        torch.manual_seed(step)
        z = torch.randn(30, D)
        terms.append(assigned(z, quantizer(z).indices))
    powers = [(1 - decay) * decay ** (steps - 1 - t) for t in range(steps)]
    counts = decay**steps * counts + sum(p * n for p, (n, _) in zip(powers, terms, strict=True))
    sums = decay**steps * sums + sum(p * m for p, (_, m) in zip(powers, terms, strict=True))
    total = counts.sum()
    smoothed = (counts + eps) / (total + K * eps) * total
    torch.testing.assert_close(quantizer.counts, counts)
    torch.testing.assert_close(quantizer.sums, sums)
    torch.testing.assert_close(quantizer.codes, sums / smoothed[:, None])


def test_ema_does_not_change_in_eval() -> None:
    quantizer = make("ema").eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents(50))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    quantizer.train()(latents(50))
    state = quantizer.state_dict()
    assert not any(torch.equal(before[name], state[name]) for name in ("codes", "counts", "sums"))


def test_ema_has_no_parameters() -> None:
    assert not list(make("ema").parameters())


def test_reseeding_gives_dead_codes_a_latent_with_sum_and_count_to_match() -> None:
    quantizer = make("ema", decay=0.5, eps=1e-12, dead_code_threshold=0.6)
    assert isinstance(quantizer, EMAQuantizer)
    z = torch.randn(3, D) + 50  # three latents far away: at most three codes live on
    share = 3 / K  # the fair share of a step of three latents
    quantizer.counts.fill_(share)
    indices = quantizer(z).indices
    dead = torch.ones(K, dtype=torch.bool)
    dead[indices] = False
    assert dead.sum() >= K - 3
    assert torch.equal(quantizer.counts[dead], torch.full((int(dead.sum()),), share))
    distances = (quantizer.sums[dead][:, None] / share - z).norm(dim=-1)  # (dead, 3)
    assert distances.amin(1).max() < 0.1 * z.std(0).norm(), (
        "the sum is the share of the latent that was picked, or nearly"
    )
    assert len(distances.argmin(1).unique()) == 3, "not all codes get the same latent"
    assert len(quantizer.sums.unique(dim=0)) == K, "no two codes are equal: one of them would never win"
    torch.testing.assert_close(quantizer.codes[dead], quantizer.sums[dead] / share)
    # A code that was not dead keeps its average: (3 / K + n) / 2.
    alive = indices.unique()
    torch.testing.assert_close(quantizer.counts[alive], (share + torch.bincount(indices, minlength=K)[alive]) / 2)


def test_no_reseeding_by_default() -> None:
    quantizer = make("ema", decay=0.5)
    for _ in range(4):
        quantizer(torch.full((3, D), 50.0))
    assert int((quantizer.counts < 0.1).sum()) == K - 1


def after_two_steps_without_quantization(quantizer: Quantizer, z: Tensor) -> Quantizer:
    """In which latents pass as they are. A step is of two micro-batches here; a checkpoint goes on where it was."""
    first, flags = quantizer.codebook().clone(), set(quantizer.flags) - {"num_waited", "is_filled"}
    for step in range(2):
        quantizer.start_step(2)
        for _ in range(2):
            output = quantizer(leaf := z.clone().requires_grad_())
            (output.quantized.sum() + output.loss).backward()
            prepared = quantizer.prepare(leaf)
            assert torch.equal(output.quantized, prepared) and not output.loss and not output.indices.any()
            assert all(p.grad is not None and not p.grad.any() for p in quantizer.parameters()), "DDP waits for them"
        state = quantizer.state_dict()
        assert int(state["num_waited"]) == 2 * (step + 1) and not any(state[flag] for flag in flags)
        quantizer = type(quantizer)(quantizer.config, K, D)
        quantizer.load_state_dict(state)
    quantizer.start_step(1)
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook(), first), "evaluation places nothing"
    return quantizer.train()


def test_a_step_that_an_epochs_end_leaves_unfinished_counts_for_nothing() -> None:
    """Of micro-batches 1, 2, 3 the third is dropped: the second step is again of two, and quantizes neither."""
    cls, config = QUANTIZERS["vq"]
    quantizer, z = cls(config(init="latents", place_at=2), K, D), torch.randn(200, D)
    for num_made in (2, 1, 2, 2):
        quantizer.start_step(2)
        waiting = [not quantizer(z).indices.any() for _ in range(num_made)]
        assert len(set(waiting)) == 1
    assert not waiting[0]


@pytest.mark.parametrize("kind", ["vq", "factorized", "ema"])
def test_first_codes_are_latents_of_the_step_they_are_placed_at(kind: str) -> None:
    cls, config = QUANTIZERS[kind]
    z = torch.randn(200, D) + 50
    quantizer = after_two_steps_without_quantization(cls(config(init="latents", place_at=2), K, D), z)
    output, prepared = quantizer(z), quantizer.prepare(z)
    assert (output.quantized - prepared).norm(dim=1).mean() < prepared.std(0).norm()
    assert len(output.indices.unique()) > K * 0.8
    placed = quantizer.codebook().clone()
    quantizer(z - 100)
    assert torch.equal(quantizer.codebook(), placed) or kind == "ema", "codes are placed once"


def test_placed_averages_begin_with_the_fair_share() -> None:
    quantizer = EMAQuantizer(EMAConfig(init="latents", decay=0.5), K, D)
    quantizer.start_step(2)
    z = torch.randn(200, D)
    quantizer(z)
    share = torch.full((K,), 2 * 200 / K)  # of the latents of both micro-batches
    assert torch.equal(quantizer.counts, share)
    torch.testing.assert_close(quantizer.sums, share[:, None] * quantizer.codes)
    quantizer(z)
    torch.testing.assert_close(quantizer.counts.sum(), torch.tensor(400.0))


def test_ema_starts_as_in_the_code_of_paper_b() -> None:
    """Codes uniform in (-1/K, 1/K), counts of 0; one that no latent chose is its first value over eps, shrinking."""
    quantizer = EMAQuantizer(EMAConfig(), K, D)
    codes = quantizer.codes.clone()
    assert codes.abs().max() < 1 / K < 1.3 * codes.abs().max() and not quantizer.counts.any()
    indices = quantizer(torch.randn(50, D)).indices
    assert torch.isfinite(quantizer.codes).all()
    unused = torch.ones(K, dtype=torch.bool)
    unused[indices] = False
    total, eps = 0.01 * 50, 1e-5
    expected = 0.99 * codes[unused] / (eps / (total + K * eps) * total)
    torch.testing.assert_close(quantizer.codes[unused], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "latent"}, r"init='latent' is none of random, latents"),
        ({"place_at": 5}, r"place_at=5 needs quantizer.init=latents"),
        ({"dead_code_threshold": 1.0}, r"dead_code_threshold=1.0 is a part of the fair share"),
    ],
)
def test_what_a_start_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMAQuantizer(EMAConfig(**options), K, D)


def test_reseeded_codes_stay_in_use_where_latents_move_on() -> None:
    """The latents leave the region where the codes were placed, as an encoder's do in its first steps."""
    shares = []
    for threshold in (0.0, 0.5):
        torch.manual_seed(0)
        quantizer = EMAQuantizer(EMAConfig(init="latents", dead_code_threshold=threshold), 256, D)
        for step in range(150):
            output = quantizer(torch.randn(512, D) + min(step, 100) / 20)
        shares.append(len(output.indices.unique()) / 256)
    assert shares[0] < 0.1 and shares[1] > 0.4, f"{shares} of the codes in one batch of two latents a code"


@pytest.mark.parametrize("training", [True, False])
def test_without_a_quantizer_latents_pass_as_they_are(training: bool) -> None:
    cls, config = QUANTIZERS["none"]
    quantizer = cls(config(), 0, D).train(training)
    z = latents(4, 5)
    output = quantizer(z)
    output.quantized.sum().backward()
    assert torch.equal(output.quantized, z) and torch.equal(z.grad, torch.ones_like(z))  # type: ignore[arg-type]
    assert output.loss == 0 and output.indices.shape == (4, 5) and not quantizer.state_dict()
    with pytest.raises(ValueError, match=r"has no codes: model.codebook_size=7 must be 0"):
        cls(config(), 7, D)


def ema_rank(rank: int, folder: str, threshold: float) -> None:
    """One of two processes, which sees its half of each batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    quantizer = make("ema", decay=0.9, dead_code_threshold=threshold)
    quantizer.is_placed = not threshold
    torch.manual_seed(rank)  # random picks differ between ranks, unless they are exchanged
    for z in joint_batches():
        quantizer(z[rank::2])
    torch.save(quantizer.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def joint_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(64, D, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("threshold", [0.0, 0.95])
def test_ema_codebooks_of_two_processes_are_equal(tmp_path: Path, threshold: float) -> None:
    """Bit-equal between the ranks; without random picks also equal to one process's that saw the joint batch."""
    torch.multiprocessing.start_processes(ema_rank, (str(tmp_path), threshold), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    alone = make("ema", decay=0.9)
    for z in joint_batches():
        alone(z)
    if threshold:
        assert not torch.allclose(first["codes"], alone.codebook()), "nothing was picked"
    else:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(first[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_ranked_codes_are_those_of_a_full_sort(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "RANKED_PAIRS", 100)  # several blocks
    quantizer = make(kind).eval()
    z = latents(4, 5).detach()
    order = torch.cdist(quantizer.prepare(z).double(), quantizer.codebook().detach().double()).argsort(-1)
    last = quantizer.codebook_size
    ranked = quantizer.ranked(z, [1, 3, last])
    if kind not in ("fsq", "lfq"):  # whose grids have many pairs of equal distance
        assert torch.equal(ranked, order[..., [0, 2, last - 1]])
    assert torch.equal(ranked[..., 0], quantizer(z).indices)


@pytest.mark.parametrize("kind", ["vq", "ibq"])
def test_codes_ranked_among_some(kind: str) -> None:
    """As in the order of all, without the others."""
    quantizer, z, among = make(kind).eval(), latents(4, 5).detach(), torch.tensor([1, 5, 6, 30])
    order = quantizer.ranked(z, range(1, K + 1))
    wanted = order[torch.isin(order, among)].view(*order.shape[:-1], len(among))
    assert torch.equal(quantizer.ranked(z, [1, 2, 4], among), wanted[..., [0, 1, 3]])
    with pytest.raises(ValueError, match="between 1 and the 4 codes"):
        quantizer.ranked(z, [5], among)


@pytest.mark.parametrize("rank", [0, K + 1])
def test_a_rank_beyond_the_codebook(rank: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 40 codes"):
        make("vq").ranked(latents(3), [1, rank])


# ---- large codebook


def test_table_is_frozen_and_projector_is_trained() -> None:
    quantizer = make("large_codebook")
    assert isinstance(quantizer, LargeCodebook)
    table = quantizer.table.clone()
    assert {name for name, _ in quantizer.named_parameters()} == {"projector.weight", "projector.bias"}
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    before = quantizer.projector.weight.detach().clone()
    quantizer(latents(50)).loss.backward()
    optimizer.step()
    assert torch.equal(quantizer.table, table)
    assert not torch.equal(quantizer.projector.weight, before)


def test_a_trainable_table_learns_beside_its_projector() -> None:
    """B-Table 10, second row."""
    quantizer = make("large_codebook", train_table=True)
    output = quantizer(latents(50))
    output.loss.backward()
    assert isinstance(quantizer, LargeCodebook) and isinstance(quantizer.table, torch.nn.Parameter)
    used = output.indices.unique()
    assert quantizer.table.grad is not None and quantizer.table.grad[used].abs().sum(1).min() > 0
    assert set(quantizer.state_dict()) == set(make("large_codebook").state_dict())


def test_without_a_projector_the_codes_are_the_features() -> None:
    """B-Table 10, first row."""
    quantizer = make("large_codebook", project=False, feature_dim=D)
    assert isinstance(quantizer, LargeCodebook)
    assert torch.equal(quantizer.codebook(), quantizer.table) and not list(quantizer.parameters())
    quantizer.is_matched = False
    quantizer(latents(50))
    with pytest.raises(ValueError, match=f"code_dim={D} must be feature_dim={C}"):
        make("large_codebook", project=False, feature_dim=C)


def test_the_official_initialisation_is_left_alone_without_match_scale() -> None:
    quantizer = LargeCodebook(LargeCodebookConfig(feature_dim=C, match_scale=False), K, D)
    quantizer.fill(torch.randn(K, C))
    weight = quantizer.projector.weight.clone()  # type: ignore[operator,union-attr]
    quantizer.train()(100 * latents(50))
    assert torch.equal(quantizer.projector.weight, weight)


def empty_codebook() -> LargeCodebook:
    return LargeCodebook(LargeCodebookConfig(feature_dim=C), K, D)


@pytest.mark.parametrize("shape", [(K, C + 1), (K - 1, C), (K * C,)])
def test_fill_with_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(40, 10\).*build_codebook"):
        empty_codebook().fill(torch.zeros(shape))


def test_fill_with_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        empty_codebook().fill(torch.full((K, C), torch.nan))


def test_forward_before_fill() -> None:
    with pytest.raises(RuntimeError, match="fill"):
        empty_codebook()(latents(3))


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_projected_table_takes_mean_and_deviation_of_the_first_latents(scale: float) -> None:
    quantizer = empty_codebook()
    torch.manual_seed(5)
    quantizer.fill(torch.randn(K, C) * torch.linspace(0.1, 5, C) + 3)
    z = torch.randn(20, 10, D) * torch.linspace(1, 3, D) * scale + torch.arange(D) * scale
    with torch.no_grad():
        quantizer.eval()(z)
    assert not quantizer.is_matched, "evaluation is not the first batch"
    usage = len(quantizer.train()(z).indices.unique())
    projected, tokens = quantizer.codebook(), z.flatten(0, 1)
    torch.testing.assert_close(projected.mean(0), tokens.mean(0), rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(projected.std(0), tokens.std(0), rtol=1e-2, atol=1e-4 * scale)
    assert usage > K // 2, "a handful of codes wins"

    weight = quantizer.projector.weight.clone()
    quantizer(z * 7)
    assert torch.equal(quantizer.projector.weight, weight), "only the first batch counts"
    again = empty_codebook()
    again.load_state_dict(quantizer.state_dict())
    again(z * 7)
    assert torch.equal(again.projector.weight, weight), "also after a checkpoint"


def test_the_projector_is_matched_to_latents_of_the_step_it_is_asked_for() -> None:
    quantizer = LargeCodebook(LargeCodebookConfig(feature_dim=C, match_at=2), K, D)
    quantizer.fill(torch.randn(K, C))
    z = torch.randn(200, D) + 50
    quantizer = after_two_steps_without_quantization(quantizer, z)
    assert len(quantizer(z).indices.unique()) > K // 2
    torch.testing.assert_close(quantizer.codebook().mean(0), z.mean(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{"match_scale": False}, {"project": False, "feature_dim": D}, {"match_at": -1}])
def test_what_is_never_matched_waits_for_no_step(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"match_at=.* must be a step, and needs quantizer.project"):
        LargeCodebookConfig(**{"match_at": 5} | options).check(K, D)


@pytest.mark.parametrize(("kind", "flags"), [("large_codebook", {"is_filled", "is_matched"})])
def test_checkpoints_keep_flags_as_bool_tensors_of_the_same_names(kind: str, flags: set[str]) -> None:
    state = make(kind).state_dict()
    assert {name for name, value in state.items() if value.dtype == torch.bool} == flags
    quantizer = make(kind)
    for value in (True, False):
        for name in flags:
            setattr(quantizer, name, not value)
        quantizer.load_state_dict(state | dict.fromkeys(flags, torch.tensor(value)))
        assert all(getattr(quantizer, name) is value for name in flags)
    with pytest.raises(RuntimeError, match=f"Missing key.*{min(flags)}"):
        quantizer.load_state_dict({name: value for name, value in state.items() if name not in flags})


# ---- parity with the public implementations


def check_against(io: dict[str, Tensor], quantizer: Quantizer, suffix: str, loss: str, channels_first: bool) -> None:
    """Same indices, codes and loss, and the gradient of (quantised * W).sum() + loss at the latents."""

    def last(x: Tensor) -> Tensor:
        return x.movedim(1, -1) if channels_first else x

    z = last(io["latents"]).clone().requires_grad_()
    output = quantizer(z)
    assert torch.equal(output.indices, io["indices"])
    torch.testing.assert_close(output.quantized, last(io["codebook_entry"]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.loss, io[loss], atol=1e-6, rtol=1e-5)
    ((output.quantized * last(io["grad_weight"])).sum() + output.loss).backward()
    torch.testing.assert_close(z.grad, last(io[f"grad_latents{suffix}"]), atol=1e-6, rtol=1e-5)


def test_large_codebook_equals_vqgan_lc() -> None:
    weights, io = load_weights("vqgan_lc_quantizer"), load_io("vqgan_lc_quantizer")
    table = weights["tok_embeddings.weight"]
    config = LargeCodebookConfig(feature_dim=table.shape[1])  # 1.0 and 0.33 are the defaults
    quantizer = LargeCodebook(config, len(table), io["projected_codebook"].shape[1])
    quantizer.fill(table)
    quantizer.is_matched = True
    names = {"projector.weight": "codebook_projection.weight", "projector.bias": "codebook_projection.bias"}
    quantizer.load_state_dict({key: weights[public] for key, public in names.items()}, strict=False)
    torch.testing.assert_close(quantizer.codebook(), io["projected_codebook"], atol=1e-6, rtol=1e-5)
    check_against(io, quantizer, "", "loss", channels_first=True)
    for name in ("weight", "bias"):
        actual = getattr(quantizer.projector, name).grad
        torch.testing.assert_close(actual, io[f"grad_projection_{name}"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("variant", "commitment", "codebook"), [("legacy", 1.0, 0.25), ("fixed", 0.25, 1.0)])
def test_vq_equals_taming(variant: str, commitment: float, codebook: float) -> None:
    weights, io = load_weights("taming_cnn"), load_io("taming_cnn")
    codes = weights["quantize.embedding.weight"]
    quantizer = VectorQuantizer(VQConfig(commitment_weight=commitment, codebook_weight=codebook), *codes.shape)
    quantizer.load_state_dict({"codes": codes})
    check_against(io, quantizer, f"_{variant}", f"codebook_loss_{variant}", channels_first=True)
    torch.testing.assert_close(quantizer.codes.grad, io[f"grad_codebook_{variant}"], atol=1e-6, rtol=1e-4)


def test_factorized_equals_enhancing() -> None:
    """Values, loss and gradients; 0.25 and 1.0 are the defaults.

    Departs on one path: the public code hands the gradient of the normalised code to the latents before normalisation,
    this suite to the normalised ones, as the chain rule has it. So the public gradient is the loss's gradient plus W.
    """
    weights, io = load_weights("enhancing_vit"), load_io("enhancing_vit")
    codes = weights["quantizer.embedding.weight"]
    quantizer = FactorizedQuantizer(FactorizedConfig(), *codes.shape)
    quantizer.load_state_dict({"codes": codes})
    z = io["latents"].clone().requires_grad_()
    output = quantizer(z)
    assert torch.equal(output.indices, io["indices"])
    torch.testing.assert_close(output.quantized, io["codebook_entry"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.loss, io["quantiser_loss"], atol=1e-6, rtol=1e-5)
    output.loss.backward()
    torch.testing.assert_close(z.grad + io["grad_weight"], io["grad_latents"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(quantizer.codes.grad, io["grad_codebook"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("latents", [5, 400])  # fewer than codes, and more
def test_a_projector_gets_the_gradient_of_the_whole_projected_table(latents: int) -> None:
    torch.manual_seed(0)
    cls, config = QUANTIZERS["simvq"]
    quantizer = cls(config(), K, D)
    z = torch.randn(latents, D)
    output = quantizer(z)
    expected = quantizer.vq_loss(z, F.embedding(output.indices, quantizer.codebook()))
    parameters = list(quantizer.projector.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (output.loss, expected)), strict=True):
        torch.testing.assert_close(a, b)
